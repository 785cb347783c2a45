"""What people and code may do to a schedule: create, change, pause, trigger, backfill, delete, declare."""

from __future__ import annotations

import pytest
from tests.unit.schedule_rig import BEGIN, HOUR, MINUTE, ScheduleRig, at, hourly, specified, trigger

from treadle.controlplane.machine import occurrences
from treadle.controlplane.machine.requests import ChildEnded, FireTimer
from treadle.controlplane.machine.schedule_requests import (
    BackfillSchedule,
    ChangeSchedule,
    CreateSchedule,
    DeclareSchedule,
    DeleteSchedule,
    PauseSchedule,
    ResumeSchedule,
    ScheduleReply,
    ScheduleRequest,
    UndeclareSchedule,
)
from treadle.protocol.errors import NotFound, RequestError, RunIdConflict, Unavailable
from treadle.v1.common_pb2 import Payload
from treadle.v1.schedule_pb2 import (
    OCCURRENCE_CAUSE_BACKFILL,
    OCCURRENCE_CAUSE_TRIGGER,
    OCCURRENCE_FATE_QUEUED,
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE_ALL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    ScheduleSpec,
)
from treadle.v1.state_pb2 import RUN_OUTCOME_COMPLETED, ChildClosed


# --- what people do --------------------------------------------------------------------------------------------------
def test_it_is_created_once() -> None:
    rig = ScheduleRig(hourly())
    again = rig.told(CreateSchedule("create", specified(hourly()), Payload()))
    assert again.head == rig.head
    for n in range(20):
        rig.told(change(f"c{n}", jitter_ms=n))
    assert len(rig.head.request_ids) == 16
    assert rig.told(CreateSchedule("create", specified(hourly()), Payload())).head == rig.head
    assert rig.told(change("c19", jitter_ms=99)).head.schedule.spec.jitter_ms == 19
    refused = rig.refused(CreateSchedule("other", specified(hourly()), Payload()))
    assert isinstance(refused, RunIdConflict) and refused.reason == "SCHEDULE_EXISTS"


def test_while_it_is_paused_nothing_is_started_and_nothing_is_missed() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_QUEUE_ALL))
    rig.sleep(2 * HOUR)
    rig.told(PauseSchedule("maintenance"))
    assert rig.record.pause_reason == "maintenance" and rig.timer == 0 == rig.record.next_ms
    rig.end(at(1))
    rig.sleep(10 * HOUR)
    rig.fire()
    assert rig.started() == [at(1)] and rig.record.missed_count == 0
    rig.told(ResumeSchedule())
    assert rig.started() == [at(1), at(2)], "what had been queued goes on"
    assert not rig.record.paused and rig.timer == rig.now + HOUR


def test_what_was_due_before_the_pause_is_decided_before_it() -> None:
    rig = ScheduleRig(hourly())
    rig.now += HOUR + 5
    rig.told(PauseSchedule(""))
    assert rig.started() == [at(1)]


def test_created_paused_it_waits_for_somebody() -> None:
    rig = ScheduleRig(hourly(), paused=True)
    rig.sleep(3 * HOUR)
    assert not rig.started() and rig.timer == 0


def test_a_trigger_starts_one_run_however_often_it_is_sent() -> None:
    rig = ScheduleRig(hourly(), paused=True)
    one, two = rig.told(trigger("a")), rig.told(trigger("a"))
    assert one.run_id == two.run_id and not one.queued
    assert rig.started() == [one.run_id.removeprefix("s-")]
    occurrence = rig.posted[0].start_scheduled.occurrence
    assert (occurrence.cause, occurrence.scheduled_ms) == (OCCURRENCE_CAUSE_TRIGGER, rig.now)


def test_a_trigger_follows_the_policy_or_another_one() -> None:
    rig = ScheduleRig(hourly())
    rig.sleep(HOUR)
    refused = rig.refused(trigger("a"))
    assert refused.reason == "SCHEDULE_BUSY" and at(1) in str(refused) and rig.record.skipped_count == 0
    assert not rig.told(trigger("b", OVERLAP_POLICY_ALLOW)).queued and len(rig.record.open) == 2
    waits = rig.told(trigger("c", OVERLAP_POLICY_QUEUE_ALL))
    assert waits.queued and rig.record.recent[-1].fate == OCCURRENCE_FATE_QUEUED
    rig.told(PauseSchedule(""))
    rig.end(at(1))
    assert rig.started()[-1] == waits.run_id.removeprefix("s-"), "a person asked for it: a pause does not hold it up"


