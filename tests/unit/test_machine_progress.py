"""Heartbeats and progress of pool steps, line by line: whose word counts, what the next attempt gets, who settles a silence."""

from __future__ import annotations

from typing import Any

from tests.unit.machine_rig import POLICY, RUN, Rig, schedule, value

from treadle.controlplane.machine.requests import Claimed, Progressed
from treadle.protocol.topology import MAX_PROGRESS_BYTES
from treadle.v1.common_pb2 import FAILURE_KIND_HEARTBEAT_MISSED, Failure, Payload
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import COMMAND_STATE_BACKOFF, COMMAND_STATE_HELD, COMMAND_STATE_QUEUED
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_FAILED,
    REPORT_KIND_RELEASED,
    Answer,
    AttemptProgress,
    CancelCommand,
    Command,
    ReportAnswer,
)

STEP = "0/s#1"
BEAT_MS = 10_000


def long_step(**more: Any) -> Command:
    command = schedule(**more)
    command.schedule_step.heartbeat_ms = BEAT_MS
    return command


def running(worker_id: str = "A") -> tuple[Rig, bytes]:
    """A step with a heartbeat whose holder beats, and lists it."""
    rig = Rig()
    rig.with_step(long_step())
    rig.session(worker_id)
    token = rig.hold(worker_id).token
    rig.beat(worker_id, [token])
    return rig, token


def says(rig: Rig, token: bytes, number: int, text: str | None = None, **more: Any) -> Answer.ValueType:
    told = AttemptProgress(
        run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=STEP, token=token, number=number, **more
    )
    if text is not None:
        told.value.CopyFrom(value(text))
    reply = rig.ask(Progressed(told))
    assert isinstance(reply, ReportAnswer) and reply.token == token
    return reply.answer


def lives(rig: Rig, token: bytes, ms: int) -> None:
    """Time passes; the worker beats, and the leases that come due are looked at."""
    end = rig.now + ms
    while rig.now < end:
        rig.wait(min(1_000, end - rig.now))
        rig.round()
        rig.beat(tokens=[token])
        if STEP in rig.due() and (row := rig.row()) is not None and row.state == COMMAND_STATE_HELD:
            rig.check()


# --- the value --------------------------------------------------------------------------------------------------------
def test_the_newest_word_of_the_holder_counts_and_is_no_event() -> None:
    rig, token = running()
    length = rig.head.length
    assert says(rig, token, 2, "two") == ANSWER_OK
    assert says(rig, token, 1, "one") == ANSWER_OK, "an older one that was sent again changes nothing"
    rig.wait(500)
    assert says(rig, token, 3) == ANSWER_OK, "that it goes on leaves the value"
    row = rig.the_row()
    assert (row.progress, row.progress_number, row.progress_ms) == (value("two"), 2, rig.now - 500)
    assert row.heard_ms == rig.now
    assert rig.head.length == length and list(rig.head.progressing) == [STEP]
    assert rig.decision.change is not None and rig.decision.change.hint is None, "nobody has to look"


def test_who_watches_is_told_of_a_value() -> None:
    rig, token = running()
    says(rig, token, 1, "one")
    assert rig.decision.change is not None and rig.decision.change.hint is not None


def test_only_the_holder_may_say_it() -> None:
    rig, token = running()
    assert says(rig, b"another", 9, "theirs") == ANSWER_LEASE_LOST
    assert not rig.the_row().progress_number
    other = AttemptProgress(run_id=RUN.run_id, incarnation=1, command_id=STEP, token=token, number=1)
    assert rig.ask(Progressed(other)) == ReportAnswer(token=token, answer=ANSWER_SETTLED), "another start of the id"
    rig.report(token)
    assert says(rig, token, 1, "late") == ANSWER_SETTLED
    assert not rig.head.progressing and STEP not in str(rig.fields())


