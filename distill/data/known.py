"""DATA_SETS: what is known of the hub data sets of our recipes; planning and rehearsal need no network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from distill.checkpoint import BUNDLED

Column = Literal["text", "int", "list", "messages"]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set as the hub gives it, and a small sample in the same columns."""

    hub_id: str
    subset: str | None = None
    """What the hub calls its configuration; None: it has but one."""
    splits: Mapping[str, int]
    """Split → rows."""
    columns: Mapping[str, Column]
    """Those that recipes use, the hub may have more. Class labels are "text": `data=local` reads their names."""
    characters_per_row: Mapping[str, float] = field(default_factory=dict)
    """Column → mean number of characters, as far as it is known; see `characters`."""
    lengths: str = "as known"
    """How far these are known, in words."""
    longest_characters: Mapping[str, int] = field(default_factory=dict)
    """Column → more characters than its longest row has, where that is little."""
    generated_tokens: int | None = None
    """Mean tokens of what an instruction-tuned model answers to a row, where it is not as long as the data's own: a
    published figure, or our estimate. Thinking comes on top."""
    licence: str
    """As the hub tags it."""
    written_by: str | None = None
    """Hub id of the model that wrote it, whose own licence has a say in what is trained on it."""
    source: str
    """Where these facts are from, and what to know before using it."""
    sample: str
    """Stem of the file in distill/bundled/samples."""

    def rows(self) -> tuple[dict[str, Any], ...]:
        """At least 32 rows in exactly these columns, written by us: not one is from the data set itself."""
        return _rows(self.sample)

    def is_of(self, subset: str | None) -> bool:
        """Whether these facts are of that subset; another one has its own rows, in as many splits as it likes."""
        return self.subset in {None, subset}

    def characters(self, column: str) -> float:
        """Mean characters of `column` in a row: as known, else as in our sample, which is a guess. Messages: of all."""
        known = self.characters_per_row.get(column)
        return known if known is not None else sum(_length(row[column]) for row in self.rows()) / len(self.rows())


def data_set(path: str) -> DataSet | None:
    """What is known of the data set with this hub id, in any case of letters; None for others and for files."""
    return next((known for known in DATA_SETS if known.hub_id.lower() == path.strip("/").lower()), None)


@cache
def _rows(sample: str) -> tuple[dict[str, Any], ...]:
    text = (BUNDLED / "samples" / f"{sample}.jsonl").read_text("utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def _length(value: Any) -> int:
    return sum(len(turn["content"]) for turn in value) if isinstance(value, list) else len(str(value))


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        hub_id="openai/gsm8k",
        subset="main",
        splits={"train": 7473, "test": 1319},
        columns={"question": "text", "answer": "text"},
        # measured on the training file of the authors' repository
        characters_per_row={"question": 235, "answer": 287},
        # five times the mean: our bound, its questions are short stories
        longest_characters={"question": 1200, "answer": 1450},
        # of Qwen2.5-14B-Instruct, step by step: arXiv:2502.12067, abstract
        generated_tokens=313,
        licence="mit",
        source="Cobbe et al. 2021, arXiv:2110.14168; https://huggingface.co/datasets/openai/gsm8k",
        sample="gsm8k",
    ),
    DataSet(
        hub_id="mteb/banking77",
        splits={"train": 9993, "test": 3076},
        columns={"text": "text", "label": "int", "label_text": "text"},
        # measured on the training file of the authors' repository, of which this one is a cleaned copy
        characters_per_row={"text": 59, "label": 2, "label_text": 21},
        licence="mit",
        source=(
            "Casanueva et al. 2020, arXiv:2003.04807, whose own licence is CC BY 4.0; "
            "https://huggingface.co/datasets/mteb/banking77. PolyAI/banking77 is a loading script, which `datasets` "
            "no longer runs, and holds numbers for intents."
        ),
        sample="banking77",
    ),
    DataSet(
        hub_id="databricks/databricks-dolly-15k",
        splits={"train": 15011},
        columns={"instruction": "text", "context": "text", "response": "text", "category": "text"},
        # the file has 13.1 MB; how these divide among the columns is our estimate
        characters_per_row={"instruction": 74, "context": 350, "response": 361, "category": 12},
        # our estimate: chat models say about three times what Dolly's employees wrote
        generated_tokens=250,
        licence="cc-by-sa-3.0",
        source="https://huggingface.co/datasets/databricks/databricks-dolly-15k. Two rows in three have no context.",
        sample="dolly",
    ),
    DataSet(
        hub_id="HuggingFaceTB/everyday-conversations-llama3.1-2k",
        splits={"train_sft": 2260, "test_sft": 119},
        columns={"messages": "messages"},
        licence="apache-2.0",
        written_by="meta-llama/Llama-3.1-70B-Instruct",
        source="https://huggingface.co/datasets/HuggingFaceTB/everyday-conversations-llama3.1-2k",
        sample="everyday_conversations",
    ),
    DataSet(
        hub_id="bigcode/self-oss-instruct-sc2-exec-filter-50k",
        splits={"train": 50661},
        columns={"instruction": "text", "response": "text"},
        # our estimate from its makers' way of writing them: a task in two to five lines; words, a function, an example
        characters_per_row={"instruction": 300, "response": 900},
        lengths="estimated",
        generated_tokens=350,
        licence="odc-by",
        source=(
            "https://huggingface.co/datasets/bigcode/self-oss-instruct-sc2-exec-filter-50k. Python; written by "
            "StarCoder2 from permissively licensed code, kept where its own tests passed."
        ),
        sample="code_instructions",
    ),
    DataSet(
        hub_id="community-datasets/swahili_news",
        subset="swahili_news",
        splits={"train": 22207, "test": 7338},
        columns={"text": "text", "label": "text"},
        # 49,517,843 bytes of the training split by the hub's card, nearly all of them ASCII
        characters_per_row={"text": 2210, "label": 8},
        licence="cc-by-4.0",
        source="David 2020, doi:10.5281/zenodo.4300294; https://huggingface.co/datasets/community-datasets/swahili_news",
        sample="swahili_news",
    ),
    DataSet(
        hub_id="wikimedia/wikipedia",
        subset="20231101.simple",
        splits={"train": 241787},
        columns={"id": "text", "url": "text", "title": "text", "text": "text"},
        # about 291 MB by the hub's card, id, url and title taken off
        characters_per_row={"id": 6, "url": 45, "title": 16, "text": 1130},
        licence="cc-by-sa-3.0",
        source=(
            "https://huggingface.co/datasets/wikimedia/wikipedia, Simple English of 2023-11-01: whole articles, "
            "few enough to be held in memory. Also under GFDL."
        ),
        sample="wikipedia",
    ),
)
