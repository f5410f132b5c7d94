"""About: what a GGUF says of the model in it, beside its weights; llama.cpp, LM Studio and model hubs show it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""transformers' name → GGUF's."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Of the whole model. What is not known is left out: a wrong base or licence is worse than none."""

    name: str
    licence: Mapping[str, str] = field(default_factory=dict)
    """`license`, `license_name` and `license_link`, as a model card has them."""
    base_model: str | None = None
    """Hub id of what the student started from."""
    dataset: str | None = None
    """Hub id."""


def write_about(writer: Any, about: About, num_parameters: int, student: Path) -> None:
    """Adds it to a `gguf.GGUFWriter`, with how answers are drawn: as transformers does it for the folder `student`.

    Source: what llama.cpp's convert_hf_to_gguf.py writes, by the same function of the gguf package.
    """
    from gguf.constants import GGUFType
    from gguf.metadata import Metadata
    from gguf.utility import size_label

    drawn: dict[str, Any] = {f"sampling_{_SAMPLING[name]}": value for name, value in sampling(student).items()}
    writer.add_type(GGUFType.MODEL)
    Metadata(
        name=about.name,
        size_label=size_label(num_parameters, 0, 0, 0),
        base_models=_repository(about.base_model),
        datasets=_repository(about.dataset),
        **dict[str, Any](about.licence),
        **drawn,
    ).set_gguf_meta_model(writer)


def _repository(hub_id: str | None) -> list[dict[str, str]] | None:
    if hub_id is None:
        return None
    organization, _, name = hub_id.partition("/")
    return [{"name": name, "organization": organization, "repo_url": f"https://huggingface.co/{hub_id}"}]


def sampling(student: Path) -> dict[str, float]:
    """How transformers draws answers of this folder: temperature, and what cuts the distribution off.

    Without `do_sample` it takes the likeliest token, and so were a run's scores taken; llama.cpp and Ollama left to
    themselves draw at 0.8.
    """
    file = student / "generation_config.json"
    said = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not said.get("do_sample"):
        return {"temperature": 0.0}
    # transformers' own defaults, which the file leaves out
    default = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
    return {name: value if said.get(name) is None else said[name] for name, value in default.items()}
