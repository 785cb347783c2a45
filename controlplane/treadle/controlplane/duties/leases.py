"""Looks at holders: reads the row, then the worker's record, then asks the machine (in this order: A6)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import CheckLease
from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import COMMAND_STATE_HELD, RUN_STATE_OPEN, CommandRow, Holder, RunHead

__all__ = ("Holding", "LeaseChecker", "holder_in")

_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds a run (command id "") or a step of it, as read from its row."""

    run: RunKey
    command_id: str
    holder: Holder


def holder_in(loaded: Loaded, run: RunKey, command_id: str) -> Holding | None:
    """Return the holder that the row (or the head) names; None when nobody holds it (or it is damaged)."""
    try:
        return _holder_in(loaded, run, command_id)
    except DecodeError:
        return None


def _holder_in(loaded: Loaded, run: RunKey, command_id: str) -> Holding | None:
    if not loaded.head:
        return None
    head = RunHead.FromString(loaded.head)
    if not command_id:
        return Holding(run, "", head.owner) if head.state == RUN_STATE_OPEN else None
    data = loaded.fields.get(f"c:{command_id}")
    if not data:
        return None
    row = CommandRow.FromString(data)
    return Holding(run, command_id, row.holder) if row.state == COMMAND_STATE_HELD and not row.local else None


class LeaseChecker:
    """Checks holders at once, as if their leases were due."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def check(self, items: Sequence[tuple[RunKey, str]], *, of: str) -> bool:
        """Look at the holders of these (run, command id) pairs as far as they are the worker `of`; False: none is.

        Raises:
            Unavailable: The store is away; the lease timers will ask again.
        """
        holdings: list[Holding] = []
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            wants = [Want(run, fields=[f"c:{command_id}"] if command_id else ()) for run, command_id in some]
            for view, (run, command_id) in zip(await self._engine.store.load(wants), some, strict=True):
                holding = holder_in(view, run, command_id)
                if holding is not None and holding.holder.worker_id == of:
                    holdings.append(holding)
        for result in await self.decide(holdings):
            if result is not None:
                raise result
        return bool(holdings)

    async def decide(self, holdings: Sequence[Holding]) -> list[Exception | None]:
        """Read the records of these holders, which were read from their rows before, and decide each; returns what failed.

        Raises:
            Unavailable: The records could not be read.
        """
        if not holdings:
            return []
        ids = list({h.holder.worker_id for h in holdings})  # a record lists all that its worker holds: it is read once
        views = dict(zip(ids, await self._engine.store.view_workers(ids), strict=True))
        asked = (
            self._engine.ask(
                h.run, CheckLease(h.command_id, h.holder.token, h.holder.lease_set_ms, views[h.holder.worker_id])
            )
            for h in holdings
        )
        results = await asyncio.gather(*asked, return_exceptions=True)
        return [result if isinstance(result, Exception) else None for result in results]
