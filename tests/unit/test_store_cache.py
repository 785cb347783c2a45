"""The cache of runs: whatever is interleaved, what it answers is what the store has, or a commit on it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from treadle.controlplane.store.cache import HotRuns, RunCache
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.memory_state import State
from treadle.controlplane.store.port import Change, Committed, Hint, Loaded, Outcome, Want
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey

RUNS = [RunKey("default", f"r{i}") for i in range(3)]
RUN = RUNS[0]
NAMES = ["c:a", "c:b", "i:a"]
LIMIT = 16_000

wants = st.builds(
    Want,
    st.sampled_from(RUNS),
    fields=st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
    all_fields=st.booleans(),
    field_limit=st.sampled_from([2, 200]),
    event_at=st.integers(0, 6),
    events_after=st.none() | st.integers(0, 6),
)
values = st.binary(max_size=3)


@dataclass
class Replica:
    """A cache, what it is waiting for, and runs with a commit under way."""

    cache: RunCache
    loads: list[tuple[set[RunKey], list[Want], list[Loaded]]]
    commits: list[tuple[Change, Committed]]

    def busy(self, run: RunKey) -> bool:
        return any(change.run == run for change, _ in self.commits)


class Interleavings(RuleBasedStateMachine):
    """Two replicas over one store: loads and commits begin, take effect, and end, in any order with others between."""

    @initialize()
    def begin(self) -> None:
        self.store = MemoryStore(lambda: 1000)
        self.replicas = [Replica(RunCache(LIMIT), [], []) for _ in range(2)]
        self.revision = 0
        self.saved: State | None = None

    @rule(which=st.integers(0, 1), asked=st.lists(wants, min_size=1, max_size=3))
    def a_load_is_answered(self, which: int, asked: list[Want]) -> None:
        replica = self.replicas[which]
        token = replica.cache.asked(asked)
        replica.loads.append((token, asked, self.store.load_now(asked)))

    @rule(which=st.integers(0, 1), index=st.integers(0, 9), lost=st.booleans())
    def a_load_ends(self, which: int, index: int, lost: bool) -> None:
        replica = self.replicas[which]
        if replica.loads:
            token, asked, loaded = replica.loads.pop(index % len(replica.loads))
            if lost:
                replica.cache.unanswered(token)
            else:
                replica.cache.found(token, asked, loaded)

    @rule(
        which=st.integers(0, 1),
        run=st.sampled_from(RUNS),
        guess=st.booleans(),
        kind=st.sampled_from(["write", "write", "write", "restart", "delete", "cold", "early"]),
        written=st.dictionaries(st.sampled_from(NAMES), values, max_size=3),
        removed=st.lists(st.sampled_from(NAMES), max_size=2),
        events=st.lists(values, max_size=3),
    )
    def a_commit_is_decided(
        self,
        which: int,
        run: RunKey,
        guess: bool,
        kind: str,
        written: dict[str, bytes],
        removed: list[str],
        events: list[bytes],
    ) -> None:
        replica = self.replicas[which]
        if replica.busy(run):
            return
        cached = replica.cache.get(Want(run)) if guess else None
        expect = (cached or self.store.load_now([Want(run)])[0]).revision
        self.revision += 1
        change = Change(run, expect, self.revision, b"h%d" % self.revision, dict(written), list(removed), list(events))
        change.restart, change.delete, change.cold = kind == "restart", kind == "delete", kind == "cold"
        change.not_before_ms = 2000 if kind == "early" else 0
        replica.cache.committing([change])
        replica.commits.append((change, self.store.commit_now([change])[0]))

    @rule(which=st.integers(0, 1), index=st.integers(0, 9), lost=st.booleans())
    def a_commit_ends(self, which: int, index: int, lost: bool) -> None:
        replica = self.replicas[which]
        if not replica.commits:
            return
        change, answer = replica.commits.pop(index % len(replica.commits))
        if lost:
            replica.cache.forget([change.run])
            assert replica.cache.get(Want(change.run)) is None
            return
        replica.cache.committed([change], [answer])
        if answer.outcome is Outcome.CONFLICT or change.delete:
            assert replica.cache.get(Want(change.run)) is None

    @rule(which=st.integers(0, 1), run=st.sampled_from(RUNS))
    def a_hint_comes(self, which: int, run: RunKey) -> None:
        (now,) = self.store.load_now([Want(run)])
        cache = self.replicas[which].cache
        cache.hinted([Hint(run.namespace, run.run_id, now.length, False, "")])
        known = cache.get(Want(run))
        assert known is None or known.length >= now.length

    @rule()
    def the_store_is_saved(self) -> None:
        self.saved = self.store.snapshot()

    @rule()
    def the_store_goes_back_in_time(self) -> None:
        if self.saved is not None:
            self.store.restore(self.saved)

    @rule(want=wants, which=st.integers(0, 1))
    def an_answer_is_right_or_refused(self, want: Want, which: int) -> None:
        found = self.replicas[which].cache.get(want)
        (now,) = self.store.load_now([want])
        if found is None or found.revision != now.revision:
            return  # revisions are never used twice: a change that expects another one is refused
        assert found.cached
        assert found.length == now.length
        if want.all_fields and len(now.fields) == want.field_limit:
            assert len(found.fields) == want.field_limit  # any of them, in no order
            found.fields = now.fields
        assert found == now

    @invariant()
    def the_account_is_right(self) -> None:
        for replica in getattr(self, "replicas", []):
            cache = replica.cache
            assert cache.size == sum(entry.measure() for entry in cache._entries.values()) <= LIMIT
            for entry in cache._entries.values():
                entry.fields_size, entry.tail_size, kept = 0, 0, (dict(entry.fields), list(entry.tail))
                complete, entry.complete, entry.fields, entry.tail = entry.complete, False, {}, []
                for name, value in kept[0].items():
                    entry._put(name, value)
                entry._append(kept[1])
                entry.complete = complete
                assert entry.measure() == entry.size


Interleavings.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
test_interleavings = Interleavings.TestCase


class Store(MemoryStore):
    """Counts loads; may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[int] = []
        self.away = False

    async def load(self, wants: Sequence[Want]) -> list[Loaded]:
        self.loads.append(len(wants))
        return await super().load(wants)

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        answers = await super().commit(changes)
        if self.away:
            raise Unavailable("the answer was lost")
        return answers


