"""Runs interpreted_resident.py, and what the streaming kernel's tests say about rows, with rows held by clusters."""

import pytest
import torch
from distill_kernels.triton_resident_table import Cluster, cluster_for
from interpreting import run_interpreted

# of the tests of other implementations: those of whole rows against a teacher's logits
SAME_ROWS = (
    "interpreted_resident or (interpreted_rows and not sparse and not ids and not rest and not share) "
    "or (test_dense and (masked_tokens or extreme or poisoned or nothing_but or offset or identical or strides))"
)


@pytest.mark.slow
def test_held_rows_in_the_interpreter():
    triton = pytest.importorskip("triton", reason="no triton here")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("before 3.8 Triton has no reductions of a cluster")
    files = ["interpreted_resident.py", "interpreted_rows.py", "test_dense.py"]
    run_interpreted(files, SAME_ROWS, "clustered_rows")


@pytest.mark.parametrize(
    ("num_tokens", "num_bytes", "expected"),
    [
        (7, 2, Cluster(1, 8, 1)),
        (32_000, 2, Cluster(2, 8, 8)),
        (50_257, 2, Cluster(4, 8, 7)),
        (128_256, 2, Cluster(8, 8, 8)),
        (151_936, 2, Cluster(8, 8, 10)),
        (262_144, 2, Cluster(8, 16, 8)),
        (128_257, 2, Cluster(8, 16, 4)),
        (262_145, 2, None),
        (32_000, 4, Cluster(4, 8, 4)),
        (128_256, 4, Cluster(8, 16, 4)),
        (128_257, 4, None),
        (151_936, 4, None),
    ],
)
def test_the_table(num_tokens, num_bytes, expected):
    shifted = num_tokens % 8 > 0
    assert (
        cluster_for(num_tokens, num_bytes, "jsd", shifted=shifted, ragged=shifted, labelled=False, capped=False)
        == expected
    )


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("kind", "labelled", "capped", "most"),
    [("jsd", False, False, 262_144), ("reverse_kl", True, False, 196_608), ("tvd", True, True, 131_072)],
)
def test_a_cluster_has_room_for_its_row_and_no_tile_to_spare(kind, labelled, capped, most, shifted):
    room = 196_608 if shifted and kind == "jsd" else most
    for num_tokens in [*range(1, 270_000, 1009), room - 7, room]:
        cluster = cluster_for(num_tokens, 2, kind, shifted=shifted, ragged=shifted, labelled=labelled, capped=capped)
        if cluster is None:
            assert num_tokens + 7 * shifted > room
            continue
        tile = cluster.num_ctas * cluster.num_warps * 32 * 8
        assert 0 <= tile * cluster.tiles - num_tokens - 7 * shifted < tile
        assert cluster.num_ctas in (1, 2, 4, 8) and cluster.num_warps in (8, 16)


def test_clusters_need_triton_3_8(monkeypatch):
    triton = pytest.importorskip("triton", reason="no triton here")
    from distill_kernels.triton_resident import has_clusters

    for version, able in (("3.7.1", False), ("3.8.0", True), ("3.10.0", True), ("4.0", True)):
        monkeypatch.setattr(triton, "__version__", version)
        assert has_clusters(torch.device("cpu")) is able


def test_clusters_need_compute_capability_9(monkeypatch):
    pytest.importorskip("triton", reason="no triton here")
    from distill_kernels.triton_resident import has_clusters

    monkeypatch.setattr("triton.__version__", "3.9.0")
    for capability, able in (((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert has_clusters(torch.device("cuda")) is able
