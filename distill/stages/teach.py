"""teach: prompts + teacher → responses. Text and next-token targets, asked once, kept for ever."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from distill.artifact import write_whole
from distill.checkpoint import local_folder, weight_bytes
from distill.encoding import decode_response, encode_prompt, encode_response, template_hash, tokenizer_hash
from distill.example import Example
from distill.family.head import hidden_states, output_head
from distill.progress import bar
from distill.responses import Header, Row, TeacherResponses, write_batch, write_header
from distill.stages._threads import same_threads
from distill.teacher import Teacher
from distill.teacher.hf import Hf

if TYPE_CHECKING:
    import torch

    from distill.runtime.hf import Transformers

VERSION = 1
"""Part of the fingerprint: raise it when the same settings give other responses."""
TEXT_BATCH = 4096
SMALL_BYTES = 200_000_000
LOGITS_BYTES = 64 << 20
TOO_LONG, CUT = "too long", "teacher, cut"
ROOM_FOR_ANSWER = 2
"""Tokens of the context that a prompt must leave: one of an answer and its end."""

# B rows of a batch, T tokens of a row, S positions with targets, K targets kept


def settings(teacher: Teacher, *, targets: bool, prompt_targets: bool, seed: int) -> dict[str, Any]:
    """What decides the responses, beside the data and the teacher's weights."""
    if teacher.kind == "none":
        return {"version": VERSION, "teacher": "none"}
    kept = asdict(teacher)
    for name in ("model", "live"):  # the weights are an input; a live teacher gives the same text
        kept.pop(name)
    if not targets:
        kept.pop("top_k")
    if teacher.responses == "data":
        for name in ("temperature", "max_new_tokens", "keep_answers"):
            kept.pop(name)
    sampled = teacher.responses == "generate" and teacher.temperature > 0
    return {
        "version": VERSION,
        "teacher": kept,
        "targets": targets,
        "prompt_targets": targets and prompt_targets,
        "seed": seed if sampled else None,
    }


def copy_texts(examples: Sequence[Example], folder: Path) -> None:
    """The store without a teacher: the data's own answers, as text."""
    answered = [
        Row(number, example.response or "", "data" if example.response is not None else "none")
        for number, example in enumerate(examples)
    ]
    for index, start in enumerate(range(0, len(answered), TEXT_BATCH)):
        write_batch(_batch_file(folder, index), answered[start : start + TEXT_BATCH])
    write_header(folder, _text_header(len(examples)))


def ask(
    teacher: Hf, examples: Sequence[Example], folder: Path, *, targets: bool, prompt_targets: bool, seed: int
) -> Mapping[str, Any]:
    """Fills `folder` with the teacher's responses to all prompts, going on after the batches that are there."""
    import torch

    from distill.runtime.hf import Transformers

    checkpoint = local_folder(teacher.model, teacher.revision)
    dtype = teacher_dtype(checkpoint, teacher.dtype)
    with same_threads(folder), Transformers(checkpoint, dtype=dtype) as model:
        prompts = [encode_prompt(model.tokenizer, example.prompt) for example in examples]
        batches = _batches(teacher, examples, prompts, model)
        done = {path.name for path in folder.glob("batch-*.safetensors")}
        skipped = sum(len(rows) for i, rows in enumerate(batches) if _batch_file(folder, i).name in done)
        with bar("teacher answers", len(examples)) as advance, torch.inference_mode():
            advance(skipped)
            for index, numbers in enumerate(batches):
                if _batch_file(folder, index).name in done:
                    continue
                rows = _answer(teacher, model, examples, prompts, numbers, seed)
                if targets:
                    rows = _with_targets(model, rows, teacher.top_k, prompt_targets)
                write_batch(_batch_file(folder, index), rows)
                advance(len(numbers))
        write_header(
            folder,
            Header(
                teacher=_name(teacher.model),
                revision=teacher.revision,
                engine=f"transformers {metadata.version('transformers')}, torch {metadata.version('torch')}",
                dtype=str(next(model.model.parameters()).dtype).removeprefix("torch."),
                kind="top_k" if targets else "tokens",
                tokenizer_hash=tokenizer_hash(model.tokenizer),
                template_hash=template_hash(model.tokenizer),
                vocab_size=model.vocab_size,
                top_k=min(teacher.top_k, model.vocab_size) if targets else None,
                target_temperature=1.0,
                num_rows=len(examples),
            ),
        )
    _write_notes(folder, checkpoint)
    return {"resumed_from_batch": len(done)} if done else {}


