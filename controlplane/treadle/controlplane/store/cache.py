"""Runs as this replica last saw them, so that the next decision about a run needs no read.

Every commit is guarded by the run's random revision: what was decided on an outdated view is refused, forgotten, and decided
again on what the store has. So a change may be decided on a cached view; that nothing is to be done may not, because no
commit would check it: see `Loaded.cached`.

An entry holds the head, fields that are known (or known to be missing), and the last events of the history. It is what a
load found, or a start wrote, plus every change since that this replica committed. Whatever is not known to be the next
state after it (a conflict, no answer, news of another replica) makes it forgotten. A run that is about to be started is
taken for new: should it exist, or have left a tombstone, the commit meets a conflict, and the next look is a real one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import cast

from treadle.controlplane.store.limits import first_fields, page
from treadle.controlplane.store.port import Change, Committed, Hint, Loaded, Outcome, RunStore, Want
from treadle.protocol.ids import RunKey

__all__ = ("HotRuns", "RunCache")

_BYTES = 32 << 20
_SHARE = 8
"""One run may fill a part of the cache; a larger one is read each time."""
_NOT_NEW = 10_000
_TAIL_EVENTS, _TAIL_BYTES = 128, 64 << 10
_ENTRY_BYTES, _FIELD_BYTES, _EVENT_BYTES = 700, 180, 48  # what Python adds to the bytes themselves


class _Entry:
    """One run. `tail` is the end of its history; a field that is known to be missing is None unless `complete`."""

    __slots__ = (
        "closed",
        "complete",
        "fields",
        "fields_size",
        "head",
        "length",
        "revision",
        "size",
        "tail",
        "tail_size",
    )

    def __init__(self, revision: int, head: bytes, length: int, *, complete: bool) -> None:
        self.revision, self.head, self.length, self.complete = revision, head, length, complete
        self.fields: dict[str, bytes | None] = {}
        self.tail: list[bytes] = []
        self.size = self.fields_size = self.tail_size = 0
        self.closed = False

    def take(self, want: Want, loaded: Loaded) -> None:
        """Learn what a load of the same revision found."""
        if loaded.whole:
            self.fields, self.fields_size, self.complete = {}, 0, True
        if want.all_fields or loaded.whole or not self.complete:
            for name in loaded.fields if want.all_fields else want.fields:
                self._put(name, loaded.fields.get(name))
        tail: list[bytes] = []
        after = self.length if want.events_after is None else want.events_after
        if after + len(loaded.events) == self.length:
            tail = list(loaded.events)
            if loaded.event is not None and want.event_at == after:
                tail.insert(0, loaded.event)
        if len(tail) > len(self.tail):
            self.tail, self.tail_size = [], 0
            self._append(tail)

    def apply(self, change: Change) -> None:
        """Become what the change made of the run."""
        self.revision, self.head, self.closed = change.revision, change.head, change.ended
        for name in change.del_fields:
            self._put(name, None)
        for name, value in change.set_fields.items():
            self._put(name, value)
        self._append(change.events)
        self.length += len(change.events)

    def _put(self, name: str, value: bytes | None) -> None:
        if name in self.fields:
            self.fields_size -= _FIELD_BYTES + len(self.fields.pop(name) or b"")
        if value is not None or not self.complete:
            self.fields[name] = value
            self.fields_size += _FIELD_BYTES + len(value or b"")

    def _append(self, events: Sequence[bytes]) -> None:
        """Extend the tail; the older part of a long one is dropped."""
        tail = self.tail
        tail += events
        self.tail_size += sum(map(len, events)) + _EVENT_BYTES * len(events)
        while tail and (len(tail) > _TAIL_EVENTS or self.tail_size > _TAIL_BYTES):
            del tail[: (len(tail) + 1) // 2]
            self.tail_size = sum(map(len, tail)) + _EVENT_BYTES * len(tail)

    def measure(self) -> int:
        """Return the size in bytes."""
        return _ENTRY_BYTES + len(self.head) + self.fields_size + self.tail_size

    def answer(self, want: Want) -> Loaded | None:
        """Return what a load would find; None when that is not known."""
        found: dict[str, bytes] = {}
        fields = self.fields
        if want.all_fields:
            if not self.complete:
                return None
            found = first_fields({name: value for name, value in fields.items() if value is not None}, want.field_limit)
        else:
            for name in want.fields:
                value = fields.get(name)
                if value is not None:
                    found[name] = value
                elif not self.complete and name not in fields:
                    return None
        skipped = self.length - len(self.tail)
        at, after = want.event_at, want.events_after
        if 0 < at <= skipped or (after is not None and after < skipped):
            return None
        event = self.tail[at - skipped - 1] if 0 < at <= self.length else None
        events = [] if after is None else page(self.tail, after - skipped)
        whole = self.complete and len(found) == len(fields)
        return Loaded(self.revision, self.head, found, event, events, length=self.length, whole=whole, cached=True)


class RunCache:
    """The entries, bounded in bytes; what was not used for longest goes first. Pure: who loads and commits tells it.

    Args:
        limit: Bytes of all entries together, as accounted.

    Attributes:
        closed_shards: Of these shards somebody here will ask for what has closed, once (see `take_closed`).
        size: Bytes of the entries.
        hits, misses: Wants that were answered, or not.
    """

    def __init__(self, limit: int = _BYTES) -> None:
        self._limit = limit
        self._entries: OrderedDict[RunKey, _Entry] = OrderedDict()
        self._asked: list[set[RunKey]] = []
        self._not_new: set[RunKey] = set()
        self.closed_shards: Collection[int] = ()
        self.size = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, want: Want) -> Loaded | None:
        """Return the run as last seen; None: it must be loaded."""
        entry = self._entries.get(want.run)
        if entry is None and want.new and want.run not in self._not_new:
            return Loaded(cached=True)
        found = entry.answer(want) if entry is not None else None
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(want.run)
        return found

    def take_closed(self, run: RunKey, revision: int) -> Loaded | None:
        """Return head and whole history of a run that this replica saw close, and forget it.

        None: it must be loaded, which is also so where it is not at this revision.
        """
        entry = self._entries.get(run)
        if entry is None or not entry.closed:
            return None
        self._drop(run)
        return entry.answer(Want(run, events_after=0)) if entry.revision == revision else None

    def asked(self, wants: Sequence[Want]) -> set[RunKey]:
        """A load begins; give what this returns to `found` or, without an answer, to `unanswered`."""
        asked = {want.run for want in wants}
        self._asked.append(asked)
        return asked

    def unanswered(self, asked: set[RunKey]) -> None:
        """The load ended without an answer."""
        self._asked = [other for other in self._asked if other is not asked]

    def found(self, asked: set[RunKey], wants: Sequence[Want], loaded: Sequence[Loaded]) -> None:
        """A load ended. A run that was committed or forgotten since it began may be newer than what was found."""
        self.unanswered(asked)
        self._not_new.difference_update(asked)
        for want, found in zip(wants, loaded, strict=True):
            if want.run not in asked:
                continue
            if not found.revision:
                self._drop(want.run)
                continue
            entry = self._entries.get(want.run)
            if entry is None or entry.revision != found.revision:
                entry = _Entry(found.revision, found.head, found.length, complete=False)
            entry.take(want, found)
            self._keep(want.run, entry)

    def committing(self, changes: Sequence[Change]) -> None:
        """A commit begins: what is being loaded of these runs may be older than what comes of it."""
        for change in changes:
            self._outdate(change.run)

    def committed(self, changes: Sequence[Change], answers: Sequence[Committed]) -> None:
        """A commit ended with these answers."""
        for change, answer in zip(changes, answers, strict=True):
            self._outdate(change.run)
            if answer.outcome is Outcome.OK:
                self._follow(change)
            elif answer.outcome is Outcome.CONFLICT:
                self._drop(change.run)
                if change.unread:
                    self._not_new.add(change.run)
                    if len(self._not_new) > _NOT_NEW:
                        self._not_new.clear()

    def forget(self, runs: Iterable[RunKey]) -> None:
        """What these runs are is unknown from now on."""
        for run in runs:
            self._outdate(run)
            self._drop(run)

    def hinted(self, hints: Sequence[Hint]) -> None:
        """Another replica may have gone further."""
        for hint in hints:
            run = RunKey(hint.namespace, hint.run_id)
            entry = self._entries.get(run)
            if entry is None or entry.length < hint.length:
                self.forget((run,))

    def _follow(self, change: Change) -> None:
        run = change.run
        entry = self._entries.get(run)
        if change.delete or (change.cold and not (change.ended and run.shard in self.closed_shards)):
            self._drop(run)
        elif change.expect == 0 or change.restart:
            entry = _Entry(0, b"", 0, complete=not change.keep_fields)
            entry.apply(change)
            self._keep(run, entry)
        elif entry is not None and entry.revision == change.expect:
            entry.apply(change)
            self._keep(run, entry)
        else:
            self._drop(run)

    def _outdate(self, run: RunKey) -> None:
        for asked in self._asked:
            asked.discard(run)

    def _keep(self, run: RunKey, entry: _Entry) -> None:
        self._drop(run)
        entry.size = entry.measure()
        if entry.size > self._limit // _SHARE:
            return
        self._entries[run] = entry
        self.size += entry.size
        while self.size > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size

    def _drop(self, run: RunKey) -> None:
        entry = self._entries.pop(run, None)
        if entry is not None:
            self.size -= entry.size


class HotRuns:
    """`load` and `commit` of a store through a cache.

    Args:
        store: The runs.
        cache: What this replica saw last; no other replica shares it.
    """

    def __init__(self, store: RunStore, cache: RunCache | None = None) -> None:
        self._store = store
        self.cache = cache if cache is not None else RunCache()

    async def load(self, wants: Sequence[Want], *, fresh: bool = False) -> list[Loaded]:
        """See RunStore.load. What is known is not read, and has `cached` set; `fresh`: everything is read."""
        if not wants:
            return []
        cache = self.cache
        known = [None if fresh else cache.get(want) for want in wants]
        missing = [want for want, found in zip(wants, known, strict=True) if found is None]
        if not missing:
            return cast("list[Loaded]", known)
        asked = cache.asked(missing)
        try:
            loaded = await self._store.load(missing)
        except BaseException:
            cache.unanswered(asked)
            raise
        cache.found(asked, missing, loaded)
        read = iter(loaded)
        return [found if found is not None else next(read) for found in known]

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        """See RunStore.commit."""
        self.cache.committing(changes)
        try:
            answers = await self._store.commit(changes)
        except BaseException:  # each may have been written, or not
            self.cache.forget(change.run for change in changes)
            raise
        self.cache.committed(changes, answers)
        return answers
