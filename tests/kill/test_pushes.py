"""Steps that were pushed to a free slot and not begun there: their server dies, their worker freezes, their slot is gone.

What holds a push back on its way (a relay, SIGSTOP) has to come between two things that must be no more than 2 s apart: so
long a credit is used, and so long a worker waits for an answer. Where a machine was too slow for that, it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, WorkerProcess
from tests.kill.ledger import Entry
from tests.kill.process import until
from tests.kill.record import timing
from tests.kill.relay import Relay
from tests.kill.test_both_ways import pushed_in, until_pushed
from treadle.v1.history_pb2 import AttemptStarted

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

SESSION_STREAM: Final = b"WorkerService/Session"
SILENCE_S: Final = 5.0
TAKE_OVER_S: Final = 9.0
"""Silence since the last beat or the GO, a look for it twice a second, and what a busy machine adds."""

ROUNDS: Final = 5
Runs = dict[str, int]
"""Run id -> what it returns."""


def staff(house: House, slots: int, flows: str, steps: str, amqp_url: str = "") -> WorkerProcess:
    """Start a worker for the runs and one for the steps, each with these servers; returns the latter."""
    house.worker("flows", lane="auto", server=flows)
    worker = house.worker("steps", lane="auto", server=steps, amqp_url=amqp_url, options=("--slots", str(slots)))
    house.ready()
    return worker


def id_of(house: House, worker: WorkerProcess) -> str:
    return next(found.worker_id for found in house.client.workers() if found.host == worker.host)


def attempts(house: House, run: str) -> list[AttemptStarted]:
    return [event.attempt_started for event in house.history(run) if event.HasField("attempt_started")]


def begun(house: House, runs: Runs) -> list[Entry]:
    return [entry for run in runs for entry in house.starts(run)]


def ask(house: House, name: str, gate: str = "") -> Runs:
    """Start a run with one step, and one whose step runs at most once; wait until both steps were given to a worker."""
    asked = {name: 9, f"{name}-once": 16}
    house.start(name, "one", n=3, gate=gate)
    house.start(f"{name}-once", "at_most_once", n=4, gate=gate)
    until(f"the steps of {name} are given out", lambda: all(attempts(house, run) for run in asked))
    return asked


def pushed_unread(
    house: House, worker: WorkerProcess, hold: Callable[[], object], let_go: Callable[[], object]
) -> tuple[Runs, Runs]:
    """Hold back what the worker is sent, then have steps pushed to it. Returns their runs, and the runs before them."""
    done: Runs = {}
    worker_id = id_of(house, worker)
    for turn in range(ROUNDS):
        done |= until_pushed(house, f"before{turn}-")
        hold()
        asked = ask(house, f"pushed{turn}")
        ways = [(pushed_in(house.history(run)), [to.worker_id for to in attempts(house, run)]) for run in asked]
        if all(way == ([True], [worker_id]) for way in ways):
            assert not begun(house, asked), "what is held back was read"
            return asked, done
        let_go()
        done |= asked
    pytest.fail(f"in {ROUNDS} rounds no push was held back: this machine is too slow for it")


def check_begun_again(house: House, runs: Runs, *, lost: int = 0, released: int = 0) -> None:
    """Each step has begun once, as the second attempt of its first try; the first attempt was taken back in this way."""
    for run in runs:
        assert [(start.attempt, start.try_number) for start in house.starts(run)] == [(2, 1)], run
        kinds = house.kinds(run)
        found = [kinds.count(f"attempt_{what}") for what in ("started", "lost", "released", "failed")]
        assert found == [2, lost, released, 0], run


# --- the server dies -------------------------------------------------------------------------------------------------
def test_a_server_dies_with_pushes_that_never_arrived_and_another_takes_over(build: Build) -> None:
    house = build("amqp")
    first, second = house.server(), house.server()
    with Relay(first.port) as relay, Relay(second.port) as other:
        other.cut()  # nobody goes there before the first one is dead
        steps = staff(house, 4, f"{first.address},{other.address}", f"{relay.address},{other.address}")
        unread, done = pushed_unread(house, steps, lambda: relay.stall("down", only=SESSION_STREAM), relay.heal)
        killed = first.kill()
        relay.cut()
        other.heal()
        house.check(unread | done)
    check_begun_again(house, unread, lost=1)
    took = [start.boot - killed for start in begun(house, unread)]
    timing("SIGKILL of a server until steps begin whose push was lost, another server", *took)


def test_the_only_server_dies_with_pushes_that_never_arrived_and_comes_back(build: Build) -> None:
    house = build("amqp")
    server = house.server()
    with Relay(server.port) as relay:
        steps = staff(house, 4, server.address, relay.address)
        unread, done = pushed_unread(house, steps, lambda: relay.stall("down", only=SESSION_STREAM), relay.heal)
        killed = server.kill()
        relay.cut(refuse=False)
        server.restart()
        house.check(unread | done)
    check_begun_again(house, unread, lost=1)
    took = [start.boot - killed for start in begun(house, unread)]
    timing("SIGKILL of a server until steps begin whose push was lost, the same server again", *took)


def test_a_server_dies_whose_pushes_are_read_after_its_death(build: Build) -> None:
    """They begin under the right that they brought, or are given back; in either case they begin once."""
    house = build("amqp")
    server = house.server()
    steps = staff(house, 4, server.address, server.address)
    late, done = pushed_unread(house, steps, steps.freeze, steps.thaw)
    server.kill()
    steps.thaw()
    server.restart()
    house.check(late | done)
    for run in late:
        assert [start.try_number for start in house.starts(run)] == [1], run
        assert not {"attempt_failed", "step_failed"} & set(house.kinds(run)), run


# --- the worker freezes ----------------------------------------------------------------------------------------------
def attempt_in(house: House, run: str, worker: WorkerProcess) -> int:
    """The attempt that has begun in this worker; 0: none has."""
    return next((start.attempt for start in house.starts(run) if start.pid == worker.pid), 0)


def ended_in(house: House, worker: WorkerProcess) -> set[str]:
    return {entry.run for entry in house.ledger() if entry.what == "end" and entry.pid == worker.pid}


def until_begun_in(house: House, worker: WorkerProcess) -> Runs:
    """Run short steps until one of them was this worker's; returns the runs."""
    done: Runs = {}

    def found() -> bool:
        run = f"after{len(done)}"
        done[run] = house.start(run, "one", n=2, gate="").result(timeout="30s")
        return attempt_in(house, run, worker) > 0

    until(f"{worker.name} works again", found)
    return done


