"""STRICT: how every option of a recipe is declared, so that its default, its range and its help stand in one place."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True)
"""For `@dataclass(frozen=True, kw_only=True, config=STRICT)` from `pydantic.dataclasses`."""
