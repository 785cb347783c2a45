"""Runs: load and commit."""

from __future__ import annotations

import os

import pytest

from tests.contract.store.cases import ALL, RUN, Case, change, commit, load
from treadle.controlplane.store.port import IndexEntry, Loaded, Outcome, Store, Timer, Want
from treadle.protocol.ids import RunKey

OK, CONFLICT, EARLY = Outcome.OK, Outcome.CONFLICT, Outcome.EARLY
EVERY_BYTE = bytes(range(256))
MEBIBYTE = os.urandom(1 << 20)


def test_a_commit_writes_all_and_a_load_reads_it(case: Case) -> None:
    async def body(store: Store) -> None:
        first = change(
            revision=2**64 - 1,
            head=EVERY_BYTE,
            set_fields={"c:a": EVERY_BYTE, "i:a": b"", "c:ü": b"u"},
            events=[b"one", EVERY_BYTE],
        )
        assert await commit(store, first) == [OK]
        assert await load(store, fields=["c:a", "i:a", "c:none"], event_at=2, events_after=0) == Loaded(
            2**64 - 1, EVERY_BYTE, {"c:a": EVERY_BYTE, "i:a": b""}, EVERY_BYTE, [b"one", EVERY_BYTE]
        )
        second = change(expect=2**64 - 1, revision=2**63, del_fields=["c:a"], events=[b"three"])
        assert await commit(store, second) == [OK]
        loaded = await load(store, all_fields=True, event_at=4, events_after=2)
        assert loaded == Loaded(2**63, b"head", {"i:a": b"", "c:ü": b"u"}, None, [b"three"])

    case.run(body)


def test_a_load_tells_whether_there_are_other_fields(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(set_fields={"c:a": b"1", "c:b": b"2"}))
        assert (await load(store, fields=["c:a", "c:b", "c:none"])).whole
        assert not (await load(store, fields=["c:a", "c:none"])).whole
        assert not (await load(store)).whole
        assert (await load(store, all_fields=True)).whole
        assert not (await load(store, all_fields=True, field_limit=1)).whole
        await commit(store, change(expect=1, revision=2, del_fields=["c:a", "c:b"]))
        assert (await load(store)).whole

    case.run(body)


def test_a_run_that_is_not_there(case: Case) -> None:
    async def body(store: Store) -> None:
        assert await load(store, fields=["c:a"], all_fields=True, event_at=1, events_after=0) == Loaded()
        assert await commit(store, change(expect=5)) == [CONFLICT]
        assert await store.load([]) == []
        assert await store.commit([]) == []

    case.run(body)


def test_a_field_that_is_removed_and_written_is_written(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(set_fields={"c:a": b"1"}))
        await commit(store, change(expect=1, revision=2, set_fields={"c:a": b"2"}, del_fields=["c:a"]))
        assert (await load(store, fields=["c:a"])).fields == {"c:a": b"2"}

    case.run(body)


@pytest.mark.parametrize("expect", [0, 7])
def test_another_revision_changes_nothing(case: Case, expect: int) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(revision=3, events=[b"e"], timers_set={"": 5}))
        refused = change(
            expect=expect,
            revision=9,
            head=b"other",
            set_fields={"c:x": b"x"},
            events=[b"x"],
            outbox_add={"d": b"x"},
            timers_set={"x": 1},
            timers_del=[""],
            index_add=[("open", "m", 1)],
        )
        assert await commit(store, refused) == [CONFLICT]
        assert await load(store, all_fields=True, events_after=0) == Loaded(3, b"head", events=[b"e"])
        assert (await store.due(ALL, 10)).due == [Timer(RUN, "", 5)]
        assert await store.outbox_size() == await store.count("open") == 0

    case.run(body)


def test_what_is_not_due_is_refused(case: Case) -> None:
    async def body(store: Store) -> None:
        now = await store.now()
        assert await commit(store, change(not_before_ms=now + 60_000)) == [EARLY]
        assert await load(store) == Loaded()
        answers = await store.commit([change(not_before_ms=now)])
        assert answers[0].outcome is OK
        assert now <= answers[0].time_ms < now + 30_000
        assert await commit(store, change(expect=9, not_before_ms=now + 60_000)) == [CONFLICT]

    case.run(body)


def test_one_change_of_a_batch_is_refused_alone(case: Case) -> None:
    async def body(store: Store) -> None:
        runs = [RunKey("default", f"r{i}") for i in range(150)]
        await commit(store, change(runs[70], revision=4))
        outcomes = await commit(store, *(change(run, revision=i + 1, head=b"%d" % i) for i, run in enumerate(runs)))
        assert outcomes == [OK] * 70 + [CONFLICT] + [OK] * 79
        loaded = await store.load([Want(run) for run in reversed(runs)])
        expected = [Loaded(i + 1, b"%d" % i) for i in range(150)]
        expected[70] = Loaded(4, b"head")
        assert loaded == expected[::-1]

    case.run(body)


def test_a_restart_drops_history_and_fields(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(events=[b"old"] * 3, set_fields={"c:old": b"o"}))
        again = change(expect=1, revision=2, head=b"new", events=[b"new"], set_fields={"c:new": b"n"}, restart=True)
        assert await commit(store, again) == [OK]
        loaded = await load(store, all_fields=True, events_after=0)
        assert loaded == Loaded(2, b"new", {"c:new": b"n"}, None, [b"new"])

    case.run(body)