def test_a_frozen_worker_is_replaced_in_pushed_steps_and_ends_none_of_them(build: Build) -> None:
    """SIGSTOP with steps that have begun and pushes that were not read; SIGCONT after others took over."""
    house = build("amqp")
    server = house.server()
    assert house.rabbit is not None
    with Relay(house.rabbit.port) as broker:
        url = house.rabbit.url.replace(f":{house.rabbit.port}/", f":{broker.port}/")
        frozen = staff(house, 40, server.address, server.address, amqp_url=url)
        done = until_pushed(house)
        held = ask(house, "held", "{attempt}")
        until("both have begun", lambda: len(begun(house, held)) == len(held))
        assert all(pushed_in(house.history(run)) == [True] for run in held)
        other = house.worker("steps", lane="auto", options=("--slots", "20"))
        house.ready(other)
        broker.cut()  # what RabbitMQ delivers to a frozen worker may wait for 28 s: not what is under test
        stopped = [0.0]

        def freeze() -> None:
            stopped[0] = frozen.freeze()

        unread, more = pushed_unread(house, frozen, freeze, frozen.thaw)  # most of the free slots are the frozen one's
        lost = {"held-once": -1, next(run for run in unread if run.endswith("-once")): -1}
        again = [run for run in held | unread if run not in lost]
        until("another begins what may run again", lambda: all(attempt_in(house, run, other) for run in again))
        took = [house.starts(run)[-1].boot - stopped[0] for run in again]
        timing("SIGSTOP of a worker until another begins the steps that were pushed to it, begun or not", *took)
        assert max(took) < TAKE_OVER_S
        for run, value in lost.items():
            assert house.client.run(run).result(timeout="30s") == value, "who knows whether it has begun?"
        house.open("1")
        frozen.thaw()
        until("the old bodies end", lambda: ended_in(house, frozen) >= set(held))
        done |= until_begun_in(house, frozen)  # reports go in order: those of the old bodies were answered
        assert "step_completed" not in house.kinds("held"), "the report of a lost attempt was taken"
        house.open("2")
        house.check(held | unread | lost | more | done)
    for run in again:
        times = {event.WhichOneof("kind"): event.time_ms for event in reversed(house.history(run))}  # the first of each
        assert times["attempt_lost"] - times["attempt_started"] >= SILENCE_S * 1000, "it had a right until then"
        assert [attempt_in(house, run, other), len(attempts(house, run))] == [2, 2], run
    assert not [entry for entry in begun(house, unread) if entry.pid == frozen.pid], "begun under an old right"
    assert len(begun(house, lost)) == 1, "a step that runs at most once has begun again"


