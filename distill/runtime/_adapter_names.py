"""name_base(): an adapter that was just trained, named so that plain PEFT code finds its base and its layers."""

import json
import re
from pathlib import Path
from typing import Any

from distill.artifact import write_whole
from distill.checkpoint import local_folder
from distill.family.text_part import reads_more_than_text

_OF_ALL = "base_model.model."
OF_TEXT, OF_WHOLE = f"{_OF_ALL}model.", f"{_OF_ALL}model.language_model."
"""How PEFT's names of weights begin: on the language model alone, and on all that AutoModelForCausalLM builds."""


def name_base(adapter: Path, model: str | None, revision: str | None = None) -> None:
    """Names the checkpoint that the adapter is of, in place, as a recipe names it: a folder, or a hub id and revision.

    None where none is to be named: the adapter lies beside its base. Its layers are named in one order: PEFT writes a
    set of them as every process happens to have it.
    PEFT writes where the base lay during training: in the hub's cache of this machine, or in a scratch folder. And of a
    checkpoint that reads images too, users get all from AutoModelForCausalLM: an adapter that was trained on the
    language model has no place there under its own names, and PEFT warns and goes on without it. `load_model` reads
    these names as well.
    """
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": model, "revision": revision}
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    if model is not None:
        base = json.loads((local_folder(model, revision) / "config.json").read_text("utf-8"))
        if reads_more_than_text(base):
            _name_as_whole(adapter / "adapter_model.safetensors", settings)
    write_whole(file, json.dumps(settings, indent=2))


def _name_as_whole(file: Path, settings: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    adapter = load_file(file)
    renamed = {re.sub(rf"^{re.escape(OF_TEXT)}(?!language_model\.)", OF_WHOLE, k): v for k, v in adapter.items()}
    scratch = file.with_suffix(".scratch")
    save_file(renamed, scratch, metadata={"format": "pt"})
    scratch.replace(file)
    names = settings["target_modules"]
    if isinstance(names, list):
        # a list would put empty adapters into the vision tower, whose layers have the same names
        alternatives = "|".join(re.escape(name) for name in names)
        heads = {name.removeprefix(_OF_ALL).partition(".lora_")[0] for name in adapter if not name.startswith(OF_TEXT)}
        outside = "".join(rf"|{re.escape(head)}" for head in sorted(heads))
        settings["target_modules"] = rf"model\.(language_model\.)?layers\..*({alternatives}){outside}"
