"""What the machine is told of the world on a bench where no worker has credits and nothing is jittered."""

from __future__ import annotations

from random import Random
from typing import Any

from treadle.controlplane.machine import Env, Settings

__all__ = ("plain_env",)


def plain_env(now_ms: int, rng: Random, **more: Any) -> Env:
    """Return it, with ids and tokens drawn from `rng`; `more`: other fields of Env."""
    return Env(
        now_ms=now_ms,
        replica_id="R",
        bits64=lambda: rng.getrandbits(64) or 1,
        token=lambda: rng.randbytes(16),
        share=lambda: 0.0,
        offer=lambda *_: None,
        **{"settings": Settings(), **more},
    )
