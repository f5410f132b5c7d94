"""The model card of a package: README.md with the metadata that model hubs read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill._licences import Verdict, accepted, verdict
from distill.family.licence import Terms
from distill.run_folder import RunFolder
from distill.stages._number import digits, scores_of, size
from distill.stages._rehearsed import banner

_DATA_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|gz|zst)$")


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
    environment.filters |= {"size": size, "digits": digits, "cell": _cell}
    loading = how_to_load(package)
    own = [m for m in folder.models if m.get("kind") in {"teacher", "student", "baseline"} or m.get("name") == name]
    columns = scores_of(own, folder.task)
    said = verdict(folder.recipe)
    warning = banner(folder.recipe)
    # the licences are those of models and data that a rehearsal never touched
    licence = {} if warning else _licence(said)
    text = environment.get_template("_card.md.j2").render(
        metadata=_rehearsed(loading, name) if warning else _metadata(folder, name, loading, licence),
        banner=warning,
        title=f"{folder.name}-{name}",
        name=name,
        loading=loading,
        notes=[_cell(note) for note in notes],
        entry=folder.model(name) or {},
        teacher=_teacher(folder.recipe),
        student=_student(folder.recipe),
        start_model=(folder.recipe.get("student") or {}).get("model"),
        data=folder.recipe.get("data") or {},
        loss=(folder.recipe.get("loss") or {}).get("kind"),
        licence=licence.get("license_name") or licence.get("license"),
        licences=[] if warning else _licence_lines(said),
        licences_read=None if warning else max((terms.read for terms in _known_terms(said)), default=None),
        accepted=accepted(folder.recipe),
        has_baselines=any(model.get("kind") == "baseline" for model in own),
        columns=columns,
        rows=[_row(model, columns) for model in own],
        proof=next((proof for proof in folder.verification if proof.get("package") == name), None),
        start=folder.start,
    )
    path = package / "README.md"
    # packages may be hard links into the store: a new file, never a write through the link
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def how_to_load(package: Path) -> dict[str, Any]:
    """How what lies in `package` is loaded: `kind`, `library` (the hub's name), `install` (pip packages), `code`."""
    if gguf := sorted(package.glob("*.gguf")):
        return _gguf(package, gguf[0].name)
    ask = 'inputs = tokenizer("...", return_tensors="pt")'
    if (package / "chat_template.jinja").is_file() or "chat_template" in _json(package / "tokenizer_config.json"):
        # it was trained inside its template; a bare prompt would be a question it has never seen
        ask = (
            'inputs = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], '
            'add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        )
    use = f"{ask}\nprint(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(root)"
    plain = "model = AutoModelForCausalLM.from_pretrained(root)"
    root = 'root = "path/to/this/folder"'
    if not (package / "config.json").is_file() and (package / "adapter_config.json").is_file():
        base = _json(package / "adapter_config.json").get("base_model_name_or_path")
        lines = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", "", root]
        lines += ["model = AutoPeftModelForCausalLM.from_pretrained(root)", tokenizer, use]
        kind = f"LoRA adapter for `{base}`" if base else "LoRA adapter"
        return _loading(kind, "peft", "transformers peft", "python", lines)
    quantisation = _json(package / "config.json").get("quantization_config") or {}
    bits = "8-bit" if quantisation.get("load_in_8bit") else "4-bit" if quantisation.get("load_in_4bit") else None
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", root, plain]
    if not bits:
        code = [*imports, tokenizer, use]
        return _loading("Plain safetensors checkpoint", "transformers", "transformers", "python", code)
    kind, libraries = f"{bits} weights (bitsandbytes)", "transformers bitsandbytes"
    if (package / "adapter_config.json").is_file():
        kind, libraries = f"{kind} with a LoRA adapter on top", "transformers peft bitsandbytes"
        imports = ["import peft  # without it, transformers leaves the adapter out and says nothing", *imports]
        # of a hub's id, transformers takes the base from where adapter_config.json says, and this one is its own
        imports[3] = f"{root}  # on disk; of an upload: huggingface_hub.snapshot_download(its id)"
    return _loading(kind, "transformers", libraries, "python", [*imports, tokenizer, use])


def _gguf(package: Path, file: str) -> dict[str, Any]:
    """llama.cpp in Python, as verification runs it, and what else takes the file."""
    chat = b"tokenizer.chat_template" in _head(package / file)
    lines = ["import xllamacpp", "", "params = xllamacpp.CommonParams()"]
    lines += [f'params.model.path = "path/to/this/folder/{file}"', "server = xllamacpp.Server(params)"]
    if chat:
        lines += ['asked = {"messages": [{"role": "user", "content": "..."}], "max_tokens": 64}']
        lines += ['print(server.handle_chat_completions(asked)["choices"][0]["message"]["content"])']
    else:
        lines += ['print(server.handle_completions({"prompt": "...", "max_tokens": 64})["choices"][0]["text"])']
    shell = [f'llama-cli -m {file} -p "..."']
    if (package / "Modelfile").is_file():
        shell.append("ollama create my-model -f Modelfile && ollama run my-model")
    return {**_loading("GGUF for llama.cpp", "gguf", "xllamacpp", "python", lines), "shell": "\n".join(shell)}


def _head(file: Path) -> bytes:
    """The start of a GGUF, with its keys but for what stands behind a large vocabulary."""
    with file.open("rb") as opened:
        return opened.read(64 * 2**20)


def _loading(kind: str, library: str, install: str, language: str, lines: list[str]) -> dict[str, Any]:
    code = "\n".join(lines)
    return {"kind": kind, "library": library, "install": install, "language": language, "code": code, "shell": ""}


def _metadata(folder: RunFolder, name: str, loading: Mapping[str, Any], licence: Mapping[str, str]) -> str:
    """The YAML front matter. What is not known (a licence, a hub id) is left out: a wrong one is worse than none."""
    from huggingface_hub import ModelCardData

    recipe = folder.recipe
    base, data = _hub_id((recipe.get("student") or {}).get("model")), _hub_id((recipe.get("data") or {}).get("path"))
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
    """The teacher in words; None when there was none."""
    teacher = recipe.get("teacher") or {}
    if teacher.get("kind") == "none":
        return None
    return f"`{teacher['model']}`" if teacher.get("model") else "a teacher that this run's recipe names"


def _student(recipe: Mapping[str, Any]) -> str:
    student = recipe.get("student") or {}
    return f"started from `{student['model']}`" if student.get("model") else "started from random weights"


def _licence(said: Verdict) -> dict[str, str]:
    """The card's `license`, `license_name` and `license_link`; empty where the student's start is not known.

    The base's licence, and with it the teacher's where that reaches whatever is trained on its outputs.
    """
    base = said.student.terms if said.student else None
    if said.student and (base is None or base.outputs == "unknown"):
        return {}
    own = [base] if base else []
    binding = [t.terms for t in said.teachers if t.terms and t.terms.binds_students]
    every = list({terms.id: terms for terms in (*own, *binding)}.values())
    if not every:
        return {}
    if len(every) == 1 and every[0].hub != "other":
        return {"license": every[0].hub}
    name = "-and-".join(terms.hub_name or terms.id for terms in every)
    return {"license": "other", "license_name": name, "license_link": every[-1].url}


def _licence_lines(said: Verdict) -> list[str]:
    """One line for each licence that has a say, with its source."""
    lines = []
    for finding in said.findings:
        party, terms = finding.party, finding.party.terms
        who = {"student.model": "The student's start", "data.path": "The data"}.get(party.key, "The teacher")
        lines.append(f"{who} `{party.name}` {finding.text}{f' <{terms.url}>' if terms else ''}")
    return lines


def _known_terms(said: Verdict) -> list[Terms]:
    return [finding.party.terms for finding in said.findings if finding.party.terms]


def _hub_id(name: Any) -> str | None:
    """`owner/name` when that is what `name` is and not a file or a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    return None if _DATA_FILE.search(name) or Path(name).exists() else name


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
