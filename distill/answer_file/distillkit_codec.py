"""How DistillKit packs top-k log-probabilities, undone.

Each position's K log-probabilities, falling, are: the first `exact_k` as floats; the others as a curve
sum of c_t f_t(x) over the terms f_t, x = 0, 1, 2, … (or 0 … 1), with c_t as floats; then bins of quantised differences
from the curve, each a scale and numbers of some bits. With `delta_encoding` all of it is of the differences between
neighbours. Token ids are numbers of ceil(log2 d) bits. Everything that is packed has its highest bit first.

Old captures: `exact_values` and `coeffs` as floats, the curve over x = 1, 2, … in powers of x or of 1/x, and token ids
in 64-bit words, as many in each as fit whole, the first one lowest.

Source: arcee-ai/DistillKit, compression/config.py, bitpack.py, monotonic_logprobs.py, legacy.py; read, not copied.
"""

from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from distill.answer_file.given import Values
from distill.targets.packing import bits_for

FloatType: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# settings of ours to come are no reason to refuse theirs
THEIRS = ConfigDict(extra="ignore")

# S positions, K log-probabilities of each, A of them approximated, B bytes


class WrongBytes(ValueError):
    """The bytes are not what these settings would have made."""


@dataclass(frozen=True, kw_only=True, config=THEIRS)
class Bin:
    """Quantised differences from the curve: `num_elements` numbers of `element_bits`, times one scale."""

    scale_dtype: FloatType
    element_bits: Annotated[int, Field(gt=0, le=64)]
    num_elements: Annotated[int, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=THEIRS)
class Compression:
    """DistillKit's `logprob_compressor`: its settings by the names it gives them."""

    columns: ClassVar[tuple[str, ...]] = ("compressed_logprobs", "bytepacked_indices")
    described_by: str
    d: Annotated[int, Field(gt=0)]
    k: Annotated[int, Field(gt=0)]
    exact_k: Annotated[int, Field(ge=0)]
    exact_dtype: FloatType = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: FloatType = "float32"
    residual_bins: list[Bin]
    delta_encoding: bool = True
    normalize_t: bool = False

    @property
    def values(self) -> Values:
        """Whether every log-probability was kept as a float."""
        return "exact" if self.exact_k == self.k else "approximate"

    def decode(self, packed_SB: np.ndarray, ids_SB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 `[S, K]` and log-probabilities float32 `[S, K]`. Raises WrongBytes."""
        S, A = len(packed_SB), self.k - self.exact_k
        taken = _Bytes(packed_SB)
        exact = taken.floats(self.exact_dtype, self.exact_k)
        approximate = np.zeros((S, A))
        if self.polynomial_terms:
            coefficients = taken.floats(self.term_dtype, len(self.polynomial_terms))
            x_A = np.linspace(0, 1, A) if self.normalize_t else np.arange(A, dtype=np.float64)
            approximate += coefficients @ np.array([_term(term, x_A) for term in self.polynomial_terms])
        first = 0
        for bin_ in self.residual_bins:
            scale = taken.floats(bin_.scale_dtype, 1)
            numbers = taken.numbers(bin_.element_bits, bin_.num_elements).astype(np.float64)
            signed = 2 * numbers - 1 if bin_.element_bits == 1 else numbers - 2.0 ** (bin_.element_bits - 1)
            approximate[:, first : first + bin_.num_elements] += signed * scale
            first += bin_.num_elements
        taken.finish("compressed_logprobs")
        logprobs_SK = np.concatenate([exact, approximate], axis=1)
        if self.delta_encoding:
            logprobs_SK = logprobs_SK.cumsum(axis=1)
        indices = _Bytes(ids_SB)
        ids_SK = indices.numbers(bits_for(self.d), self.k)
        indices.finish("bytepacked_indices")
        return ids_SK, logprobs_SK.astype(np.float32)


@dataclass(frozen=True, kw_only=True, config=THEIRS)
class OldCompression:
    """DistillKit's `legacy_logit_compression`: its settings by the names it gives them."""

    columns: ClassVar[tuple[str, ...]] = ("packed_indices", "exact_values", "coeffs")
    values: ClassVar[Values] = "renormalised"
    described_by: str
    vocab_size: Annotated[int, Field(gt=0)]
    k: Annotated[int, Field(gt=0)]
    exact_k: Annotated[int, Field(ge=0)]
    polynomial_degree: Annotated[int, Field(ge=0)]
    invert_polynomial: bool = True
    with_sqrt_term: bool = False

    def decode(
        self, words_SW: np.ndarray, exact_SE: np.ndarray, coeffs_SC: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 `[S, K]` and logits float32 `[S, K]`, up to a constant. Raises WrongBytes."""
        A, bits = self.k - self.exact_k, bits_for(self.vocab_size)
        in_word = 64 // bits
        terms = self.polynomial_degree + 1 + self.with_sqrt_term if A else 0
        for name, found, needed in (
            ("packed_indices", words_SW.shape[1], -(-self.k // in_word)),
            ("exact_values", exact_SE.shape[1], self.exact_k),
            ("coeffs", coeffs_SC.shape[1], terms),
        ):
            if found != needed:
                raise WrongBytes(f"{found} numbers for each token in {name}, {needed} expected")
        shifts = np.arange(in_word, dtype=np.uint64) * np.uint64(bits)
        numbers = (words_SW.astype(np.uint64)[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
        ids_SK = numbers.reshape(len(words_SW), -1)[:, : self.k].astype(np.int64)
        logits_SK = exact_SE.astype(np.float64)
        if A:
            x_A = np.arange(1, A + 1, dtype=np.float64)
            sign = -1 if self.invert_polynomial else 1
            curves = [x_A ** (sign * power) for power in range(self.polynomial_degree + 1)]
            curves += [np.sqrt(x_A)] if self.with_sqrt_term else []
            logits_SK = np.concatenate([logits_SK, coeffs_SC.astype(np.float64) @ np.array(curves)], axis=1)
        return ids_SK, logits_SK.astype(np.float32)


class _Bytes:
    """Each position's bytes, taken from the left."""

    def __init__(self, bytes_SB: np.ndarray):
        self.bytes_SB = np.ascontiguousarray(bytes_SB, dtype=np.uint8)
        self.at = 0

    def take(self, count: int) -> np.ndarray:
        self.at += count
        if self.at > self.bytes_SB.shape[1]:
            raise WrongBytes(f"{self.bytes_SB.shape[1]} bytes for each token, at least {self.at} expected")
        return np.ascontiguousarray(self.bytes_SB[:, self.at - count : self.at])

    def floats(self, dtype: FloatType, count: int) -> np.ndarray:
        taken = self.take(count * SIZES[dtype])
        if not count:
            return np.empty((len(taken), 0))
        if dtype == "bfloat16":  # the upper half of a float32
            return (taken.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return taken.view(f"<f{SIZES[dtype]}").astype(np.float64)

    def numbers(self, bits: int, count: int) -> np.ndarray:
        taken = np.unpackbits(self.take((bits * count + 7) // 8), axis=1)[:, : bits * count]
        numbers = np.zeros((len(taken), count), dtype=np.int64)
        for place in range(bits):
            numbers = (numbers << 1) | taken[:, place::bits]
        return numbers

    def finish(self, name: str) -> None:
        if self.at != self.bytes_SB.shape[1]:
            raise WrongBytes(f"{self.bytes_SB.shape[1]} bytes for each token in {name}, {self.at} expected")


def _term(term: int | str, x: np.ndarray) -> np.ndarray:
    return x**term if isinstance(term, int) else getattr(np, term)(x)
