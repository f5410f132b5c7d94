"""Real vocabularies through the exporter: llama.cpp must give the ids that llama.cpp's own project published.

The published ids were made with the Hugging Face tokenizers of GPT-2 and Phi-3 (which has Llama 2's vocabulary).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from distill.compression.gguf_q8_0 import GgufQ8_0
from distill.runtime.llama_cpp import LlamaCpp

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

SHARED = Path(os.environ.get("DISTILL_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
VECTORS = SHARED / "tokenizer_gguf"

pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"{VECTORS} is absent (DISTILL_SHARED_DATA names another place)"
)


def gpt2() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = SHARED / "tokenizer_gpt2"
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(line.split()) for line in lines if line]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def llama2() -> Any:
    """Llama 2's tokenizer.json, rebuilt from pieces and scores: every split of a piece is a merge, best score first."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, models, normalizers

    reader = GGUFReader(VECTORS / "ggml-vocab-phi-3.gguf")
    pieces, scores, types = (
        reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
    )
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    normal = {piece for piece, kind in zip(pieces, types, strict=True) if kind == 1}
    merges = [
        (-scores[vocabulary[piece]], piece[:cut], piece[cut:])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    pairs = [(left, right) for _, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([piece for piece, kind in zip(pieces, types, strict=True) if kind in (2, 3)])
    return tokenizer


@pytest.mark.parametrize(("build", "vectors"), [(gpt2, "gpt-2"), (llama2, "phi-3")], ids=["gpt2", "llama2"])
def test_published_ids(build: Any, vectors: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = build()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    wrapped.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
        eos_token_id=wrapped.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    GgufQ8_0(kind="gguf_q8_0").make(tmp_path, tmp_path / "package")

    with (VECTORS / f"ggml-vocab-{vectors}.gguf.inp").open(encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    published = (VECTORS / f"ggml-vocab-{vectors}.gguf.out").read_text().split("\n")[: len(texts)]
    wiki = [line for line in (SHARED / "wikitext2" / "valid.txt").read_text("utf-8").split("\n") if line.strip()][:300]
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        assert runtime.tokenize(texts) == [[int(number) for number in line.split()] for line in published]
        assert runtime.tokenize(wiki) == wrapped(wiki, add_special_tokens=False)["input_ids"]


def test_an_added_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    """transformers' tokenizer of Code Llama adds <FILL_ME> behind the last token that the model has a row for."""
    from transformers import CodeLlamaTokenizer, LlamaConfig, LlamaForCausalLM

    marks = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    merges: Any = [("d", "e"), ("de", "f"), ("▁", "def"), ("i", "n"), ("▁", "x")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁defghinrtx():"]
    pieces += [*("".join(pair) for pair in merges), *marks]
    tokenizer = CodeLlamaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)
    assert tokenizer.convert_tokens_to_ids("<FILL_ME>") == len(pieces) == len(tokenizer) - 1
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    option = GgufQ8_0(kind="gguf_q8_0")
    assert option.refuse_tokenizer(tmp_path) is None
    option.make(tmp_path, tmp_path / "package")
    texts = ["def f(x): in", "def éx", "x <FILL"]
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        found = runtime.tokenize(texts)
    assert found == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert found[0][:1] == [pieces.index("▁def")] and max(map(max, found)) < len(pieces)

    # a token of the vocabulary itself is none that may be missing
    config.vocab_size = len(pieces) - 1
    config.save_pretrained(tmp_path)
    assert f"{len(pieces)} tokens and the model only {len(pieces) - 1}" in (option.refuse_tokenizer(tmp_path) or "")
