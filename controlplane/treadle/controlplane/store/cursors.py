"""What the projection of traces asks of its store: which runs have history that was not exported, and how far each is.

While a replica traces, each commit that appends to a sampled run's history notes the run, in the same atomic step; the note
goes only when everything up to the run's last commit was exported. So a crash between any two steps leaves the note.

A note is due as soon as its run has its outcome, else RIPE_MS after the first event that was not exported: so a short run is
read once, as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from treadle.protocol.ids import RunKey

__all__ = ("LEFT_MS", "LEFT_PAGE", "RIPE_MS", "Projected", "SpanCursors", "Unprojected")

LEFT_MS = 86_400_000
"""How long an unexported history is kept after its run was deleted or started again (scripts/commit.lua has it too)."""
RIPE_MS = 5_000
"""So long the history of an open run may wait for more of it (scripts/commit.lua and projected.lua have it too)."""
LEFT_PAGE = 50
"""Events in a page of such a history."""


@dataclass(frozen=True, slots=True)
class Unprojected:
    """A run with history that was not exported.

    Attributes:
        run: The run.
        left: b"": the run as it is. Else names the history that an earlier start of the run, or a deleted one, left behind.
        incarnation: Which start of the run id `position` belongs to; 0: nothing was exported.
        position: Events up to here were exported.
        revision: That of the run now; 0: there is none.
    """

    run: RunKey
    left: bytes = b""
    incarnation: int = 0
    position: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Projected:
    """How far the spans of a run were exported.

    Attributes:
        run, left: As in `Unprojected`.
        incarnation, position: The new cursor.
        revision: Revision of the run when the last of these events was read.
        more: The history goes on behind `position`: the note stays in any case.
        closed: No event will follow: the cursor is not needed once the note goes.
    """

    run: RunKey
    left: bytes
    incarnation: int
    position: int
    revision: int
    more: bool
    closed: bool


class SpanCursors(Protocol):
    """Notes of unexported history, and cursors."""

    def trace(self) -> None:
        """From now on commits of this replica note the sampled runs whose history grew."""
        ...

    async def unprojected(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> list[Unprojected]:
        """Some runs whose notes are due, at most `limit`: shard by shard in the order given, in a shard closed runs first, then
        the longest due. `ahead_ms`: also what will be due so soon."""
        ...

    async def left(self, item: Unprojected, after: int) -> tuple[bytes, list[bytes]]:
        """Read a history that was left behind: the last head of its run (b"": it has expired), and events behind `after`."""
        ...

    async def projected(self, done: Sequence[Projected]) -> None:
        """Set cursors; a note goes if its run is still at `revision` and there is no more.

        Where an open run went on meanwhile, it is due in RIPE_MS again; what has more stays due.
        """
        ...

    async def postpone(self, items: Sequence[Unprojected]) -> None:
        """Have these due in RIPE_MS, behind others: they could not be exported."""
        ...
