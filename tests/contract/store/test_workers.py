"""Worker records: sessions and beats."""

from __future__ import annotations

from typing import Any

from tests.contract.store.cases import ALL, Case, record
from treadle.controlplane.store.port import Beat, BeatResult, ShardRound, Silent, Store
from treadle.protocol.ids import worker_shard
from treadle.v1.state_pb2 import HeldToken, WorkerRecord

NOTED = BeatResult(ignored=False, want_list=False)
IGNORED = BeatResult(ignored=True, want_list=False)
WANTED = BeatResult(ignored=False, want_list=True)
TOKENS = [HeldToken(run_id="r", command_id="c", token=bytes(range(16)), namespace="n"), HeldToken(run_id="q")]


def beat(sent_ms: int, *, worker_id: str = "w1", session_id: str = "s1", list_id: int = 0, **rest: Any) -> Beat:
    return Beat(worker_id, session_id, sent_ms, list_id, **{"held": None, **rest})


async def view(store: Store, worker_id: str = "w1") -> WorkerRecord:
    (seen,) = await store.view_workers([worker_id])
    assert seen.record is not None
    return seen.record


def test_a_session_is_opened(case: Case) -> None:
    async def body(store: Store) -> None:
        before = await store.now()
        assert await store.open_session(record(held=TOKENS, list_id=5, beat_sent_ms=99, closed_ms=1, drained=True))
        found = await view(store)
        assert before <= found.last_beat_ms <= await store.now()
        assert found.started_ms == found.last_beat_ms
        found.last_beat_ms = found.started_ms = 0
        assert found == record()

    case.run(body)


def test_the_later_session_wins(case: Case) -> None:
    async def body(one: Store, two: Store) -> None:
        assert await one.open_session(record(session_id="s2", sent_ms=200, replica_id="r1"))
        assert not await two.open_session(record(session_id="s1", sent_ms=100, replica_id="r2"))
        assert (await view(two)).session_id == "s2"
        started = (await view(one)).started_ms
        assert await two.open_session(record(session_id="s3", sent_ms=300, replica_id="r2", started_ms=7))
        found = await view(one)
        assert (found.session_id, found.replica_id, found.started_ms) == ("s3", "r2", started)

    case.run(body, replicas=2)


def test_a_beat_brings_its_list(case: Case) -> None:
    async def body(store: Store) -> None:
        await store.open_session(record())
        sent = beat(
            110,
            list_id=2**64 - 1,
            held=TOKENS,
            loop_lag_ms=3,
            steps_running=4,
            runs_open=5,
            draining=True,
        )
        assert await store.beat([sent]) == [NOTED]
        found = await view(store)
        assert (found.beat_sent_ms, found.list_id, list(found.held)) == (110, 2**64 - 1, TOKENS)
        state = (found.loop_lag_ms, found.steps_running, found.runs_open, found.draining)
        assert state == (3, 4, 5, True)
        assert await store.beat([beat(120, list_id=2**64 - 1)]) == [NOTED]
        found = await view(store)
        assert (found.beat_sent_ms, list(found.held), found.steps_running) == (120, TOKENS, 0)
        assert await store.beat([beat(130, list_id=9, held=[])]) == [NOTED]
        assert list((await view(store)).held) == []

    case.run(body)


def test_a_beat_that_names_an_unknown_list_denies_nothing(case: Case) -> None:
    async def body(store: Store) -> None:
        await store.open_session(record())
        await store.beat([beat(110, list_id=1, held=TOKENS)])
        before = (await view(store)).last_beat_ms
        await case.until(store, before + 3)
        assert await store.beat([beat(120, list_id=2)]) == [WANTED]
        found = await view(store)
        assert found.last_beat_ms > before
        assert (found.beat_sent_ms, found.list_id, list(found.held)) == (110, 1, TOKENS)

    case.run(body)


def test_beats_that_change_nothing(case: Case) -> None:
    async def body(store: Store) -> None:
        await store.open_session(record())
        await store.open_session(record("w2"))
        await store.close_session("w2", "s1", drained=False)
        await store.beat([beat(110, list_id=1, held=TOKENS)])
        before = await view(store)
        answers = await store.beat(
            [
                beat(109, list_id=2, held=[]),
                beat(120, session_id="s0", list_id=2, held=[]),
                beat(120, worker_id="w2"),
                beat(120, worker_id="nobody"),
                beat(130, list_id=1),
            ]
        )
        assert answers == [IGNORED] * 4 + [NOTED]
        after = await view(store)
        assert (after.beat_sent_ms, after.list_id, list(after.held)) == (130, 1, list(before.held))
        assert (await store.view_workers(["nobody"]))[0].record is None
        assert await store.beat([]) == []

    case.run(body)


