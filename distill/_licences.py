"""What the licences of a recipe's teacher, student and data say about it: judged before anything is downloaded.

Facts from `distill.family.licence` with their source, and not legal advice.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from distill.checkpoint import BUNDLED
from distill.data.known import data_set
from distill.errors import RecipeError, did_you_mean
from distill.family.inferred import terms_of_copy, terms_served
from distill.family.known import published
from distill.family.licence import TERMS, Terms, terms_at, terms_called, terms_of_folder
from distill.family.reading import near_names
from distill.recipe import Recipe

Level = Literal["ok", "unknown", "notice", "refused"]
"""From light to grave; unknown and notice are said, refused stops a run until its licence is accepted."""


@dataclass(frozen=True)
class Party:
    """A model or data set that the recipe names."""

    key: str
    """The recipe's key, such as "teacher.model"."""
    name: str
    terms: Terms | None
    """None: not known to us."""
    tag: str = ""
    """Of a data set: the hub's name of its licence."""
    why: str = ""
    """Where its terms are inferred: "by its name"."""
    files: tuple[str, str | None] | None = None
    """Folder or hub id of a checkpoint, and its revision; None: data, a name at an endpoint, a checkpoint of ours."""

    def __str__(self) -> str:
        return f"{self.key}={self.name}"

    @property
    def standing(self) -> str:
        """What it is under: goes on after its name."""
        assert self.terms is not None
        inferred = f"is, {self.why}, under" if self.why else "is under"
        return f"{inferred} the {self.terms.title} ({self.terms.id})"


@dataclass(frozen=True)
class Finding:
    """What is said of one party."""

    level: Level
    party: Party
    text: str
    """Goes on after the party's name: "is under …"."""

    def __str__(self) -> str:
        return f"{self.party} {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What was found, in the order teachers, student, data."""

    teachers: tuple[Party, ...]
    student: tuple[Party, ...]
    """What it starts from; none for random weights. A model under several licences, here and above, is several."""
    data: Party | None
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The gravest level that was found."""
        levels: list[Level] = ["ok", *(finding.level for finding in self.findings)]
        return max(levels, key=get_args(Level).index)

    @property
    def packages(self) -> tuple[Terms, ...] | None:
        """The licences of what the recipe makes; None where they cannot be told.

        Those of the student's start, and the teachers' where they reach whatever is trained on their outputs.
        """
        own = [party.terms for party in self.student]
        binding = [party.terms for party in self.teachers if party.terms and party.terms.binds_students]
        every = {terms.id: terms for terms in (*own, *binding) if terms and terms.outputs != "unknown"}
        known = all(terms and terms.outputs != "unknown" for terms in own)
        return tuple(every.values()) if known else None

    def named(self, name: str) -> str:
        """`name` as what the recipe makes may be passed on: with Llama's name in front, where its licence asks so."""
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        asked = [f.party.terms.name_begins for f in self.findings if f.party.terms and f.party.terms.name_begins]
        # the longest says what the others ask
        begins = max(asked, key=len, default="")
        return name if plain.startswith(begins.replace(" ", "").lower()) else f"{begins.replace(' ', '-')}-{name}"

    @property
    def sentences(self) -> list[str]:
        return [str(finding) for finding in self.findings]

    @property
    def to_accept(self) -> list[str]:
        """Ids that `licence.accept` must hold for the run to start."""
        refused = (f.party.terms for f in self.findings if f.level == "refused")
        return list(dict.fromkeys(terms.id for terms in refused if terms))


def verdict(recipe: Recipe | Mapping[str, Any]) -> Verdict:
    """What the licences say; of a parsed recipe, or of a run's recipe.yaml with every `kind` filled in."""
    plain = recipe if isinstance(recipe, Mapping) else dataclasses.asdict(recipe)
    teachers, student, data = _teachers(plain.get("teacher") or {}), _student(plain), _data(plain)
    allowed = accepted(plain)
    findings = [_of_teacher(teacher, student, allowed) for teacher in teachers]
    findings += [_of_student(start) for start in student]
    findings += [_of_data(data), *_of_writer(data)] if data else []
    return Verdict(tuple(teachers), tuple(student), data, tuple(findings))


