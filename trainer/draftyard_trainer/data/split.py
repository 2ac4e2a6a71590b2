"""Which samples are held out. The hash of an id decides, so a sample never moves, whatever else is in the file."""

from __future__ import annotations

import hashlib

BITS = 64


def is_held_out(sample_id: str, fraction: float) -> bool:
    """Whether a sample belongs to the held-out split. A larger fraction holds out a superset."""
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).digest()
    # 64 of the 256 bits are plenty, and a float holds their order exactly enough for any fraction
    return int.from_bytes(digest[: BITS // 8], "big") < fraction * float(1 << BITS)
