"""Events as the machine sees them: accepted once, routed to who waits and what they start, kept for those who come late."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.post_rig import Post

from treadle.controlplane.machine.event_requests import AcceptEvent, DropTrigger, SetTriggers, UseKeySet
from treadle.controlplane.machine.event_routers import ROUTERS, record_of, routers, slot_of
from treadle.controlplane.machine.events import TRIGGERS
from treadle.controlplane.machine.requests import Asked, CancelRun, Claimed, RunReply, StartRun, TerminateRun
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import EVENT_KEPT_MS, canonical_match, keys_of
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import EventTrigger, NamedEvent, Payload, TraceContext
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_REJECT
from treadle.v1.state_pb2 import RUN_STATE_QUEUED, RegisteredTrigger, StartByEvent, UseKeys
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    CancelCommand,
    ClaimItem,
    ClaimVerdict,
    Command,
    CompleteRun,
    OwnerAnswer,
    OwnerRequest,
    ParkRun,
    SendEvent,
    WaitForEvent,
)

HOUR = 3_600_000


def key(run_id: str) -> RunKey:
    return RunKey("ns", run_id)


def event(event_id: str = "e1", name: str = "paid", **data: Any) -> NamedEvent:
    return NamedEvent(event_id=event_id, name=name, data=Payload(data=json.dumps(data).encode()))


class World(Post):
    """Runs whose owners are played by hand."""

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[str, OwnerRequest] = {}

    def send(self, sent: NamedEvent, *starts: StartByEvent) -> RunReply:
        reply = self.ask(key(record_of(sent.event_id)), AcceptEvent(sent, starts))
        assert isinstance(reply, RunReply)
        return reply

    def start(self, run_id: str = "r1") -> None:
        start = StartRun("wf", "p", Payload(data=b"{}"), f"start {run_id}", CONFLICT_POLICY_REJECT, TraceContext())
        assert isinstance(self.ask(key(run_id), start), RunReply)

    def say(self, run_id: str, *commands: Command, **last: Any) -> None:
        """The owner of the run, who has seen everything, says something."""
        head = self.head(key(run_id))
        assert head is not None
        if head.state == RUN_STATE_QUEUED:
            job = Job(
                namespace="ns", run_id=run_id, incarnation=head.incarnation, kind=JOB_KIND_RUN, pool="p", name="wf"
            )
            item = ClaimItem(claim_id=self.rng.getrandbits(60), sent_ms=self.now, job=job)
            verdict = self.ask(key(run_id), Claimed(item, "W", "R"))
            assert isinstance(verdict, ClaimVerdict)
            self._owners[run_id] = OwnerRequest(token=verdict.grant.token, seq=0)
        mine = self._owners[run_id]
        mine.seq += 1
        history = self.history(key(run_id))
        ask = OwnerRequest(
            run_id=run_id,
            incarnation=head.incarnation,
            token=mine.token,
            seq=mine.seq,
            seen=len(history),
            told=len(history),
            told_revision=history[-1].revision,
            commands=commands,
        )
        for name, value in last.items():
            getattr(ask, name).CopyFrom(value)
        reply = self.ask(key(run_id), Asked(ask, "W", "R"))
        assert isinstance(reply, OwnerAnswer) and reply.answer == ANSWER_OK, reply

    def wait(self, run_id: str = "r1", *, number: int = 1, start: bool = True, **more: Any) -> None:
        """The run begins to wait for "paid"."""
        if start:
            self.start(run_id)
        self.say(run_id, wait(number, self.now, **more))

    def got(self, run_id: str = "r1") -> list[str]:
        """What became of the run's waits: ids of events, or "timeout" and the like."""
        found = []
        for one in self.history(key(run_id)):
            if one.HasField("event_matched"):
                found.append(one.event_matched.event.event_id)
            elif one.HasField("event_wait_timed_out"):
                found.append("timeout")
            elif one.HasField("event_wait_refused"):
                found.append("refused")
        return found

    def slot(self, **match: Any) -> Any:
        head = self.head(key(slot_of("paid", canonical_match(match))))
        return head.event_slot if head is not None else None