def check_licences(recipe: Recipe) -> None:
    """Refuses a recipe that a licence forbids, unless `licence.accept` names it. A rehearsal is never refused.

    Raises:
        RecipeError: with the clause, its source and the setting that goes on; or `licence.accept` names no licence.
    """
    if recipe.rehearse:
        return
    for name in recipe.licence.accept:
        if name not in TERMS:
            hint = did_you_mean(name, TERMS)
            raise RecipeError(
                f"licence.accept names {name!r}, which is no licence here; {hint}there are: {', '.join(TERMS)}."
            )
    said = verdict(recipe)
    for finding in said.findings:
        terms = finding.party.terms
        if finding.level == "refused" and terms:
            everything = ",".join([*recipe.licence.accept, *said.to_accept])
            raise RecipeError(
                f"{_misspelt(said.student)}{finding}\n"
                f'"{terms.quote}"\n'
                f"{terms.title}, {terms.clause}: {terms.url} (read {terms.read})\n"
                "Choose another teacher or student. If you hold a permission, or judge that this does not reach you: "
                f"licence.accept=[{everything}]"
            )


def _misspelt(student: Sequence[Party]) -> str:
    """A line on a student that nobody knows, but whose name is nearly a known one: that may be all that is wrong."""
    if not student or student[0].terms or Path(student[0].name).is_dir():
        return ""
    near = near_names(student[0].name)
    return f"{student[0]}: {near}\n" if near else ""


def notes(recipe: Recipe) -> list[str]:
    """Lines for terminal and logbook of a real run; a rehearsal prints the verdict itself."""
    if recipe.rehearse:
        return []
    return [f"Licence: {f}" for f in verdict(recipe).findings if f.level in {"unknown", "notice"}]


def accepted(recipe: Mapping[str, Any]) -> list[str]:
    """Ids in the recipe's `licence.accept`."""
    licence = recipe.get("licence")
    return [str(name) for name in licence.get("accept") or []] if isinstance(licence, Mapping) else []


def _of_teacher(teacher: Party, student: Sequence[Party], allowed: Sequence[str]) -> Finding:
    terms = teacher.terms
    if terms is None:
        text = "has terms that are not known here; look whether a model may be trained on what it wrote."
        return Finding("unknown", teacher, text)
    named = teacher.standing
    asks = " ".join(terms.conditions)
    if terms.outputs == "free":
        return Finding("ok", teacher, f"{named}, which says nothing against training on its outputs.")
    if terms.outputs == "unknown":
        return Finding("unknown", teacher, f"{named}; what it says of outputs is not known here. {asks}")
    if terms.outputs == "own_derivatives_only" and any(start.terms is terms for start in student):
        return Finding("ok", teacher, f"{named}, and so is the student, which its outputs may therefore train.")
    if terms.outputs in {"own_derivatives_only", "no_competitors"}:
        if terms.id in allowed:
            return Finding("notice", teacher, f"{named}, accepted by licence.accept. It says: {terms.quote}")
        start = f"{student[0]} is not under it" if student else "the student starts from random weights"
        why = f", and {start}" if terms.outputs == "own_derivatives_only" else ""
        return Finding("refused", teacher, f"{named}, which limits what its outputs may train{why}.")
    more = "A model that is trained on its outputs is under it too. " if terms.outputs == "passed_on" else ""
    return Finding("notice", teacher, f"{named}. {more}{asks}")


def _of_student(student: Party) -> Finding:
    terms = student.terms
    if terms is None:
        return Finding("unknown", student, "has a licence that is not known here, and that holds for the packages too.")
    level: Level = "unknown" if terms.outputs == "unknown" else "notice" if terms.as_base else "ok"
    text = f"{student.standing}, and so are the packages. {' '.join(terms.as_base)}"
    return Finding(level, student, text.rstrip())