def test_a_later_occurrence_does_not_push_a_trigger_aside() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_CANCEL))
    rig.sleep(HOUR)
    waits = rig.told(trigger("a"))
    rig.sleep(2 * HOUR)
    assert waits.queued and rig.names(rig.record.queue) == [waits.run_id.removeprefix("s-"), at(3)]


def test_a_backfill_starts_what_was_missed_one_after_another() -> None:
    rig = ScheduleRig(hourly())
    rig.now += 10 * HOUR
    rig.fire()
    rig.end(at(10))
    reply = rig.told(BackfillSchedule("b", BEGIN + 2 * HOUR, BEGIN + 4 * HOUR, allow=False))
    assert reply.occurrences == 3 and rig.record.backfills[0].left == 2
    assert rig.told(BackfillSchedule("b", BEGIN + 2 * HOUR, BEGIN + 4 * HOUR, allow=False)).occurrences == 3
    for n in (2, 3, 4):
        assert (
            rig.started()[-1] == at(n) and rig.posted[-1].start_scheduled.occurrence.cause == OCCURRENCE_CAUSE_BACKFILL
        )
        rig.end(at(n))
    assert rig.started() == [at(10), at(2), at(3), at(4)] and not rig.record.backfills and not rig.record.open


def test_a_backfill_leaves_alone_what_has_a_run() -> None:
    rig = ScheduleRig(hourly())
    rig.sleep(HOUR)
    rig.told(BackfillSchedule("b", BEGIN, 0, allow=True))
    assert rig.started() == [at(1), at(0)], "the run that is open is known"
    rig.taken(at(0))
    assert rig.names(rig.record.open) == [at(1)] and rig.record.started_count == 1


def test_a_backfill_all_at_once_takes_several_commits() -> None:
    rig = ScheduleRig(hourly(), begin=BEGIN + 100 * HOUR)
    rig.told(BackfillSchedule("b", BEGIN + HOUR, BEGIN + 50 * HOUR, allow=True))
    assert len(rig.decision.letters) == 20 and rig.timer <= rig.now
    rig.fire()
    assert rig.started() == [at(n) for n in range(1, 51)] and rig.timer == rig.now + HOUR


def test_one_commit_starts_only_so_many_whatever_its_batch_has() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_ALLOW, catch_up_ms=100 * HOUR), begin=BEGIN + 200 * HOUR)
    rig.told(BackfillSchedule("b", BEGIN + HOUR, BEGIN + 150 * HOUR, allow=True))
    rig.now += 30 * HOUR
    open_ = [letter.start_scheduled.parent for letter in rig.posted if letter.HasField("start_scheduled")]
    rig.batch(*(ChildEnded(ChildClosed(parent=parent, outcome=RUN_OUTCOME_COMPLETED)) for parent in open_))
    assert len(open_) == len(rig.decision.letters) == 20
    while rig.timer <= rig.now:
        rig.ask(FireTimer(""))
        assert len(rig.decision.letters) <= 20
    assert sorted(rig.started()) == sorted([at(n) for n in range(1, 151)] + [at(n) for n in range(201, 231)])


def test_a_backfill_looks_no_further_than_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = occurrences.after

    def counted(spec: ScheduleSpec, ms: int) -> int:
        looks.append(ms)
        return look(spec, ms)

    rig = ScheduleRig(ScheduleSpec(cron="0 0 29 2 *", overlap=OVERLAP_POLICY_SKIP), paused=True)
    monkeypatch.setattr(occurrences, "after", counted)
    assert rig.told(BackfillSchedule("b", BEGIN - 30 * 366 * 24 * HOUR, 0, allow=False)).occurrences == 7
    assert len(looks) < 20


