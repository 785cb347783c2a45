"""The network between one worker and the rest fails, in every way at once: each victim has relays and a fault of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Literal

import pytest

from tests.kill.conftest import Build
from tests.kill.house import Lane, WorkerProcess
from tests.kill.ledger import Entry
from tests.kill.process import until
from tests.kill.record import timing
from tests.kill.relay import Relay
from tests.kill.stage import Stage, boot_s, wall_ms

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

SESSION_STREAM: Final = b"WorkerService/Session"
GATE: Final = "cut"
GIVE_BACK_S: Final = 5.0


@dataclass(frozen=True)
class Fault:
    """What happens to a worker's connections, and to what it holds.

    Attributes:
        strike: Given the relay to the control plane and the one to the broker.
        held: "kept": the worker finishes what it holds. "lost": others take it over while the fault lasts; what the
            worker reports later is refused. "either".
        within: Seconds from the fault to the take-over.
        told: What the servers say arrives, so that its body may be cut off when others have taken it over.
    """

    lane: Lane
    strike: Callable[[Relay, Relay], int]
    held: Literal["kept", "lost", "either"]
    within: float = 0.0
    told: bool = False


FAULTS: Final[dict[str, Fault]] = {
    "session cut": Fault("amqp", lambda s, b: s.cut(), "lost", 2.5),
    "session cut, seen by the server": Fault("amqp", lambda s, b: s.cut("server"), "lost", 2.5),
    "session cut, seen by the worker": Fault("amqp", lambda s, b: s.cut("client", refuse=False), "kept"),
    "session held back": Fault("amqp", lambda s, b: s.stall(), "lost", 9.0),
    "session held back to the server": Fault("amqp", lambda s, b: s.stall("up"), "lost", 9.0, told=True),
    "session held back to the worker": Fault("amqp", lambda s, b: s.stall("down"), "either"),
    "stream held back, beats pass": Fault("amqp", lambda s, b: s.stall(only=SESSION_STREAM), "kept"),
    "broker cut": Fault("amqp", lambda s, b: b.cut(), "kept"),
    "broker cut, seen by the broker": Fault("amqp", lambda s, b: b.cut("server"), "kept"),
    "broker cut, seen by the worker": Fault("amqp", lambda s, b: b.cut("client", refuse=False), "kept"),
    "broker held back": Fault("amqp", lambda s, b: b.stall(), "kept"),
    "both cut": Fault("amqp", lambda s, b: s.cut() + b.cut(), "lost", 2.5),
    "session slow": Fault("amqp", lambda s, b: s.delay(0.3), "kept"),
    "broker slow": Fault("amqp", lambda s, b: b.delay(0.3), "kept"),
    "both slow": Fault("amqp", lambda s, b: s.delay(0.3) + b.delay(0.3), "kept"),
    "lane cut, seen by the server": Fault("session", lambda s, b: s.cut("server"), "lost", 2.5),
    "lane held back": Fault("session", lambda s, b: s.stall(), "lost", 9.0),
    "lane's stream held back": Fault("session", lambda s, b: s.stall(only=SESSION_STREAM), "kept"),
    "lane slow": Fault("session", lambda s, b: s.delay(0.3), "kept"),
}


@dataclass
class Victim:
    """A worker behind relays, and the body that runs in it."""

    name: str
    fault: Fault
    session: Relay
    broker: Relay
    worker: WorkerProcess
    held: list[Entry] = field(default_factory=list)

    @property
    def run(self) -> str:
        return self.held[0].run


def victims_of(stage: Stage, stack: ExitStack) -> list[Victim]:
    """Start a worker with one slot for each fault, and have a body in each."""
    house = stage.house
    assert house.rabbit is not None
    victims = []
    for name, fault in FAULTS.items():
        session, broker = (stack.enter_context(Relay(port)) for port in (house.servers[0].port, house.rabbit.port))
        amqp_url = house.rabbit.url.replace(f":{house.rabbit.port}/", f":{broker.port}/")
        where = {"server": session.address} | ({"amqp_url": amqp_url} if fault.lane == "amqp" else {})
        worker = stage.worker(f"cut-{fault.lane}", fault.lane, "--slots", "1", **where)
        victims.append(Victim(name, fault, session, broker, worker))
    house.ready()
    for n, victim in enumerate(victims):
        stage.call(f"r{n}", f"cut-{victim.fault.lane}", GATE)
    until("a body in each", lambda: len({entry.pid for entry in house.starts()}) == len(victims))
    for entry in house.starts():
        next(victim for victim in victims if victim.worker.pid == entry.pid).held.append(entry)
    return victims


def test_faults_of_the_network_lose_nothing_and_double_nothing(build: Build) -> None:
    stage = Stage(build("amqp"))
    house = stage.house
    with ExitStack() as stack:
        victims = victims_of(stage, stack)
        helpers = {lane: stage.worker(f"cut-{lane}", lane, "--slots", "32") for lane in ("amqp", "session")}
        idle = stack.enter_context(Relay(house.servers[0].port))
        idler = stage.worker("cut-amqp", "amqp", "--slots", "4", server=idle.address)
        house.ready(idler, *helpers.values())
        idler.until_said("session_opened")  # until it knows, it has no consumer
        idle.cut()  # it gets deliveries that it cannot ask about
        sent = wall_ms()
        more = [f"more-{lane}-{n}" for lane, jobs in (("amqp", 30), ("session", 10)) for n in range(jobs)]
        for run in more:
            house.start(run, "call_quick", pool=f"cut-{run.split('-')[1]}")
        # Once it has its four (of so many it gets them), the steps that are taken over cannot come to it, and wait there.
        until("all others have begun", lambda: len({e.run for e in house.starts() if e.run in more}) == len(more) - 4)
        struck = {}
        for victim in victims:
            struck[victim.name] = boot_s()
            victim.fault.strike(victim.session, victim.broker)
        for victim in victims:
            if victim.fault.held == "lost":
                entry = stage.entry(victim.run, helpers[victim.fault.lane].pid)
                took = entry.boot - struck[victim.name]
                timing(f"{victim.name}: taken over after", took)
                assert took < victim.fault.within, victim.name
        stage.results(more)
        waited = [entry.wall * 1000 - sent for run in more for entry in house.starts(run)]
        timing("other jobs, beside a worker that cannot ask, began after", *(ms / 1000 for ms in waited))
        assert idler.pid not in {entry.pid for run in more for entry in house.starts(run)}
        assert max(waited) < (GIVE_BACK_S + 2.5) * 1000
        house.open(GATE)
        for victim in victims:
            [recorded] = stage.results([victim.run]).values()
            if victim.fault.held != "either":
                kept = victim.fault.held == "kept"
                assert recorded == (victim.worker if kept else helpers[victim.fault.lane]).pid, victim.name
            if not victim.fault.told:
                stage.entry(victim.run, victim.worker.pid, what="end")
        for victim in victims:
            victim.session.heal()
            victim.broker.heal()
        idle.heal()
        house.ready()
        histories = stage.check([*(victim.run for victim in victims), *more], windows=("W2",))
        for victim in victims:
            kinds = [event.WhichOneof("kind") for event in histories[victim.run]]
            if victim.fault.held == "kept":
                assert kinds.count("attempt_started") == 1, victim.name
        house.until_nothing_waits()
        for worker in (victim.worker for victim in victims):
            assert worker.running
