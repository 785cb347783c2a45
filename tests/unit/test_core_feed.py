"""An open run: feeding, requests, answers, rewinding (R1, R4, R7, hazards 3, 11, 12)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import (
    Script,
    asks,
    asks_local,
    asks_timer,
    completed,
    event,
    local,
    opened,
    opened_rig,
    run_job,
    started,
    timer,
)

from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent, StepCompleted, TimerFired, TimerStarted
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_REWIND,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    Answer,
    Command,
    RunGrant,
    ScheduleStep,
)
from treadle.worker.core.port import CancelLocal, Report, StartLocal
from treadle.worker.loop.port import Outcome, Turn


def fed(script: Script) -> list[int]:
    return [e.position for e in script.events]


def pool_done(position: int, revision: int = 0) -> HistoryEvent:
    return event(position, revision, step_completed=StepCompleted(command_id=f"p{position}"))


def test_go_of_a_claim_opens_the_run_with_its_history() -> None:
    rig = opened_rig()
    rig.deliver(run_job())
    (claim,) = rig.claims()
    assert (claim.after_position, claim.after_revision) == (0, 0)
    rig.go(claim, b"t", run=RunGrant(events=[started(), opened(2)], length=2, accepted_until=9, from_start=True))
    context = rig.script.context
    assert (context.namespace, context.run_id, context.incarnation) == ("default", "r", 7)
    assert (context.workflow, context.accepted_until) == ("flow", 9)
    assert fed(rig.script) == [1, 2] and rig.script.taken == 1
    assert rig.held() == {b"t"} and rig.core.counts() == (0, 1)
    (held,) = rig.core.held()[1]
    assert (held.run_id, held.command_id) == ("r", "")


def test_commands_go_up_with_seen_and_told() -> None:
    rig = opened_rig(asks_timer(1))
    rig.granted_run()
    request = rig.request()
    assert (request.token, request.run_id, request.incarnation, request.seq) == (b"t", "r", 7, 1)
    assert (request.seen, request.told, request.told_revision, request.sent_ms) == (2, 2, 102, rig.now)
    assert [c.command_id for c in request.commands] == ["0/sleep#1"] and request.WhichOneof("final") is None


def test_r4_exactly_the_next_position_is_fed_and_a_gap_waits() -> None:
    rig = opened_rig()
    script = rig.granted_run()
    rig.news(b"t", pool_done(5), pool_done(4))
    assert fed(script) == [1, 2] and script.taken == 1
    rig.news(b"t", pool_done(2), pool_done(3))  # overlaps what is known
    assert fed(script) == [1, 2, 3, 4, 5] and script.taken == 2


def test_r4_commands_are_taken_only_when_every_known_event_was_fed() -> None:
    rig = opened_rig(asks_timer(1))
    script = rig.granted_run(run=RunGrant(events=[started(), opened(2)], length=4, from_start=True))
    assert fed(script) == [1, 2] and script.taken == 0 and rig.requests() == []
    rig.news(b"t", pool_done(3), pool_done(4), length=4)
    assert script.taken == 1 and len(rig.requests()) == 1


def test_r4_an_owner_that_only_listens_confirms_every_64_events_at_once() -> None:
    """A replica sends no more than 200 events ahead: waiting for the second's confirmation would stop it."""
    rig = opened_rig()
    rig.granted_run()
    rig.news(b"t", *(pool_done(position) for position in range(3, 64)))
    assert rig.requests() == []
    rig.news(b"t", pool_done(64))
    (confirm,) = rig.requests()
    assert (confirm.seen, confirm.told, len(confirm.commands), confirm.WhichOneof("final")) == (64, 64, 0, None)
    rig.answer(confirm)
    rig.news(b"t", *(pool_done(position) for position in range(65, 128)))
    assert rig.requests() == []


