"""What only the store in memory has: virtual time, snapshots, and calls without an event loop."""

from __future__ import annotations

from tests.contract.store.cases import ALL, RUN, Case, change, load, record
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Hint, Loaded, Outcome, Store, Timer, Want

WEEK_MS = 7 * 86_400_000


def test_what_was_aside_for_a_week_goes() -> None:
    case = Case("memory", None)

    async def body(store: Store) -> None:
        full = b"x" * (1 << 20)
        assert await store.put_aside(1, "unknown", full)
        await case.until(store, await store.now() + WEEK_MS)
        assert await store.aside("unknown", 9) == []
        assert await store.put_aside(1, "unknown", full)

    case.run(body)


def test_a_snapshot_is_not_touched_by_later_commits() -> None:
    store = MemoryStore(lambda: 1000)
    first = change(
        events=[b"e"],
        set_fields={"c:a": b"a"},
        timers_set={"": 1},
        outbox_add={"d": b"d"},
        index_add=[("open", "m", 1)],
    )
    store.commit_now([first])
    store.open_session_now(record())
    snapshot = store.snapshot()
    later = change(
        expect=1,
        revision=2,
        head=b"h2",
        events=[b"f"],
        del_fields=["c:a"],
        timers_del=[""],
        outbox_del=["d"],
        index_del=[("open", "m")],
    )
    for _ in range(2):  # a snapshot can be restored again
        assert store.commit_now([later])[0].outcome is Outcome.OK
        store.close_session_now("w1", "s1", drained=False)
        store.hold_now("r1", [1], 10)
        store.restore(snapshot)
        want = Want(RUN, all_fields=True, events_after=0)
        assert store.load_now([want]) == [Loaded(1, b"head", {"c:a": b"a"}, None, [b"e"])]
        assert store.due_now(ALL, 9).due == [Timer(RUN, "", 1)]
        assert store.outbox_size_now() == store.count_now("open") == 1
        (view,) = store.view_workers_now(["w1"])
        assert view.record is not None
        assert view.record.closed_ms == 0
        assert set(store.hold_now("r2", [1], 10)) == {1}
        store.restore(snapshot)


def test_answers_are_copies() -> None:
    store = MemoryStore(lambda: 1000)
    store.open_session_now(record())
    (view,) = store.view_workers_now(["w1"])
    assert view.record is not None
    view.record.pool = "changed"
    assert store.workers_now("default")[0].pool == "csv"
    store.commit_now([change(set_fields={"c:a": b"a"}, events=[b"e"])])
    (loaded,) = store.load_now([Want(RUN, all_fields=True, events_after=0)])
    loaded.fields.clear()
    loaded.events.clear()
    assert store.load_now([Want(RUN, all_fields=True, events_after=0)])[0].events == [b"e"]


def test_listeners_hear_within_the_commit() -> None:
    store = MemoryStore(lambda: 1000)
    heard: list[Hint] = []
    end = store.listen(heard.extend)
    hint = Hint("n", "r", 1, False, "")
    store.commit_now([change(hint=hint)])
    assert heard == [hint]
    end()
    store.commit_now([change(expect=1, revision=2, hint=hint)])
    assert heard == [hint]


def test_memory_says_that_it_is_volatile() -> None:
    async def body(store: Store) -> None:
        (result,) = await store.check()
        assert not result.ok
        assert result.fatal
        assert await load(store) == Loaded()

    Case("memory", None).run(body)
