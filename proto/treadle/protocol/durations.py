"""Durations as people write them: "500ms", "30s", "5m", "2h", "3d", seconds as a number, or a timedelta."""

from __future__ import annotations

import re
from datetime import timedelta

from treadle.protocol.errors import ConfigError

__all__ = ("Duration", "in_words", "positive_ms", "to_ms")

Duration = timedelta | float | str
"""What public functions take where a duration is meant."""

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def to_ms(value: Duration, *, name: str = "duration") -> int:
    """Return the duration in whole milliseconds, rounded up to 1 when it is positive but smaller.

    Args:
        value: A timedelta, a number of seconds, or text of parts like "1h30m".
        name: What it is, for the error.

    Raises:
        ConfigError: It is negative, not a number, or not understood.
    """
    if isinstance(value, timedelta):
        ms = value.total_seconds() * 1000
    elif isinstance(value, str):
        text = value.replace(" ", "")
        if not text or _PART.sub("", text):
            raise ConfigError(f"{name} {value!r}: write it like '500ms', '30s', '5m', '1h30m' or '3d'")
        ms = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        ms = float(value) * 1000
    if not 0 <= ms < 10**14:
        raise ConfigError(f"{name} {value!r}: give a duration between 0 and 3,000 years")
    return max(int(ms), 1) if ms > 0 else 0


def positive_ms(value: Duration, *, name: str) -> int:
    """Return the duration in whole milliseconds, at least 1.

    Raises:
        ConfigError: It is not a duration above 0.
    """
    ms = to_ms(value, name=name)
    if not ms:
        raise ConfigError(f"{name} {value!r}: give more than 0, or leave it out for no limit")
    return ms


def in_words(ms: int) -> str:
    """Return a duration as people write it, without remainders that nobody reads: "30 s", "1 h 30 m", "1.5 s"."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:g} s"
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, ms = divmod(ms, _UNITS[unit])
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
