"""llama.cpp's own quantiser, called in the shared library of the xllamacpp wheel: no compiler, the same bytes.

The `gguf` package can read the types whose names end with K, and cannot make them: their scales are searched for.

Source: ggml_quantize_chunk in llama.cpp's ggml/include/ggml.h.
"""

import ctypes
import functools
import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from distill.errors import StageFailed
from distill.hardware import num_cores

INSTALL = "pip install 'distill[gguf]'"


def refuse_missing() -> str | None:
    """A sentence why llama.cpp cannot quantise on this machine, or None."""
    try:
        _library()
    except OSError as problem:
        return f"llama.cpp's quantiser is needed, and {problem}: {INSTALL}, or choose compression=gguf_q8_0."
    return None


def quantise(array_RC: np.ndarray, kind: str, importance_C: np.ndarray | None = None) -> np.ndarray:
    """The float32 matrix as llama.cpp stores it in the type `kind` (Q4_K …): uint8 `[R, B]`, B the bytes of a row.

    Rows are independent, so they are shared out over all cores. A row's length must be a multiple of the type's block.
    `importance_C` (float32, above zero) says how much an error in each column matters.

    Raises:
        StageFailed: what is given, or what llama.cpp says of it, does not fit.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind_number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[kind_number]
    num_rows, width = array_RC.shape
    importance = None if importance_C is None else np.ascontiguousarray(importance_C, dtype=np.float32)
    fits = array_RC.dtype == np.float32 and array_RC.flags.c_contiguous and width % block == 0
    if not fits or (importance is not None and importance.shape != (width,)):
        of = "" if importance is None else f", importance of shape {importance.shape}"
        raise StageFailed(
            f"{kind}: a matrix {array_RC.shape} of {array_RC.dtype}{of}; needed: float32, its rows one after the other "
            f"and a multiple of {block} long, and one importance for each column."
        )
    weights = None if importance is None else importance.ctypes.data
    made_RB = np.empty((num_rows, width // block * block_bytes), dtype=np.uint8)
    library = _library()
    row_bytes = library.ggml_row_size(kind_number, width)
    if row_bytes != made_RB.shape[1]:  # it would write beyond the array
        raise StageFailed(
            f"{kind}: a row of {width} has {row_bytes} bytes for llama.cpp and {made_RB.shape[1]} for the gguf "
            f"package, so one of the two is of another age: {INSTALL}, or choose compression=gguf_q8_0."
        )

    def some(rows: tuple[int, int]) -> int:
        first, end = rows
        return library.ggml_quantize_chunk(
            kind_number, array_RC.ctypes.data, made_RB.ctypes.data, first * width, end - first, width, weights
        )

    parts = min(num_cores(), num_rows)
    bounds = [num_rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:  # ctypes lets go of the interpreter's lock
        written = sum(pool.map(some, itertools.pairwise(bounds)))
    if written != made_RB.nbytes:
        raise StageFailed(f"{kind}: llama.cpp wrote {written} of {made_RB.nbytes} bytes; choose compression=gguf_q8_0.")
    return made_RB


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError, with half a sentence, where the wheel or one of its functions is not there."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise OSError("xllamacpp is not installed here")
    files = sorted(Path(found.origin).parent.glob("xllamacpp*.so"))
    library = ctypes.CDLL(str(files[0])) if files else None
    if not hasattr(library, "ggml_quantize_chunk") or not hasattr(library, "ggml_row_size"):
        raise OSError("the xllamacpp that is installed here does not let others call it")
    assert library is not None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    library.ggml_row_size.argtypes = [ctypes.c_int, number]
    library.ggml_quantize_chunk.restype = library.ggml_row_size.restype = ctypes.c_size_t
    return library