def _write_notes(folder: Path, checkpoint: Path) -> None:
    """What could not be asked and what was cut, counted over the whole store."""
    counts = TeacherResponses(folder).sources()
    notes = []
    if counts[TOO_LONG]:
        notes.append(
            f"{counts[TOO_LONG]} prompts do not fit the context of {checkpoint.name}: not asked, and left out."
        )
    if counts[CUT]:
        notes.append(f"{counts[CUT]} answers of the teacher were cut at teacher.max_new_tokens; they do not end.")
    write_whole(folder / "notes.json", json.dumps(notes))


def teacher_dtype(checkpoint: Path, asked: str) -> str | None:
    """The dtype to load the teacher in, None for "as stored"."""
    if asked != "auto":
        return asked
    # for so small a model float32 costs next to nothing, and bfloat16 hidden states would blur small divergences
    return "float32" if weight_bytes(checkpoint) < SMALL_BYTES else None


def _batches(teacher, examples, prompts, model: "Transformers") -> list[list[int]]:
    """Row numbers of each batch, fixed by the full list of prompts: own answers first, then what is to be asked."""
    keeps = teacher.responses == "data" or teacher.keep_answers
    own = [n for n, example in enumerate(examples) if keeps and example.response is not None]
    kept = set(own)
    asked = [n for n in range(len(examples)) if n not in kept]
    batches = []
    for numbers in (own, asked):
        by_length = sorted(numbers, key=lambda n: len(prompts[n]))
        batches += [by_length[i : i + teacher.batch_size] for i in range(0, len(by_length), teacher.batch_size)]
    return batches


def _answer(teacher, model: "Transformers", examples, prompts, numbers: list[int], seed: int) -> list[Row]:
    """The responses of one batch, without targets."""
    context = model.max_positions or 1 << 30
    # a prompt that leaves no room for an answer is left out, or it would take its batch mates' room too
    fits = {n for n in numbers if len(prompts[n]) + ROOM_FOR_ANSWER <= context}
    keeps = teacher.responses == "data" or teacher.keep_answers
    ask = [n for n in numbers if n in fits and not (keeps and examples[n].response is not None)]
    answers: dict[int, list[int]] = {}
    room = 0
    if ask and teacher.responses == "generate":
        room = min(teacher.max_new_tokens, context - max(len(prompts[n]) for n in ask))
        said = model.generate(
            [prompts[n] for n in ask],
            room,
            batch_size=len(ask),
            choose=_sampler(teacher.temperature, seed, ask) if teacher.temperature else None,
        )
        answers = dict(zip(ask, said, strict=True))
    rows = []
    for n in numbers:
        if n not in fits or (n not in answers and examples[n].response is None):
            rows.append(Row(n, "", TOO_LONG if n not in fits else "none", np.array(prompts[n][:1], np.int32), 1))
        elif n in answers:
            # an answer that was cut does not end: a student must not learn to stop there
            ended = len(answers[n]) < room
            ids = [*answers[n], model.tokenizer.eos_token_id] if ended else answers[n]
            source = "teacher" if ended else CUT
            rows.append(_row(n, decode_response(model.tokenizer, answers[n]), source, prompts[n], ids, context))
        else:
            text = examples[n].response
            rows.append(_row(n, text, "data", prompts[n], encode_response(model.tokenizer, text), context))
    return rows


