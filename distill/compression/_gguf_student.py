"""Whether and how a student becomes one GGUF file with a Modelfile beside it; what all GGUF options share."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distill.compression._about import About, sampling
from distill.compression._gguf_mixture import BLOCK, Mixture
from distill.family.known import family_of

if TYPE_CHECKING:
    import numpy as np

    from distill.compression._gguf import Planned


class GgufOption:
    """What every GGUF option does in the same way; `mixture` is its own."""

    runtime: ClassVar[str] = "llama.cpp"
    heals: ClassVar[bool] = False
    mixture: ClassVar[Mixture]

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """One sentence why llama.cpp would split text differently from the tokenizer in `folder`, or None."""
        return refuse_tokenizer(folder)

    def size_bytes(self, config: Mapping[str, Any]) -> int | None:
        """Bytes of the weights of a package of such a student, for a plan; None where none can be made of it."""
        return size_bytes(config, self.mixture)


def refuse(config: Mapping[str, Any]) -> str | None:
    """One sentence why a student of this config.json cannot become a GGUF, or None."""
    from distill.compression._gguf import ARCHITECTURES, layout_of

    model_type = config.get("model_type")
    if model_type in ("opt", "gpt_neo"):
        return (
            f"llama.cpp has no architecture for {model_type}; choose a student of the Llama shape, "
            f"or compress with bf16 or a bnb option instead."
        )
    if model_type not in ARCHITECTURES:
        return f"GGUF export knows the model types {', '.join(ARCHITECTURES)}, and not {model_type}{_way(config)}."
    if config.get("quantization_config"):
        return "config.json has a quantization_config; needed: a student with plain weights."
    layout = layout_of(model_type)
    for key in layout.NEEDED:
        if not config.get(key):
            return f"config.json has no {key}."
    width = "n_embd" if "n_embd" in layout.NEEDED else "hidden_size"
    if config[width] % BLOCK:
        return f"{width} {config[width]} is not a multiple of {BLOCK}, the smallest block of a quantised GGUF."
    return layout.refuse(config)


def refuse_tokenizer(folder: Path) -> str | None:
    """One sentence why llama.cpp would split text differently from the tokenizer in `folder`, or None.

    Where the folder has a config.json too, the vocabulary must fit into its embeddings.
    """
    from distill.compression._gguf_tokenizer import NotExpressible, gguf_tokenizer

    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    try:
        gguf_tokenizer(folder, config.get("vocab_size"))
    except NotExpressible as reason:
        return str(reason)
    return None


def size_bytes(config: Mapping[str, Any], mixture: Mixture) -> int | None:
    """Bytes of all tensors of the GGUF of such a student, by shapes alone; None where `refuse` speaks against it."""
    return _size_bytes(json.dumps(config), mixture)


@functools.cache
def _size_bytes(config: str, mixture: Mixture) -> int | None:
    from distill.compression._gguf import planned
    from distill.family.head import described_by

    model = described_by(json.loads(config))
    whole = model.config.to_dict()  # what a config.json leaves out has transformers' defaults
    if refuse(whole) is not None:
        return None
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return sum(one.size_bytes for one in planned(whole, shapes, mixture))


def export(
    student: Path,
    package: Path,
    file_name: str,
    mixture: Mixture,
    importance: "Mapping[str, np.ndarray] | None" = None,
    about: About | None = None,
) -> "list[Planned]":
    """Write `file_name` and a Modelfile for Ollama into `package` from the checkpoint `student`.

    Returns the tensors that went into it. `importance`, `about`: see `write_gguf`.

    Raises:
        StageFailed: the checkpoint or its tokenizer cannot be expressed; the message says which part.
    """
    from distill.compression._gguf import write_gguf
    from distill.compression._gguf_tokenizer import NotExpressible
    from distill.compression._modelfile import modelfile
    from distill.errors import StageFailed

    reason = refuse(json.loads((student / "config.json").read_text("utf-8")))
    if reason is not None:
        raise StageFailed(f"{student} cannot become a GGUF: {reason}")
    package.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer, plan = write_gguf(student, package / file_name, mixture, importance, about)
    except NotExpressible as problem:
        raise StageFailed(f"{student} cannot become a GGUF: {problem}") from problem
    (package / "Modelfile").write_text(modelfile(file_name, tokenizer, sampling(student)), "utf-8")
    return plan


def _way(config: Mapping[str, Any]) -> str:
    """What to do for a model that llama.cpp runs, and that we do not export."""
    family = family_of(config)
    if family is None or family.gguf is None:
        return ""
    return f"; llama.cpp runs it as {family.gguf}: make packages/bf16, then use llama.cpp's own convert_hf_to_gguf.py"