def test_a_run_that_was_started_here_is_never_read() -> None:
    async def main() -> None:
        store = Store()
        runs = HotRuns(store)
        expect = 0
        for revision in range(1, 300):
            change = Change(RUN, expect, revision, b"h", {f"c:{revision}": b"x"}, events=[b"%d" % revision])
            assert (await runs.commit([change]))[0].outcome is Outcome.OK
            expect = revision
            want = Want(RUN, fields=["c:1", "c:none"], event_at=revision, events_after=max(0, revision - 60))
            assert await runs.load([want]) == store.load_now([want])
        assert store.loads == []
        (early,) = await runs.load([Want(RUN, event_at=1)])  # the tail is bounded
        assert early.event == b"1"
        assert not early.cached
        assert store.loads == [1]

    asyncio.run(main())


def test_without_an_answer_the_run_is_read_again() -> None:
    async def main() -> None:
        store = Store()
        runs = HotRuns(store)
        await runs.commit([Change(RUN, 0, 1, b"one")])
        store.away = True
        with pytest.raises(Unavailable):
            await runs.commit([Change(RUN, 1, 2, b"two")])
        assert await runs.load([Want(RUN)]) == [Loaded(2, b"two")]
        assert store.loads == [1]

    asyncio.run(main())


def test_a_load_that_began_before_a_commit_is_not_kept() -> None:
    async def main() -> None:
        store = Store()
        await store.commit([Change(RUN, 0, 1, b"one")])
        answered, go_on = asyncio.Event(), asyncio.Event()

        class Slow(Store):
            async def load(self, wants: Sequence[Want]) -> list[Loaded]:
                loaded = store.load_now(wants)
                answered.set()
                await go_on.wait()
                return loaded

            async def commit(self, changes: Sequence[Change]) -> list[Committed]:
                return store.commit_now(changes)

        runs = HotRuns(Slow())
        loading = asyncio.create_task(runs.load([Want(RUN)]))
        await answered.wait()
        await runs.commit([Change(RUN, 1, 2, b"two")])
        go_on.set()
        assert await loading == [Loaded(1, b"one")]
        assert runs.cache.get(Want(RUN)) is None

    asyncio.run(main())