# --- the slot is gone ------------------------------------------------------------------------------------------------
SLOTS: Final = 2


def arrived(house: House, run: str) -> bool:
    """Whether a push has begun, or was taken back."""
    return bool(house.starts(run)) or house.kinds(run)[-1] != "attempt_started"


def overtake(house: House, relay: Relay, name: str) -> tuple[Runs, Runs, Runs]:
    """Have steps pushed, hold the pushes back until deliveries of RabbitMQ took the slots, and let them arrive then.

    Returns:
        The runs that were pushed (there may be none), those that were delivered, and all of them.
    """
    done = until_pushed(house, f"before-{name}-")
    relay.stall("down", only=SESSION_STREAM)
    asked: Runs = {}
    for n in range(SLOTS):  # at most so many find a credit, and so many others a slot
        asked[f"{name}-{n}"], asked[f"{name}-{n}-once"] = 9, 16
        house.start(f"{name}-{n}", "one", n=3, gate=name)
        house.start(f"{name}-{n}-once", "at_most_once", n=4, gate=name)

    def ways() -> dict[str, bool]:
        return {run: pushed[0] for run in asked if (pushed := pushed_in(house.history(run)))}

    until("deliveries have taken the slots", lambda: list(ways().values()).count(False) == SLOTS)
    found = ways()
    relay.heal()
    pushed, delivered = ({run: asked[run] for run in found if found[run] is way} for way in (True, False))
    until("the slots are used", lambda: len(begun(house, asked)) >= SLOTS)
    until("the pushes have arrived", lambda: all(arrived(house, run) for run in pushed))
    house.open(name)
    return pushed, delivered, done | asked


def test_pushes_that_find_their_slots_taken_are_given_back_and_go_on_in_the_same_try(build: Build) -> None:
    house = build("amqp")
    server = house.server()
    done: Runs = {}
    with Relay(server.port) as relay:
        staff(house, SLOTS, server.address, relay.address)
        for turn in range(ROUNDS):
            pushed, delivered, more = overtake(house, relay, f"r{turn}")
            done |= more
            if pushed and not any("attempt_lost" in house.kinds(run) for run in pushed):
                break  # else the session was replaced meanwhile
        else:
            pytest.fail(
                f"in {ROUNDS} rounds no slot was taken before its push arrived: this machine is too slow for it"
            )
        house.check(done)
    check_begun_again(house, pushed, released=1)
    assert [start.attempt for start in begun(house, delivered)] == [1] * SLOTS
    ended = [entry.boot for entry in house.ledger() if entry.what == "end" and entry.run in delivered]
    assert min(ended) < min(start.boot for start in begun(house, pushed)), "more bodies than slots"
