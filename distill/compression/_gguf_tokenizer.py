"""A Hugging Face tokenizer in llama.cpp's terms, or the reason why llama.cpp cannot express it.

llama.cpp rebuilds the tokenizer from a list of tokens and the *name* of a pre-tokenizer that is written into its own
source, so only tokenizers whose regular expression it knows can be exported. Two kinds are:

    byte-level BPE        ("gpt2" in GGUF)    GPT-2, BLOOM, Llama 3, Qwen 2 and what is trained with their split rules
    SentencePiece's BPE   ("llama" in GGUF)   Llama 2, Code Llama, Mistral 7B; `▁` for a space, bytes as a fallback

Scores of SentencePiece pieces are the merge order of tokenizer.json, the file that transformers itself tokenizes with:
transformers 5 no longer writes tokenizer.model, without which upstream's converter gives every piece the same score.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Split rules of tokenizer.json, and the name under which llama.cpp's source has the same rule.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    _CONTRACTIONS + _WORDS_AND_SPACES % r"\p{N}": "qwen2",
    _CONTRACTIONS + _WORDS_AND_SPACES % r"\p{N}{1,3}": "llama-bpe",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    r" ?[^(\s|[.,!?…。，、।۔،])]+": "bloom",
}

# Token types of GGUF (and of SentencePiece's model file, which they were taken from).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class NotExpressible(ValueError):
    """llama.cpp has no way to say this; the message is one sentence for the user."""


@dataclass(frozen=True)
class GgufTokenizer:
    """Everything that GGUF stores about a tokenizer; `None` ids are absent in the source too."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    ids: Mapping[str, int]
    """Of "bos", "eos", "eot", "eom", "unk", "pad", as far as they exist; llama.cpp stops at the three e's."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_templates: Mapping[str, str]
    """By name; prompts are made with "default", tools are told of with "tool_use"."""

    @property
    def chat_template(self) -> str | None:
        """The one that makes prompts."""
        return self.chat_templates.get("default")


def gguf_tokenizer(folder: Path, vocab_size: int | None = None) -> GgufTokenizer:
    """The tokenizer of a checkpoint folder, padded with unused tokens to the rows of the embedding.

    Added tokens without a row are left out: Code Llama's have them, and no model can read or write them.

    Args:
        folder: holds tokenizer.json and usually tokenizer_config.json, config.json, chat_template.jinja.
        vocab_size: rows of the embedding; None leaves the tokens as they are.

    Raises:
        NotExpressible: this tokenizer would split text differently in llama.cpp.
    """
    if not (folder / "tokenizer.json").is_file():
        raise NotExpressible(f"{folder} has no tokenizer.json; save the tokenizer with save_pretrained first")
    spec = _read(folder / "tokenizer.json")
    settings = _read(folder / "tokenizer_config.json")
    templates = _chat_templates(folder, settings)
    if spec["model"].get("type") != "BPE":
        raise NotExpressible(f"its tokenizer is of type {spec['model'].get('type')}; only BPE can be exported to GGUF")
    _check_model(spec["model"])
    if (name := _byte_level_name(spec)) is not None:
        model, pre, prefix = "gpt2", name, False
    else:
        model, pre, prefix = "llama", "default", _space_prefix(spec, templates.get("default"))

    tokens, types = _tokens_and_types(spec, vocab_size, byte_fallback=model == "llama")
    ids = _special_ids(folder, settings, tokens)
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in spec["model"]["merges"]]
    add_bos, add_eos = _adds_bos_eos(folder, ids)
    if add_bos and not _begins_with_bos(templates.get("default"), tokens, ids):
        add_bos = False
    return GgufTokenizer(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=_merge_scores(tokens, pairs) if model == "llama" else None,
        merges=[" ".join(pair) for pair in pairs] if model == "gpt2" else None,
        ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=prefix,
        chat_templates=templates,
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Name → template, sorted: from files as transformers 5 writes them, else from tokenizer_config.json."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in (folder / "additional_chat_templates").glob("*.jinja")}
    found = {name: files[name].read_text("utf-8") for name in sorted(files) if files[name].is_file()}
    if found:
        return found
    template = settings.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in sorted(template, key=lambda entry: entry["name"])}
    return {"default": template} if template else {}


def _check_model(model: Mapping[str, Any]) -> None:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise NotExpressible(f"its BPE uses {key}={model[key]!r}, which llama.cpp does not know")
    if not model["merges"]:
        raise NotExpressible("its BPE has no merges, and llama.cpp does not load a tokenizer without one")


def _byte_level_name(spec: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of a byte-level pre-tokenizer; None when the tokenizer is not byte-level at all."""
    found = _parts(spec["pre_tokenizer"], "pretokenizers")
    if not any(part["type"] == "ByteLevel" for part in found):
        return None
    *splits, last = found
    name = None
    if last["type"] == "ByteLevel" and not last.get("add_prefix_space"):
        if not splits and last.get("use_regex", True):
            name = "gpt-2"
        elif len(splits) == 1 and splits[0]["type"] == "Split" and not last.get("use_regex", True):
            split = splits[0]
            if split["behavior"].lower() == "isolated" and not split.get("invert"):
                name = PRE_TOKENIZERS.get(split["pattern"].get("Regex", ""))
    if name is None:
        shown = json.dumps(found, ensure_ascii=False)
        raise NotExpressible(
            f"its pre-tokenizer is none that llama.cpp has ({', '.join(PRE_TOKENIZERS.values())}); found {shown}"
        )
    if spec["model"].get("ignore_merges") and name != "llama-bpe":
        raise NotExpressible(f"its BPE ignores merges, which llama.cpp does for llama-bpe and not for {name}")
    # NFC (Qwen 2) is let through: llama.cpp skips it too for these models, and text is NFC nearly everywhere.
    normalizers = [part["type"] for part in _parts(spec["normalizer"], "normalizers")]
    if set(normalizers) - {"NFC"}:
        raise NotExpressible(f"its normalizer {'+'.join(normalizers)} has no counterpart in llama.cpp")
    return name


