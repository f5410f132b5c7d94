"""Speakers: the evaluation's prompt, the answer of `generate`, whole characters, nothing that steers a terminal."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.compression.gguf_q8_0 import GgufQ8_0
from distill.encoding import CHAT_TEMPLATE, encode_prompt, load_tokenizer
from distill.errors import RecipeError
from distill.runtime.hf import Transformers
from distill.runtime.speaking import LlamaCppSpeaker, Sampling, TransformersSpeaker, WholeCharacters
from tests.conftest import ROOT
from tests.cycling_model import TEXT, make_cycling_model

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

TEACHER = ROOT / "distill" / "bundled" / "quickstart_teacher"
QUESTION = "Ivan has 4 bags with 2 cookies in each and 7 loose cookies. How many cookies is that in all?"
DIALOGUE = (
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "yes <|end|>"},
    {"role": "user", "content": "Häuser 😀?"},
)
# as Qwen3's ends
THINKING = CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
OPENED = "{{ bos_token }}" + CHAT_TEMPLATE


def made(folder: Path, template: str | None, bos: str | None = None) -> tuple[Path, Path]:
    """(checkpoint, its GGUF) of the quickstart's teacher with another template."""
    checkpoint = folder / "checkpoint"
    shutil.copytree(TEACHER, checkpoint)
    tokenizer = load_tokenizer(TEACHER)
    tokenizer.chat_template = template
    (checkpoint / "chat_template.jinja").unlink()
    if bos is not None:
        tokenizer.bos_token = bos
    tokenizer.save_pretrained(checkpoint)
    GgufQ8_0(kind="gguf_q8_0").make(checkpoint, folder / "gguf")
    return checkpoint, folder / "gguf"


@pytest.mark.parametrize(
    ("template", "bos"), [(CHAT_TEMPLATE, None), (None, None), (THINKING, None), (OPENED, "<|system|>")]
)
def test_a_gguf_is_asked_with_the_token_ids_of_the_evaluation(template, bos, tmp_path):
    from distill.runtime.llama_cpp import LlamaCpp

    checkpoint, gguf = made(tmp_path, template, bos)
    tokenizer = load_tokenizer(checkpoint)
    with LlamaCpp(gguf, num_threads=1, num_slots=1) as model:
        speaker = LlamaCppSpeaker(model)
        assert speaker.has_template == (template is not None)
        for prompt in (QUESTION, " two\nlines \n", "<|user|>", DIALOGUE, DIALOGUE[1:]):
            assert speaker.encode(prompt) == encode_prompt(tokenizer, prompt), prompt
        assert speaker.encode_text("Once ") == [*encode_prompt(tokenizer, ""), *model.tokenize(["Once "])[0]]
        # llama.cpp sets this variable by itself
        theirs = speaker.written_otherwise()
        assert theirs is None if template is not THINKING else str(theirs).endswith("</think>\n\n")


@pytest.fixture(scope="module")
def cycling(tmp_path_factory) -> tuple[Path, Path]:
    folder = make_cycling_model(tmp_path_factory.mktemp("cycling"))
    GgufQ8_0(kind="gguf_q8_0").make(folder, folder / "gguf")
    return folder, folder / "gguf"


@pytest.fixture(scope="module", params=["transformers", "llama.cpp"])
def speaker(request, cycling):
    if request.param == "transformers":
        opened = TransformersSpeaker(Transformers(cycling[0], device="cpu"))
    else:
        from distill.runtime.llama_cpp import LlamaCpp

        opened = LlamaCppSpeaker(LlamaCpp(cycling[1], num_threads=1, num_slots=1))
    yield opened
    opened.close()


def said_by(speaker, num_tokens: int, **how) -> tuple[list[str], bool]:
    return said_after(speaker, speaker.encode("hello"), num_tokens, **how)


def said_after(speaker, ids: list[int], num_tokens: int, **how) -> tuple[list[str], bool]:
    pieces: list[str] = []
    cut = speaker.answer(ids, Sampling(num_tokens, **how), lambda text, _: pieces.append(text))
    return pieces, cut


def test_characters_come_whole_and_in_order(speaker):
    length = 2 * len(TEXT.encode())
    pieces, cut = said_by(speaker, length)
    assert "".join(pieces) == 2 * TEXT and cut
    # as they come: the first letter does not wait for the rest
    shown = [piece for piece in pieces if piece]
    assert shown == list(2 * TEXT)


def test_an_answer_equals_generate(speaker):
    prompt = speaker.encode("hello")
    (ids,) = speaker.model.generate([prompt], 9)
    assert "".join(said_by(speaker, 9)[0]).encode() == (TEXT.encode() * 2)[:9]
    assert len(ids) == 9


@pytest.mark.parametrize(("num_tokens", "text"), [(1, "a"), (3, "a\ufffd"), (5, "a😀")])
def test_a_half_character_at_the_end_is_shown_and_counted(speaker, num_tokens, text):
    seen: list[tuple[str, int]] = []
    speaker.answer(speaker.encode("hello"), Sampling(num_tokens), lambda *event: seen.append(event))
    assert ("".join(piece for piece, _ in seen), seen[-1][1]) == (text, num_tokens)


