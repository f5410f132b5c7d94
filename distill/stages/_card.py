"""The model card of a package: README.md with the metadata that model hubs read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill._licences import Verdict, accepted, verdict
from distill.family.licence import Terms, in_card
from distill.run_folder import RunFolder
from distill.stages._about import hub_id, shown
from distill.stages._card_gguf import how_to_run
from distill.stages._number import TO_TEACHER, digits, scores_of, size
from distill.stages._rehearsed import banner


def write_card(package: Path, *, run: Path, name: str, notes: Sequence[str] = ()) -> None:
    """Writes `package`/README.md: what it is, how to load it, its scores beside teacher and student, and the proof.

    Args:
        package: the folder as users will get it; its files decide which way of loading the card shows.
        run: the run folder that the figures come from.
        name: the package's name in scores.json and verification.json.
        notes: what became otherwise than its name says when it was made, a sentence each.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = RunFolder.read(run)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; `cell` below guards the tables
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"size": size, "digits": digits, "cell": _cell, "shown": shown}
    data = folder.recipe.get("data") or {}
    loading = how_to_load(package, ends="" if data.get("text_field") else "\\n")
    own = [m for m in folder.models if m.get("kind") in {"teacher", "student", "baseline"} or m.get("name") == name]
    columns = scores_of(own, folder.task)
    said = verdict(folder.recipe)
    warning = banner(folder.recipe)
    # the licences are those of models and data that a rehearsal never touched
    licence = {} if warning else in_card(said.packages or ())
    text = environment.get_template("_card.md.j2").render(
        metadata=_rehearsed(loading, name) if warning else _metadata(folder, name, loading, licence),
        banner=warning,
        title=f"{folder.name}-{name}" if warning else said.named(f"{folder.name}-{name}"),
        name=name,
        loading=loading,
        notes=[_cell(note) for note in notes],
        entry=folder.model(name) or {},
        teacher=_teacher(folder.recipe),
        student=_student(folder.recipe),
        start_model=(folder.recipe.get("student") or {}).get("model"),
        data=data,
        loss=(folder.recipe.get("loss") or {}).get("kind"),
        licence=licence.get("license_name") or licence.get("license"),
        licences=[] if warning else _licence_lines(said),
        licences_read=None if warning else max((terms.read for terms in _known_terms(said)), default=None),
        accepted=accepted(folder.recipe),
        has_baselines=any(model.get("kind") == "baseline" for model in own),
        columns=columns,
        compares_with_teacher=any(column.name in TO_TEACHER for column in columns),
        rows=[_row(model, columns) for model in own],
        proof=next((proof for proof in folder.verification if proof.get("package") == name), None),
        start=folder.start,
    )
    path = package / "README.md"
    # packages may be hard links into the store: a new file, never a write through the link
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def how_to_load(package: Path, *, ends: str = "\\n") -> dict[str, Any]:
    """How what lies in `package` is loaded: `kind`, `library` (the hub's name), `install` (pip packages), `code`.

    The code takes the likeliest token, as the card's scores do: llama.cpp would sample at 0.8, some checkpoints too.
    `ends`: what a prompt ends with where there is no chat template, as Python writes it; see `without_template`.
    """
    if gguf := sorted(package.glob("*.gguf")):
        return how_to_run(package, gguf[0].name, ends=ends)
    ask = f'inputs = tokenizer("...{ends}", return_tensors="pt")'
    if (package / "chat_template.jinja").is_file() or "chat_template" in _json(package / "tokenizer_config.json"):
        # it was trained inside its template; a bare prompt would be a question it has never seen
        ask = (
            'inputs = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], '
            'add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        )
    use = f"{ask}\nprint(tokenizer.decode(model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]))"
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(root)"
    plain = "model = AutoModelForCausalLM.from_pretrained(root)"
    root = 'root = "path/to/this/folder"'
    if not (package / "config.json").is_file() and (package / "adapter_config.json").is_file():
        base = _json(package / "adapter_config.json").get("base_model_name_or_path")
        lines = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", "", root]
        lines += ["model = AutoPeftModelForCausalLM.from_pretrained(root)", tokenizer, use]
        kind = f"LoRA adapter for `{shown(base)}`" if base else "LoRA adapter"
        return _loading(kind, "peft", "transformers peft", lines)
    quantisation = _json(package / "config.json").get("quantization_config") or {}
    bits = "8-bit" if quantisation.get("load_in_8bit") else "4-bit" if quantisation.get("load_in_4bit") else None
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", root, plain]
    if not bits:
        code = [*imports, tokenizer, use]
        return _loading("Plain safetensors checkpoint", "transformers", "transformers", code)
    kind, libraries = f"{bits} weights (bitsandbytes)", "transformers bitsandbytes"
    if (package / "adapter_config.json").is_file():
        kind, libraries = f"{kind} with a LoRA adapter on top", "transformers peft bitsandbytes"
        imports = ["import peft  # without it, transformers leaves the adapter out and says nothing", *imports]
        # of a hub's id, transformers takes the base from where adapter_config.json says, and this one is its own
        imports[3] = f"{root}  # on disk; of an upload: huggingface_hub.snapshot_download(its id)"
    return _loading(kind, "transformers", libraries, [*imports, tokenizer, use])


def _loading(kind: str, library: str, install: str, lines: list[str]) -> dict[str, Any]:
    code = "\n".join(lines)
    return {"kind": kind, "library": library, "install": install, "code": code, "shell": "", "memory": ""}


def _metadata(folder: RunFolder, name: str, loading: Mapping[str, Any], licence: Mapping[str, str]) -> str:
    """The YAML front matter. What is not known (a licence, a hub id) is left out: a wrong one is worse than none."""
    from huggingface_hub import ModelCardData

    recipe = folder.recipe
    base, data = hub_id((recipe.get("student") or {}).get("model")), hub_id((recipe.get("data") or {}).get("path"))
    has_teacher = (recipe.get("teacher") or {}).get("kind") != "none"
    return ModelCardData(
        library_name=loading["library"],
        pipeline_tag="text-generation",
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        base_model=base,
        datasets=[data] if data else None,
        metrics=[folder.task] if folder.task else None,
        tags=[*(["distillation"] if has_teacher else []), "compression", name],
    ).to_yaml()


def _rehearsed(loading: Mapping[str, Any], name: str) -> str:
    """The front matter of a rehearsal's card: it has no base model, no data set and no licence."""
    from huggingface_hub import ModelCardData

    return ModelCardData(library_name=loading["library"], tags=["rehearsal", name]).to_yaml()


def _row(model: Mapping[str, Any], columns: list[Any]) -> list[str]:
    speed = (model.get("speed") or {}).get("decode_tokens_per_second")
    return [str(model["name"]), *(column.cell(model) for column in columns), size(model.get("bytes")), digits(speed)]


def _teacher(recipe: Mapping[str, Any]) -> str | None:
    """The teacher or teachers in words; None when there was none."""
    teacher = recipe.get("teacher") or {}
    if teacher.get("kind") == "none":
        return None
    asked = (teacher.get("teachers") or {"": teacher}).values()
    named = [one.get("model") or one.get("name") or Path(one.get("path") or "").name for one in asked]
    if not all(named):
        return "a teacher that this run's recipe names"
    return " and ".join(f"`{shown(name)}`" for name in dict.fromkeys(named))


def _student(recipe: Mapping[str, Any]) -> str:
    student = recipe.get("student") or {}
    return f"started from `{shown(student['model'])}`" if student.get("model") else "started from random weights"


def _licence_lines(said: Verdict) -> list[str]:
    """One line for each licence that has a say, with its source."""
    lines = []
    for finding in said.findings:
        party, terms = finding.party, finding.party.terms
        who = {"student.model": "The student's start", "data.path": "The data"}.get(party.key, "The teacher")
        lines.append(f"{who} `{shown(party.name)}` {finding.text}{f' <{terms.url}>' if terms else ''}")
    return lines


def _known_terms(said: Verdict) -> list[Terms]:
    return [finding.party.terms for finding in said.findings if finding.party.terms]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
