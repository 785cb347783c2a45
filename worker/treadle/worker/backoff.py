"""How long to wait before trying again, jittered, so that a fleet does not come back at once."""

from __future__ import annotations

from random import Random
from typing import Final

__all__ = ("Backoff",)

FIRST_S: Final = 0.1
LONGEST_S: Final = 5.0
GROWTH: Final = 1.5


class Backoff:
    """At once, then about 0.1 s, growing to 5 s.

    Attributes:
        failures: Tries since the last success.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()
        self.failures = 0

    def next_s(self) -> float:
        """Count a failure and return how long to wait, in seconds."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        bound = min(FIRST_S * GROWTH ** min(self.failures - 2, 20), LONGEST_S)
        return bound * self._random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        self.failures = 0