class Events:
    """llama.cpp as its events alone, each (text, tokens so far); with the last comes why it stopped."""

    is_sentencepiece, max_positions, file = False, 64, "file"

    def __init__(self, events: list[tuple[str, int]], stop_type: str):
        self.events = [{"content": text, "tokens_predicted": number, "stop": False} for text, number in events]
        self.events.append({"content": "", "tokens_predicted": events[-1][1], "stop": True, "stop_type": stop_type})

    def template(self):
        return None, {}

    def stream(self, prompt, max_new_tokens, **how):
        return iter(self.events)


@pytest.mark.parametrize(
    ("events", "stop_type", "counts"),
    [
        ([("4", 1), ("*", 2), ("", 3)], "eos", [1, 2, 2, 2]),  # as of the quickstart's teacher: 3 is the end token
        ([("", 1), ("", 2), ("", 3)], "limit", [0, 1, 2, 3]),  # special tokens have no text
    ],
)
def test_tokens_without_a_text_are_counted_and_the_end_is_not(events, stop_type, counts):
    heard: list[int] = []
    speaker = LlamaCppSpeaker(Events(events, stop_type))  # type: ignore[arg-type]
    assert speaker.answer([0], Sampling(3), lambda text, number: heard.append(number)) == (stop_type == "limit")
    assert heard == counts


def test_whoever_stops_listening_can_ask_again(speaker):
    heard: list[str] = []

    def stop(text: str, num_tokens: int) -> None:
        heard.append(text)
        if num_tokens >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speaker.answer(speaker.encode("hello"), Sampling(2_000), stop)
    assert "".join(heard) == "a😀"
    assert "".join(said_by(speaker, 6)[0]) == "a😀b"


def test_sampling_repeats_with_its_seed_and_differs_with_another(speaker):
    drawn = ["".join(said_by(speaker, 24, temperature=5.0, seed=seed)[0]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "".join(said_by(speaker, 14, temperature=1e-3, seed=3)[0]) == TEXT


def test_tokens_are_drawn_with_their_probabilities():
    """30,000 draws against the definition, in float64: 3 standard errors are 0.009 at most."""
    import torch

    from distill.runtime.speaking import _chosen

    logits, temperature = [0.0, 1.0, 2.5, -1.0], 1.5
    weight = np.exp(np.array(logits) / temperature)
    draws = torch.Generator().manual_seed(0)
    drawn = _chosen(torch.tensor([logits] * 30_000), temperature, draws).tolist()
    assert np.abs(np.bincount(drawn, minlength=4) / 30_000 - weight / weight.sum()).max() < 0.01
    assert _chosen(torch.tensor([logits]), 0.0, draws).tolist() == [2]


def test_a_half_character_at_the_end_is_shown_as_broken():
    said = b"x\xf0\x9f"
    text = WholeCharacters(lambda: said.decode(errors="replace"))
    assert text.new() == "x"
    assert text.new(to_the_end=True) == "\ufffd"


def test_a_template_that_refuses_is_said(tmp_path):
    checkpoint, _ = made(tmp_path, "{{ raise_exception('no system role') }}")
    with Transformers(checkpoint, device="cpu") as model, pytest.raises(RecipeError, match="no system role"):
        TransformersSpeaker(model).encode("hi")


def test_the_blank_before_the_first_word_of_sentencepiece_is_not_shown(tmp_path):
    """llama.cpp writes ▁word as " word" everywhere, transformers as "word" where a text begins."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.encoding import decode_response
    from distill.family.llama2 import FAMILY
    from distill.family.tiny_tokenizer import train_like
    from distill.runtime.llama_cpp import LlamaCpp

    tokenizer = train_like(FAMILY, [f"{QUESTION} the cat sat on a mat and the dog ran off"] * 3, 384)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.2, **sizes)
    model = LlamaForCausalLM(config)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    with torch.no_grad():  # it says beginnings of words and nothing else
        model.lm_head.weight[[not token.startswith("\N{LOWER ONE EIGHTH BLOCK}") for token in tokens]] = 0
    model.save_pretrained(tmp_path)
    GgufQ8_0(kind="gguf_q8_0").make(tmp_path, tmp_path / "gguf")
    begun = 0
    with LlamaCpp(tmp_path / "gguf", num_threads=1, num_slots=1) as model:
        speaker = LlamaCppSpeaker(model)
        for number in range(60):
            ids = speaker.encode(f"cat {number}")
            assert ids == encode_prompt(tokenizer, f"cat {number}")
            (answer,) = model.generate([ids], 2)
            pieces = tokenizer.convert_ids_to_tokens(answer)
            if not any(piece.startswith("<0x") for piece in pieces):  # broken characters are shown in two ways
                begun += pieces[0].startswith("\N{LOWER ONE EIGHTH BLOCK}")
                assert "".join(said_after(speaker, ids, 2)[0]) == decode_response(tokenizer, answer)
    assert begun