def test_what_is_known_and_what_is_not_are_answered_together() -> None:
    async def main() -> None:
        store = Store()
        await store.commit([Change(run, 0, i + 1, b"%d" % i) for i, run in enumerate(RUNS)])
        runs = HotRuns(store)
        await runs.load([Want(RUNS[1])])
        loaded = await runs.load([Want(run) for run in RUNS])
        assert [(found.head, found.cached) for found in loaded] == [(b"0", False), (b"1", True), (b"2", False)]
        loaded = await runs.load([Want(run) for run in RUNS], fresh=True)
        assert not any(found.cached for found in loaded)
        assert store.loads == [1, 2, 3]

    asyncio.run(main())


def test_who_has_seen_all_fields_knows_that_another_is_missing() -> None:
    async def main() -> None:
        store = Store()
        await store.commit([Change(RUN, 0, 1, b"one", {"c:a": b"a", "c:b": b"b"})])
        runs = HotRuns(store)
        await runs.load([Want(RUN, fields=["c:a"])])
        assert not (await runs.load([Want(RUN, fields=["c:new"])]))[0].cached
        await runs.load([Want(RUN, fields=["c:a", "c:b"])], fresh=True)
        assert (await runs.load([Want(RUN, fields=["c:new"])]))[0].cached

    asyncio.run(main())


def closed_cache(events: int = 2) -> RunCache:
    cache = RunCache()
    cache.closed_shards = {RUN.shard}
    for change in (
        Change(RUN, 0, 1, b"open", events=[b"e1"]),
        Change(RUN, 1, 2, b"shut", events=[b"e"] * (events - 1), ended=True, cold=True),
    ):
        cache.committing([change])
        cache.committed([change], [Committed(Outcome.OK, 0)])
    return cache


def test_a_run_that_closed_is_taken_once_and_whole() -> None:
    cache = closed_cache()
    found = cache.take_closed(RUN, 2)
    assert found is not None
    assert (found.revision, found.head, found.events, found.length) == (2, b"shut", [b"e1", b"e"], 2)
    assert cache.take_closed(RUN, 2) is None
    assert (len(cache), cache.size) == (0, 0)


def test_a_closed_run_that_is_another_now_or_is_long_must_be_read() -> None:
    assert closed_cache().take_closed(RUN, 3) is None, "the store has another revision"
    assert closed_cache(events=500).take_closed(RUN, 2) is None, "only the end of its history is known"
    hinted = closed_cache()
    hinted.hinted([Hint(RUN.namespace, RUN.run_id, 3, False, "")])
    assert hinted.take_closed(RUN, 2) is None


def test_an_open_run_is_not_taken_and_closed_ones_are_kept_only_where_they_are_asked_for() -> None:
    cache = RunCache()
    open_ = Change(RUN, 0, 1, b"open", events=[b"e1"])
    cache.committed([open_], [Committed(Outcome.OK, 0)])
    assert cache.take_closed(RUN, 1) is None
    assert cache.get(Want(RUN)) is not None, "and it stays"
    cache.committed([Change(RUN, 1, 2, b"shut", ended=True, cold=True)], [Committed(Outcome.OK, 0)])
    assert len(cache) == 0


def test_it_is_bounded() -> None:
    cache = RunCache(limit=1 << 20)
    for i in range(5000):
        run = RunKey("default", f"r{i}")
        change = Change(run, 0, 1, b"h" * 300, events=[b"e" * 100] * 3)
        cache.committing([change])
        cache.committed([change], [Committed(Outcome.OK, 0)])
    assert 600 < len(cache) < 1000
    assert cache.size <= 1 << 20
    assert cache.get(Want(RUN)) is None
    assert cache.get(Want(RunKey("default", "r4999"))) is not None
    large = Change(RUN, 0, 1, b"h", {"i:x": b"x" * (200 << 10)})
    cache.committed([large], [Committed(Outcome.OK, 0)])
    assert cache.get(Want(RUN)) is None, "one run does not drive out all others"
    assert len(cache) > 600
