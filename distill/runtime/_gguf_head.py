"""GgufHead: single keys of a GGUF's metadata, found by their bytes.

gguf's own reader takes 10 s for the metadata of 150,000 tokens, and llama.cpp's server tells only of some.
"""

from pathlib import Path

METADATA_BYTES = 64 * 2**20
"""In which keys are looked for; 256,000 tokens with their merges take a third of it."""
_UINT32, _STRING = (4).to_bytes(4, "little"), (8).to_bytes(4, "little")


class GgufHead:
    """The start of a GGUF, in which its keys stand. Source: the GGUF specification (ggml, docs/gguf.md)."""

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            self._bytes = opened.read(METADATA_BYTES)

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return _named(key) in self._bytes

    def number(self, key: str) -> int | None:
        """The unsigned integer of 32 bits under a key; None where there is none."""
        _, found, rest = self._bytes.partition(_named(key) + _UINT32)
        return int.from_bytes(rest[:4], "little") if found else None

    def text(self, key: str) -> str | None:
        """The string under a key; None where there is none."""
        _, found, rest = self._bytes.partition(_named(key) + _STRING)
        return rest[8 : 8 + int.from_bytes(rest[:8], "little")].decode() if found else None


def _named(key: str) -> bytes:
    """Its length stands before it, so nothing that merely contains it counts."""
    return len(key).to_bytes(8, "little") + key.encode()
