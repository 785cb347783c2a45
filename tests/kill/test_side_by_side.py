"""Freezes, drains, blocked loops, full workers, garbage, missing names, small workers: all at once in one deployment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import aio_pika
import pytest

from tests.kill.house import House, Lane
from tests.kill.process import until
from tests.kill.record import timing
from tests.kill.relay import Relay
from tests.kill.stage import SMALL_APP, Played, Scene, Stage, wall_ms
from tests.servers.rabbit_server import RabbitServer
from treadle.client.timeline import timeline_of
from treadle.protocol.topology import Queue
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

SILENCE_S: Final = 5.0
GRACE_S: Final = 10.0
GIVE_BACK_S: Final = 0.25
CLOCK_MS: Final = 2.0


# --- frozen ----------------------------------------------------------------------------------------------------------
def a_frozen_worker(lane: Lane, stage: Stage) -> Scene:
    """SIGSTOP past the silence, then SIGCONT: replaced after 5 to 6 s, its late results are refused, nothing starts."""
    pool, house = f"freeze-{lane}", stage.house
    frozen = stage.worker(pool, lane, "--slots", "40")
    yield
    runs = [f"{pool}-{n}" for n in range(3)]
    for run in runs:
        stage.call(run, pool, pool)
    stage.began(runs, frozen)
    other = stage.worker(pool, lane, "--slots", "8")
    house.ready(other)
    stopped = frozen.freeze()
    late = [f"{pool}-late-{n}" for n in range(3)]  # most free slots are the frozen one's: GO is on the way to it
    for run in late:
        stage.call(run, pool, pool)
    replaced = stage.began(runs, other, seconds=45)
    timing(f"{pool}: replaced after", *(entry.boot - stopped for entry in replaced))
    silent = min(entry.wall for entry in replaced) * 1000 - silent_since_ms(stage, pool)
    assert silent >= SILENCE_S * 1000 - CLOCK_MS
    if lane == "session":
        missed = [entry.boot - stopped for entry in stage.began(late, other)]
        timing(f"{pool}: GOs that it never read were taken back after", *missed)
    house.open(pool)
    assert set(stage.results(runs).values()) == {other.pid}
    thawed = wall_ms()
    frozen.thaw()
    for run in runs:
        stage.entry(run, frozen.pid, what="end")
    stage.results(late)
    histories = stage.check([*runs, *late])
    for run, events in histories.items():
        granted = {e.attempt_started.attempt: e.time_ms for e in events if e.HasField("attempt_started")}
        for entry in house.starts(run):
            if entry.pid == frozen.pid and entry.wall * 1000 > thawed:
                assert granted[entry.attempt] >= thawed - CLOCK_MS, f"{run}: began after SIGCONT under an old right"
    holder = {run: first_holder(events) for run, events in histories.items()}
    if lane == "session":
        assert any(holder[run] == holder[runs[0]] for run in late), "no GO was on the way to the frozen worker"
    for run in [*runs, *(late if lane == "session" else [])]:
        kinds = [event.WhichOneof("kind") for event in histories[run]]
        # A busy machine may be too late for a credit of the frozen one: another got the first GO then.
        lost = holder[run] == holder[runs[0]]
        assert (kinds.count("attempt_lost"), kinds.count("step_completed")) == (int(lost), 1), run


def silent_since_ms(stage: Stage, pool: str) -> int:
    """When the last beat came of the worker that is silent for longest, by the clock of Redis."""
    return min(worker.last_beat_ms for worker in stage.house.client.workers(pool))


def first_holder(events: list[HistoryEvent]) -> str:
    """The worker that got the first GO for the run's step."""
    return next(event.attempt_started.worker_id for event in events if event.HasField("attempt_started"))


