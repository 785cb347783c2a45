"""What the kill tests of this session measured and counted; printed behind the last test."""

from __future__ import annotations

from collections import Counter

__all__ = ("WINDOWS", "lines", "timing")

WINDOWS: Counter[str] = Counter()
"""Starts of bodies after their outcome, by the window of the protocol that allows them."""

_TIMINGS: dict[str, list[float]] = {}


def timing(what: str, *seconds: float) -> None:
    """Keep measured times."""
    _TIMINGS.setdefault(what, []).extend(seconds)


def lines() -> list[str]:
    """Return what is to be printed; nothing when no house was checked."""
    found = [f"{what}: {_span(times)}" for what, times in _TIMINGS.items() if times]
    if WINDOWS:
        counts = ", ".join(f"{window} {WINDOWS[window]}" for window in sorted(WINDOWS))
        found.append(f"bodies that began after their outcome, by window: {counts}")
    return found


def _span(times: list[float]) -> str:
    low, high = min(times), max(times)
    return f"{low:.2f} s" if len(times) == 1 else f"{low:.2f} to {high:.2f} s ({len(times)} times)"
