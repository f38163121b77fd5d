"""Seeds for every random draw, as pure functions of what the draw is for.

No module keeps a global random state: a draw's seed is derived from the run seed and the names of
what it belongs to (generation, prompt id, purpose), so a result does not depend on the order, the
batch or the machine in which it was computed.
"""

from __future__ import annotations

import hashlib

_SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer


def derive_seed(run_seed: int, *names: str | int) -> int:
    """Derive an independent seed from a run seed and the names of a draw.

    Args:
        run_seed: the seed of the whole run, any integer.
        names: what the draw is for, for example ``("bucket", generation)``.

    Returns:
        An integer in ``[0, 2**63)``. Equal arguments give equal seeds on every machine; ``1`` and
        ``"1"`` are different names.
    """
    text = "\x1f".join(repr(name) for name in (run_seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
