"""How a row is laid over the processors of a cluster: the configuration table of `resident_kernel`.

Chosen by what compiles for sm_90 without a spilled register, not by time: none of it has run on a GPU.
"""

from dataclasses import dataclass

# of a tile, neighbours: see `triton_softmax.tile_positions`
_THREAD_TOKENS = 8


@dataclass(frozen=True)
class Cluster:
    """A row: `num_ctas` programs of `num_warps` warps, each thread with 8 neighbouring tokens of each of `tiles`."""

    num_ctas: int
    num_warps: int
    tiles: int

    @property
    def tile_tokens(self) -> int:
        """Tokens that the cluster reads at once."""
        return self.num_ctas * self.num_warps * 32 * _THREAD_TOKENS

    def held(self, num_bytes: int) -> int:
        """Registers in which a thread keeps its logits of both models."""
        return 2 * self.tiles * _THREAD_TOKENS * num_bytes // 4


def cluster_for(
    num_tokens: int, num_bytes: int, kind: str, *, shifted: bool, ragged: bool, labelled: bool, capped: bool
) -> Cluster | None:
    """The cluster for a row of so many tokens, whose logits have so many bytes at most; None if it is to stream.

    `shifted` as for `triton_softmax.row_start`; `ragged` if its ends are not ends of 16 bytes, as a shifted row's are.
    Eight warps of 128 registers are half of a processor: another row's logits arrive while this one's are counted.
    Sixteen have all of it. No cluster is larger than eight, the largest that every device with clusters takes.
    """
    for num_warps in (8, 16):
        for num_ctas in (1, 2, 4, 8):
            tiles = -(-(num_tokens + 7 * shifted) // Cluster(num_ctas, num_warps, 1).tile_tokens)
            cluster = Cluster(num_ctas, num_warps, tiles)
            if cluster.held(num_bytes) <= _most_held(
                cluster, num_bytes, kind, ragged=ragged, labelled=labelled, capped=capped
            ):
                return cluster
    return None


def _most_held(cluster: Cluster, num_bytes: int, kind: str, *, ragged: bool, labelled: bool, capped: bool) -> int:
    """Of a thread's registers, those that may hold logits; the rest is for tanh, most of all, and for the sums."""
    if capped:
        return 32
    if ragged:  # whose ends are stored one logit at a time
        return 56 if cluster.num_warps == 8 else 48
    if cluster.num_warps == 8:
        return 80 if cluster.num_ctas == 8 and num_bytes == 2 and not labelled else 64
    if num_bytes == 2 and (kind == "reverse_kl" or (kind == "forward_kl" and labelled)):
        return 48  # a few registers short with 64
    return 64
