"""The Modelfile with which Ollama takes a GGUF: `ollama create NAME -f Modelfile`.

Ollama wants chat templates in Go's template language and knows only famous Jinja ones by sight. Ours is translated by
rendering it with marked messages and reading off what stands around each role. The result is then held against the
Jinja template on a longer dialogue; where they differ the Modelfile goes without a TEMPLATE, and says so.
"""

from collections.abc import Mapping, Sequence

from distill.compression._gguf_tokenizer import GgufTokenizer

_ROLES = ("system", "user", "assistant")


def modelfile(gguf_name: str, tokenizer: GgufTokenizer, sampling: Mapping[str, float]) -> str:
    """The text of a Modelfile next to the GGUF: FROM, TEMPLATE where it can be said, stop tokens, and sampling."""
    lines = [f"FROM ./{gguf_name}"]
    if tokenizer.chat_template is None:
        # Without this Ollama wraps the prompt in nothing as well; said so that nobody has to look it up.
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        template = _go_template(tokenizer)
        lines.append(
            f'TEMPLATE """{template}"""'
            if template is not None
            else "# The chat template says more than fixed text around each message, so there is no TEMPLATE here."
        )
    stops = dict.fromkeys(
        tokenizer.tokens[tokenizer.ids[role]] for role in ("eos", "eot", "eom") if role in tokenizer.ids
    )
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop and "\n" not in stop]
    lines += [f"PARAMETER {name} {value:g}" for name, value in sampling.items()]
    return "\n".join(lines) + "\n"


def _go_template(tokenizer: GgufTokenizer) -> str | None:
    around = _text_around_messages(tokenizer)
    if around is None:
        return None
    pieces, answer_start = around
    text = "".join([answer_start, *(part for pair in pieces.values() for part in pair)])
    if "{{" in text or "}}" in text or '"' in text:
        return None
    branches = "".join(
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for number, (role, (before, after)) in enumerate(pieces.items())
    )
    return f"{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{answer_start}"


def _text_around_messages(tokenizer: GgufTokenizer) -> tuple[dict[str, tuple[str, str]], str] | None:
    """What stands before and after a message of each role, and what opens the answer; None if it is not that simple."""
    from jinja2 import TemplateError

    mark = {role: f"<<{role}-text>>" for role in _ROLES}
    pieces: dict[str, tuple[str, str]] = {}
    try:
        user = _render(tokenizer, ["user"], mark, opened=False)
        answer_start = _render(tokenizer, ["user"], mark, opened=True).removeprefix(user)
        pieces["user"] = _split(user, mark["user"])
        pieces["assistant"] = _split(
            _render(tokenizer, ["user", "assistant"], mark, opened=False).removeprefix(user), mark["assistant"]
        )
        dialogue = ["user", "assistant", "user"]
        expected = _render(tokenizer, dialogue, mark, opened=True)
    except (TemplateError, ValueError):
        return None
    try:
        system = _render(tokenizer, ["system", "user"], mark, opened=False)
        if system.endswith(user):
            pieces["system"] = _split(system.removesuffix(user), mark["system"])
            dialogue = ["system", *dialogue]
            expected = _render(tokenizer, dialogue, mark, opened=True)
    except (TemplateError, ValueError):
        pass  # a template without a system role is a complete template
    built = "".join(pieces[role][0] + mark[role] + pieces[role][1] for role in dialogue) + answer_start
    return (pieces, answer_start) if built == expected else None


def _split(text: str, mark: str) -> tuple[str, str]:
    before, after = text.split(mark)  # ValueError unless the message stands there exactly once
    return before, after


def _render(tokenizer: GgufTokenizer, roles: Sequence[str], mark: Mapping[str, str], *, opened: bool) -> str:
    """The chat template's text for messages of these roles, without the bos that llama.cpp adds itself."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # the settings of transformers' apply_chat_template
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    special = {f"{role}_token": tokenizer.tokens[number] for role, number in tokenizer.ids.items()}
    text = environment.from_string(tokenizer.chat_template or "").render(
        messages=[{"role": role, "content": mark[role]} for role in roles], add_generation_prompt=opened, **special
    )
    return text.removeprefix(special.get("bos_token", "")) if tokenizer.add_bos else text
