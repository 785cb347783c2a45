"""How many runs, steps and seconds a workload has; a scale below 1 makes smoke runs of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ("LANES", "ORDER", "SLOW_STEP_S", "Sizes")

LANES: Final = 100
"""Starts, and waits for results, that are under way at the same time."""

ORDER: Final[dict[str, Any]] = {"order": "A-1029", "qty": 3, "n": 0}
"""What every step gets and returns, as JSON."""

SLOW_STEP_S: Final = 0.05
"""How long a step of the crash workload takes."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one session; see the properties.

    Args:
        scale: Factor on all counts; 1 is the real thing.
    """

    scale: float = 1.0

    def of(self, full: int, least: int = 5) -> int:
        """Return a count, scaled, but at least `least`."""
        return max(min(least, full), int(full * self.scale))

    @property
    def runs(self) -> int:
        """Runs of a throughput series."""
        return self.of(1000)

    @property
    def steps(self) -> int:
        """Steps of each of them."""
        return 5

    @property
    def latency(self) -> int:
        """One-step runs, one at a time."""
        return self.of(500)

    @property
    def chains(self) -> int:
        """Chains of 50 steps, one at a time."""
        return self.of(30, 2)

    @property
    def chain(self) -> int:
        """Steps of a chain."""
        return 50

    @property
    def fan(self) -> int:
        """Steps that one run gathers."""
        return self.of(500)

    @property
    def sleepers(self) -> int:
        """Runs that sleep until one instant."""
        return self.of(2000)

    @property
    def sleep_s(self) -> float:
        """How long they sleep, counted from the first start."""
        return 30.0 if self.scale >= 0.5 else 8.0

    @property
    def crash_runs(self) -> int:
        """Runs of the crash workload."""
        return self.of(200)

    @property
    def crash_steps(self) -> int:
        """Steps of each of them."""
        return 10

    @property
    def crash_slots(self) -> int:
        """Slow steps that the worker executes at the same time."""
        return 50
