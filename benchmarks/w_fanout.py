"""W3: one run that gathers many steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.app import local_fan, pool_fan
from benchmarks.drive import Metrics, fan_out
from benchmarks.house import order
from benchmarks.session import Session
from treadle.client import Client

__all__ = ("run",)


def _gather(workflow: Any, width: int) -> Callable[[Client], Awaitable[Metrics]]:
    async def work(client: Client) -> Metrics:
        async def call(_: int) -> None:
            found = await (await client.start(workflow, width, order())).result(timeout=600)
            assert found == width

        return await fan_out(call, width)

    return work


def run(session: Session) -> None:
    """500 local steps; 500 and 10,000 of a pool."""
    fan = session.sizes.fan
    for mode in session.modes:
        with session.house(mode) as house:
            if mode != "queued":
                session.series(house, "W3a", _gather(local_fan, fan), steps=fan)
            session.series(house, "W3b", _gather(pool_fan, fan), steps=fan)
            if mode != "queued" and not session.short:
                session.series(house, "W3b-10k", _gather(pool_fan, fan * 20), steps=fan * 20, reps=1)
