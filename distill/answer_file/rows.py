"""Rows of a file, a folder or a hub data set, a few in memory at a time, each with words that say where it stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data._rows import read_rows, refuse_halves
from distill.errors import DataError, first_line
from distill.option import is_meant_as_path
from distill.teacher.file import File

if TYPE_CHECKING:
    import pyarrow

AT_ONCE = 16
"""Rows: a packed one of 8,192 tokens has megabytes of targets."""


def rows_of(teacher: File) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row of `teacher.path`.

    Raises:
        DataError: there is no such file or data set, it has no rows, or one cannot be read.
    """
    path = Path(teacher.path)
    if path.is_file() and path.suffix in {".jsonl", ".csv"}:
        for where, row in read_rows(str(path), teacher.split, asked_by="teacher.path"):
            refuse_halves(row, where)
            yield where, row
        return
    count = 0
    try:
        for name, batch in _batches(teacher, path):
            for index in range(batch.num_rows):
                count += 1
                yield (
                    f"{name}, row {count}",
                    {c: _value(batch.column(c)[index]) for c in batch.column_names},
                )
    except (OSError, ValueError) as error:  # what pyarrow raises for a file that is cut or is no parquet at all
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{teacher.path} cannot be read after {count} rows ({type(error).__name__}: {str(error)[:200]})."
        ) from None
    if not count:
        raise DataError(f"{teacher.path} holds no rows.")


def _batches(teacher: File, path: Path) -> "Iterator[tuple[str, pyarrow.RecordBatch | pyarrow.Table]]":
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(
                f"{path}: cannot read {path.suffix or 'a file without a suffix'}; use .jsonl, .csv or .parquet."
            )
        files = [path]
    elif (path / "state.json").is_file():
        import datasets

        yield from ((str(path), batch) for batch in _of_set(datasets.load_from_disk(str(path))))
        return
    elif path.is_dir():
        files = sorted(path.glob("*.parquet"), key=lambda file: (len(file.name), file.name))
        if not files:
            raise DataError(f"teacher.path={path}: no .parquet file in this folder, and no data set of `save_to_disk`.")
    else:
        yield from _hub(teacher)
        return
    import pyarrow.parquet as parquet

    for file in files:
        yield from ((str(file), batch) for batch in parquet.ParquetFile(file).iter_batches(AT_ONCE))


def _hub(teacher: File) -> "Iterator[tuple[str, pyarrow.Table]]":
    name = teacher.path
    if is_meant_as_path(name):
        raise DataError(
            f"teacher.path={name}: no such file. It takes a .jsonl, .csv or .parquet file, a folder, or a hub id."
        )
    import datasets

    try:
        rows = datasets.load_dataset(name, split=teacher.split, revision=teacher.revision)
    except Exception as error:  # the hub's client raises a dozen types: offline, gated, no such set, no such split
        raise DataError(
            f"teacher.path={name}: no such file here, and the hub gave no split {teacher.split!r} of it "
            f"({type(error).__name__}: {first_line(error)})."
        ) from None
    yield from ((f"{name} [{teacher.split}]", batch) for batch in _of_set(rows))


def _of_set(rows: Any) -> "Iterator[pyarrow.Table]":
    if not hasattr(rows, "num_rows") or isinstance(rows.num_rows, dict):
        raise DataError(f"a data set of several splits ({', '.join(rows)}); name the folder of one of them.")
    return rows.with_format("arrow").iter(AT_ONCE)


def _value(cell: "pyarrow.Scalar") -> Any:
    """A cell as Python has it; numbers in lists of lists of one length as an array, which is a hundred times faster."""
    import pyarrow

    kind = cell.type
    if cell.is_valid and pyarrow.types.is_list(kind) and pyarrow.types.is_list(kind.value_type):
        outer: Any = cell
        rows, of_numbers = outer.values, kind.value_type.value_type
        lengths = rows.value_lengths()
        numbers = pyarrow.types.is_integer(of_numbers) or pyarrow.types.is_floating(of_numbers)
        if numbers and len(rows) and not lengths.null_count and len(lengths.unique()) == 1:
            flat = rows.flatten()
            if not flat.null_count:
                return flat.to_numpy(zero_copy_only=False).reshape(len(rows), -1 if len(flat) else 0)
    return cell.as_py()
