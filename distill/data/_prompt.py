"""Prompts from a template with the row's fields in braces, as in "Translate into English:\\n{text}"."""

import string
from collections.abc import Mapping
from typing import Any

from distill.data._rows import value_of
from distill.errors import DataError


def fields_of(template: str) -> tuple[str, ...]:
    """Names in braces, in their order; doubled braces stand for themselves.

    Raises ValueError, which pydantic turns into the recipe's error, for a template that names no field, or one that
    wants more of a field than its text: `{row.x}` or `{row[0]}` could reach what a recipe must not.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"prompt_template={template!r}: {error}. A brace that is meant literally is doubled") from None
    names = [(name, conversion or spec) for _, name, spec, conversion in parts if name is not None]
    wrong = [name for name, more in names if not name.strip() or set(name) & set(".[]") or more]
    if wrong or not names:
        found = f"{{{wrong[0]}}}" if wrong else "no field"
        raise ValueError(
            f"prompt_template={template!r} holds {found}; fields are named in braces, as in {{question}}, and braces "
            "that are meant literally are doubled"
        )
    return tuple(dict.fromkeys(name for name, _ in names))


def filled(template: str, row: Mapping[str, Any], where: str) -> str:
    """The template with the row's values, without the blanks that an empty field leaves at its ends.

    Raises:
        DataError: the row lacks a field, or holds a list where text is needed.
    """
    values = {}
    for name in fields_of(template):
        if name not in row:
            raise DataError(
                f"{where}: data.prompt_template asks for {{{name}}}. Fields there: {', '.join(map(str, row))}. "
                "Braces that are meant literally are doubled."
            )
        value = value_of(row, name)
        if value is not None and not isinstance(value, str | int | float):
            raise DataError(
                f"{where}: data.prompt_template asks for {{{name}}}, which holds {type(value).__name__}, not text."
            )
        values[name] = "" if value is None else str(value)
    parts = string.Formatter().parse(template)
    return "".join(literal + (values[name] if name is not None else "") for literal, name, _, _ in parts).strip()