def _sampler(temperature: float, seed: int, numbers: list[int]):
    """Draws from softmax(logits / temperature) by the Gumbel-max trick, with noise keyed by seed, row and position.

    So an answer does not depend on which rows shared its batch, nor on what was drawn before a crash.
    Source: Maddison, Tarlow, Minka 2014, arXiv:1411.0030, section 2.
    """
    import torch

    def choose(logits_BV: "torch.Tensor", rows: Sequence[int], step: int) -> "torch.Tensor":
        uniform_BV = np.stack(
            [np.random.default_rng([seed, numbers[row], step]).random(logits_BV.shape[1]) for row in rows]
        )
        gumbel_BV = -np.log(-np.log(np.clip(uniform_BV, 1e-300, 1 - 1e-16)))
        return (logits_BV.double() / temperature + torch.from_numpy(gumbel_BV).to(logits_BV.device)).argmax(dim=-1)

    return choose


def _row(number: int, text: str, source: str, prompt: list[int], response: list[int], context: int) -> Row:
    return Row(number, text, source, np.array((prompt + response)[:context], dtype=np.int32), len(prompt))


def _with_targets(model: "Transformers", rows: list[Row], top_k: int, prompt_targets: bool) -> list[Row]:
    """The rows with the teacher's likeliest next tokens at every position whose next token is to be learnt."""
    import torch

    K = min(top_k, model.vocab_size)
    filled = cast(list[Any], rows)  # `_answer` gives token ids to every row
    wanted = [range(0 if prompt_targets else row.prompt_length - 1, len(row.input_ids_T) - 1) for row in filled]
    hidden_ND = _hidden_at(model, [row.input_ids_T for row in filled], wanted)
    head = output_head(model.model)
    ids, logprobs = [np.empty((0, K), np.int32)], [np.empty((0, K), np.float32)]
    for chunk_ND in hidden_ND.split(max(1, LOGITS_BYTES // (4 * model.vocab_size))):
        top = torch.log_softmax(head.logits(chunk_ND), dim=-1).topk(K, dim=-1)
        ids.append(top.indices.to(torch.int32).cpu().numpy())
        logprobs.append(top.values.cpu().numpy())
    ends = np.cumsum([len(positions) for positions in wanted])
    parts = zip(
        rows, np.split(np.concatenate(ids), ends[:-1]), np.split(np.concatenate(logprobs), ends[:-1]), strict=True
    )
    return [replace(row, token_ids_SK=row_ids, logprobs_SK=row_logprobs) for row, row_ids, row_logprobs in parts]


def _hidden_at(model: "Transformers", ids: list[np.ndarray], wanted: list[range]) -> "torch.Tensor":
    """Hidden states `[N, D]` at the wanted positions of each row, rows one after another."""
    import torch

    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    input_ids_BT = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(np.array(row)).long() for row in ids], batch_first=True
    )
    input_ids_BT = input_ids_BT.to(model.device)
    mask_BT = (torch.arange(input_ids_BT.shape[1], device=model.device)[None] < lengths[:, None]).long()
    hidden_BTD = hidden_states(model.model, input_ids_BT, mask_BT)
    return torch.cat([hidden_BTD[b, positions.start : positions.stop] for b, positions in enumerate(wanted)])


def _batch_file(folder: Path, index: int) -> Path:
    return folder / f"batch-{index:05d}.safetensors"


def _name(model: str) -> str:
    # the folder's name, not its path: a store is moved between machines
    return Path(model).name if Path(model).is_dir() else model


def _text_header(num_rows: int) -> Header:
    return Header(
        teacher="the data's own text",
        revision=None,
        engine="none",
        dtype="none",
        kind="text",
        tokenizer_hash=None,
        template_hash=None,
        vocab_size=None,
        top_k=None,
        target_temperature=1.0,
        num_rows=num_rows,
    )