def _of_data(data: Party) -> Finding:
    if data.terms and data.terms.conditions:
        return Finding("notice", data, f"is published under {data.tag}. {' '.join(data.terms.conditions)}")
    if "-nc" in data.tag:
        return Finding("notice", data, f"is published under {data.tag}: for non-commercial use.")
    if data.terms or data.tag.startswith(("cc-by", "cc0", "odc-by", "cdla-permissive", "bsd", "afl")):
        return Finding("ok", data, f"is published under {data.tag}.")
    what = f"is published under {data.tag!r}" if data.tag else "has a licence"
    return Finding("unknown", data, f"{what} that is not known here; look whether training on it is free.")


def _of_writer(data: Party) -> list[Finding]:
    """Of the model that wrote the data, where one did."""
    known = data_set(data.name)
    if known is None or known.written_by is None:
        return []
    writers = _model(data.key, known.written_by)
    found = [(Party(data.key, data.name, writer.terms), _of_teacher(writer, (), ())) for writer in writers]
    return [
        Finding("notice", party, f"was written by {known.written_by}, which {one.text}")
        for party, one in found
        if one.level != "ok"
    ]


def _teachers(teacher: Mapping[str, Any], key: str = "teacher") -> list[Party]:
    kind = teacher.get("kind")
    if kind == "routed":
        each = teacher.get("teachers") or {}
        return [party for name in each for party in _teachers(each[name], f"{key}.teachers.{name}")]
    if kind == "file":
        return [Party(f"{key}.path", str(teacher.get("path")), None)]
    if kind == "none" or not teacher.get("model"):
        return []
    model = str(teacher["model"])
    name, address = f"{key}.model", str(teacher.get("base_url") or "")
    # a service's own terms hold for whatever it serves; elsewhere the model's do, when we know its name
    if service := terms_at(address):
        return [Party(name, _shown(model), service)]
    if address and not published(model) and (inferred := terms_served(address, model)):
        return [Party(name, model, inferred.terms, why=inferred.why)]
    return _model(name, model, (model, teacher.get("revision")) if kind in {"hf", "vllm"} else None)


def _student(recipe: Mapping[str, Any]) -> list[Party]:
    student = recipe.get("student") or {}
    model = str(student.get("model") or "")
    return _model("student.model", model, (model, student.get("revision"))) if model else []


def _data(recipe: Mapping[str, Any]) -> Party | None:
    path = (recipe.get("data") or {}).get("path")
    known = data_set(str(path)) if path else None
    return Party("data.path", str(path), terms_called(known.licence), known.licence) if known else None


def _shown(model: str) -> str:
    """`model` as a recipe writes it."""
    return f"bundled:{Path(model).name}" if Path(model).is_relative_to(BUNDLED) else model


def _model(key: str, model: str, files: tuple[str, str | None] | None = None) -> list[Party]:
    """A checkpoint with each of its terms: what is known of it, else what its name says that it is a copy of."""
    every: tuple[Terms | None, ...] = _terms_of_model(model)
    copy = None if every else terms_of_copy(model)
    terms_or_none, why = ((copy.terms,), copy.why) if copy else (every or (None,), "")
    files = None if is_ours(model) else files
    return [Party(key, _shown(model), terms, why=why, files=files) for terms in terms_or_none]


def is_ours(model: str) -> bool:
    """Whether it is a checkpoint that ships with distill, whose licence is distill's."""
    return model.startswith("bundled:") or Path(model).is_relative_to(BUNDLED)


def _terms_of_model(model: str) -> tuple[Terms, ...]:
    """Of a folder: by its model card, else by the published name that its path ends in. Of a hub id: by that name."""
    folder = Path(model)
    if is_ours(model):
        return (TERMS["apache-2.0"],)  # distill/bundled/README.md
    if folder.is_dir() and (said := terms_of_folder(folder)):
        return said
    known = published("/".join(folder.parts[-2:]) if folder.is_dir() else model)
    return (TERMS[known[1].licence],) if known else ()
