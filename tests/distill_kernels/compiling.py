"""Compiles a row kernel without a GPU: Triton's own ptxas makes a cubin, cuobjdump reads it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="no triton here")

TOKEN_STRIDES = ("student_token", "teacher_token", "gradient_token", "id_stride", "value_stride")


def compiled(kernel, architecture, dtype, gradient, num_warps=8, num_ctas=1, **constants):
    """The kernel's cubin, PTX and registers, for tensors whose addresses are multiples of 16 bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    if not (tools / "cuobjdump").exists() or not list(tools.glob("ptxas*")):
        pytest.skip("this triton has no ptxas or cuobjdump")
    pointers = {
        "student": dtype,
        "teacher": dtype,
        "gradient": gradient,
        "loss": "fp32",
        "row_weights": "fp32",
        "partials": "fp32",
    }
    pointers |= {"labels": "i64" if constants["HARD"] else None, "token_ids": "i32", "values": "fp32"}
    signature, fixed, hints = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or name in TOKEN_STRIDES or (name in pointers and pointers[name] is None):
            signature[name] = "constexpr"
            fixed[name] = constants.get(name, 1 if name in TOKEN_STRIDES else None)
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
            hints[(index,)] = [["tt.divisibility", 16]]
        else:
            whole = name.endswith("_stride") or name in (
                "num_tokens",
                "num_ids",
                "ignore_index",
                "splits",
                "first_split",
                "segment_tiles",
            )
            signature[name] = "i32" if whole else "fp32"
            if constants.get("PIECES") and (name.endswith("_stride") or name == "num_tokens"):
                hints[(index,)] = [["tt.divisibility", 16]]
    options = {"num_warps": num_warps, "num_ctas": num_ctas, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, fixed, hints)
    result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return result.asm["ptx"], *resources(tools / "cuobjdump", result.asm["cubin"])


def resources(cuobjdump, cubin):
    """Registers per thread, and bytes per thread that did not fit into them."""
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(cubin)
    run = subprocess.run([str(cuobjdump), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", run.stdout).groups())
    return registers, stack + local


def vectors(ptx):
    """16-byte loads and stores."""
    return len(re.findall(r"ld\.global\S*\.v4", ptx)), len(re.findall(r"st\.global\S*\.v4", ptx))


def check_numbers(ptx):
    """Everything is float32, and no constant so small that the special function unit takes it for 0."""
    assert "f64" not in ptx
    bits = [int(digits, 16) & 0x7FFFFFFF for digits in re.findall(r"\b0f([0-9A-F]{8})\b", ptx)]
    assert bits and not [f"0f{one:08X}" for one in bits if 0 < one < 0x00800000]
