"""What the lab says to a test."""

from __future__ import annotations

from treadle.protocol.errors import TreadleError

__all__ = ("NeedsAttention", "Stuck")


class Stuck(TreadleError):
    """A run waits for something that nothing will bring; says for what."""


class NeedsAttention(TreadleError):
    """The control plane stopped a run for a person to look at, as it does when code and history disagree; says why."""
