"""Notes of unexported history, and cursors."""

from __future__ import annotations

from tests.contract.store.cases import ALL, RUN, Case, change, commit
from treadle.controlplane.store.cursors import LEFT_PAGE, RIPE_MS, Projected, Unprojected
from treadle.controlplane.store.port import Outcome, Store
from treadle.protocol.ids import RunKey

OTHER = RunKey("default", "order-8")
BIG = 2**64 - 1


def done(
    run: RunKey = RUN,
    left: bytes = b"",
    incarnation: int = BIG,
    position: int = 3,
    revision: int = 1,
    *,
    more: bool = False,
    closed: bool = False,
) -> Projected:
    return Projected(run, left, incarnation, position, revision, more, closed)


async def noted(store: Store, limit: int = 100) -> list[Unprojected]:
    return sorted(await store.unprojected(ALL, limit, 2 * RIPE_MS), key=lambda item: (item.run, item.left))


def test_only_sampled_runs_that_grow_are_noted_and_only_where_traces_are_wanted(case: Case) -> None:
    async def body(store: Store) -> None:
        quiet = RunKey("default", "quiet")
        await commit(store, change(quiet, events=[b"e"], traced=True))
        assert await noted(store) == [] or case.url is None
        store.trace()
        await commit(store, change(events=[b"e"]), change(OTHER, traced=True))
        assert await noted(store) == []
        await commit(store, change(expect=1, revision=2, events=[b"e"], traced=True))
        await commit(store, change(expect=9, revision=3, events=[b"e"], traced=True))
        assert await noted(store) == [Unprojected(RUN, revision=2)]

    case.run(body)


def test_a_note_goes_when_everything_was_exported(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        await commit(store, change(events=[b"e"], traced=True))
        await store.projected([done(more=True)])
        assert await noted(store) == [Unprojected(RUN, b"", BIG, 3, 1)]
        await commit(store, change(expect=1, revision=2))
        await store.projected([done(position=4)])
        assert await noted(store) == [Unprojected(RUN, b"", BIG, 4, 2)], "a commit came between"
        await store.projected([done(position=5, revision=2)])
        assert await noted(store) == []
        await commit(store, change(expect=2, revision=3, events=[b"e"], traced=True))
        assert await noted(store) == [Unprojected(RUN, b"", BIG, 5, 3)]
        await store.projected([done(position=6, revision=3, closed=True)])
        assert await noted(store) == []
        await commit(store, change(expect=3, revision=4, events=[b"e"], traced=True))
        assert await noted(store) == [Unprojected(RUN, revision=4)], "a closed run needs no cursor"

    case.run(body)


def test_a_note_of_a_run_that_is_no_more_can_go(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        await commit(store, change(events=[b"e"], traced=True))
        await store.projected([done(revision=0, closed=True)])
        assert [item.run for item in await noted(store)] == [RUN]
        await store.projected([done(OTHER, revision=0, closed=True)])
        await store.projected([done(closed=True)])
        assert await noted(store) == []

    case.run(body)


def test_some_are_given_and_what_could_not_be_exported_goes_behind_others(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        runs = [RunKey("default", f"r{n}") for n in range(30)]
        await commit(store, *(change(run, events=[b"e"], traced=True, ended=True) for run in runs))
        some = await store.unprojected(ALL, 7)
        assert len(some) == 7 and some == await store.unprojected(ALL, 7)
        shard = runs[0].shard
        assert {item.run for item in await store.unprojected([shard], 100)} == {r for r in runs if r.shard == shard}
        assert await store.unprojected([], 10) == []
        await store.postpone([*some, Unprojected(OTHER)])
        rest = await store.unprojected(ALL, 100)
        assert sorted(item.run for item in some + rest) == sorted(runs)
        assert {item.run for item in await noted(store)} == set(runs)

    case.run(body)


def test_an_open_run_may_wait_until_there_is_more_and_a_closed_one_does_not(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        ripe = 2 * RIPE_MS
        await commit(store, change(events=[b"e"], traced=True))
        assert await store.unprojected(ALL, 10) == []
        assert await store.unprojected(ALL, 10, ripe) == [Unprojected(RUN, revision=1)]
        await commit(store, change(expect=1, revision=2, events=[b"e"], traced=True))
        await store.projected([done(position=1, revision=1)])
        assert await store.unprojected(ALL, 10) == [], "it went on meanwhile, and is open"
        ended = change(expect=2, revision=3, events=[b"e"], traced=True, ended=True)
        await commit(store, ended, change(OTHER, events=[b"e"], traced=True))
        assert await store.unprojected(ALL, 10) == [Unprojected(RUN, b"", BIG, 1, 3)]
        assert (await store.unprojected([RUN.shard, OTHER.shard], 1, ripe))[0].run == RUN, "closed ones come first"
        await store.projected([done(position=2, revision=2)])
        assert await store.unprojected(ALL, 10) == [Unprojected(RUN, b"", BIG, 2, 3)], "it was closed meanwhile"
        await store.projected([done(position=2, revision=3, more=True)])
        assert await store.unprojected(ALL, 10) == [Unprojected(RUN, b"", BIG, 2, 3)], "there is more"

    case.run(body)


def test_what_goes_before_its_export_is_left(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        events = [b"%d" % n for n in range(LEFT_PAGE + 5)]
        await commit(store, change(events=events, traced=True))
        await store.projected([done(incarnation=7, position=2, more=True)])
        again = change(expect=1, revision=2, head=b"second", events=[b"new"], traced=True, restart=True)
        assert await commit(store, again) == [Outcome.OK]
        now, left = await noted(store)
        assert now == Unprojected(RUN, revision=2)
        assert (left.run, left.incarnation, left.position, left.left != b"") == (RUN, 7, 2, True)
        assert left.revision == 0, "what was left has none"
        assert await store.left(left, 0) == (b"head", events[:LEFT_PAGE])
        assert await store.left(left, LEFT_PAGE) == (b"head", events[LEFT_PAGE:])
        await store.projected([done(left=left.left, position=9, more=True)])
        assert (await noted(store))[1].position == 9
        await store.projected([done(left=left.left, position=55)])
        assert await noted(store) == [now]
        assert await store.left(left, 0) == (b"", [])
        gone = change(expect=2, revision=3, delete=True, tombstone=b"t", tombstone_ms=10_000)
        assert await commit(store, gone) == [Outcome.OK]
        (left,) = await noted(store)
        assert await store.left(left, 0) == (b"second", [b"new"])

    case.run(body)


def test_what_was_exported_leaves_nothing(case: Case) -> None:
    async def body(store: Store) -> None:
        store.trace()
        await commit(store, change(events=[b"e"], traced=True))
        await store.projected([done()])
        await commit(store, change(expect=1, revision=2, events=[b"e"], restart=True))
        assert await noted(store) == []
        await commit(store, change(expect=2, revision=3, events=[b"e"], traced=True))
        assert await noted(store) == [Unprojected(RUN, revision=3)], "the cursor went with the history"

    case.run(body)
