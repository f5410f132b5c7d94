"""The runtime's own llama.cpp child, with keys and values in float32: its default of float16 costs 0.02 nats here."""

import runpy
import sys
from pathlib import Path
from typing import Any, cast

SERVER = Path(__file__).parents[2] / "distill" / "runtime" / "_llama_cpp_server.py"


def main() -> None:
    import xllamacpp

    engine = cast(Any, xllamacpp)
    make_default = engine.CommonParams

    def make_exact() -> Any:
        params = make_default()
        params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params

    engine.CommonParams = make_exact
    sys.argv[0] = str(SERVER)
    runpy.run_path(str(SERVER), run_name="__main__")


if __name__ == "__main__":
    main()
