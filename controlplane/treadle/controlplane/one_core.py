"""The threads of a server share one core of the machine while it has room for them.

Each message of gRPC is taken by a thread of gRPC's own, which wakes the event loop; and whoever is woken is put on an idle
core, where none of what it needs is in the caches. So the threads of a server that has little to do would change cores for
every message, and the commit of a lone step takes a sixth longer. All of them are bound to the core on which the event loop
is, until it is busy, when gRPC's thread has enough to do beside it, or until it has to wait there for others.

Source: measured in turns, see docs/decisions.md. Linux only; elsewhere nothing is done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import structlog

__all__ = ("Binding", "Times", "stay_on_one_core")

_log = structlog.stdlib.get_logger(__name__)

_EVERY_S, _IDLE_EVERY_S, _IDLE = 0.1, 0.5, 0.1
"""A server that does next to nothing is looked at less often: to wake up is most of what a look costs."""
_CALM, _BUSY = 0.5, 0.6
"""Shares of the time in which the event loop computes or waits for a core: below it is bound, above it is not."""
_CROWDED, _CROWDED_MS = 0.25, 10
"""It leaves a core where it waits for so much of the time that it wants, and no less than so long in a look."""
_LONGEST_REST: Final = 512
"""Looks; where it is crowded again and again, it stays away for longer and longer."""
_PROCESSOR: Final = 36
"""Index of the core that a thread was on last, behind its name in /proc/…/stat."""

_TASKS, _SELF = Path("/proc/self/task"), Path("/proc/thread-self")


class Times(NamedTuple):
    """How long a thread has computed, and how long it has waited for a core, in milliseconds since it began."""

    ran: float
    waited: float


class Binding:
    """Decides from look to look whether to be bound. Pure.

    Args:
        times: Of the thread of the event loop, at the first look.

    Attributes:
        bound: What was decided last; at first it is not.
        next_s: When to look again.
    """

    def __init__(self, times: Times) -> None:
        self.bound = False
        self.next_s = _EVERY_S
        self._before = times
        self._rest = self._last_rest = 0

    def look(self, times: Times, elapsed_ms: float) -> bool:
        """Return whether to be bound until the next look.

        Args:
            times: Of the same thread, now.
            elapsed_ms: Since the look before.
        """
        waited = times.waited - self._before.waited
        wanted = times.ran - self._before.ran + waited
        self._before = times
        self.next_s = _EVERY_S if wanted > _IDLE * elapsed_ms else _IDLE_EVERY_S
        if not self.bound:
            if self._rest:
                self._rest -= 1
            else:
                self.bound = wanted < _CALM * elapsed_ms
        elif waited > max(_CROWDED_MS, _CROWDED * wanted):
            self.bound = False
            self._rest = self._last_rest = min(2 * self._last_rest or 1, _LONGEST_REST)
        else:
            self.bound = wanted < _BUSY * elapsed_ms
            self._last_rest //= 2
        return self.bound


async def stay_on_one_core() -> None:
    """Look after this process for ever; must be called on the thread of its event loop. Cancelled, it lets all threads go."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        return
    clock, bound = asyncio.get_running_loop().time, False
    try:
        with (_SELF / "schedstat").open("rb") as told:
            looked, times = clock(), _times(told)
            if not times.ran:  # a kernel that keeps no account says 0: bound to a crowded core, it would stay there
                return
            binding = Binding(times)
            while True:
                await asyncio.sleep(binding.next_s)
                now = clock()
                wanted = binding.look(_times(told), (now - looked) * 1000)
                if wanted is not bound:
                    bound = wanted
                    _bind({_core()} if bound else allowed)
                looked = now
    except OSError as error:  # a kernel that does not tell, or does not let us
        _log.debug("one_core_given_up", error=str(error))
    finally:
        if bound:
            with suppress(OSError):
                _bind(allowed)


def _times(told: BinaryIO) -> Times:
    ran, waited, _ = os.pread(told.fileno(), 128, 0).split()
    return Times(int(ran) / 1e6, int(waited) / 1e6)


def _core() -> int:
    return int((_SELF / "stat").read_text().rpartition(")")[2].split()[_PROCESSOR])


def _bind(cores: Collection[int]) -> None:
    """Let all threads of this process run on these cores; those that they begin later do as they do."""
    for thread in _TASKS.iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            pass  # it has ended
