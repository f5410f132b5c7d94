"""The fresh process of verify: `python -m distill.stages._verify_process REQUEST ANSWER`.

It knows nothing of the run that made the packages; it has their folders, the student's, and held-out text.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distill.encoding import encode_asked, encode_prompt, encode_response
from distill.example import messages_of
from distill.runtime.hf import Transformers
from distill.runtime.speaking import LlamaCppSpeaker, TransformersSpeaker

GREEDY_PROMPTS = 8
FAULTS = {
    "token_ids_equal": "its tokenizer gives other token ids than the student's",
    "prompts_equal": "its chat template or its first token makes other prompts than the student's",
    "ends_equal": "it ends its answers at other tokens than the student",
}
"""What may be unlike the student without any weight being wrong → how that is said."""

# N positions, V vocabulary


def main(request_file: str, answer_file: str) -> None:
    """Writes name → proof for every package that was asked about."""
    request = json.loads(Path(request_file).read_text())
    with Transformers(Path(request["student"])) as student:
        held_out = _HeldOut(student, request)
    proofs = {name: _prove(package, request["runtime"], held_out) for name, package in request["packages"].items()}
    Path(answer_file).write_text(json.dumps(proofs, indent=1))


class _HeldOut:
    """Held-out rows as the student reads them, and what the student says on them."""

    def __init__(self, student: Transformers, request: dict[str, Any]):
        self.student = Path(request["student"])
        self.texts = _texts(student.tokenizer, request)
        self.token_ids = student.tokenize(self.texts)
        self.asked = [_prompt(prompt) for prompt in request["prompts"]]
        prompts = self.asked_ids = [encode_prompt(student.tokenizer, prompt) for prompt in self.asked]
        self.ends = student.eos_token_ids
        self.rows, self.positions, left = [], [], request["positions"]
        for prompt, response in zip(prompts, request["responses"], strict=True):
            row = (prompt + encode_response(student.tokenizer, response or ""))[: student.max_positions]
            wanted = list(range(min(len(prompt), len(row)) - 1, len(row) - 1))[:left]
            if wanted:
                self.rows.append(row[: wanted[-1] + 1])  # nothing that follows is looked at, and a book is long
                self.positions.append(wanted)
                left -= len(wanted)
        self.logprobs_NV = student.logprobs(self.rows, self.positions)
        self.greedy_tokens = request["greedy_tokens"]
        room = (student.max_positions or 1 << 30) - self.greedy_tokens
        rows = zip(self.asked, request["responses"], strict=True)
        asked = (encode_asked(student.tokenizer, prompt, response) for prompt, response in rows)
        self.prompts = [prompt for prompt in asked if len(prompt) <= room][:GREEDY_PROMPTS]
        self.greedy = student.generate(self.prompts, self.greedy_tokens)


def _texts(tokenizer: Any, request: dict[str, Any]) -> list[str]:
    """Held-out text as it reaches the tokenizer: whole dialogues of a model that chats, else prompts and responses.

    llama.cpp cannot split both as SentencePiece's tokenizers do: text alone begins with a blank, a dialogue's first
    special token does not end with one.
    """
    if not (tokenizer.chat_template and all(request["prompts"])):
        return [text for text in (*request["prompt_texts"], *request["responses"]) if text]
    dialogues = []
    for prompt, response in zip(request["prompts"], request["responses"], strict=True):
        dialogues.append([*messages_of(prompt), *([{"role": "assistant", "content": response}] if response else [])])
    return [tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in dialogues]


def _prove(package: dict[str, Any], runtime: str, held_out: _HeldOut) -> dict[str, Any]:
    """One package's proof; a package that does not load is a failed proof, not a crash."""
    try:
        longest = max(map(len, (*held_out.rows, *held_out.prompts))) + held_out.greedy_tokens
        with _open(Path(package["path"]), runtime, longest) as model:
            same = _same(model, held_out)
            logprobs_NV = model.logprobs(held_out.rows, held_out.positions)
            greedy = model.generate(held_out.prompts, held_out.greedy_tokens)
        bit_equal = _bit_equal(package, held_out, logprobs_NV)
    except Exception as error:  # whatever the runtime raises, the user must hear which package it was
        return {
            "verified": False,
            "runtime": runtime,
            "detail": f"does not load or run: {type(error).__name__}: {error}",
        }
    return _judge(package, runtime, held_out, logprobs_NV, greedy, same, bit_equal)


def _same(model: Any, held_out: _HeldOut) -> dict[str, bool | None]:
    """Whether the package reads text and prompts, and ends its answers, as the student does; see `FAULTS`.

    None: llama.cpp does not say where it ends.
    """
    speaker = TransformersSpeaker(model) if isinstance(model, Transformers) else LlamaCppSpeaker(model)
    # a model of plain texts has no prompts to write
    asked = [(one, ids) for one, ids in zip(held_out.asked, held_out.asked_ids, strict=True) if one]
    return {
        "token_ids_equal": model.tokenize(held_out.texts) == held_out.token_ids,
        "prompts_equal": all(speaker.encode(one) == ids for one, ids in asked),
        "ends_equal": model.eos_token_ids == held_out.ends if isinstance(model, Transformers) else None,
    }


def _judge(package, runtime, held_out, logprobs_NV, greedy, same, bit_equal) -> dict[str, Any]:
    p_NV = np.exp(held_out.logprobs_NV.astype(np.float64))
    kl = float((p_NV * (held_out.logprobs_NV.astype(np.float64) - logprobs_NV)).sum(axis=1).mean())
    agreement = float((held_out.logprobs_NV.argmax(axis=1) == logprobs_NV.argmax(axis=1)).mean())
    same_greedy = float(np.mean([a == b for a, b in zip(greedy, held_out.greedy, strict=True)]))
    faults = [said for name, said in FAULTS.items() if same[name] is False]
    if not kl <= package["max_kl_nats"]:  # NaN fails too
        faults.append(f"its mean divergence from the student is {kl:.2g} nats, {package['max_kl_nats']:g} is allowed")
    if bit_equal is False:
        faults.append("what was saved is not what quantising the student gives")
    return {
        "verified": not faults,
        "runtime": runtime,
        "kl_to_student_nats": kl,
        "top1_agreement": agreement,
        **same,
        "greedy_equal": same_greedy,
        "positions": len(logprobs_NV),
        "bit_equal_reload": bit_equal,
        "detail": "; ".join(faults),
    }


def _bit_equal(package: dict[str, Any], held_out: "_HeldOut", logprobs_NV: np.ndarray) -> bool | None:
    """Whether a bitsandbytes package equals, bit for bit, what its format makes of the student here and now.

    None for other formats: llama.cpp computes otherwise, bfloat16 and healed packages are judged by divergence alone.
    """
    if package["kind"] not in {"bnb_int8", "bnb_nf4"}:
        return None
    with Transformers(held_out.student, like=Path(package["path"])) as again:
        return bool(np.array_equal(again.logprobs(held_out.rows, held_out.positions), logprobs_NV))


def _open(path: Path, runtime: str, context: int):
    if runtime == "llama.cpp":
        from distill.runtime.llama_cpp import LlamaCpp

        return LlamaCpp(path, context=context)
    return Transformers(path)


def _prompt(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else tuple(prompt)


if __name__ == "__main__":
    main(*sys.argv[1:])
