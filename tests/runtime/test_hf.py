"""The transformers runtime against one-by-one loops and float64 from the definition, for five families."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import DataError
from distill.runtime.hf import Transformers

SHARED = Path(os.environ.get("DISTILL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHAPES = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 96,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gemma2": {  # caps its logits and has sliding windows: not one of ours, but nothing may assume it away
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "final_logit_softcapping": 2.0,
        "max_position_embeddings": 96,
    },
}
VOCABULARY = 101


@pytest.fixture(scope="module", params=list(SHAPES))
def folder(request, tmp_path_factory):
    """A random checkpoint with spread-out logits and a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(request.param, vocab_size=VOCABULARY, **ids, **SHAPES[request.param])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5 if "emb" in name or "wte" in name else 0.3)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0").save_pretrained(path)
    return path


def random_rows(count, low, high, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, rng.integers(low, high)).tolist() for _ in range(count)]


def greedy_one_by_one(model, prompt, max_new_tokens, ends):
    """The definition: a whole forward pass of one row for every token, no cache, no padding."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def test_generate_is_the_greedy_loop_of_each_row_alone(folder):
    prompts = random_rows(11, 1, 20)
    with Transformers(folder, device="cpu") as runtime:
        free = [greedy_one_by_one(runtime.model, prompt, 16, set()) for prompt in prompts]
        # End at tokens that the rows do say, so that rows leave the batch at different steps.
        ends = frozenset(row[3 + n % 9] for n, row in enumerate(free[:6]))
        runtime.eos_token_ids = ends
        expected = [greedy_one_by_one(runtime.model, prompt, 16, ends) for prompt in prompts]
        assert len({len(answer) for answer in expected}) > 1
        done = []
        assert runtime.generate(prompts, 16, batch_size=4, progress=done.append) == expected
        assert runtime.generate(prompts, 16) == expected
        assert sum(done) == len(prompts)
        same_length = [prompt[:1] for prompt in prompts]
        assert runtime.generate(same_length, 5) == [
            greedy_one_by_one(runtime.model, prompt, 5, ends) for prompt in same_length
        ]
        assert runtime.generate([], 5) == [] and runtime.generate(prompts[:1], 0) == [[]]


def test_logprobs_are_the_softmax_of_the_definition(folder, monkeypatch):
    rows = random_rows(7, 2, 30, seed=1)
    positions = [[0, len(row) - 1, len(row) // 2] if n % 3 else [] for n, row in enumerate(rows)]
    with Transformers(folder, device="cpu") as runtime:
        expected = []
        for row, wanted in zip(rows, positions, strict=True):
            with torch.no_grad():
                logits = runtime.model(torch.tensor([row]), use_cache=False).logits[0].double()
            expected.extend(logits[p].softmax(-1).log().numpy() for p in wanted)
        found = runtime.logprobs(rows, positions)
        assert found.dtype == np.float32 and found.shape == (len(expected), VOCABULARY)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        monkeypatch.setattr("distill.runtime.hf.TOKENS_PER_BATCH", 40)
        np.testing.assert_allclose(runtime.logprobs(rows, positions), expected, atol=2e-5)
        # the head is back in its place
        logits = runtime.model(torch.tensor([rows[1]]), use_cache=False).logits
        assert logits.shape == (1, len(rows[1]), VOCABULARY)


def test_the_head_is_taken_in_float32_for_bfloat16_weights(folder):
    rows = random_rows(3, 10, 11)
    with Transformers(folder, dtype="bfloat16", device="cpu") as runtime:
        captured = []
        head = runtime.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
        with torch.no_grad():
            runtime.model(torch.tensor(rows), use_cache=False)
        handle.remove()
        logits = captured[0].double() @ head.weight.detach().double().T
        cap = getattr(runtime.model.config, "final_logit_softcapping", None)
        logits = cap * (logits / cap).tanh() if cap else logits
        found = runtime.logprobs(rows, [range(len(row)) for row in rows])
        expected = logits.log_softmax(-1).flatten(0, 1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_cpu_attention_of_one_token_is_the_definition(masked):
    from distill.runtime._cpu_attention import attention

    torch.manual_seed(0)
    query = torch.randn(3, 6, 1, 16).bfloat16()
    key, value = torch.randn(2, 3, 2, 9, 16).bfloat16()
    seen = torch.arange(9) >= torch.tensor([0, 4, 8])[:, None, None, None]
    with torch.no_grad():
        found, _ = attention(torch.nn.Module(), query, key, value, seen if masked else None, scaling=0.3)
    expected = torch.zeros(3, 1, 6, 16, dtype=torch.float64)
    for row in range(3):
        for head in range(6):
            first = [0, 4, 8][row] if masked else 0
            keys, values = key[row, head // 3, first:].double(), value[row, head // 3, first:].double()
            expected[row, 0, head] = (keys @ query[row, head, 0].double() * 0.3).softmax(0) @ values
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert (found.double() - expected).abs().max() < 0.02


def test_bfloat16_decoding_with_a_cache_is_a_whole_forward(folder):
    """Every step's distribution, rows of several lengths and with grouped heads, against one pass over the answer."""
    prompts = random_rows(5, 2, 20, seed=3)
    with Transformers(folder, dtype="bfloat16", device="cpu") as runtime:
        runtime.eos_token_ids = frozenset()
        answers = runtime.generate(prompts, 8)
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        positions = [range(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)]
        logprobs = runtime.logprobs(rows, positions)
        said = logprobs[range(len(logprobs)), [token for answer in answers for token in answer]]
        # The likeliest token up to bfloat16's rounding, which is nothing beside logits that spread over nats.
        assert (logprobs.max(axis=1) - said).max() < 0.15 and np.std(logprobs) > 0.3