def test_r4_a_gap_asks_after_2_s_and_again() -> None:
    rig = opened_rig(confirm_ms=1000)
    rig.granted_run()
    rig.pass_ms(1000)  # the first events are confirmed
    (confirm,) = [r for f in rig.sent for r in f.requests]
    rig.sent.clear()
    rig.answer(confirm)
    rig.news(b"t", pool_done(4))
    rig.pass_ms(1999)
    assert [r for f in rig.sent for r in f.requests] == []
    rig.pass_ms(1)
    (ask,) = [r for f in rig.sent for r in f.requests]
    assert (ask.seen, ask.told, len(ask.commands), ask.WhichOneof("final")) == (2, 2, 0, None)
    rig.answer(ask, events=[pool_done(3)])
    assert fed(rig.script) == [1, 2, 3, 4]


def test_r4_a_gap_that_the_store_does_not_know_of_is_none() -> None:
    """Redis went back in time: what was known of by news only will never come."""
    rig = opened_rig(park_ms=500)
    rig.granted_run()
    rig.news(b"t", pool_done(4))
    rig.pass_ms(2000)
    (ask,) = [r for f in rig.sent for r in f.requests]
    rig.sent.clear()
    rig.answer(ask)
    rig.pass_ms(500)
    (park,) = [r for f in rig.sent for r in f.requests]
    assert park.HasField("park") and park.seen == 2


def test_what_was_fed_is_confirmed_after_1_s_if_nothing_else_said_it() -> None:
    rig = opened_rig()
    rig.granted_run()
    rig.pass_ms(999)
    assert [r for f in rig.sent for r in f.requests] == []
    rig.pass_ms(1)
    (confirm,) = [r for f in rig.sent for r in f.requests]
    assert confirm.seen == 2
    rig.sent.clear()
    rig.answer(confirm)
    rig.pass_ms(5000)
    assert [r for f in rig.sent for r in f.requests] == []


def test_one_request_at_a_time_what_accumulates_goes_into_the_next() -> None:
    plan = asks({n: (lambda s, n=n: s.turn.commands.append(timer(f"t{n}"))) for n in (1, 3, 4)})  # type: ignore[misc]
    rig = opened_rig(plan)
    rig.granted_run()
    first = rig.request()
    rig.news(b"t", pool_done(3))
    rig.news(b"t", pool_done(4))
    assert rig.requests() == []
    rig.answer(first)
    second = rig.request()
    assert (second.seq, second.seen) == (2, 4)
    assert [c.command_id for c in second.commands] == ["t3", "t4"]


def test_a5_a_request_is_sent_again_identically_until_answered() -> None:
    rig = opened_rig(asks_timer(1))
    rig.granted_run()
    first = rig.request()
    rig.now += 700
    rig.news(b"t", pool_done(3))
    rig.reconnect()
    assert rig.request() == first
    rig.answer(first)
    rig.reconnect()
    (next_one,) = rig.requests()  # a resumed session hears where each open run is
    assert (next_one.seq, next_one.seen, len(next_one.commands)) == (2, 3, 0)


def test_r4_told_is_the_highest_position_that_was_answered() -> None:
    rig = opened_rig(
        asks({1: lambda s: s.turn.commands.append(timer()), 3: lambda s: s.turn.commands.append(timer("b"))})
    )
    rig.granted_run()
    rig.answer(rig.request(), position=4, revision=77)
    rig.news(b"t", pool_done(3))
    rig.pass_ms(2000)
    (ask,) = [r for f in rig.sent for r in f.requests]
    assert (ask.seen, ask.told, ask.told_revision) == (3, 4, 77)


def test_r4_own_events_are_fed_at_their_position_only() -> None:
    """Told "yours is 4" while 3 is under way, it waits for 3 (hazard 3)."""
    rig = opened_rig(asks_timer(1))
    script = rig.granted_run()
    mine = event(4, timer_started=TimerStarted(command_id="0/sleep#1"))
    rig.answer(rig.request(), position=4, revision=104, events=[mine])
    assert fed(script) == [1, 2]
    rig.news(b"t", pool_done(3))
    assert fed(script) == [1, 2, 3, 4]