def test_a_run_that_is_not_there_keeps_nothing_aside() -> None:
    rig = Rig()
    reply = rig.ask(
        Progressed(AttemptProgress(run_id=RUN.run_id, incarnation=1, command_id=STEP, token=b"t", number=1))
    )
    assert reply == ReportAnswer(token=b"t", answer=ANSWER_SETTLED) and not rig.decision.unknown


def test_a_value_that_no_worker_of_ours_sends_is_left_out() -> None:
    rig, token = running()
    huge = Payload(data=b"x" * (2 * MAX_PROGRESS_BYTES + 1))
    assert says(rig, token, 1, value=huge) == ANSWER_OK
    assert not rig.the_row().HasField("progress") and rig.the_row().heard_ms == rig.now


def test_the_next_attempt_gets_it_after_a_loss() -> None:
    rig, token = running()
    says(rig, token, 1, "half")
    rig.kill()
    grant = rig.hold("B")
    assert (grant.progress, grant.attempt) == (value("half"), 2)
    assert says(rig, token, 99, "from the dead") == ANSWER_LEASE_LOST
    assert says(rig, grant.token, (2 << 32) + 1, "more") == ANSWER_OK
    assert rig.the_row().progress == value("more")


def test_the_next_attempt_gets_what_the_report_brings() -> None:
    """Also down a credit, in the commit of the retry; and the number tells what is newer."""
    for kind in (REPORT_KIND_FAILED, REPORT_KIND_RELEASED):
        rig, token = running()
        says(rig, token, 2, "two")
        rig.report(token, kind, progress=value("three"), progress_number=3)
        rig.credit(JOB_KIND_STEP, "B")
        if kind == REPORT_KIND_FAILED:
            assert rig.the_row().state == COMMAND_STATE_BACKOFF
            rig.now = rig.the_row().due_ms
            rig.fire(STEP)
            assert rig.decision.grants[0].grant.progress == value("three")
        else:
            assert rig.the_row().state == COMMAND_STATE_QUEUED
            assert rig.hold("B").progress == value("three")


def test_a_repeated_claim_gets_the_same_go_with_the_value_as_it_stands() -> None:
    rig = Rig()
    rig.with_step(long_step())
    item = rig.item(rig.step_job())
    token = rig.send(item).grant.token
    says(rig, token, 1, "one")
    again = rig.ask(Claimed(item, "A", "R"))
    assert again.grant.token == token and again.grant.progress == value("one")  # type: ignore[union-attr]


def test_of_many_steps_the_last_ones_are_shown() -> None:
    rig = Rig()
    owner = rig.with_step(*(long_step(command_id=f"0/s#{n}") for n in range(1, 21)))
    assert owner is not None
    for n in range(1, 21):
        grant = rig.hold("A", f"0/s#{n}")
        told = AttemptProgress(
            run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=f"0/s#{n}", token=grant.token, number=1
        )
        told.value.CopyFrom(value("v"))
        rig.ask(Progressed(told))
    assert list(rig.head.progressing) == [f"0/s#{n}" for n in range(5, 21)]


def test_a_local_step_hands_its_last_word_on_with_its_failure() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    checkpoint = rig.checkpoint(kind=REPORT_KIND_FAILED, failure=Failure(type="X"), retry=POLICY)
    checkpoint.progress.CopyFrom(value("half"))
    owner.say(checkpoints=[checkpoint])
    assert rig.last("attempt_failed").progress == value("half")
    huge = rig.checkpoint("0/m#1", kind=REPORT_KIND_FAILED, failure=Failure(type="X"), retry=POLICY)
    huge.progress.data = b"x" * (2 * MAX_PROGRESS_BYTES + 1)
    owner.say(checkpoints=[huge])
    assert not rig.last("attempt_failed").HasField("progress")
    last = rig.checkpoint("0/n#1", kind=REPORT_KIND_FAILED, failure=Failure(type="X", final=True), retry=POLICY)
    last.progress.CopyFrom(value("half"))
    owner.say(checkpoints=[last])
    assert rig.kinds()[-1] == "step_failed", "nobody comes after it"