def wait(
    number: int = 1,
    since_ms: int = 0,
    *,
    match: dict[str, Any] | None = None,
    timeout_ms: int | None = None,
    after_seq: int = 0,
    name: str = "paid",
    back_ms: int = 0,
) -> Command:
    spec = WaitForEvent(name=name, match=canonical_match(match or {}), since_ms=since_ms - back_ms, after_seq=after_seq)
    if timeout_ms is not None:
        spec.timeout_ms, spec.times_out = timeout_ms, True
    return Command(command_id=f"0/paid#{number}", digest=number, wait_for_event=spec)


# --- accepting -----------------------------------------------------------------------------------------------------------
def test_an_id_is_accepted_once_in_24_hours_and_again_after_that() -> None:
    world = World()
    assert world.send(event()).started
    world.settle()
    again = world.send(event())
    assert not again.started and again.head.event.time_ms == 1_000_000_000
    world.pass_time(EVENT_KEPT_MS - 1)
    assert not world.send(event()).started
    world.pass_time(HOUR)
    assert world.head(key(record_of("e1"))) is None, "nothing stays of it"
    assert world.send(event()).started
    world.settle()


def test_it_starts_each_workflow_once_with_its_data_however_often_its_letters_come() -> None:
    world = World()
    starts = [StartByEvent(workflow=f"wf{n}", pool="p", parameter="upload", whole=n == 1) for n in range(2)]
    world.send(event(rows=3), *starts)
    world.settle(timers=False, twice=True)
    runs = [run for run in world.store.snapshot().runs if not run.run_id.startswith("~")]
    assert sorted(run.run_id.rpartition("-")[0] for run in runs) == ["wf0", "wf1"]
    for run in runs:
        (first,) = world.history(run)
        started = first.run_started
        assert (started.trigger, started.event.event_id, started.event.name) == ("event", "e1", "paid")
        given = json.loads(started.input.data)["upload"]
        if started.workflow == "wf0":
            assert given == {"rows": 3}
        else:
            assert (given["id"], given["name"], given["data"]) == ("e1", "paid", {"rows": 3})
            assert given["time"].startswith("1970-01-12T13:46:40")


def test_many_starts_are_spread_over_commits() -> None:
    world = World()
    world.send(event(), *(StartByEvent(workflow=f"wf{n}", pool="p") for n in range(250)))
    assert world.most_letters <= 101
    world.pass_time(1)
    runs = [run for run in world.store.snapshot().runs if not run.run_id.startswith("~")]
    assert len(runs) == 250 and world.most_letters <= 101
    assert json.loads(world.history(runs[0])[0].run_started.input.data) == {}


# --- waiting -------------------------------------------------------------------------------------------------------------
def test_an_event_resumes_all_runs_that_wait_for_it_and_no_other() -> None:
    world = World()
    for n in range(3):
        world.wait(f"r{n}", match={"order": 7})
    world.wait("other", match={"order": 8})
    world.wait("any")
    world.settle()
    world.send(event(order=7.0))
    world.settle(twice=True)
    assert [world.got(f"r{n}") for n in range(3)] == [["e1"]] * 3
    assert world.got("other") == [] and world.got("any") == ["e1"]
    head = world.head(key("r0"))
    assert head is not None and head.open_commands == 0
    assert not world.slot(order=7).waits


@pytest.mark.parametrize("gap_ms", [0, 5, HOUR])
def test_who_comes_second_finds_the_first(gap_ms: int) -> None:
    world = World()
    world.start("late")
    world.now += 10
    world.wait("first", match={"order": 1})
    world.settle()
    world.send(event("e7", order=7))
    world.settle()
    world.pass_time(gap_ms)
    world.wait("late", start=False, match={"order": 7}, back_ms=gap_ms + 20)
    world.settle()
    assert world.got("late") == ["e7"]


