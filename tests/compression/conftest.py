"""A tiny Llama student with a real tokenizer, and what the compression tests ask of a package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("DISTILL_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def stories260k():
    """A real trained Llama of 260,032 parameters: hidden 64, MLP 172, vocabulary 512."""
    folder = SHARED / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set DISTILL_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """A random Llama whose widths are multiples of 64, with logits that spread over several nats."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25 if "embed" in name else 1.5 / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w2", unk_token="w0")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows():
    return [list(map(int, row)) for row in np.random.default_rng(0).integers(3, 101, (6, 40))]


@pytest.fixture(scope="session")
def logprobs(rows):
    """folder → float32 [N, V] of all positions of `rows`."""
    from distill.runtime.hf import Transformers

    def compute(folder, **how):
        with Transformers(folder, **how) as model:
            return model.logprobs(rows, [range(len(row)) for row in rows])

    return compute


@pytest.fixture(scope="session")
def fresh_logprobs(tmp_path_factory, rows):
    """folder → two float32 [N, V] of a fresh process: by our runtime after it generated, and by transformers alone."""
    script = (
        "import json, sys, numpy, torch, transformers\n"
        "from distill.runtime.hf import Transformers\n"
        "folder, rows, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]\n"
        "with Transformers(folder) as model:\n"
        "    model.generate(rows, 2)\n"
        "    ours = model.logprobs(rows, [range(len(row)) for row in rows])\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()\n"
        "with torch.no_grad():\n"
        "    theirs = model(torch.tensor(rows)).logits.float().log_softmax(-1).flatten(0, 1)\n"
        "assert transformers.AutoTokenizer.from_pretrained(folder)('w5 w7')['input_ids'] == [5, 7]\n"
        "numpy.savez(out, ours=ours, theirs=theirs)\n"
    )

    def compute(folder):
        out = tmp_path_factory.mktemp("fresh") / "logprobs.npz"
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(rows), str(out)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert done.returncode == 0, done.stderr
        assert "kernels" not in done.stderr and "float16" not in done.stderr, done.stderr
        found = np.load(out)
        return found["ours"], found["theirs"]

    return compute


@pytest.fixture(scope="session")
def mean_kl():
    """(log p, log q) → mean KL(p || q) in nats, in float64."""

    def compute(logp, logq):
        logp, logq = logp.astype(np.float64), logq.astype(np.float64)
        return float((np.exp(logp) * (logp - logq)).sum(axis=1).mean())

    return compute