def test_a_session_is_closed_only_by_its_name(case: Case) -> None:
    async def body(store: Store) -> None:
        assert await store.close_session("w1", "s1", drained=False) is None
        await store.open_session(record())
        await store.beat([beat(110, list_id=1, held=TOKENS)])
        assert await store.close_session("w1", "s0", drained=False) is None
        assert (await view(store)).closed_ms == 0
        closed = await store.close_session("w1", "s1", drained=True)
        assert closed is not None
        assert closed == await view(store)
        assert (closed.drained, list(closed.held)) == (True, TOKENS)
        assert closed.closed_ms >= closed.last_beat_ms
        await case.until(store, closed.closed_ms + 3)
        assert await store.close_session("w1", "s1", drained=False) == closed

    case.run(body)


def test_a_closed_record_is_opened_again_with_its_list(case: Case) -> None:
    async def body(store: Store) -> None:
        await store.open_session(record())
        await store.beat([beat(110, list_id=1, held=TOKENS, steps_running=3)])
        await store.close_session("w1", "s1", drained=True)
        assert await store.open_session(record(session_id="s2", sent_ms=200))
        found = await view(store)
        assert (found.closed_ms, found.drained, found.session_id) == (0, False, "s2")
        assert (found.beat_sent_ms, found.list_id, list(found.held)) == (110, 1, TOKENS)
        assert found.steps_running == 0
        assert await store.beat([beat(210, session_id="s2", list_id=1)]) == [NOTED]

    case.run(body)


def test_silent_workers_longest_first(case: Case) -> None:
    async def body(store: Store) -> None:
        names = [f"w{i}" for i in range(8)]
        for name in names:
            await store.open_session(record(name))
            await case.until(store, (await view(store, name)).last_beat_ms + 2)
        await store.close_session("w3", "s1", drained=False)
        await store.beat([beat(200, worker_id="w0")])
        last = (await view(store, "w7")).last_beat_ms
        silent = await store.silent(ALL, last, 100)
        assert [one.worker_id for one in silent.records] == ["w1", "w2", "w4", "w5", "w6"]
        assert silent.next_beat_ms == last, "w7 is the next; w0 has beaten since"
        some = await store.silent(ALL, last, 2)
        assert ([one.worker_id for one in some.records], some.next_beat_ms) == (["w1", "w2"], last)
        first = silent.records[0].last_beat_ms
        assert await store.silent([worker_shard("w1")], first, 9) == Silent([], first)
        everybody = await store.silent(ALL, 2**50, 100)
        assert ([one.worker_id for one in everybody.records][-2:], everybody.next_beat_ms) == (["w7", "w0"], None)
        some = await store.silent([worker_shard("w1")], last, 9)
        assert [one.worker_id for one in some.records] == [
            name for name in ("w1", "w2", "w4", "w5", "w6") if worker_shard(name) == worker_shard("w1")
        ]

    case.run(body)


def test_a_view_has_the_round_of_the_workers_shard(case: Case) -> None:
    async def body(store: Store) -> None:
        await store.open_session(record("w1"))
        await store.open_session(record("w2"))
        held = await store.hold("r1", [worker_shard("w2")], 60_000)
        views = await store.view_workers(["w2", "nobody", "w1"])
        assert [one.record.worker_id if one.record else None for one in views] == ["w2", None, "w1"]
        assert views[0].round == held[worker_shard("w2")]
        assert views[2].round == ShardRound(0, 0)
        assert views[0].time_ms >= held[worker_shard("w2")].last_round_ms
        assert await store.view_workers([]) == []

    case.run(body)


def test_workers_of_a_namespace(case: Case) -> None:
    async def body(store: Store) -> None:
        for i in range(12):
            await store.open_session(record(f"w{i:02}", namespace="even" if i % 2 == 0 else "odd"))
        await store.close_session("w02", "s1", drained=False)
        assert [one.worker_id for one in await store.workers("even")] == [f"w{i:02}" for i in range(0, 12, 2)]
        assert await store.workers("none") == []

    case.run(body)


def test_a_record_expires(case: Case) -> None:
    async def in_memory(store: Store) -> None:
        await store.open_session(record())
        await case.until(store, (await view(store)).last_beat_ms + 3_600_000)
        assert (await store.view_workers(["w1"]))[0].record is None
        assert await store.workers("default") == (await store.silent(ALL, 2**62, 9)).records == []

    async def on_redis(store: Any) -> None:
        await store.open_session(record())
        key = f"{case.prefix}:{{{worker_shard('w1')}}}:w:w1"
        assert 3_590_000 < await store._link.client.pttl(key) <= 3_600_000
        await store._link.client.delete(key)  # as the expiry would
        assert await store.silent(ALL, 2**50, 9) == Silent([], None)
        assert await store.workers("default") == []

    case.run(in_memory if case.url is None else on_redis)
