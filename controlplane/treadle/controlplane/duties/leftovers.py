"""Tells workers to end attempts that are theirs no more: their run has closed, or somebody else holds the step.

They were told once, when that was committed. Who lost its session at that moment, or whose replica died before it could say
it, was not; and the row that would be told of again at each lease check is gone. So what a worker lists in its beats is
compared with the rows now and then, as long as it goes on listing it. Nothing is decided here, and nothing written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog
from google.protobuf.message import DecodeError

from treadle.controlplane.engine import Engine
from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    CommandRow,
    HeldToken,
    RunHead,
)

__all__ = ("LeftoverDuty",)

_log = structlog.stdlib.get_logger(__name__)

_EVERY_S = 5.0
"""What is listed in two rounds is looked at: shorter attempts never are."""
_PAGE = 200


class LeftoverDuty:
    """Looks after the workers whose sessions this replica serves.

    Args:
        engine: Whose sessions and store.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listed: dict[bytes, tuple[str, HeldToken]] = {}

    async def run(self) -> None:
        """Work for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.turn()
            except RequestError as error:
                _log.warning("leftovers_wait", error=str(error))

    async def turn(self) -> None:
        """Look once. Raises Unavailable."""
        before, self._listed = self._listed, {}
        workers = list(self._engine.replica.sessions)
        if workers:
            for worker_id, seen in zip(workers, await self._engine.store.view_workers(workers), strict=True):
                held: Iterable[HeldToken] = seen.record.held if seen.record is not None else ()
                self._listed |= {one.token: (worker_id, one) for one in held if one.command_id}
        kept = [listed for token, listed in self._listed.items() if token in before]
        for start in range(0, len(kept), _PAGE):
            await self._look(kept[start : start + _PAGE])

    async def _look(self, listed: Sequence[tuple[str, HeldToken]]) -> None:
        engine = self._engine
        wants = [Want(RunKey(one.namespace, one.run_id), fields=[f"c:{one.command_id}"]) for _, one in listed]
        for (worker_id, one), found in zip(listed, await engine.store.load(wants), strict=True):
            reason = _unwanted(found, one)
            session = engine.replica.sessions.get(worker_id) if reason else None
            if session is not None:
                _log.info("leftover_cut", worker=worker_id, run=one.run_id, command=one.command_id, reason=reason)
                session.cancel(one.token, reason)


def _unwanted(found: Loaded, held: HeldToken) -> str:
    """Return why nobody wants the attempt; "" if somebody does."""
    try:
        head = RunHead.FromString(found.head) if found.head else None
        data = found.fields.get(f"c:{held.command_id}")
        row = CommandRow.FromString(data) if data else None
    except DecodeError:
        return ""
    if row is not None and row.state == COMMAND_STATE_HELD and row.holder.token == held.token:
        return "cancelled" if row.cancel_requested else ""
    return "run closed" if head is None or _is_past(head, row, held) else "lease lost"


def _is_past(head: RunHead, row: CommandRow | None, held: HeldToken) -> bool:
    """Whether what the attempt was begun for is over: its run, its start of the id, or its life before a retry."""
    if held.incarnation not in (0, head.incarnation) or head.state in (RUN_STATE_CLOSED, RUN_STATE_CONTINUING):
        return True
    return row is None and head.retries > 0