def test_r4_an_omitted_result_is_put_back_before_it_is_fed() -> None:
    rig = opened_rig(asks_local(1))
    script = rig.granted_run()
    rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_ended(b"t", "l", Report("completed", result=Payload(data=b"42")), rig.now)
    request = rig.request()
    assert request.checkpoints[0].result.data == b"42"
    rig.reconnect()
    rig.answer(rig.request(), events=[completed(3, result=b"")], result_omitted=["l"])
    assert script.events[-1].step_completed.result.data == b"42"


def test_a_result_that_was_omitted_wrongly_is_asked_for() -> None:
    rig = opened_rig(asks_timer(1))
    script = rig.granted_run()
    rig.answer(rig.request(), events=[completed(3, "x", result=b"")], result_omitted=["x"])
    assert fed(script) == [1, 2]
    rig.answer(rig.request(), events=[completed(3, "x")])
    assert fed(script) == [1, 2, 3]


def test_r4_rewind_drops_the_coroutine_and_releases_under_the_same_number() -> None:
    rig = opened_rig(asks_timer(1))
    script = rig.granted_run()
    rig.answer(rig.request(), ANSWER_REWIND)
    assert script.closed and rig.held() == {b"t"} and rig.core.counts() == (0, 0)
    release = rig.request()
    assert (release.release.reason, release.seen, release.told, release.seq) == ("rewind", 0, 0, 1)
    rig.news(b"t", pool_done(3))
    rig.answer(release)
    assert rig.held() == set()


def test_a_release_that_is_answered_rewind_is_forgotten() -> None:
    rig = opened_rig(asks_timer(1))
    rig.granted_run()
    rig.answer(rig.request(), ANSWER_REWIND)
    rig.answer(rig.request(), ANSWER_REWIND)
    assert rig.held() == set() and rig.requests() == []


def test_r4_another_event_at_the_fed_position_rewinds() -> None:
    rig = opened_rig()
    script = rig.granted_run()
    rig.news(b"t", event(2, 999), pool_done(3))
    assert script.closed and fed(script) == [1, 2]
    assert rig.request().release.reason == "rewind"


@pytest.mark.parametrize("answer", [ANSWER_LEASE_LOST, ANSWER_SETTLED, ANSWER_UNKNOWN])
def test_r1_a_fenced_owner_cancels_its_local_steps_and_forgets(answer: Answer.ValueType) -> None:
    rig = opened_rig(
        asks({1: lambda s: s.turn.local_calls.append(local()), 3: lambda s: s.turn.commands.append(timer())})
    )
    script = rig.granted_run()
    assert len(rig.of(StartLocal)) == 1
    rig.core.may_start_local(b"t", "l", rig.now)
    rig.news(b"t", pool_done(3))
    rig.answer(rig.request(), answer)
    assert rig.of(CancelLocal) == [CancelLocal(b"t", "l", "lease lost")]
    assert script.closed and rig.held() == set() and rig.core.counts() == (0, 0)
    rig.core.local_ended(b"t", "l", Report("completed"), rig.now)  # fenced: nobody hears of it
    rig.reconnect()
    assert rig.requests() == []


def test_r1_a_new_go_outdates_an_owner_that_is_still_here() -> None:
    """It was fenced without knowing; its slot goes to the new one even if none is free."""
    rig = opened_rig(asks_local(1), run_slots=1)
    old = rig.granted_run(b"old")
    rig.core.may_start_local(b"old", "l", rig.now)
    rig.drained()
    new = rig.granted_run(b"new")
    assert old.closed and new is not old and not new.closed
    assert rig.held() == {b"new"} and rig.core.counts() == (0, 1)
    assert CancelLocal(b"old", "l", "lease lost") in rig.drained()
    assert not rig.core.may_start_local(b"old", "l", rig.now)