def test_bad_rows_are_refused_with_what_is_needed(folder):
    with Transformers(folder, device="cpu") as runtime:
        with pytest.raises(DataError, match="row 1 is empty"):
            runtime.generate([[5], []], 4)
        with pytest.raises(DataError, match=r"row 0 has 3 tokens, but positions \[3\]"):
            runtime.logprobs([[5, 6, 7]], [[3]])
        if runtime.max_positions is not None:
            with pytest.raises(DataError, match="has 96 positions"):
                runtime.generate([[5] * 90], 7)
            assert len(runtime.generate([[5] * 90], 6)[0]) <= 6


def test_speed_and_facts(folder):
    with Transformers(folder, device="cpu") as runtime:
        assert (runtime.name, runtime.device, runtime.vocab_size) == ("transformers", "cpu", VOCABULARY)
        assert runtime.tokenize(["w5 w7", ""]) == [[5, 7], []]
        assert runtime.eos_token_ids == {2} and next(runtime.model.parameters()).dtype == torch.float32
        assert not runtime.model.training
        speed = runtime.speed(16, 8)
        assert set(speed) == {"prefill_tokens_per_second", "decode_tokens_per_second"} and min(speed.values()) > 1


def test_a_real_model_tells_its_story():
    folder = SHARED / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set DISTILL_SHARED_DATA")
    with Transformers(folder) as runtime:
        story = runtime.tokenizer.decode(runtime.generate([[1]], 60)[0])
        assert story.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")


def test_an_nf4_package_runs_with_the_adapter_beside_it(tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from distill.compression.bnb_nf4 import BnbNf4
    from distill.runtime.hf import load_model

    shape = SHAPES["llama"] | {"intermediate_size": 128}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **shape)).save_pretrained(
        tmp_path / "student"
    )
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(tmp_path / "student")
    BnbNf4(kind="bnb_nf4").make(tmp_path / "student", tmp_path / "package")

    row = [[5, 6, 7, 8]]
    with Transformers(tmp_path / "package", device="cpu") as runtime:
        plain = runtime.logprobs(row, [range(4)])
    healed = get_peft_model(load_model(tmp_path / "package", device="cpu"), LoraConfig(target_modules="all-linear"))
    for name, parameter in healed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    healed.save_pretrained(tmp_path / "package")
    with torch.no_grad():
        expected = healed.eval()(torch.tensor(row)).logits[0].float().log_softmax(-1).numpy()
    with Transformers(tmp_path / "package", device="cpu") as runtime:
        found = runtime.logprobs(row, [range(4)])
        assert runtime.generate(row, 3)
    assert np.abs(found - expected).max() < 0.02 < np.abs(plain - expected).max()