@pytest.mark.parametrize("count", [1, 5000])
def test_named_fields_outlive_a_restart(case: Case, count: int) -> None:
    async def body(store: Store) -> None:
        kept = {f"s:{i}": b"%d" % i for i in range(count)}
        await commit(store, change(events=[b"old"], set_fields={"c:old": b"o", **kept}))
        again = change(expect=1, revision=2, head=b"new", events=[b"new"], set_fields={"c:new": b"n"}, restart=True)
        again.keep_fields = [*kept, "s:never", "a:never"]
        assert await commit(store, again) == [OK]
        loaded = await load(store, all_fields=True, field_limit=count + 2, events_after=0)
        assert loaded == Loaded(2, b"new", {"c:new": b"n", **kept}, None, [b"new"])

    case.run(body)


def test_a_deleted_run_leaves_a_tombstone_for_a_while(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(
            store,
            change(events=[b"e"], timers_set={"": 1, "c": 2}, index_add=[("closed", "m", 1)]),
        )
        gone = change(
            expect=1,
            revision=2,
            delete=True,
            tombstone=EVERY_BYTE,
            tombstone_ms=400,
            events=[b"ignored"],
            outbox_add={"ignored": b"x"},
            timers_del=[""],
            timers_set={"later": 3},
            index_del=[("closed", "m")],
            index_add=[("gone", "m", 7)],
        )
        written = await store.commit([gone])
        assert written[0].outcome is OK
        assert await load(store, all_fields=True, events_after=0) == Loaded(tombstone=EVERY_BYTE)
        assert await commit(store, change(revision=3, unread=True)) == [CONFLICT]  # who did not look must look
        assert [timer.command_id for timer in (await store.due(ALL, 10)).due] == ["c", "later"]
        assert await store.index("gone", ALL) == [IndexEntry(RUN.shard, "m", 7)]
        assert await store.count("closed") == await store.outbox_size() == 0
        await case.until(store, written[0].time_ms + 450)
        assert await load(store) == Loaded()
        assert await commit(store, change(revision=3, unread=True)) == [OK]

    case.run(body)


def test_a_page_of_history_has_at_most_200_events(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(events=[b"%d" % i for i in range(450)]))
        assert (await load(store, events_after=0)).events == [b"%d" % i for i in range(200)]
        assert (await load(store, events_after=300)).events == [b"%d" % i for i in range(300, 450)]
        assert (await load(store, events_after=450)).events == []
        assert (await load(store, event_at=450)).event == b"449"

    case.run(body)


def test_a_page_of_history_has_at_most_one_mebibyte_but_one_event(case: Case) -> None:
    async def body(store: Store) -> None:
        half, big = MEBIBYTE[: 1 << 19], MEBIBYTE + b"more"
        await commit(store, change(events=[half, half, b"x", big, big]))
        assert (await load(store, events_after=0)).events == [half, half]
        assert (await load(store, events_after=2)).events == [b"x"]
        assert (await load(store, events_after=3)).events == [big]
        assert (await load(store, events_after=4)).events == [big]

    case.run(body)


def test_large_values(case: Case) -> None:
    async def body(store: Store) -> None:
        large = change(head=MEBIBYTE, set_fields={"i:x": MEBIBYTE}, outbox_add={"d": MEBIBYTE})
        assert await commit(store, large) == [OK]
        loaded = await load(store, fields=["i:x"])
        assert loaded.head == loaded.fields["i:x"] == MEBIBYTE
        assert (await store.stale_outbox(ALL, 2**62, 1))[0].entry == MEBIBYTE

    case.run(body)


def test_ten_thousand_fields(case: Case) -> None:
    async def body(store: Store) -> None:
        fields = {f"c:{i}": b"%d" % i for i in range(10_000)}
        timers = {f"{i}": i + 1 for i in range(10_000)}
        assert await commit(store, change(set_fields=fields, timers_set=timers)) == [OK]
        names = [f"c:{i}" for i in range(0, 20_000, 2)]
        assert len((await load(store, fields=names)).fields) == 5_000
        some = (await load(store, all_fields=True, field_limit=300)).fields
        assert len(some) == 300
        assert some.items() <= fields.items()
        everything = (await load(store, all_fields=True, field_limit=20_000)).fields
        assert everything == fields
        swept = change(expect=1, revision=2, del_fields=list(fields), timers_del=list(timers))
        assert await commit(store, swept) == [OK]
        assert (await load(store, all_fields=True)).fields == {}
        assert (await store.due(ALL, 10)).due == []

    case.run(body)


def test_rows_are_not_hidden_behind_notes(case: Case) -> None:
    async def body(store: Store) -> None:
        rows = {f"c:{i}": b"%d" % i for i in range(3)}
        notes = {f"{kind}:{i}": b"x" for i in range(1_000) for kind in "sad"}
        fields = {**dict(list(notes.items())[:2_000]), **rows, **notes}
        assert await commit(store, change(set_fields=fields)) == [OK]
        loaded = await load(store, all_fields=True)
        assert rows.items() <= loaded.fields.items() <= fields.items()
        assert len(loaded.fields) == 200
        assert not loaded.whole
        assert (await load(store, all_fields=True, field_limit=3)).fields == rows
        assert (await load(store, all_fields=True, field_limit=4_000)).fields == fields

    case.run(body)


def test_two_replicas_on_one_revision_have_one_winner(case: Case) -> None:
    async def body(one: Store, two: Store) -> None:
        await commit(one, change())
        outcomes = await commit(one, change(expect=1, revision=2, head=b"one"))
        outcomes += await commit(two, change(expect=1, revision=3, head=b"two"))
        assert outcomes == [OK, CONFLICT]
        assert await load(two) == Loaded(2, b"one")

    case.run(body, replicas=2)
