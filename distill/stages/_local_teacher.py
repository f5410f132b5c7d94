"""The teacher in this process: answers by generating, targets by one prefill of prompt and answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill._shards import ANSWERED, CUT, Row
from distill.checkpoint import local_folder, weight_bytes
from distill.encoding import decode_response, template_hash, tokenizer_hash
from distill.errors import RecipeError
from distill.family.head import hidden_states, output_head
from distill.progress import console
from distill.responses import Header
from distill.runtime._placement import offloaded
from distill.stages._threads import same_threads
from distill.stages.teach import Question, Wanted
from distill.targets import Layout
from distill.targets.make import check_finite, joined, make
from distill.targets.sampling import uniform_of
from distill.teacher.hf import SMALL_BYTES, Hf

if TYPE_CHECKING:
    import torch

    from distill.runtime.hf import Choose, Transformers

LOGITS_BYTES = 64 << 20

# N positions of a batch, B rows, D hidden size, V vocabulary


@contextmanager
def open_local(teacher: Hf, wanted: Wanted, folder: Path, student_head: Path | None = None) -> "Iterator[LocalTeacher]":
    """The teacher in memory, unloaded afterwards. `student_head`: the student's checkpoint, for frozen_head targets."""
    import torch

    from distill.runtime.hf import Transformers

    checkpoint = local_folder(teacher.model, teacher.revision)
    with (
        same_threads(folder),
        Transformers(checkpoint, **how_to_load(teacher, checkpoint)) as model,
        torch.inference_mode(),
    ):
        _say_if_offloaded(model.model)
        yield LocalTeacher(teacher, wanted, model, frozen_head(student_head) if student_head else None)


def _say_if_offloaded(model: Any) -> None:
    waiting, all_weights = offloaded(model), len(list(model.parameters()))
    if waiting:
        console().print(
            f"    {waiting} of the teacher's {all_weights} weights do not fit on the GPUs; they wait in the machine's "
            "memory or on its disk,\n    and every batch fetches them. Faster: teacher.quantization=nf4, or more GPUs."
        )


def how_to_load(teacher: Hf, checkpoint: Path) -> dict[str, Any]:
    """dtype ("as stored" where None), quantisation and placement, for `Transformers` and `load_as`."""
    dtype = None if teacher.dtype == "auto" else teacher.dtype
    if teacher.dtype == "auto" and weight_bytes(checkpoint) < SMALL_BYTES:
        # for so small a model float32 costs next to nothing, and bfloat16 hidden states would blur small divergences
        dtype = "float32"
    quantise = None if teacher.quantization == "none" else teacher.quantization
    return {"dtype": dtype, "quantise": quantise, "device_map": teacher.device_map}


def name_of(folder: Path) -> str:
    """A checkpoint's folder, not its path: a store is moved between machines. All runs call their packages alike."""
    return f"{folder.parent.parent.parent.name}/{folder.name}" if folder.parent.name == "packages" else folder.name


def frozen_head(checkpoint: Path) -> "torch.Tensor":
    """The output head `[V, D]` of the student's checkpoint, in float32."""
    from distill.runtime.hf import load_model

    return output_head(load_model(checkpoint, dtype="float32")).whole_weight_VD.detach()


