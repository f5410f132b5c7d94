"""Rows of a file or of a hub data set, each with the words that say where it stands."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError, first_line
from distill.option import is_meant_as_path

Row = tuple[str, dict[str, Any]]

LONGEST_FIELD = 1 << 30
"""Characters of a .csv's field; Python's own limit of 131,072 stops at the first long document."""


def read_rows(path: str, split: str, subset: str | None = None, *, asked_by: str = "data.path") -> Iterator[Row]:
    """(where, row) for each row of `path`. Class labels of a hub data set come as their names, not as numbers.

    `asked_by`: the key that named `path`, for errors.

    Raises:
        DataError: no such file or data set, nothing in it, or a line that cannot be read (with its number).
    """
    file = Path(path)
    if not path:
        raise DataError(f"{asked_by} is empty; it takes a .jsonl, .csv or .parquet file, or a hub id.")
    if file.is_dir():
        raise DataError(f"{path} is a folder; {asked_by} needs a .jsonl, .csv or .parquet file, or a hub id.")
    if file.is_file():
        readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
        suffix = file.suffix.lower()
        if suffix not in readers:
            raise DataError(
                f"{path}: cannot read {file.suffix or 'a file without a suffix'}; use .jsonl, .csv, .parquet."
            )
        rows = readers[suffix](file)
    elif is_meant_as_path(path):
        raise DataError(f"{path}: no such file. {asked_by} takes a .jsonl, .csv or .parquet file, or a hub id.")
    else:
        rows = _hub(path, split, subset, asked_by)
    count = 0
    try:
        for row in rows:
            count += 1
            yield row
    except (UnicodeDecodeError, csv.Error, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read after {count} rows ({type(error).__name__}: {str(error)[:200]}). "
            "Text must be UTF-8, and .parquet a whole parquet file."
        ) from None
    if not count:
        raise DataError(f"{path} holds no rows.")


def value_of(row: Mapping[str, Any], field: str) -> Any:
    """The value of a row's field; None where there is none. NaN is none: so pandas writes a value that is missing."""
    value = row.get(field)
    return None if isinstance(value, float) and math.isnan(value) else value


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                needed = "Each line must be one whole JSON object"
                raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}). {needed}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: holds {type(row).__name__}; each line must be a JSON object.")
            yield where, row


def refuse_halves(content: Any, where: str) -> None:
    """JSON can name half of a surrogate pair, as of an emoji cut in two; no tokenizer takes it, no file can hold it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where}: {half} is half of a character, whose other half is missing. Take it out, or write both."
        ) from None


def _csv(file: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        twice = [column for number, column in enumerate(columns) if column in columns[:number]]
        if twice:
            raise DataError(f"{file}: two columns are called {twice[0]!r}, of which only one would be read.")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: does not have the {len(columns)} columns of the header.")
            yield where, row


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{file}, row {number}", row


def _hub(name: str, split: str, subset: str | None, asked_by: str = "data.path") -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the hub's client raises a dozen types: offline, gated, no such set, no such split
        raise DataError(
            f"{asked_by}={name}: no such file here, and the hub gave no split {split!r} of it "
            f"({type(error).__name__}: {first_line(error)}).{_advice(str(error), asked_by)}"
        ) from None
    labels = {column: kind.names for column, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(rows):
        named = {column: _label(row[column], names) for column, names in labels.items()}
        yield f"{name} [{split}], row {number}", {**dict(row), **named}


def _label(number: int | None, names: list[str]) -> str | None:
    """The class's name; None for a row without one, which `datasets` writes as -1 too."""
    return None if number is None or number < 0 else names[number]


def _advice(error: str, asked_by: str) -> str:
    """What helps against the commonest refusals of the hub's client, with a leading blank."""
    if "Config name is missing" in error:
        offered = error[error.find("[") : error.find("]") + 1]
        return f" Choose one of its subsets with data.subset=…: {offered}."
    if "scripts are no longer supported" in error:
        return (
            " It comes as a program, which is never run here: choose a copy in parquet, or download its files and give "
            f"{asked_by}=FILE."
        )
    return ""
