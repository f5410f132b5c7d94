"""Transformers: runs any package that `transformers` loads; what evaluation, verification and chat ask for answers.

Letters: B rows in a batch, T tokens in the longest of them, N scored positions, V vocabulary, D hidden size.
"""

import contextlib
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import DataError, RecipeError
from distill.runtime._cache import empty_cache
from distill.runtime._cpu_attention import use_cpu_attention
from distill.runtime._loading import load_as, load_like, load_model, load_quantised
from distill.runtime._placement import default_device

__all__ = ["Transformers", "load_as", "load_model", "load_quantised"]

if TYPE_CHECKING:
    import torch

# Tokens per forward pass of `logprobs`: hidden states of a large student stay below a few hundred MiB.
TOKENS_PER_BATCH = 8192

Choose = Callable[["torch.Tensor", Sequence[int], int], "torch.Tensor"]


class Transformers:
    """A language model in memory, loaded from a checkpoint, a bitsandbytes package or an adapter package.

    `folder` is one of
      * a complete checkpoint (quantised by bitsandbytes or not), or a hub id;
      * such a checkpoint with an adapter beside its config.json (nf4 + LoRA): both are loaded;
      * an adapter alone (`adapter_config.json`, no `config.json`): its base is the folder or hub id named there.

    Weights and computation keep the stored dtype unless `dtype` (a torch dtype or its name) says otherwise.
    With `like`, the folder of a bitsandbytes package, the float checkpoint `folder` is quantised here and now in the
    way that package was: what a package must equal bit for bit. `quantise`, `device_map`: see `load_as`. With `model`
    and `tokenizer`, these are taken as they are, and `folder` is a name for messages.
    `trust_remote_code` is always off, and nothing is looked up online when the folder exists.
    The model is in eval mode and never packs its 4-bit weights (see `disable_cpu_packing`).
    """

    name = "transformers"

    def __init__(
        self,
        folder: Path | str,
        *,
        dtype: Any = None,
        device: str | None = None,
        quantise: str | None = None,
        device_map: str | None = None,
        like: Path | None = None,
        model: Any = None,
        tokenizer: Any = None,
    ):
        self.folder = folder
        if model is None:
            how = {"dtype": dtype, "device": device, "quantise": quantise, "device_map": device_map}
            model = load_as(folder, **how) if like is None else load_like(folder, like, device)
        self.model: Any = model
        kinds = (parameter.device.type for parameter in self.model.parameters())
        # "meta": a weight that waits in the CPU's memory or on the disk
        self.device: str = next((kind for kind in kinds if kind != "meta"), default_device())
        self.tokenizer = tokenizer or _load_tokenizer(folder)
        # PEFT's wrapper adds a call per forward and hides nothing that we need: its layers live inside the model.
        self._causal: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        use_cpu_attention(self._causal)
        config = self._causal.config
        self.vocab_size: int = config.vocab_size
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.eos_token_ids: frozenset[int] = _eos_token_ids(self._causal, self.tokenizer)
        # BLOOM derives positions from the mask and accepts none.
        self._takes_positions = "position_ids" in inspect.signature(type(self._causal).forward).parameters

    def __enter__(self) -> "Transformers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the weights; the object cannot be used afterwards."""
        import torch

        self.model = self._causal = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        batch_size: int = 128,
        progress: Callable[[int], None] | None = None,
        choose: Choose | None = None,
    ) -> list[list[int]]:
        """The continuation of every prompt, greedy by default,
        in the caller's order, without prompt and without end token.

        A row stops at an end-of-sequence token or after `max_new_tokens`. In float32 the batch mates of a row change
        nothing but the rounding; bitsandbytes int8 picks its outlier columns per batch, so there ties may break.

        Args:
            prompts: token ids; none may be empty.
            batch_size: rows that are decoded together. Their keys and values are held for the whole length.
            progress: called with the number of prompts finished since the last call.
            choose: takes the place of the likeliest token: (float32 logits `[B, V]`, the number of each row's prompt,
                how many tokens its answer has) → int64 `[B]`.

        Raises:
            DataError: a prompt is empty, or does not fit the model's positions together with `max_new_tokens`.
        """
        import torch

        self._check_lengths(prompts, max_new_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        # Longest first: if memory does not suffice, the run stops at once and not after an hour.
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                for row, answer in zip(rows, self._decode(prompts, rows, max_new_tokens, choose), strict=True):
                    answers[row] = answer
                if progress is not None:
                    progress(len(rows))
        return answers

    def logprobs(self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> np.ndarray:
        """log q(next token | row[: p + 1]) for every position p of every row, in nats.

        Args:
            rows: token ids.
            positions: for each row the positions to score, each in [0, len(row)).

        Returns:
            float32 `[N, V]`: the positions of the first row, then those of the second, and so on; each line is
            normalised. The head is applied to these positions only, in float32 whatever the model's dtype
            (bfloat16 logits near 16 are 0.06 nats apart).

        Raises:
            DataError: a position lies outside its row, or a row outside the model's positions.
        """
        import torch

        self._check_lengths(rows, 0)
        for row, (tokens, wanted) in enumerate(zip(rows, positions, strict=True)):
            if wanted and not 0 <= min(wanted) <= max(wanted) < len(tokens):
                raise DataError(f"row {row} has {len(tokens)} tokens, but positions {list(wanted)} were asked for")
        first = np.concatenate([[0], np.cumsum([len(wanted) for wanted in positions])])
        result = np.empty((int(first[-1]), self.vocab_size), dtype=np.float32)
        with torch.inference_mode(), _float32_head(self._causal) as head:
            for batch in _batches_by_length(rows, positions):
                picked = [(slot, p) for slot, row in enumerate(batch) for p in positions[row]]
                head.picked = torch.tensor(picked, device=self.device)
                logits_NV = self._forward_right_padded([rows[row] for row in batch])[0]
                target = np.concatenate([np.arange(first[row], first[row + 1]) for row in batch])
                result[target] = logits_NV.log_softmax(dim=-1).cpu().numpy()
        return result

    def speed(self, prompt_tokens: int = 128, new_tokens: int = 64) -> dict[str, float]:
        """Tokens per second of one user at a time: `prefill_tokens_per_second`, `decode_tokens_per_second`.

        The median of three runs after a warm-up; the prompt is arbitrary and decoding never stops early.
        """
        import torch

        if self.max_positions is not None and prompt_tokens + new_tokens > self.max_positions:
            prompt_tokens, new_tokens = self.max_positions * 2 // 3, self.max_positions // 3
        prompt_1T = torch.arange(prompt_tokens, device=self.device)[None] % self.vocab_size
        prefill, decode = [], []
        with torch.inference_mode():
            for _ in range(4):
                cache = empty_cache(self._causal.config, prompt_tokens + new_tokens)
                started = self._now()
                token = self._next_logits(prompt_1T, cache, None).argmax(dim=-1)
                prefilled = self._now()
                for _ in range(new_tokens):
                    token = self._next_logits(token[:, None], cache, None).argmax(dim=-1)
                prefill.append(prompt_tokens / (prefilled - started))
                decode.append(new_tokens / (self._now() - prefilled))
        return {
            "prefill_tokens_per_second": statistics.median(prefill[1:]),
            "decode_tokens_per_second": statistics.median(decode[1:]),
        }

    def _now(self) -> float:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def _check_lengths(self, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        for row, tokens in enumerate(rows):
            if not tokens:
                raise DataError(f"row {row} is empty: a causal model needs at least one token to start from")
            if self.max_positions is not None and len(tokens) + max_new_tokens > self.max_positions:
                raise DataError(
                    f"row {row} has {len(tokens)} tokens and {max_new_tokens} are to be added, but {self.folder} has "
                    f"{self.max_positions} positions. Shorten the rows or ask for fewer new tokens."
                )

    def _decode(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[int], max_new_tokens: int, choose: Choose | None
    ) -> list[list[int]]:
        """Continuations of the prompts `rows`, one batch; finished rows leave it once they make up a quarter."""
        import torch

        answers: list[list[int]] = [[] for _ in rows]
        input_BT, mask_BT = self._left_padded([prompts[row] for row in rows])
        cache = empty_cache(self._causal.config, input_BT.shape[1] + max_new_tokens)
        alive = list(range(len(rows)))  # the answer that each row of the batch belongs to
        finished: set[int] = set()
        for step in range(max_new_tokens):
            logits_BV = self._next_logits(input_BT, cache, mask_BT)
            if choose is None:
                token_B = logits_BV.argmax(dim=-1)
            else:
                token_B = choose(logits_BV.float(), [rows[row] for row in alive], step)
            for row, token in zip(alive, token_B.tolist(), strict=True):
                if row in finished:
                    continue
                if token in self.eos_token_ids:
                    finished.add(row)
                else:
                    answers[row].append(token)
            remaining = [slot for slot, row in enumerate(alive) if row not in finished]
            if not remaining or step + 1 == max_new_tokens:
                break
            if len(remaining) <= 0.75 * len(alive):
                keep = torch.tensor(remaining, device=self.device)
                cache.batch_select_indices(keep)
                token_B, mask_BT = token_B[keep], None if mask_BT is None else mask_BT[keep]
                alive = [alive[slot] for slot in remaining]
            input_BT = token_B[:, None]
            if mask_BT is not None:
                mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        return answers

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> "tuple[torch.Tensor, torch.Tensor | None]":
        """int64 `[B, T]` token ids and mask; no mask when all prompts are equally long, which is the faster path."""
        import torch

        longest = max(len(prompt) for prompt in prompts)
        input_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        if all(len(prompt) == longest for prompt in prompts):
            return input_BT, None
        length_B = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        mask_BT = torch.arange(longest, device=self.device)[None] >= longest - length_B[:, None]
        return input_BT, mask_BT.long()

    def _next_logits(self, input_BT: "torch.Tensor", cache: Any, mask_BT: "torch.Tensor | None") -> "torch.Tensor":
        """Logits `[B, V]` of the token after the last one; `mask_BT` covers the cache as well."""
        extra = {}
        if mask_BT is not None and self._takes_positions:
            position_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
            extra["position_ids"] = position_BT[:, -input_BT.shape[1] :]
        logits_B1V = self._causal(
            input_ids=input_BT,
            attention_mask=mask_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        ).logits
        return logits_B1V[:, -1]

    def _forward_right_padded(self, rows: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Logits of rows that are padded on the right, where causal attention never sees the padding: no mask."""
        import torch

        longest = max(len(tokens) for tokens in rows)
        # The last token again rather than an arbitrary one: int8 looks at the whole batch for outliers.
        input_BT = torch.tensor([[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens in rows])
        return self._causal(input_ids=input_BT.to(self.device), use_cache=False).logits


def _load_tokenizer(folder: Path | str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=Path(folder).is_dir())


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, from the generation config, else the model's, else the tokenizer's."""
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, (list, tuple)) else [found])
    return frozenset()


def _batches_by_length(rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers, longest first, in batches of at most TOKENS_PER_BATCH padded tokens."""
    order = sorted((row for row in range(len(rows)) if positions[row]), key=lambda row: -len(rows[row]))
    start = 0
    while start < len(order):
        size = max(1, TOKENS_PER_BATCH // len(rows[order[start]]))
        yield order[start : start + size]
        start += size


@contextlib.contextmanager
def _float32_head(model: Any) -> Iterator[Any]:
    """Replaces the output head for the time of the block by one that sees the `picked` (row, position) pairs only.

    The model's own forward still runs around it, so families that scale or cap their logits stay right.
    """
    import torch

    from distill.family.head import output_head

    original = model.get_output_embeddings()
    layer = original.get_base_layer() if hasattr(original, "lora_A") else original
    own = None  # a quantised head, or one with another adapter than a plain LoRA, knows its own product
    if type(layer) is torch.nn.Linear:
        with contextlib.suppress(RecipeError):
            own = output_head(model).in_float32()

    class PickingHead(torch.nn.Module):
        picked: torch.Tensor

        def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
            picked = self.picked.to(hidden_BTD.device)
            hidden_1ND = hidden_BTD[picked[:, 0], picked[:, 1]][None].to(original.weight.device)
            if own is None:
                return original(hidden_1ND).float()
            return own.product(hidden_1ND)

    head = PickingHead()
    model.set_output_embeddings(head)
    try:
        yield head
    finally:
        model.set_output_embeddings(original)
