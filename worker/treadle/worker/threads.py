"""Threads for sync steps: as many as there are slots, started when needed, given up when a step outlives its timeout.

They are daemon threads of our own: a step that never returns must hold up neither the next one nor the end of the process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue

__all__ = ("StepThread", "Threads")

Job = Callable[[], None]


class StepThread:
    """One thread. It ends when it is told to, or after its job once it was abandoned."""

    def __init__(self, name: str) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.abandoned = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()
            if self.abandoned:
                return


class Threads:
    """A bounded number of threads, and a queue for who waits for one. All methods are called on the event loop.

    Args:
        limit: Threads at the same time, abandoned ones not counted.
        name: Prefix of their names.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._numbers = count(1)
        self._idle: list[StepThread] = []
        self._busy: set[StepThread] = set()
        self._waiting: deque[Callable[[StepThread], Job | None]] = deque()

    def enter(self, begin: Callable[[StepThread], Job | None]) -> None:
        """Call `begin` as soon as a thread is free, which may be at once, and run what it returns there; None: nothing.

        What it returns must not raise, and the loop must be told to `leave` when it is done.
        """
        if len(self._busy) >= self._limit:
            self._waiting.append(begin)
        else:
            self._begin(begin)

    def _begin(self, begin: Callable[[StepThread], Job | None]) -> None:
        thread = self._idle.pop() if self._idle else StepThread(f"{self._name}-{next(self._numbers)}")
        self._busy.add(thread)
        job = begin(thread)
        if job is None:
            self.leave(thread)
        else:
            thread.jobs.put(job)

    def leave(self, thread: StepThread) -> None:
        """Its job is done; the next one that waits gets it."""
        if thread not in self._busy:
            return  # abandoned
        self._busy.discard(thread)
        self._idle.append(thread)
        self._admit()

    def abandon(self, thread: StepThread) -> None:
        """Do not wait for its job any longer: it may run on, but another thread takes its place."""
        if thread in self._busy:
            thread.abandoned = True
            self._busy.discard(thread)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._busy) < self._limit:
            self._begin(self._waiting.popleft())

    def close(self, timeout: float = 1.0) -> None:
        """End the idle threads; busy ones end with the process."""
        idle, self._idle = self._idle, []
        self._waiting.clear()
        for thread in idle:
            thread.jobs.put(None)
        for thread in idle:
            thread.join(timeout)
