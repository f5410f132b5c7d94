"""llama.cpp's own quantiser, called in the shared library of the xllamacpp wheel: no compiler, the same bytes.

The `gguf` package can read the types whose names end with K, and cannot make them: their scales are searched for.

Source: ggml_quantize_chunk in llama.cpp's ggml/include/ggml.h.
"""

import ctypes
import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from distill.hardware import num_cores

INSTALL = "pip install 'distill[gguf]'"


def refuse_missing() -> str | None:
    """A sentence why llama.cpp cannot quantise on this machine, or None."""
    try:
        _library()
    except (OSError, AttributeError) as problem:
        return f"{problem}; it needs llama.cpp's quantiser: {INSTALL}, or choose compression=gguf_q8_0."
    return None


def quantise(array_RC: np.ndarray, kind: str) -> np.ndarray:
    """uint8 `[R, bytes of a row]`: the float32 matrix as llama.cpp stores it in the type `kind`, for example Q4_K.

    Rows are independent, so they are shared out over all cores. A row's length must be a multiple of the type's block.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind_number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[kind_number]
    num_rows, width = array_RC.shape
    assert array_RC.dtype == np.float32 and array_RC.flags.c_contiguous and width % block == 0
    made = np.empty((num_rows, width // block * block_bytes), dtype=np.uint8)
    library = _library()

    def some(rows: np.ndarray) -> int:
        first, count = int(rows[0]), len(rows)
        return library.ggml_quantize_chunk(
            kind_number, array_RC.ctypes.data, made.ctypes.data, first * width, count, width, None
        )

    with ThreadPoolExecutor(num_cores()) as pool:
        parts = [rows for rows in np.array_split(np.arange(num_rows), num_cores()) if len(rows)]
        written = sum(pool.map(some, parts))
    assert written == made.nbytes, (written, made.nbytes)
    return made


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError or AttributeError, with a sentence, where the wheel or one of the functions is not there."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise OSError("xllamacpp is not installed here")
    files = sorted(Path(found.origin).parent.glob("xllamacpp*.so"))
    if len(files) != 1:
        raise OSError(f"xllamacpp has {len(files)} shared libraries here, and not one")
    library = ctypes.CDLL(str(files[0]))
    quantise, size = library.ggml_quantize_chunk, library.ggml_row_size
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantise.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    size.argtypes = [ctypes.c_int, number]
    quantise.restype = size.restype = ctypes.c_size_t
    return library
