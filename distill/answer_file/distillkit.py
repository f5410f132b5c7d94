"""DistillKit's captures: Parquet rows of token ids with compressed top-k log-probabilities, row j for token j + 1.

Two forms: `compressed_logprobs` with `bytepacked_indices`, whose curve and bins a YAML file beside the data describes,
and in old captures `packed_indices`, `exact_values` and `coeffs`. A capture has one row fewer than tokens, since
nothing precedes the first; data sets packed to one length have as many, and the last row is of no token. Captures
append one padding token so that the last one is scored as well.

Old captures hold logits around their mean: which share the k have is lost, and they are renormalised over them.

Source: arcee-ai/DistillKit, distillkit/sample_logits_vllm.py and sample_common.py (the columns, the shift, the
padding), compression/config.py, compressor.py, monotonic_logprobs.py and legacy.py (see `distillkit_codec`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from distill.answer_file.distillkit_codec import Compression, OldCompression, WrongBytes
from distill.answer_file.given import GivenAnswer, field_of, list_of, token_ids
from distill.errors import DataError, first_line
from distill.teacher.file import File

CONFIG = "compression_config.yaml"
SECTIONS = ("logprob_compressor", "legacy_logit_compression")


def reader(teacher: File) -> Callable[[Mapping[str, Any], str], GivenAnswer]:
    """Turns a row of this layout into an answer."""
    compression = _compression(teacher)

    def read(row: Mapping[str, Any], where: str) -> GivenAnswer:
        input_ids = token_ids(field_of(row, "input_ids", where), "input_ids", where)
        columns = [_matrix(list_of(row, name, where), name, where) for name in compression.columns]
        if len({len(column) for column in columns}) > 1 or len(input_ids) - len(columns[0]) not in (0, 1):
            raise DataError(
                f"{where}: {len(input_ids)} tokens, but {' and '.join(str(len(c)) for c in columns)} rows in "
                f"{' and '.join(compression.columns)}; as many are needed, or one fewer."
            )
        try:
            ids_SK, logprobs_SK = compression.decode(*[column[: len(input_ids) - 1] for column in columns])
        except WrongBytes as error:
            raise DataError(
                f"{where}: {error}. The data were compressed in another way than {compression.described_by} says."
            ) from None
        return GivenAnswer(
            where,
            token_ids_T=input_ids,
            whole=True,
            # a rank that the engine did not give has no probability, and whatever id stood in memory
            top_ids_SK=np.where(np.isneginf(logprobs_SK), -1, ids_SK).astype(np.int32),
            top_logprobs_SK=logprobs_SK,
            values=compression.values,
        )

    return read


def _compression(teacher: File) -> Compression | OldCompression:
    path = Path(teacher.path)
    file = Path(teacher.compression) if teacher.compression else (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. It says how DistillKit compressed {path.name}, and the bytes cannot be read "
            "without it; name it with teacher.compression."
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not YAML ({first_line(error)}).") from None
    for section in SECTIONS:  # as in a DistillKit recipe
        if isinstance(config, dict) and isinstance(config.get(section), dict):
            config = config[section]
    kind = OldCompression if isinstance(config, dict) and "polynomial_degree" in config else Compression
    try:
        return TypeAdapter(kind).validate_python({**config, "described_by": file.name})
    except (ValidationError, TypeError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no settings in it"}
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{file}: {where + ': ' if where else ''}{problem['msg']}.") from None


def _matrix(value: Any, name: str, where: str) -> np.ndarray:
    try:
        matrix = np.asarray(value)
        if matrix.ndim == 2 and matrix.dtype != object:
            return matrix
    except ValueError:
        pass
    raise DataError(f"{where}: field {name!r} must hold rows of numbers, all of one length.")
