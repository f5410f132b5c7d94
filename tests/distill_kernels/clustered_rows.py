"""A pytest plugin: every row that can be is held by a cluster, of tiles so small that a row has several.

`pytest -p clustered_rows` gives tests of the streaming kernel to the resident one; test_resident_rows.py does so.
"""

import pytest


@pytest.fixture(autouse=True)
def _clusters(monkeypatch):
    from distill_kernels.triton_resident_table import Cluster

    def small(num_tokens, *_, shifted, **__):
        return Cluster(num_ctas=2, num_warps=1, tiles=-(-(num_tokens + 7 * shifted) // 512))

    monkeypatch.setattr("distill_kernels.triton_dense.cluster_for", small)
    monkeypatch.setattr("distill_kernels.triton_dense._BUSY_CLUSTER_PROGRAMS", 1)