# --- drained ---------------------------------------------------------------------------------------------------------
def a_drained_worker(lane: Lane, stage: Stage) -> Scene:
    """SIGTERM during steps of 0.2, 5 and 60 s with a grace of 10 s."""
    pool, house = f"drain-{lane}", stage.house
    draining = stage.worker(pool, lane, "--slots", "3", "--grace", f"{GRACE_S:g}s")
    yield
    runs = {f"{pool}-{seconds:g}": seconds for seconds in (60.0, 5.0, 0.2)}
    for run, seconds in runs.items():
        stage.call(run, pool, pool, seconds)
    short, middle, long = f"{pool}-0.2", f"{pool}-5", f"{pool}-60"
    stage.began(runs, draining)
    other = stage.worker(pool, lane, "--slots", "8")
    house.ready(other)
    began = wall_ms()
    draining.terminate()
    until(f"{draining.name} has ended", lambda: not draining.running, seconds=GRACE_S + 15)
    took = (wall_ms() - began) / 1000
    assert draining.exit_code() == 0
    assert GRACE_S - 1 < took < GRACE_S + 3, f"the drain took {took:.1f} s"
    stage.entry(long, draining.pid, what="cancelled: drain", seconds=1)
    [again] = stage.began([long], other)
    timing(f"{pool}: drained in", took)
    timing(f"{pool}: the long step began elsewhere, after SIGTERM", again.wall - began / 1000)
    house.open(pool)
    assert stage.results(runs) == {short: draining.pid, middle: draining.pid, long: other.pid}
    for run, events in stage.check(runs).items():
        kinds = [event.WhichOneof("kind") for event in events]
        assert "attempt_lost" not in kinds
        assert "attempt_failed" not in kinds
        assert kinds.count("attempt_released") == (run == long)
        assert kinds.count("attempt_started") == 1 + (run == long)
    assert (again.attempt, again.try_number) == (2, 1)


# --- blocked ---------------------------------------------------------------------------------------------------------
def a_blocked_loop(lane: Lane, stage: Stage) -> Scene:
    """30 s of time.sleep in an async step: nothing is lost, and a warning names the step."""
    pool, house = f"block-{lane}", stage.house
    blocked = stage.worker(pool, lane, "--slots", "2")
    yield
    stage.call(f"{pool}-1", pool, blocking=30.0)
    stage.began([f"{pool}-1"], blocked)
    blocked.until_said("event_loop_blocked")
    assert f"hold-{pool}" in next(line for line in blocked.said.splitlines() if "event_loop_blocked" in line)
    other = stage.worker(pool, lane)
    house.ready(other)
    behind = [f"{pool}-behind-{n}" for n in range(4)]
    sent = wall_ms()
    for run in behind:
        house.start(run, "call_quick", pool=pool)
    assert stage.results([f"{pool}-1"]) == {f"{pool}-1": blocked.pid}
    stage.results(behind)
    waited = [(entry.wall * 1000 - sent) / 1000 for run in behind for entry in house.starts(run)]
    timing(f"{pool}: jobs that came while one worker's loop was blocked began after", *waited)
    assert max(waited) < 10.0, "a blocked worker keeps nothing that others could do"
    blocked.until_said("event_loop_back")
    for events in stage.check([f"{pool}-1", *behind]).values():
        assert "attempt_lost" not in [event.WhichOneof("kind") for event in events]


def a_held_lock(stage: Stage) -> Scene:
    """C code that keeps the interpreter's lock beyond the silence is a freeze: fenced, with a warning that names the step."""
    house = stage.house
    hogged = stage.worker("gil", "session", "--slots", "1")
    yield
    house.start("gil", "call_hog", seconds=20)
    began = stage.entry("gil", hogged.pid)
    other = stage.worker("gil", "session")
    again = stage.entry("gil", other.pid)
    timing("gil: a worker that stood still was replaced after", again.boot - began.boot)
    assert stage.results(["gil"]) == {"gil": other.pid}
    stage.entry("gil", hogged.pid, what="end")
    hogged.until_said("process_stood_still")
    said = next(line for line in hogged.said.splitlines() if "process_stood_still" in line)
    assert '"hog"' in said
    assert "executor='process'" in said
    kinds = [event.WhichOneof("kind") for event in stage.check(["gil"])["gil"]]
    assert (kinds.count("attempt_lost"), kinds.count("step_completed")) == (1, 1)