# --- silence ----------------------------------------------------------------------------------------------------------
def test_a_holder_that_speaks_is_left_alone() -> None:
    rig, token = running()
    for n in range(1, 9):
        lives(rig, token, BEAT_MS)
        assert says(rig, token, n) == ANSWER_OK
    assert rig.the_row().holder.token == token and rig.kinds().count("attempt_started") == 1


def test_the_worker_says_so_first_and_the_policy_retries() -> None:
    rig, token = running()
    lives(rig, token, BEAT_MS + 1)
    rig.fail(token, "HeartbeatMissed")
    assert rig.the_row().state == COMMAND_STATE_BACKOFF and rig.the_row().try_number == 2


def test_a_silence_is_settled_5_s_later_without_the_worker_and_its_holder_is_told() -> None:
    rig, token = running()
    start = rig.now
    lives(rig, token, BEAT_MS + 4_000)
    assert rig.the_row().holder.token == token, "the worker may still report it"
    lives(rig, token, 3_000)
    row, event = rig.the_row(), rig.last("attempt_failed")
    assert row.state == COMMAND_STATE_BACKOFF and rig.now - start >= BEAT_MS + 5_000
    assert (event.failure.kind, event.failure.type) == (FAILURE_KIND_HEARTBEAT_MISSED, "HeartbeatMissed")
    assert says(rig, token, 1) == ANSWER_LEASE_LOST and rig.fail(token).answer == ANSWER_LEASE_LOST


def test_it_is_due_even_between_two_looks_at_a_lease() -> None:
    """The steps of the lease check double to 15 s; a silence is looked for when it has been too long."""
    rig, token = running()
    due = []
    for _ in range(40):
        row = rig.row()
        if row is None or row.state != COMMAND_STATE_HELD:
            break
        due.append(rig.timers()[STEP])
        rig.rounds(max(due[-1] - rig.now, 0))
        rig.beat(tokens=[token])
        rig.check()
    assert rig.the_row().state == COMMAND_STATE_BACKOFF
    assert due[-1] == rig.the_row().heard_ms + BEAT_MS + 5_000


def test_never_before_lease_set_and_5_s_of_a_later_go() -> None:
    """A11: the same claim, asked again, sets the lease anew: its holder may only now begin."""
    rig = Rig()
    command = long_step()
    command.schedule_step.heartbeat_ms = 100
    rig.with_step(command)
    rig.session()
    item = rig.item(rig.step_job())
    token = rig.send(item).grant.token
    rig.wait(3_000)
    rig.send(item)
    lease_set = rig.now
    rig.beat(tokens=[token])
    rig.rounds(4_999)
    rig.beat(tokens=[token])
    rig.check()
    assert rig.now == lease_set + 4_999
    assert rig.the_row().state == COMMAND_STATE_HELD
    rig.wait(101)
    rig.round()
    rig.check()
    assert rig.the_row().state == COMMAND_STATE_BACKOFF


def test_what_could_not_be_heard_is_no_silence() -> None:
    """A7: the servers were away for a minute, and the worker spoke to nobody."""
    rig, token = running()
    rig.now += 60_000
    rig.beat(tokens=[token])  # the shard has a round again: back at is now
    rig.check()
    assert rig.the_row().holder.token == token
    says(rig, token, 1)
    lives(rig, token, 2 * BEAT_MS)
    assert rig.the_row().state == COMMAND_STATE_BACKOFF, "later silence counts"


def test_a_silent_attempt_that_is_to_be_cancelled_is_cancelled() -> None:
    rig = Rig()
    owner = rig.with_step(long_step())
    rig.session()
    token = rig.hold().token
    rig.beat(tokens=[token])
    owner.say(Command(command_id=STEP, digest=1, cancel=CancelCommand()))
    lives(rig, token, BEAT_MS + 6_000)
    assert rig.kinds()[-1] == "step_cancelled"
