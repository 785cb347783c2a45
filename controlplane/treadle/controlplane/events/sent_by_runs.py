"""Events that runs send, on their way from a run's outbox to the record of their id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from treadle.controlplane.events.triggers import Triggers
from treadle.controlplane.machine import Request
from treadle.controlplane.machine.event_requests import AcceptEvent
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import Letter

__all__ = ("SentByRuns",)

_log = structlog.stdlib.get_logger(__name__)

_WAITING = 10_000
_AT_ONCE = 200


class SentByRuns:
    """Looks up what they start, for all that wait at once. What there is no room for, the outbox brings again.

    Args:
        triggers: Which workflows events start.
        submit: Asks for what a letter says.
    """

    def __init__(self, triggers: Triggers, submit: Callable[[Letter, RunKey, Request], None]) -> None:
        self._triggers, self._submit = triggers, submit
        self._waiting: asyncio.Queue[Letter] = asyncio.Queue(_WAITING)

    def put(self, letter: Letter) -> None:
        """A letter with an event came."""
        try:
            self._waiting.put_nowait(letter)
        except asyncio.QueueFull:
            pass

    async def run(self) -> None:
        """Work for ever."""
        while True:
            letters = [await self._waiting.get()]
            while len(letters) < _AT_ONCE and not self._waiting.empty():
                letters.append(self._waiting.get_nowait())
            for namespace in dict.fromkeys(letter.namespace for letter in letters):
                mine = [letter for letter in letters if letter.namespace == namespace]
                try:
                    starts = await self._triggers.starts(namespace, [letter.send_event for letter in mine])
                except Unavailable as error:
                    _log.warning("sent_events_wait", namespace=namespace, events=len(mine), error=str(error))
                    continue
                for letter, started in zip(mine, starts, strict=True):
                    run = RunKey(letter.namespace, letter.run_id)
                    self._submit(letter, run, AcceptEvent(letter.send_event, started))
