"""What the resident kernel compiles to, without a GPU: one read and one write of 16 bytes, in that order, no spills.

The registers are in triton_kernels/README.md; `pytest -s` prints them.
"""

import os
import re

import pytest
from compiling import check_numbers, compiled
from distill_kernels.settings import KINDS
from distill_kernels.triton_resident_table import cluster_for

triton = pytest.importorskip("triton", reason="no triton here")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(
        tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9), reason="registers are promised from 3.9 on"
    ),
]
PLAIN = {"IGNORES": False, "HARD": False, "UNIT_TEMPERATURE": True, "STUDENT_CAPPED": False, "TEACHER_CAPPED": False}
LABELLED = {**PLAIN, "IGNORES": True, "HARD": True, "UNIT_TEMPERATURE": False}
CAPPED = {**LABELLED, "STUDENT_CAPPED": True, "TEACHER_CAPPED": True}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def positions(pattern, ptx):
    return [match.start() for match in re.finditer(pattern, ptx)]


def check(kind, num_tokens, options=PLAIN, architecture=90, dtype="bf16", gradient="bf16", shifted=True):
    """Compiles the cluster of the table and reads its PTX; the number of registers."""
    from distill_kernels.triton_resident_kernel import resident_kernel

    num_bytes = 4 if dtype == "fp32" else 2
    whole = num_tokens % 8 == 0
    labelled, capped = options["HARD"], options["STUDENT_CAPPED"]
    shifted &= not whole
    address = {"shifted": shifted, "ragged": not whole}
    cluster = cluster_for(num_tokens, num_bytes, kind, **address, labelled=labelled, capped=capped)
    assert cluster is not None
    layout = {"ADDRESS": "shifted" if shifted else "aligned", "PIECES": whole}
    layout |= {"BLOCK": cluster.tile_tokens, "TILES": cluster.tiles}
    shape = {"num_warps": cluster.num_warps, "num_ctas": cluster.num_ctas}
    ptx, registers, spilled = compiled(
        resident_kernel, architecture, dtype, gradient, KIND=kind, **shape, **options, **layout
    )
    print(f"{kind} {num_tokens} {dtype} sm_{architecture} {cluster}: {registers} registers")
    assert spilled == 0
    check_numbers(ptx)
    assert not positions(r"\b(atom|red)\.|\.local", ptx)
    reads, writes = positions(r"ld\.global\S*\.v4", ptx), positions(r"st\.global\S*\.v4", ptx)
    # each thread's eight tokens of both models, 16 bytes at a time: each is read by one instruction, and no other
    assert len(reads) == 2 * cluster.tiles * num_bytes // 2
    assert len(writes) == (0 if gradient is None else cluster.tiles * (2 if gradient == "fp32" else 1))
    scalars = len(positions(r"ld\.global", ptx)) - len(reads)
    assert scalars == 1 + labelled * 2  # the row's weight, its label, the label's logit
    arrivals, waits = positions(r"barrier\.cluster\.arrive", ptx), positions(r"barrier\.cluster\.wait", ptx)
    exchanged = positions(r"ld\.shared::cluster", ptx)
    assert len(exchanged) == (2 if kind in ("forward_kl", "reverse_kl") else 3)
    assert not positions(r"barrier\.cluster\.\w+\.relaxed", ptx)
    # the gradient may lie over the logits: every read, then a barrier of the cluster, then the first write
    assert any(max(reads) < arrival < exchanged[0] for arrival in arrivals)
    assert not writes or exchanged[-1] < min(writes)
    # nobody leaves while others read its shared memory
    assert waits[-1] > exchanged[-1] and positions(r"\bret;", ptx)[-1] > waits[-1]
    return registers


@pytest.mark.parametrize("kind", KINDS)
def test_llama(kind):
    assert check(kind, 128_256) <= 128  # two rows share a processor


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_blackwell(kind):
    check(kind, 128_256, architecture=100)


@pytest.mark.parametrize(
    ("kind", "num_tokens"),
    [("reverse_kl", 32_000), ("skew_reverse_kl", 50_257), ("forward_kl", 151_936), ("forward_kl", 262_144)],
)
def test_other_vocabularies(kind, num_tokens):
    check(kind, num_tokens)


def test_loss_alone():
    check("tvd", 128_256, gradient=None)


@pytest.mark.parametrize("num_tokens", [128_256, 151_936])
def test_labels_at_another_temperature(num_tokens):
    check("skew_forward_kl", num_tokens, LABELLED)


def test_every_option():
    check("jsd", 128_256, CAPPED)


@pytest.mark.parametrize("shifted", [False, True])
def test_vocabularies_that_end_inside_16_bytes(shifted):
    check("jsd", 128_257, shifted=shifted)


@pytest.mark.parametrize("gradient", ["fp32", "bf16"])
def test_float32(gradient):
    check("reverse_kl", 128_256, dtype="fp32", gradient=gradient)