def _space_prefix(spec: Mapping[str, Any], chat_template: str | None) -> bool:
    """Whether llama.cpp shall put a space before text, as a SentencePiece tokenizer does.

    llama.cpp puts it at the start and after every special token. That is exactly what the `Prepend` normalizer does.
    `Metaspace` with "first" (transformers 5) puts it at the start only, and not before a text that starts with a space:
    equal for plain text that starts with a letter, unequal after a special token. Chat prompts start with special
    tokens, so with a chat template the prefix is left out, which is exact for them.
    """
    normalizers = [part["type"] for part in _parts(spec["normalizer"], "normalizers")]
    pre = _parts(spec["pre_tokenizer"], "pretokenizers")
    if not spec["model"].get("byte_fallback"):
        raise NotExpressible("its BPE is neither byte-level nor has byte_fallback; llama.cpp needs one of them")
    if not pre and normalizers in (["Prepend", "Replace"], ["Replace"]):
        return "Prepend" in normalizers
    if [part["type"] for part in pre] == ["Metaspace"] and not normalizers and not pre[0].get("split", True):
        scheme = pre[0].get("prepend_scheme", "always")
        return scheme == "always" or (scheme == "first" and not chat_template)
    shown = json.dumps({"normalizer": spec["normalizer"], "pre_tokenizer": spec["pre_tokenizer"]}, ensure_ascii=False)
    raise NotExpressible(f"its splitting is neither byte-level nor that of SentencePiece; found {shown}")


def _parts(node: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A `Sequence` as the list of its members, one node as a list of one, nothing as an empty list."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [part for child in node[key] for part in _parts(child, key)]


def _tokens_and_types(
    spec: Mapping[str, Any], vocab_size: int | None, *, byte_fallback: bool
) -> tuple[list[str], list[int]]:
    by_id: dict[int, tuple[str, int]] = {}
    for text, index in spec["model"]["vocab"].items():
        is_byte = byte_fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text) is not None
        by_id[index] = (text, BYTE if is_byte else NORMAL)
    size = vocab_size
    if size is not None and by_id and max(by_id) >= size:
        raise NotExpressible(f"its tokenizer has {max(by_id) + 1} tokens and the model only {size} embeddings")
    for token in spec["added_tokens"]:
        if size is not None and token["id"] >= size:
            continue
        text, options = token["content"], [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]
        if options:
            raise NotExpressible(f"its token {text!r} uses {'+'.join(options)}, which llama.cpp does not know")
        by_id[token["id"]] = (text, CONTROL if token["special"] else USER_DEFINED)
    unknown = spec["model"].get("unk_token") or ("<unk>" if byte_fallback else None)
    rows = range(max(by_id) + 1 if size is None else size)
    padded = [by_id.get(index, (f"[PAD{index}]", UNUSED)) for index in rows]
    return [text for text, _ in padded], [UNKNOWN if text == unknown else kind for text, kind in padded]


def _merge_scores(tokens: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[float]:
    """Minus the rank of the first merge that makes the piece: llama.cpp joins the pair with the highest score first.

    Pieces that no merge makes (characters, bytes, special tokens) are never the result of joining; they come last.
    """
    rank: dict[str, int] = {}
    for pair in pairs:
        rank.setdefault("".join(pair), len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _special_ids(folder: Path, settings: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    """Ids by the tokenizer's own word, else the model's; the end tokens are those that transformers obeys."""
    index = {text: number for number, text in enumerate(tokens)}
    config = {**_read(folder / "config.json"), **_read(folder / "generation_config.json")}
    ids: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = settings.get(f"{role}_token")
        text = text["content"] if isinstance(text, Mapping) else text
        number = index.get(text) if text is not None else config.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) else number
        if number is not None and 0 <= number < len(tokens):
            ids[role] = number
    # transformers stops at what the generation config says; the tokenizer's own eos counts where that is silent.
    stops = config.get("eos_token_id")
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    stops = [number for number in stops if 0 <= number < len(tokens)]
    if stops and ids.get("eos") not in stops:
        ids["eos"] = stops[0]
    further = [number for number in stops if number != ids["eos"]]
    if len(further) > 2:
        raise NotExpressible(f"its model has {len(stops)} end tokens; GGUF has room for three (eos, eot, eom)")
    return {**ids, **dict(zip(("eot", "eom"), further, strict=False))}


def _adds_bos_eos(folder: Path, ids: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts bos in front and eos behind when it is asked for special tokens.

    It is asked: which of tokenizer.json and tokenizer_config.json decides differs between tokenizer classes, and
    transformers 5 heeds `add_bos_token` where 4 did not, and the other way round.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer_config.json").is_file():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if whole == bare:
        return False, False
    return whole[0] == ids.get("bos"), whole[-1] == ids.get("eos")


def _begins_with_bos(template: str | None, tokens: Sequence[str], ids: Mapping[str, int]) -> bool:
    """Whether a prompt that the chat template writes begins with bos; True without a template, or where it refuses.

    llama.cpp puts bos in front of a dialogue too, where transformers leaves that to the template. Of a model that chats
    the dialogue has to be right.
    """
    if template is None:
        return True
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {f"{role}_token": tokens[number] for role, number in ids.items()}
    render: Any = render_jinja_template  # returns a pair, and says str
    try:
        (text,), _ = render([[{"role": "user", "content": "a"}]], chat_template=template, **special)
    except TemplateError:
        return True
    return text.startswith(special["bos_token"])