# --- full ------------------------------------------------------------------------------------------------------------
def a_full_worker(stage: Stage) -> Scene:
    """Steps that hold for long keep no neighbour's job in the worker's prefetch (A3)."""
    pool, house = "prefetch", stage.house
    full, free = stage.worker(pool, "amqp", "--slots", "2"), stage.worker(pool, "amqp", "--slots", "16")
    yield
    warm = [f"{pool}-warm-{n}" for n in range(40)]  # short ones, so that both prefetch twice their slots
    for run in warm:
        house.start(run, "call_quick", pool=pool)
    assert set(stage.results(warm).values()) == {full.pid, free.pid}
    runs = [f"{pool}-{n}" for n in range(12)]
    for run in runs:
        stage.call(run, pool, pool)
    until("all of them run", lambda: sum(len(house.starts(run)) for run in runs) == len(runs))
    more = [f"{pool}-more-{n}" for n in range(12)]
    for run in more:
        house.start(run, "call_quick", pool=pool)
    assert set(stage.results(more).values()) == {free.pid}
    house.open(pool)
    assert list(stage.results(runs).values()).count(full.pid) == 2
    histories = stage.check([*warm, *runs, *more])
    for what, names in (("held jobs", runs), ("jobs behind them", more)):
        waited = []
        for run in names:
            times = {event.WhichOneof("kind"): event.time_ms for event in histories[run]}
            waited.append(times["attempt_started"] - times["step_scheduled"])
        timing(f"{pool}: {what} waited beside a full worker for", *(ms / 1000 for ms in waited))
        assert max(waited) < (GIVE_BACK_S + 1.25) * 1000


# --- garbage ---------------------------------------------------------------------------------------------------------
def garbage(lane: Lane, stage: Stage) -> Scene:
    """What is no job is kept aside and counted, and the consumer lives."""
    pool, house = f"garbage-{lane}", stage.house
    stage.worker(pool, lane)
    yield
    assert house.rabbit is not None
    bodies = [b"\xff\xfe no job", b"", Job(name="half").SerializeToString(), b"x" * 100_000]
    before = kept_aside(house)
    asyncio.run(publish_raw(house.rabbit.url, Queue(house.namespace, pool, JOB_KIND_STEP).name, bodies))
    house.start(pool, "call_quick", pool=pool)
    stage.results([pool])
    until("all of it is kept aside", lambda: kept_aside(house) >= before + len(bodies))
    until("the queue is empty", lambda: all(p.steps_ready == 0 for p in house.client.pools() if p.name == pool))
    stage.check([pool])


async def publish_raw(url: str, queue: str, bodies: list[bytes]) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for body in bodies:
            await channel.default_exchange.publish(aio_pika.Message(body), routing_key=queue)


def kept_aside(house: House) -> int:
    """How much garbage the control plane says it keeps."""
    [check] = [check for check in house.client.check_health() if "garbage" in check.name]
    return int(check.detail.split()[0])


# --- names -----------------------------------------------------------------------------------------------------------
def a_missing_name(lane: Lane, stage: Stage) -> Scene:
    """A step that no worker of its pool has waits, visibly; it goes on when one with the name replaces it."""
    pool, house = f"late-{lane}", stage.house
    older = stage.worker(pool, lane, KILL_WITHOUT="1")
    yield
    stage.call(pool, pool)

    def step() -> tuple[str, str]:
        views = list(timeline_of(house.history(pool)).steps.values())
        return (views[0].state, views[0].reason) if views else ("", "")

    until("the step waits", lambda: step()[0] == "waiting")
    assert f"hold-{pool}" in step()[1]
    newer = stage.worker(pool, lane)
    house.ready(newer)
    came = wall_ms()
    assert older.stop() == 0
    assert stage.results([pool]) == {pool: newer.pid}
    [entry] = house.starts(pool)
    timing(f"{pool}: a worker with its name was live, it began after", entry.wall - came / 1000)
    stage.check([pool])


