"""Lines about all runs of a control plane, live: what `treadle dev` shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from treadle.client.progress import progress_line
from treadle.client.timeline import Timeline
from treadle.client.whole_history import present_history
from treadle.protocol.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from treadle.client import Client, RunInfo

__all__ = ("LiveRuns",)

LOOK_S: Final = 0.3
"""How often new runs are looked for, in seconds."""

MOST: Final = 20
"""So many runs are followed at once; of more, only the number is told."""

_PAGE: Final = 200
_KNOWN: Final = 50 * _PAGE
"""Runs that are remembered; what was told so long ago is on no page of the newest."""


class LiveRuns:
    """Follows every run that is open or starts.

    Args:
        client: Whose runs.
        say: Takes a line.
    """

    def __init__(self, client: Client, say: Callable[[str], None]) -> None:
        self._client = client
        self._say = say
        self._known: dict[tuple[str, int], None] = {}
        self._following: dict[asyncio.Task[None], str] = {}
        self._untold = 0

    async def run(self) -> None:
        """Follow runs until cancelled."""
        try:
            await self._look(first=True)
            while True:
                await asyncio.sleep(LOOK_S)
                await self._look()
        finally:
            for task in self._following:
                task.cancel()
            await asyncio.gather(*self._following, return_exceptions=True)

    async def _look(self, *, first: bool = False) -> None:
        try:
            page = await self._client.list_page(size=_PAGE)
        except Unavailable:
            return
        for info in reversed(page.runs):
            key = info.id, info.incarnation
            if key in self._known:
                continue
            self._known[key] = None
            if len(self._known) > _KNOWN:
                del self._known[next(iter(self._known))]
            if not (first and info.status.closed):
                self._take(info, old=first)
        if self._untold:
            self._say(f"… {self._untold} more runs: see `treadle run list`")
            self._untold = 0

    def _take(self, info: RunInfo, *, old: bool) -> None:
        if len(self._following) >= MOST:
            self._untold += 1
            return
        task = asyncio.create_task(self._follow(info, old=old))
        self._following[task] = info.id
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        run_id = self._following.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, NotFound):
            self._say(f"✗ cannot follow {run_id}: {error}")

    async def _follow(self, info: RunInfo, *, old: bool) -> None:
        """Tell what the run does; of one that is older than we are, only what is new."""
        timeline = Timeline()
        handle = self._client.run(info.id)
        part = 0
        if old:
            info, recorded = await present_history(handle)
            part = info.incarnation
            for event in recorded:
                timeline.feed(event)
            self._say(f"▶ run {timeline.workflow} goes on   {info.id}")
        async with aclosing(handle.watch(after=timeline.position, incarnation=part)) as events:
            async for event in events:
                line = progress_line(info.id, timeline, event)
                if line is not None:
                    self._say(line if event.position == 1 else self._named(line, info.id))

    def _named(self, line: str, run_id: str) -> str:
        """Name the run on its lines while several are told of at once."""
        return f"{line}   · {run_id}" if len(self._following) > 1 else line