def test_an_occurrence_waits_for_a_backfilled_run_whatever_its_policy() -> None:
    for policy in (OVERLAP_POLICY_SKIP, OVERLAP_POLICY_QUEUE_ONE, OVERLAP_POLICY_CANCEL):
        rig = ScheduleRig(hourly(policy))
        rig.told(BackfillSchedule("b", BEGIN - 3 * HOUR, 0, allow=False))
        rig.sleep(HOUR)
        assert rig.names(rig.record.queue) == [at(1)] and not rig.stopped()
        rig.end(at(-3))
        assert rig.started() == [at(-3), at(1)], "and goes before what is still to be backfilled"


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (BEGIN - HOUR, BEGIN + HOUR, "must lie in the past"),
        (BEGIN, BEGIN - HOUR, "must lie in the past"),
        (0, BEGIN, "must lie in the past"),
        (BEGIN - 1_001 * HOUR, BEGIN, "more than 1,000"),
    ],
)
def test_a_span_that_cannot_be_backfilled(since: int, until: int, said: str) -> None:
    rig = ScheduleRig(hourly())
    assert said in str(rig.refused(BackfillSchedule("b", since, until, allow=True)))


def test_only_so_many_backfills_wait() -> None:
    rig = ScheduleRig(hourly(), paused=True)
    for n in range(10):
        rig.told(BackfillSchedule(f"b{n}", BEGIN - HOUR, 0, allow=False))
    assert rig.refused(BackfillSchedule("one more", BEGIN - HOUR, 0, allow=False)).reason == "TOO_MANY_BACKFILLS"
    assert rig.told(BackfillSchedule("none", BEGIN - 5, BEGIN - 4, allow=False)).occurrences == 0


def change(request_id: str = "c", input: bytes = b"", **spec: object) -> ChangeSchedule:
    fields = [*spec, *(["input"] if input else [])]
    return ChangeSchedule(request_id, fields, ScheduleSpec(**spec), Payload(data=input))  # type: ignore[arg-type]


def test_a_change_moves_the_next_occurrence_and_keeps_the_rest() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_CANCEL))
    rig.told(change(cron="30 * * * *", input=b"other"))
    assert (rig.record.spec.cron, rig.record.spec.every_ms) == ("30 * * * *", 0)
    assert rig.record.spec.overlap == OVERLAP_POLICY_CANCEL and rig.timer == BEGIN + 30 * MINUTE
    rig.sleep(30 * MINUTE)
    assert rig.posted[0].start_scheduled.input.data == b"other"
    rig.told(change("d", overlap=OVERLAP_POLICY_ALLOW, jitter_ms=MINUTE))
    assert rig.record.spec.cron == "30 * * * *" and rig.record.next_ms == BEGIN + 90 * MINUTE
    rig.told(change("d", cron="0 0 * * *"))
    assert rig.record.spec.cron == "30 * * * *", "the same request changes it once"


def test_a_change_does_not_lose_what_waits_for_its_share_of_the_jitter() -> None:
    rig = ScheduleRig(hourly(jitter_ms=30 * MINUTE))
    rig.now = BEGIN + HOUR  # its time is here, its start is not
    rig.told(change(overlap=OVERLAP_POLICY_ALLOW))
    assert rig.record.next_ms == BEGIN + HOUR
    rig.told(change("d", cron="0 */2 * * *"))
    assert rig.record.next_ms % (2 * HOUR) == 0 and rig.record.next_ms in (BEGIN + HOUR, BEGIN + 2 * HOUR)


@pytest.mark.parametrize(
    "wrong",
    [
        change(cron="61 * * * *"),
        change(timezone="Nowhere"),
        change(),
        ChangeSchedule("c", ["id"], ScheduleSpec(), Payload()),
    ],
)
def test_a_wrong_change_changes_nothing(wrong: ChangeSchedule) -> None:
    rig = ScheduleRig(hourly())
    before = rig.record
    rig.refused(wrong)
    assert rig.record == before


def test_it_is_deleted_once_and_its_runs_go_on() -> None:
    rig = ScheduleRig(hourly())
    rig.sleep(HOUR)
    rig.told(DeleteSchedule("d"))
    assert rig.head == type(rig.head)() and rig.timer == 0 and not rig.indexes() and not rig.stopped()
    rig.told(DeleteSchedule("d"))
    refused = rig.ask(DeleteSchedule("other"))
    assert isinstance(refused, NotFound) and refused.reason == "SCHEDULE_NOT_FOUND"
    rig.end(at(1))
    rig.ask(FireTimer(""))
    assert rig.decision.orphans == [""]