class LocalTeacher:
    """See `distill.stages.teach.Engine`."""

    def __init__(self, teacher: Hf, wanted: Wanted, model: "Transformers", head_VD: "torch.Tensor | None" = None):
        self.teacher, self.wanted, self.model = teacher, wanted, model
        self.tokenizer = model.tokenizer
        self.num_ids = num_ids(self.tokenizer)
        self.context = model.max_positions or 1 << 30
        self.name = name_of(Path(teacher.model)) if Path(teacher.model).is_dir() else teacher.model
        self.head_VD = None if head_VD is None else head_VD.to(model.device)
        self.always_keep = keep_ids(teacher, self.tokenizer) if wanted.kind == "top_k" else ()
        self.layout = self._layout()
        if self.layout is not None:
            from distill.stages._proofs import require_own_logits

            require_own_logits(model.model)

    def header(self, num_rows: int) -> Header:
        """Of the store that its responses make."""
        dtype = str(next(self.model.model.parameters()).dtype).removeprefix("torch.")
        kind = self.wanted.kind
        return Header(
            teacher=self.name,
            revision=self.teacher.revision,
            engine=f"transformers {metadata.version('transformers')}, torch {metadata.version('torch')}",
            dtype=dtype if self.teacher.quantization == "none" else f"{self.teacher.quantization} ({dtype})",
            kind=self.layout.kind if self.layout else "tokens",
            tokenizer_hash=tokenizer_hash(self.tokenizer),
            template_hash=template_hash(self.tokenizer),
            vocab_size=self.model.vocab_size,
            kept=self.layout.kept if self.layout else 0,
            target_temperature=self.wanted.temperature if kind in {"sampled", "top_k", "frozen_head"} else 1.0,
            seed=self.wanted.seed if kind == "sampled" else None,
            always_keep=self.always_keep,
            samples=self.teacher.samples,
            num_rows=num_rows,
        )

    def answer(self, questions: Sequence[Question]) -> list[Row]:
        """Generated answers, each ended by the end-of-sequence token unless it was cut."""
        rows: dict[int, Row] = {}
        by_room: dict[int, list[Question]] = {}
        for question in questions:
            # a long prompt has less room, and must not take its batch mates' too
            left = self.context - len(question.prompt_ids or [])
            by_room.setdefault(min(self.teacher.max_new_tokens, left), []).append(question)
        for room, asked in by_room.items():
            prompts, numbers = [question.prompt_ids or [] for question in asked], [q.number for q in asked]
            temperature = self.teacher.temperature
            choose = sampler(temperature, self.wanted.seed, numbers) if temperature else likeliest
            choose = among(self.num_ids, choose)
            said = self.model.generate(prompts, room, batch_size=len(prompts), choose=choose)
            for number, prompt, ids in zip(numbers, prompts, said, strict=True):
                cut = len(ids) == room
                rows[number] = answered_row(self.tokenizer, number, prompt, ids, cut=cut, context=self.context)
        return [rows[question.number] for question in questions]

    def with_targets(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with targets at every position whose next token is to be learnt; one prefill."""
        import torch

        assert self.layout is not None
        wanted = [self._positions(row) for row in rows]
        ids = [np.asarray(row.input_ids_T) for row in rows]
        hidden_ND = self._hidden_at(ids, wanted)
        next_N = torch.from_numpy(
            np.concatenate([i[w.start + 1 : w.stop + 1] for i, w in zip(ids, wanted, strict=True)])
        )
        uniform_N = None
        if self.layout.kind == "sampled":
            drawn = [uniform_of(row.key, self.wanted.seed, where) for row, where in zip(rows, wanted, strict=True)]
            uniform_N = torch.from_numpy(np.concatenate(drawn))
        is_end_N = np.concatenate([self._ends(row, where) for row, where in zip(rows, wanted, strict=True)])
        head, made = output_head(self.model.model), []
        step = max(1, LOGITS_BYTES // (4 * self.model.vocab_size))
        for start in range(0, len(hidden_ND), step):
            chunk = slice(start, start + step)
            logits_NV = head.logits(hidden_ND[chunk])
            if self.layout.kind == "next":
                self._end_in_any_way(logits_NV, is_end_N[chunk])
            device = logits_NV.device  # the head's, which need not be the first layer's
            made.append(
                make(
                    self.layout,
                    logits_NV[:, : self.layout.vocab_size] / self._temperature,
                    next_N[chunk].long().to(device),
                    uniform_N=None if uniform_N is None else uniform_N[chunk].to(device),
                    always_keep=self.always_keep,
                    head_VD=None if self.head_VD is None else self.head_VD.to(device),
                )
            )
        if not made:
            return list(rows)
        targets, ends = joined(made), np.cumsum([len(where) for where in wanted])
        return [
            replace(row, targets=targets.part(int(end) - len(where), int(end))) if len(where) else row
            for row, where, end in zip(rows, wanted, ends, strict=True)
        ]

    def _ends(self, row: Row, where: range) -> np.ndarray:
        """bool `[len(where)]`: where the row says that the answer is over."""
        assert row.input_ids_T is not None
        ended = row.ended and row.input_ids_T[-1] == self.tokenizer.eos_token_id
        return np.arange(1, len(where) + 1) == len(where) * ended

    def _end_in_any_way(self, logits_NV: "torch.Tensor", is_end_N: np.ndarray) -> None:
        """Adds to the end of sequence what else the teacher ends an answer with, where one ends.

        Gemma's chat models say <end_of_turn>, and their tokenizers end a sequence with <eos>. A student with other
        tokens would learn of the latter alone, which they hardly ever say, and so not to stop.
        """
        import torch

        eos = self.tokenizer.eos_token_id
        ends = torch.tensor(sorted({eos, *self.model.eos_token_ids}), device=logits_NV.device)
        where = torch.from_numpy(np.flatnonzero(is_end_N)).to(logits_NV.device)
        of_ends_NE = logits_NV[where][:, ends]
        logits_NV[where[:, None], ends] = -float("inf")
        logits_NV[where, eos] = of_ends_NE.logsumexp(dim=1)

    @property
    def _temperature(self) -> float:
        return (
            self.wanted.temperature if self.layout and self.layout.kind in {"sampled", "top_k", "frozen_head"} else 1.0
        )

    def _layout(self) -> Layout | None:
        kind, V = self.wanted.kind, self.model.vocab_size
        if kind is None:
            return None
        if kind == "frozen_head":
            assert self.head_VD is not None
            return Layout(kind, V, self.head_VD.shape[1])
        kept = {"sampled": self.teacher.draws, "top_k": min(self.teacher.top_k, V)}
        return Layout(kind, V, kept.get(kind, 0))  # type: ignore[arg-type]

    def _positions(self, row: Row) -> range:
        if row.source not in ANSWERED:
            return range(0)
        assert row.input_ids_T is not None
        return range(0 if self.wanted.prompt_targets else row.prompt_length - 1, len(row.input_ids_T) - 1)

    def _hidden_at(self, ids: list[np.ndarray], wanted: list[range]) -> "torch.Tensor":
        """Hidden states `[N, D]` at the wanted positions of each row, rows one after another."""
        import torch

        device = self.model.device
        lengths = torch.tensor([len(row) for row in ids], device=device)
        input_ids_BT = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row).long() for row in ids], batch_first=True)
        mask_BT = (torch.arange(input_ids_BT.shape[1], device=device)[None] < lengths[:, None]).long()
        hidden_BTD = hidden_states(self.model.model, input_ids_BT.to(device), mask_BT)
        return torch.cat([hidden_BTD[b, positions.start : positions.stop] for b, positions in enumerate(wanted)])


def answered_row(
    tokenizer: Any, number: int, prompt: Sequence[int], answer: Sequence[int], *, cut: bool, context: int
) -> Row:
    """The row of an answer given as token ids without its end."""
    # an answer that was cut does not end: a student must not learn to stop there
    ids = [*prompt, *answer] if cut else [*prompt, *answer, tokenizer.eos_token_id]
    text = decode_response(tokenizer, list(answer))
    return Row(number, text, CUT if cut else "teacher", np.array(ids[:context], dtype=np.int32), len(prompt))


def sampler(temperature: float, seed: int, numbers: Sequence[int]):
    """Draws from softmax(logits / temperature): where its cumulative sum passes a number keyed by seed, row and step.

    So an answer does not depend on which rows shared its batch, nor on what was drawn before a crash; and one number is
    drawn for a token, not one for each entry of the vocabulary.
    """
    import torch

    def choose(logits_BV: "torch.Tensor", rows: Sequence[int], step: int) -> "torch.Tensor":
        uniform_B = torch.tensor([np.random.default_rng([seed, numbers[row], step]).random() for row in rows])
        check_finite(logits_BV.max(dim=-1).values)
        # float64: a vocabulary's tail must not be lost in the sum of its head
        cumulative_BV = (logits_BV.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
        total_B1 = cumulative_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cumulative_BV, uniform_B.to(total_B1)[:, None] * total_B1, right=True)
        # a number next to 1 may be rounded up to the total, behind which only tokens of no probability lie
        return torch.minimum(drawn_B1, (cumulative_BV < total_B1).sum(dim=-1, keepdim=True))[:, 0]

    return choose


def num_ids(tokenizer: Any) -> int:
    """How many rows of the embedding are tokens; those behind pad it."""
    return 1 + max(tokenizer.get_vocab().values())


def among(known: int, choose: "Choose") -> "Choose":
    """`choose` among the first `known` ids: rows that pad an embedding have logits too, and are no tokens.

    A student whose vocabulary is padded less has no such id.
    """

    def choose_among(logits_BV: "torch.Tensor", rows: Sequence[int], step: int) -> "torch.Tensor":
        logits_BV[:, known:] = -float("inf")
        return choose(logits_BV, rows, step)

    return choose_among


def likeliest(logits_BV: "torch.Tensor", rows: Sequence[int], step: int) -> "torch.Tensor":
    """The token with the highest logit. Raises StageFailed where there is none."""
    highest = logits_BV.max(dim=-1)
    check_finite(highest.values)
    return highest.indices


def keep_ids(teacher: Hf, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of `teacher.always_keep`, and of the end of an answer, which a student must never unlearn to give.

    Raises:
        RecipeError: a word is not one token of the vocabulary, or `top_k` has no room for them and the next token.
    """
    ids, vocabulary = {tokenizer.eos_token_id}, tokenizer.get_vocab()
    for token in teacher.always_keep:
        if token not in vocabulary:
            raise RecipeError(
                f"teacher.always_keep: {token!r} is no single token of the teacher's vocabulary. Give tokens as the "
                "tokenizer writes them, such as <|im_end|>."
            )
        ids.add(vocabulary[token])
    if teacher.top_k < 1 + len(ids):
        raise RecipeError(
            f"teacher.top_k={teacher.top_k} has no room for the next token and the {len(ids)} that every position "
            f"keeps (the end of an answer, teacher.always_keep); it needs {1 + len(ids)} at least."
        )
    return tuple(sorted(ids))
