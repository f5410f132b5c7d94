"""Top-k targets: the likeliest token ids of each position, their log-probabilities, and one bucket for the rest.

An entry is one number of id bits + 8. The code c of a log-probability says how far it lies below the position's
highest one: range * (c / 255)^2 nats, so that the likeliest tokens are kept most exactly. What the highest one is need
not be kept: everything adds up to one. A position adds ten bytes: range, log of the tail's mass and log-normaliser in
float16, and the exact log-probability of the text's next token in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.targets.layout import Layout
from distill.targets.packing import pack, packed_bytes, unpack
from distill.targets.places import Places

CODES = 255
LEAST = -64.0
"""Nats below the highest log-probability that can be told apart; what lies lower is kept as this."""
POSITION_BYTES = 10
SMALLEST_HALF = 2.0**-14
"""Below it, float16 loses digits."""

# S positions of a row, K token ids kept, B rows, T positions of a batch


@dataclass(frozen=True)
class TopKTargets:
    """`token_ids_SK` int32; `logprobs_SK`, `tail_S` (log of the rest's mass), `next_S`, `log_normaliser_S` float32.

    Natural logarithms at the store's temperature. `next_S` is of the token that the text goes on with, which is always
    among the ids; `log_normaliser_S` the log of the sum of the exponentials of the teacher's logits.
    """

    token_ids_SK: np.ndarray
    logprobs_SK: np.ndarray
    tail_S: np.ndarray
    next_S: np.ndarray
    log_normaliser_S: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids_SK)

    def part(self, start: int, stop: int) -> "TopKTargets":
        """The positions from `start` up to `stop`."""
        s = slice(start, stop)
        return TopKTargets(
            self.token_ids_SK[s], self.logprobs_SK[s], self.tail_S[s], self.next_S[s], self.log_normaliser_S[s]
        )

    def to_bytes(self, layout: Layout) -> bytes:
        """How a store keeps them."""
        below_SK = self.logprobs_SK - self.logprobs_SK.max(axis=1, keepdims=True)
        below_SK = np.maximum(below_SK, LEAST).astype(np.float64)
        range_S = round_up_to_float16(-below_SK.min(axis=1, initial=0.0))
        share_SK = -below_SK / np.maximum(range_S.astype(np.float64), 1e-9)[:, None]
        codes_SK = np.rint(CODES * np.sqrt(np.minimum(share_SK, 1.0))).astype(np.uint64)
        numbers_SK = (self.token_ids_SK.astype(np.uint64) << np.uint64(8)) | codes_SK
        with np.errstate(over="ignore"):  # a tail of no mass is -inf, as it should be
            halves = np.stack([range_S, _tail_to_half(self.tail_S), self.log_normaliser_S.astype("<f2")])
        packed = pack(numbers_SK.reshape(-1), layout.id_bits + 8)
        return halves.astype("<f2").tobytes() + self.next_S.astype("<f4").tobytes() + packed

    @classmethod
    def from_bytes(cls, data: memoryview, num_positions: int, layout: Layout) -> "TopKTargets":
        """What `to_bytes` was given, within `logprob_bound`; ids and `next_S` exact."""
        S, K = num_positions, layout.kept
        range_S, tail_S, log_normaliser_S = (
            np.frombuffer(data, dtype="<f2", count=3 * S).reshape(3, S).astype(np.float32)
        )
        next_S = np.frombuffer(data[6 * S :], dtype="<f4", count=S)
        numbers_SK = unpack(data[POSITION_BYTES * S :], S * K, layout.id_bits + 8).reshape(S, K)
        share_SK = (numbers_SK & np.uint64(255)).astype(np.float32) / CODES
        below_SK = -range_S[:, None] * share_SK * share_SK
        log_sum_S1 = np.log(np.exp(below_SK).sum(axis=1, keepdims=True))
        tail_S, log_kept_S = _tail_from_half(tail_S)
        return cls(
            (numbers_SK >> np.uint64(8)).astype(np.int32),
            below_SK - log_sum_S1 + log_kept_S[:, None],
            tail_S,
            next_S,
            log_normaliser_S,
        )

    @staticmethod
    def batch(rows: Sequence["TopKTargets"], places: Places, layout: Layout) -> dict[str, np.ndarray]:
        """token_ids int32 `[B, T, K]` (-1 pads), values float32 `[B, T, K + 1]`: log-probabilities, the tail's last.

        The tail is told, for what float32 probabilities leave over has no digits below 1e-7: reverse KL's gradient
        would turn by 66 degrees for a sharp teacher.
        """
        token_ids = np.full((*places.shape, layout.kept), -1, dtype=np.int32)
        values = np.zeros((*places.shape, layout.kept + 1), dtype=np.float32)
        for b, (row, first, count) in enumerate(zip(rows, places.firsts, places.counts, strict=True)):
            token_ids[b, first : first + count] = row.token_ids_SK[:count]
            values[b, first : first + count, :-1] = row.logprobs_SK[:count]
            values[b, first : first + count, -1] = row.tail_S[:count]
        return {"token_ids": token_ids, "values": values}


def _tail_to_half(tail_S: np.ndarray) -> np.ndarray:
    """The tail's log mass; where that is too near 0 for float16, minus the kept mass's, which is positive."""
    tail_S = np.minimum(tail_S.astype(np.float64), -1e-30)
    return np.where(tail_S < -SMALLEST_HALF, tail_S, -np.log(-np.expm1(tail_S))).astype("<f2")


def _tail_from_half(half_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logs of the tail's mass and of the kept mass, float32."""
    known_S = -np.abs(half_S.astype(np.float64))
    other_S = np.log(-np.expm1(np.minimum(known_S, -1e-30)))
    tail_S, kept_S = np.where(half_S > 0, (other_S, known_S), (known_S, other_S))
    return tail_S.astype(np.float32), kept_S.astype(np.float32)


def round_up_to_float16(values: np.ndarray) -> np.ndarray:
    """The nearest float16 that is not below; finite for values up to 65,000."""
    rounded = values.astype(np.float16)
    return np.where(rounded < values, np.nextafter(rounded, np.float16(np.inf)), rounded).astype("<f2")


def logprob_bound(range_nats: float) -> float:
    """Most nats by which a kept log-probability is off.

    `range_nats`: how far the position's least likely kept token lies below its likeliest one, 64 at most. The likelier
    a token, the less of the bound it uses.

    The code's half step is at most range / 255; the normaliser, a mean over tokens, is off by no more than that, and
    the tail's float16 adds 2^-11 of its own relative size, or 2^-8 where hardly any mass is kept.
    """
    return 2 * range_nats / CODES + 2**-8


def top_k_bytes(num_positions: int, layout: Layout) -> int:
    """Bytes of a row's targets."""
    return POSITION_BYTES * num_positions + packed_bytes(num_positions * layout.kept, layout.id_bits + 8)