# --- small workers ---------------------------------------------------------------------------------------------------
def small_workers(stage: Stage) -> Scene:
    """The worker of the examples runs steps end to end; a killed one is replaced; what it lacks waits."""
    house = stage.house
    ledger = house.folder / "small.jsonl"
    ledger.touch()
    command = (str(SMALL_APP), house.servers[0].address, "small", house.namespace)
    first = stage.process("small1", *command, SMALL_LEDGER=str(ledger))
    yield
    house.start("small-1", "picture", width=640, height=480, gate="")
    assert stage.results(["small-1"]) == {"small-1": "160x120"}
    house.start("small-2", "picture", width=0, height=0, gate="small")
    until("the slow step runs", lambda: ledger.read_text().count("\n") == 1)
    second = stage.process("small2", *command, SMALL_LEDGER=str(ledger))
    killed = first.kill()
    until("another one runs it", lambda: ledger.read_text().count("\n") == 2)
    entry = json.loads(ledger.read_text().splitlines()[-1])
    took = entry["boot"] - killed
    timing("small: a killed worker without a session was replaced after", took)
    assert took < 12
    assert entry["wall"] * 1000 - silent_since_ms(stage, "small") >= SILENCE_S * 1000 - CLOCK_MS
    house.open("small")
    assert stage.results(["small-2"]) == {"small-2": str(second.pid)}
    house.start("small-3", "call_quick", pool="small")
    until("what it has not waits", lambda: "step_waiting" in house.kinds("small-3"))
    house.client.run("small-3").terminate()
    house.start("small-4", "picture", width=640, height=480, gate="")  # behind the last copy of what it has not
    assert stage.results(["small-4"]) == {"small-4": "160x120"}
    assert second.stop() == 0


# --- what is not there yet -------------------------------------------------------------------------------------------
def a_server_that_waits(what: str, stage: Stage) -> Scene:
    """Redis or RabbitMQ down when the server starts: named, with the address, and tried again."""
    house = stage.house
    assert house.rabbit is not None
    yield
    with Relay(house.redis.port if what == "Redis" else house.rabbit.port) as relay:
        relay.cut()
        urls = {"redis_url": house.redis.url, "amqp_url": house.rabbit.url}
        name = "redis_url" if what == "Redis" else "amqp_url"
        target = house.redis.port if what == "Redis" else house.rabbit.port
        urls[name] = urls[name].replace(f":{target}/", f":{relay.port}/")
        server = stage.server(**urls)
        server.until_said("dependency_down")
        said = next(line for line in server.said.splitlines() if "dependency_down" in line)
        assert what in said
        assert relay.address in said
        until("it tries again", lambda: server.said.count("dependency_down") > 1)
        relay.heal()
        server.until_ready()
        assert house.client_of(server).pools()
        assert server.stop() == 0


LANES: Final[tuple[Lane, ...]] = ("amqp", "session")
SCENES: Final[dict[str, Callable[[Stage], Scene]]] = {
    **{f"frozen-{lane}": partial(a_frozen_worker, lane) for lane in LANES},
    **{f"drained-{lane}": partial(a_drained_worker, lane) for lane in LANES},
    **{f"blocked-{lane}": partial(a_blocked_loop, lane) for lane in LANES},
    "lock": a_held_lock,
    "full": a_full_worker,
    **{f"garbage-{lane}": partial(garbage, lane) for lane in LANES},
    **{f"name-{lane}": partial(a_missing_name, lane) for lane in LANES},
    "small": small_workers,
    **{f"down-{what}": partial(a_server_that_waits, what) for what in ("Redis", "RabbitMQ")},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, rabbit_node: RabbitServer) -> Iterator[House]:
    rabbit_node.start()
    with House(tmp_path_factory.mktemp("stage"), lane="amqp", rabbit=rabbit_node) as built:
        yield built


@pytest.fixture(scope="module")
def played(house: House, request: pytest.FixtureRequest) -> Played:
    """The scenes whose tests were chosen, under way in one deployment."""
    names = [item.name for item in request.session.items if item.path == request.path]
    return Stage(house).play({name: scene for name, scene in SCENES.items() if f"test_scene[{name}]" in names})


@pytest.mark.parametrize("name", SCENES)
def test_scene(name: str, house: House, played: Played) -> None:
    try:
        played[name].result(90)
    except BaseException:
        house.show()
        raise


def test_nothing_is_left_behind(house: House, played: Played) -> None:
    for scene in played.values():
        scene.exception(90)
    house.until_nothing_waits()