def test_a_delete_does_not_swallow_what_the_same_commit_starts() -> None:
    rig = ScheduleRig(hourly())
    started, deleted = rig.batch(trigger(), DeleteSchedule("d"))
    assert isinstance(started, ScheduleReply) and isinstance(deleted, RequestError)
    assert len(rig.outbox()) == 1 and rig.record.open
    assert isinstance(rig.ask(DeleteSchedule("d")), ScheduleReply)


def test_what_is_made_anew_is_not_lost_in_the_commit_that_deletes() -> None:
    again = CreateSchedule("again", specified(hourly()), Payload())
    for request in (again, declared()):
        rig = ScheduleRig(hourly())
        deleted, refused = rig.batch(DeleteSchedule("d"), request)
        assert isinstance(deleted, ScheduleReply) and isinstance(refused, Unavailable)
        rig.told(request)
        assert rig.timer


@pytest.mark.parametrize(
    "request_",
    [PauseSchedule(""), ResumeSchedule(), trigger(), change(overlap=1), BackfillSchedule("b", 1, 2, allow=True)],
)
def test_what_is_not_there_cannot_be_steered(request_: ScheduleRequest) -> None:
    refused = ScheduleRig().refused(request_)
    assert isinstance(refused, NotFound) and "schedules list" in refused.remedy


# --- declared in code ------------------------------------------------------------------------------------------------
def declared(**spec: object) -> DeclareSchedule:
    return DeclareSchedule(ScheduleSpec(**({"workflow": "s", "pool": "p", "cron": "0 6 * * *"} | spec)))  # type: ignore[arg-type]


def orphaned(rig: ScheduleRig) -> bool:
    return rig.record.orphaned


def test_a_declaration_is_written_once() -> None:
    rig = ScheduleRig()
    rig.told(declared())
    assert rig.record.declared and rig.timer == rig.record.next_ms > rig.now
    rig.told(declared())
    assert rig.decision.change is None, "each worker that registers says the same"


def test_a_changed_declaration_moves_the_next_occurrence_and_a_pause_survives_it() -> None:
    rig = ScheduleRig()
    rig.told(declared())
    rig.told(declared(cron="30 * * * *"))
    assert rig.timer == BEGIN + 30 * MINUTE
    rig.told(PauseSchedule("incident"))
    rig.told(declared(cron="45 * * * *"))
    assert rig.record.paused and rig.record.pause_reason == "incident" and rig.timer == 0
    rig.told(ResumeSchedule())
    assert rig.timer == BEGIN + 45 * MINUTE and rig.record.declared


def test_a_declaration_that_is_gone_stands_still_until_somebody_says() -> None:
    rig = ScheduleRig()
    rig.told(declared())
    assert rig.ask(UndeclareSchedule()) is None
    assert orphaned(rig) and rig.timer == 0
    rig.sleep(48 * HOUR)
    assert not rig.started()
    rig.told(declared())
    assert not orphaned(rig) and rig.timer > rig.now
    rig.told(trigger())
    assert rig.told(trigger("queued", OVERLAP_POLICY_QUEUE_ALL)).queued
    rig.ask(UndeclareSchedule())
    rig.told(ResumeSchedule())
    assert not rig.record.declared and rig.timer > rig.now, "from now on it is a person's"
    rig.ask(UndeclareSchedule())
    assert not orphaned(rig)


def test_code_has_the_say_over_what_it_declares() -> None:
    rig = ScheduleRig()
    rig.told(declared())
    assert rig.refused(change(overlap=OVERLAP_POLICY_ALLOW)).reason == "SCHEDULE_DECLARED"
    rig.ask(UndeclareSchedule())
    rig.told(change(overlap=OVERLAP_POLICY_ALLOW))


def test_a_schedule_of_a_person_is_taken_over_by_code_of_its_name() -> None:
    rig = ScheduleRig(hourly())
    rig.ask(UndeclareSchedule())
    assert not orphaned(rig)
    rig.told(declared())
    assert rig.record.declared and rig.record.spec.cron and not rig.record.spec.every_ms


def test_a_wrong_declaration_is_refused() -> None:
    assert "field 2 (hour)" in str(ScheduleRig().refused(declared(cron="0 24 * * *")))


def test_undeclaring_what_is_not_there_is_nothing() -> None:
    rig = ScheduleRig()
    assert rig.ask(UndeclareSchedule()) is None and rig.decision.change is None