def test_the_very_first_wait_with_its_keys_finds_what_came_before() -> None:
    """Nobody compared these keys when the event was routed."""
    world = World()
    for n in range(40):
        world.send(event(f"e{n}", order=n, customer={"id": n % 2}))
    world.settle()
    world.now += 10
    world.wait(match={"order": 33}, back_ms=1000)
    world.wait("r2", match={"customer.id": 1, "order": 39}, back_ms=1000)
    world.settle()
    assert (world.got(), world.got("r2")) == (["e33"], ["e39"])


def test_what_was_accepted_before_since_does_not_count_however_late_it_comes() -> None:
    world = World()
    world.send(event("old", order=7))  # its letters lie about
    world.now += 1000
    world.wait(match={"order": 7})
    world.settle(twice=True)
    assert world.got() == []
    world.send(event("new", order=7))
    world.settle()
    assert world.got() == ["new"]


@pytest.mark.parametrize("seed", range(30))
def test_no_order_of_letters_loses_an_event(seed: int) -> None:
    """A wait and an event at the same time, nobody ever having compared the key; letters in any order, some of them twice."""
    world = World()
    world.rng.seed(seed)
    world.start("r1")
    world.now += 5
    sent = False
    world.say("r1", wait(1, world.now, match={"order": 7}, back_ms=3))
    for _ in range(200):
        letters = world.letters()
        if not sent and (not letters or world.rng.random() < 0.2):
            world.send(event(order=7))
            sent = True
            continue
        if not letters:
            break
        world.deliver(world.rng.choice(letters), lost=world.rng.random() < 0.3)
    world.settle()
    assert world.got() == ["e1"]


def test_waits_in_a_row_get_events_in_a_row() -> None:
    world = World()
    world.wait("first", match={"order": 1})
    world.settle()
    world.start()
    for n in range(3):
        world.send(event(f"e{n}", order=7))
        world.settle()
        world.now += 1
    seq = 0
    for n in range(4):
        world.say("r1", wait(n, 1_000_000_000, match={"order": 7}, after_seq=seq))
        world.settle()
        matched = [e.event_matched for e in world.history(key("r1")) if e.HasField("event_matched")]
        seq = matched[-1].seq
    assert world.got() == ["e0", "e1", "e2"]
    world.send(event("e3", order=7))
    world.settle()
    assert world.got() == ["e0", "e1", "e2", "e3"]


def test_the_timeout_ends_a_wait_and_the_slot_forgets_it() -> None:
    world = World()
    world.wait(match={"order": 7}, timeout_ms=60_000)
    world.settle()
    world.pass_time(59_999)
    assert world.got() == [] and len(world.slot(order=7).waits) == 1
    world.pass_time(1)
    world.settle()
    assert world.got() == ["timeout"] and not world.slot(order=7).waits
    world.send(event(order=7))
    world.settle()
    assert world.got() == ["timeout"]


def test_a_wait_that_is_cancelled_or_whose_run_ends_leaves_the_slot() -> None:
    world = World()
    for run_id in ("cancels", "completes", "is ended"):
        world.wait(run_id, match={"order": 7})
    world.settle()
    assert len(world.slot(order=7).waits) == 3
    world.say("cancels", Command(command_id="0/paid#1", digest=1, cancel=CancelCommand()))
    assert world.history(key("cancels"))[-1].HasField("event_wait_cancelled")
    world.say("completes", complete=CompleteRun())
    world.ask(key("is ended"), TerminateRun("t", "why"))
    world.settle()
    assert not world.slot(order=7).waits
    world.send(event(order=7))
    world.settle()
    assert [world.got(run_id) for run_id in ("cancels", "completes", "is ended")] == [[], [], []]


