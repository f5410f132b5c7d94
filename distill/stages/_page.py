"""render(): a self-contained HTML page from a template; what the report and the page of `distill.compare` share.

`_page.css` is the look, `_macros.html.j2` the small parts; a page that includes both needs nothing from elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.stages._number import digits, duration, mebibytes, size


def render(template: Path, values: Mapping[str, Any]) -> str:
    """`template` filled with `values`. All text is escaped; a name that is missing in `values` is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"size": size, "mebibytes": mebibytes, "digits": digits, "duration": duration}
    return environment.get_template(template.name).render(values)


def pair(draw: Any, *arguments: Any, **how: Any) -> list[str]:
    """A picture for a wide and for a narrow page, as markup; nothing when there is nothing to draw."""
    from markupsafe import Markup

    drawn = [draw(*arguments, **how), draw(*arguments, **how, narrow=True)]
    return [Markup(svg) for svg in drawn if svg is not None]