def test_answers_that_come_twice_are_dropped() -> None:
    rig = opened_rig(asks({n: (lambda s, n=n: s.turn.commands.append(timer(f"t{n}"))) for n in (1, 3)}))  # type: ignore[misc]
    rig.granted_run()
    first = rig.request()
    rig.answer(first)
    rig.news(b"t", pool_done(3))
    second = rig.request()
    rig.answer(first, ANSWER_REWIND)
    assert not rig.script.closed and second.seq == 2


def test_more_than_200_commands_are_split_and_the_last_word_comes_after_them() -> None:
    def end(script: Script) -> None:
        script.turn.commands.extend(timer(f"t{n}") for n in range(450))
        script.outcome = Outcome(result=Payload(data=b"1"))

    rig = opened_rig(asks({1: end}))
    rig.granted_run()
    sizes = []
    for _ in range(3):
        request = rig.request()
        sizes.append((len(request.commands), request.WhichOneof("final")))
        rig.answer(request)
    assert sizes == [(200, None), (200, None), (50, "complete")]


def test_a_request_holds_a_mebibyte_or_one_command() -> None:
    big = Payload(data=b"x" * 700_000)

    def ask(script: Script) -> None:
        for n in range(3):
            step = ScheduleStep(name="work", input=big)
            script.turn.commands.append(Command(command_id=f"s{n}", schedule_step=step))

    rig = opened_rig(asks({1: ask}))
    rig.granted_run()
    for n in range(3):
        request = rig.request()
        assert [c.command_id for c in request.commands] == [f"s{n}"]
        rig.answer(request)


def test_always_replay_feeds_a_fresh_coroutine_everything_and_asks_once() -> None:
    fired = event(3, timer_fired=TimerFired(command_id="0/sleep#1"))

    def plan(script: Script, fed_event: HistoryEvent) -> None:
        if fed_event.position == 1:
            script.turn = Turn(commands=[timer()], local_calls=[local()])

    rig = opened_rig(plan, always_replay=True)
    rig.granted_run()
    assert len(rig.of(StartLocal)) == 0  # the command is not answered yet
    rig.answer(rig.request())
    assert len(rig.of(StartLocal)) == 1
    before = rig.script
    rig.news(b"t", fired)
    assert before.closed and fed(rig.script) == [1, 2, 3]
    assert rig.requests() == [] and rig.of(StartLocal) == []
    rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_ended(b"t", "l", Report("completed", result=Payload(data=b"1")), rig.now)
    rig.answer(rig.request(), events=[completed(4, result=b"")], result_omitted=["l"])
    assert rig.script.events[-1].step_completed.result.data == b"1"
    assert all(script.closed for script in rig.scripts[:-1])


def test_large_open_sets_cost_nothing_per_tick() -> None:
    """Runs that wait are looked at when they are due, not at every tick."""
    rig = opened_rig(run_slots=300)
    for n in range(300):
        rig.granted_run(b"t%d" % n, f"r{n}")
    rig.pass_ms(1000)
    for request in [r for f in rig.sent for r in f.requests]:
        rig.answer(request)
    taken = sum(script.taken for script in rig.scripts)
    rig.pass_ms(10_000)
    assert sum(script.taken for script in rig.scripts) == taken


def test_grants_meant_for_a_cache_that_is_gone_ask_for_the_beginning_at_once() -> None:
    for grant in (RunGrant(events=[opened(5)], length=5), RunGrant(length=5)):
        rig = opened_rig()
        rig.push(run_job(), b"t", run=grant)
        ask = rig.request()
        assert (ask.seen, ask.told) == (0, 0)
        rig.answer(ask, events=[started(), opened(2), pool_done(3), pool_done(4), opened(5)])
        assert fed(rig.script) == [1, 2, 3, 4, 5]


def test_a_grant_whose_history_follows_waits_for_it() -> None:
    rig = opened_rig()
    rig.push(run_job(), b"t", run=RunGrant(length=2, from_start=True))
    assert rig.requests() == []
    rig.news(b"t", started(), opened(2), length=2)
    assert fed(rig.script) == [1, 2]