def test_an_end_that_overtakes_its_beginning_ends_it() -> None:
    world = World()
    world.wait(match={"order": 7})
    (begin,) = world.letters()
    world.say("r1", Command(command_id="0/paid#1", digest=1, cancel=CancelCommand()))
    (end,) = [letter for letter in world.letters() if letter.slot_news.HasField("end")]
    world.deliver(end)
    world.deliver(begin, lost=True)
    world.deliver(begin)
    world.settle()
    assert not world.slot(order=7).waits and len(world.slot(order=7).ended) == 1
    world.wait("r2", match={"order": 7})
    world.settle()
    world.send(event(order=7))
    world.settle()
    assert (world.got(), world.got("r2")) == ([], ["e1"])


def test_a_parked_run_is_woken() -> None:
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.say("r1", park=ParkRun())
    world.send(event(order=7))
    world.settle()
    head = world.head(key("r1"))
    assert head is not None and head.state == RUN_STATE_QUEUED


@pytest.mark.parametrize("waits", [16, 17, 1_000])
def test_thousands_wait_in_one_slot_and_no_commit_is_large(waits: int) -> None:
    world = World()
    for n in range(waits):
        world.wait(f"r{n}", match={"order": 7})
    world.settle()
    slot = world.slot(order=7)
    assert len(slot.waits) + slot.more_waits == waits
    world.send(event(order=7))
    before = world.commits
    world.pass_time(10)
    assert all(world.got(f"r{n}") == ["e1"] for n in range(waits))
    assert world.most_letters <= 200
    assert world.commits - before <= waits + waits // 150 + 20
    assert world.slot(order=7).more_waits == 0


def test_waits_that_begin_while_others_are_told() -> None:
    world = World()
    for n in range(400):
        world.wait(f"r{n}", match={"order": 7})
    world.settle()
    world.now += 1
    world.send(event("e1", order=7))
    world.now += 1
    world.wait("late", match={"order": 7})  # since now: e1 was before
    world.wait("looks back", match={"order": 7}, back_ms=100)
    world.send(event("e2", order=7))
    world.pass_time(10)
    world.settle()
    assert all(world.got(f"r{n}") in (["e1"], ["e2"]) for n in range(400))
    assert world.got("late") == ["e2"]
    assert world.got("looks back")[0] in ("e1", "e2")


def test_only_so_many_sets_of_keys_and_the_run_is_told() -> None:
    world = World()
    for n in range(40):
        world.wait(f"r{n}", match={f"key{n}": 1})
        world.settle()
    refused = [n for n in range(40) if world.got(f"r{n}") == ["refused"]]
    assert len(refused) == 8
    reason = next(e for e in world.history(key(f"r{refused[0]}")) if e.HasField("event_wait_refused"))
    assert "32 different sets of keys" in reason.event_wait_refused.reason


def test_keys_are_told_to_routers_once() -> None:
    world = World()
    for n in range(20):
        world.wait(f"r{n}", match={"order": n})
        world.settle()
    before = world.commits
    world.wait("more", match={"order": 99})
    assert len(world.letters()) == 1
    world.settle()
    assert world.commits - before == 4  # start, claim, command, and the slot's


def test_nothing_is_left_of_events_that_nobody_waits_for() -> None:
    world = World()
    world.wait(match={"order": 1}, timeout_ms=1000)
    world.settle()
    for n in range(20):
        world.send(event(f"e{n}", order=n))
    world.settle()
    world.pass_time(70 * 86_400_000)
    assert [run for run in world.store.snapshot().runs if run.run_id.startswith("~")] == []


def test_keys_stay_in_use_as_long_as_somebody_waits() -> None:
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.pass_time(200 * 86_400_000)
    world.send(event(order=7))
    world.settle()
    assert world.got() == ["e1"]


def test_a_router_keeps_a_bounded_log() -> None:
    world = World()
    for n in range(1_000):
        world.send(event(f"e{n}", order=n))
    world.settle()
    for name in routers("paid"):
        assert len(world.store.snapshot().runs[key(name)].fields) <= 150
    use = UseKeys(name="paid", keys=["order"], slot="~event/slot/x")
    world.ask(key(routers("paid")[0]), UseKeySet(use))
    assert 100 < len(world.letters()) <= 150
    assert len(routers("paid")) == ROUTERS


