"""Notes of unexported history and cursors, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from treadle.controlplane.store.cursors import LEFT_MS, LEFT_PAGE, RIPE_MS, Projected, Unprojected
from treadle.controlplane.store.memory_state import LeftHistory, RunData, State
from treadle.controlplane.store.port import Change
from treadle.protocol.ids import RunKey

__all__ = ("MemoryCursors",)

_FIRST = 2**53 - 1  # scores of closed runs are before all times


class MemoryCursors:
    """The SpanCursors of the in-memory store, and what its commits do for them."""

    _clock_ms: Callable[[], int]
    _state: State
    _traced = False

    def trace(self) -> None:
        self._traced = True

    def _note_trace(self, change: Change, now: int) -> None:
        """Note a run whose history grew."""
        if self._traced and change.traced and change.events:
            noted = self._state.traces.setdefault(change.run.shard, {})
            due = now - _FIRST if change.ended else now + RIPE_MS
            noted[change.run, b""] = min(due, noted.get((change.run, b""), due))

    def _leave(self, run: RunKey, data: RunData, now: int) -> None:
        """Keep a history that goes, if it was not exported."""
        cursor = self._state.cursors.pop((run, b""), None)
        traces = self._state.traces.get(run.shard, {})
        if (run, b"") not in traces:
            return
        del traces[run, b""]
        name = data.revision.to_bytes(8, "big")
        traces[run, name] = now - _FIRST
        self._state.left[run, name] = LeftHistory(data.head, list(data.events), now + LEFT_MS)
        if cursor is not None:
            self._state.cursors[run, name] = cursor

    async def unprojected(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> list[Unprojected]:
        now = self._clock_ms()
        found: list[Unprojected] = []
        for shard in shards:
            noted = self._state.traces.get(shard, {})
            due = sorted((due, key) for key, due in noted.items() if due <= now + ahead_ms)
            for _, (run, left) in due[: limit - len(found)]:
                there = None if left else self._state.runs.get(run)
                incarnation, position = self._state.cursors.get((run, left), (0, 0))
                found.append(Unprojected(run, left, incarnation, position, there.revision if there else 0))
        return found

    async def left(self, item: Unprojected, after: int) -> tuple[bytes, list[bytes]]:
        kept = self._state.left.get((item.run, item.left))
        if kept is None or kept.until_ms <= self._clock_ms():
            return b"", []
        return kept.head, kept.events[after : after + LEFT_PAGE]

    async def projected(self, done: Sequence[Projected]) -> None:
        for one in done:
            key = (one.run, one.left)
            run = self._state.runs.get(one.run)
            revision = run.revision if run is not None else 0
            whole = not one.more and (bool(one.left) or revision == one.revision)
            if whole and (one.closed or one.left):
                self._state.cursors.pop(key, None)
                self._state.left.pop(key, None)
            else:
                self._state.cursors[key] = (one.incarnation, one.position)
            noted = self._state.traces.get(one.run.shard, {})
            if whole:
                noted.pop(key, None)
            elif not one.more and noted.get(key, 0) > 0:
                noted[key] = self._clock_ms() + RIPE_MS

    async def postpone(self, items: Sequence[Unprojected]) -> None:
        for item in items:
            noted = self._state.traces.get(item.run.shard, {})
            if (item.run, item.left) in noted:
                noted[item.run, item.left] = self._clock_ms() + RIPE_MS
