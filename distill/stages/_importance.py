"""Which inputs of each linear layer are large on what the teachers answered: what a rounding error is weighted by.

llama.cpp calls it an importance matrix and takes any text for it. Here it is the very text that the student was
trained to say.

Source: llama.cpp, tools/imatrix/README.md: the mean of the squares of each input, over all tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.runtime.hf import Transformers


def importance_of(student: Path, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Name of each linear layer in blocks → mean square of each of its inputs, float32 `[in]`, none of them zero.

    Args:
        student: a checkpoint folder.
        rows: token ids, each row no longer than the student's positions.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    sums: dict[str, Any] = {}

    def add_to(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            square = inputs[0].detach().float().flatten(0, -2).square().sum(dim=0, dtype=torch.float64)
            sums[name] = sums.get(name, 0) + square

        return hook

    with Transformers(student) as runtime:
        head = runtime.model.get_output_embeddings()
        layers = {n: m for n, m in runtime.model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
        hooks = [layer.register_forward_pre_hook(add_to(n)) for n, layer in layers.items() if layer is not head]
        for row in rows:  # one at a time: padding would be counted
            runtime.logprobs([row], [[len(row) - 1]])
        for hook in hooks:
            hook.remove()
    num_tokens = sum(map(len, rows))
    means = {name: total.cpu().numpy() / num_tokens for name, total in sums.items()}
    # an input that never was anything weighs next to nothing; a block of nothing but zeros would have no scale
    return {name: np.maximum(mean, 1e-6 * mean.mean() + 1e-30).astype(np.float32) for name, mean in means.items()}
