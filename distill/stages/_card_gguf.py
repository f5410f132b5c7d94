"""How a card says that a GGUF is run, and what memory a small board needs for it."""

from pathlib import Path
from typing import Any

from distill.runtime._gguf_head import GgufHead
from distill.stages._number import size

CONTEXT = 2048
"""Tokens of prompt and answer together in the commands, where the model was trained for as many."""
BYTES_PER_NUMBER = 2
"""llama.cpp keeps keys and values in float16."""


def how_to_run(package: Path, file: str, *, ends: str) -> dict[str, Any]:
    """llama.cpp in Python, as verification runs it, its own programs, and what else takes the file.

    `ends`: what a prompt ends with where there is no chat template.
    """
    head = GgufHead(package / file)
    chats = head.has("tokenizer.chat_template")
    lines = ["import xllamacpp", "", "params = xllamacpp.CommonParams()"]
    lines += [f'params.model.path = "path/to/this/folder/{file}"', "server = xllamacpp.Server(params)"]
    if chats:
        lines += ['asked = {"messages": [{"role": "user", "content": "..."}], "max_tokens": 64, "temperature": 0}']
        lines += ['print(server.handle_chat_completions(asked)["choices"][0]["message"]["content"])']
    else:
        lines += [f'asked = {{"prompt": "...{ends}", "max_tokens": 64, "temperature": 0}}']
        lines += ['print(server.handle_completions(asked)["choices"][0]["text"])']
    context = min(head.number(f"{head.text('general.architecture')}.context_length") or CONTEXT, CONTEXT)
    # llama-cli only chats; without a template it would take one that the model has never seen
    shell = [f"llama-cli -m {file} -c {context} --temp 0"]
    if not chats:
        shell = [f'llama-completion -m {file} -c {context} --temp 0 -no-cnv -n 64 -p "...{ends}"']
    # its cache of earlier prompts may take 8 GiB
    shell.append(
        f"llama-server -m {file} -c {context} -np 1 --cache-ram 0   # a page and an API at http://localhost:8080"
    )
    if (package / "Modelfile").is_file():
        shell.append("ollama create my-model -f Modelfile && ollama run my-model")
    return {
        **{"kind": "GGUF for llama.cpp", "library": "gguf", "install": "xllamacpp"},
        **{"code": "\n".join(lines), "shell": "\n".join(shell), "memory": _memory(head, package / file, context)},
    }


def _memory(head: GgufHead, file: Path, context: int) -> str:
    """A sentence on what it takes to run the file; a Raspberry Pi's memory is what its user knows."""
    weights, each = file.stat().st_size, key_value_bytes(head)
    if each is None:
        return f"It takes {size(weights)} of memory for the weights, and more for keys, values and the program."
    return (
        f"With a context of {context:,} tokens it takes at least {size(weights + context * each)} of memory: "
        f"{size(weights)} for the weights and {size(context * each)} for keys and values ({size(each)} a token); "
        "the program and what it computes in take some tens of MiB more."
    )


def key_value_bytes(head: GgufHead) -> int | None:
    """Bytes of keys and values for each token of the context; None where the file does not say it."""
    name = head.text("general.architecture")
    layers, heads, width = (
        head.number(f"{name}.{key}") for key in ("block_count", "attention.head_count", "embedding_length")
    )
    if not (layers and heads and width):
        return None
    shared = head.number(f"{name}.attention.head_count_kv") or heads
    lengths = (head.number(f"{name}.attention.{part}_length") or width // heads for part in ("key", "value"))
    return layers * shared * sum(lengths) * BYTES_PER_NUMBER