# --- sending from a run --------------------------------------------------------------------------------------------------
def test_an_event_that_a_run_sends_is_one_however_often_it_is_said() -> None:
    world = World()
    world.starts = [StartByEvent(workflow="follows", pool="p", parameter="x")]
    world.start()
    spec = SendEvent(event_id="by-r1", name="paid", data=Payload(data=b'{"order": 7}'))
    said = Command(command_id="0/send_event#1", digest=5, send_event=spec)
    world.say("r1", said, complete=CompleteRun())
    world.settle(timers=False, twice=True)
    assert [one.WhichOneof("kind") for one in world.history(key("r1"))][2:] == ["event_sent", "run_completed"]
    runs = [run for run in world.store.snapshot().runs if run.run_id.startswith("follows")]
    assert len(runs) == 1
    assert world.history(runs[0])[0].run_started.caller.traceparent


# --- triggers ------------------------------------------------------------------------------------------------------------
def trigger(workflow: str, *names: str, pool: str = "p") -> RegisteredTrigger:
    return RegisteredTrigger(workflow=workflow, pool=pool, trigger=EventTrigger(names=names))


def test_what_a_worker_registers_replaces_what_was_known_of_its_workflows() -> None:
    world = World()
    record = key(TRIGGERS)

    def known() -> list[tuple[str, list[str]]]:
        head = world.head(record)
        assert head is not None
        return [(t.workflow, list(t.trigger.names)) for t in head.event_triggers.triggers]

    world.ask(record, SetTriggers(["plain"], []))
    assert world.head(record) is None, "there is nothing to remember"
    world.ask(record, SetTriggers(["a", "b", "plain"], [trigger("b", "x.*"), trigger("a", "x.y")]))
    assert known() == [("a", ["x.y"]), ("b", ["x.*"])]
    before = world.commits
    world.ask(record, SetTriggers(["b", "a"], [trigger("a", "x.y"), trigger("b", "x.*")]))
    assert world.commits == before, "a worker that comes again changes nothing"
    world.ask(record, SetTriggers(["a", "c"], [trigger("c", "z")]))
    assert known() == [("b", ["x.*"]), ("c", ["z"])]
    dropped = world.ask(record, DropTrigger("b"))
    assert isinstance(dropped, RunReply) and dropped.started
    dropped = world.ask(record, DropTrigger("b"))
    assert isinstance(dropped, RunReply) and not dropped.started
    too_many = [trigger(f"w{n}", "x") for n in range(1001)]
    assert isinstance(world.ask(record, SetTriggers([t.workflow for t in too_many], too_many)), FieldInvalid)
    assert known() == [("c", ["z"])]


# --- what is compared ----------------------------------------------------------------------------------------------------
def test_match_is_written_in_one_way() -> None:
    assert canonical_match({"b": 1.0, "a.x": None}) == b'{"a.x":null,"b":1}'
    assert keys_of(b'{"a.x":null,"b":1}') == ("a.x", "b") and keys_of(b"") == ()
    assert canonical_match({"a": True}) != canonical_match({"a": 1})
    for wrong in ({"a": [1]}, {"": 1}, {"a": float("nan")}, {f"k{n}": n for n in range(9)}):
        with pytest.raises(FieldInvalid):
            canonical_match(wrong)
    for wrong_text in (b'{"b":1,"a":2}', b"[1]", b'{"a": 1}', b'{"a":[1]}'):
        with pytest.raises(FieldInvalid):
            keys_of(wrong_text)


def test_a_cancel_of_the_run_is_seen_while_it_waits() -> None:
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.ask(key("r1"), CancelRun("c", "why"))
    events: list[HistoryEvent] = world.history(key("r1"))
    assert events[-1].HasField("cancel_requested")
