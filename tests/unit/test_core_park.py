"""The last word of an owner: park, outcome, divergence; cached coroutines; run slots (R5, R6, R8, R9, hazard 23)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core_rig import Rig, Script, asks_local, ends, event, opened, opened_rig, run_job

from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import RunParked, RunStarted
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    Grant,
    OwnerAnswer,
    OwnerRequest,
    PassedBefore,
    RunGrant,
)
from treadle.worker.core.port import Ack, CancelLocal, Note, Report, StartLocal
from treadle.worker.loop.port import Divergence, Outcome, Waits


def sent(rig: Rig) -> list[OwnerRequest]:
    requests = [r for frame in rig.sent for r in frame.requests]
    rig.sent.clear()
    return requests


def confirmed(rig: Rig, token: bytes = b"t", run_id: str = "r") -> Script:
    """An open run that said what it has seen, so that nothing is on its way."""
    script = rig.granted_run(token, run_id)
    rig.pass_ms(1000)
    for request in sent(rig):
        rig.answer(request)
    return script


def parked(rig: Rig) -> Script:
    """Park the run r of token t; its coroutine is cached."""
    script = confirmed(rig)
    rig.pass_ms(30_000)
    (park,) = sent(rig)
    assert park.park.cached
    rig.answer(park, position=3, revision=103)
    return script


def again(*events: object, **fields: object) -> RunGrant:
    return RunGrant(events=events, **fields)  # type: ignore[arg-type]


PARKED = event(3, run_parked=RunParked(cached=True))


def test_a_run_that_only_waits_is_parked_after_30_s() -> None:
    rig = opened_rig()
    script = confirmed(rig)  # idle since the answer
    rig.pass_ms(29_999)
    assert sent(rig) == []
    rig.pass_ms(1)
    (park,) = sent(rig)
    assert (park.park.cached, park.seen, park.told, park.told_revision) == (True, 2, 2, 102)
    rig.answer(park)
    assert not script.closed and rig.held() == set() and rig.core.counts() == (0, 0)


def test_r9_after_1_s_when_a_run_job_waits_in_the_pool() -> None:
    rig = opened_rig()
    confirmed(rig)
    rig.pass_ms(500)
    rig.receive(run_job_waits=True)
    rig.pass_ms(500)
    assert sent(rig)[0].HasField("park")


def test_r9_pressure_ends_when_it_is_said_no_longer() -> None:
    rig = opened_rig()
    rig.receive(run_job_waits=True)
    rig.pass_ms(2000)
    confirmed(rig)
    rig.pass_ms(5000)
    assert sent(rig) == []


def test_r9_the_longest_idle_run_is_parked_at_once_when_no_slot_is_free() -> None:
    rig = opened_rig(run_slots=2)
    confirmed(rig, b"a", "ra")
    confirmed(rig, b"b", "rb")
    tag = rig.deliver(run_job("rc"))
    (park,) = rig.requests()
    assert (park.token, park.HasField("park")) == (b"a", True)
    rig.answer(park)
    (claim,) = rig.claims()
    assert claim.job.run_id == "rc"
    rig.go(claim, b"c", run=RunGrant(events=[event(1), opened(2)], length=2, from_start=True))
    assert Ack(tag) in rig.drained() and rig.held() == {b"b", b"c"}


def test_r9_one_run_is_parked_for_each_that_waits() -> None:
    rig = opened_rig(run_slots=3)
    for n in range(3):
        confirmed(rig, b"t%d" % n, f"r{n}")
    rig.deliver(run_job("x"))
    rig.deliver(run_job("y"))
    assert sorted(r.token for r in rig.requests() if r.HasField("park")) == [b"t0", b"t1"]
    rig.receive(run_job_waits=True)
    assert rig.requests() == []


def test_r9_the_servers_word_parks_at_once_too_when_no_slot_is_free() -> None:
    rig = opened_rig(run_slots=1)
    confirmed(rig)
    rig.receive(run_job_waits=True)
    assert rig.request().HasField("park")


def test_a_run_with_a_local_step_is_not_idle() -> None:
    rig = opened_rig(asks_local(1), run_slots=1)
    confirmed(rig)
    assert len(rig.of(StartLocal)) == 1
    rig.deliver(run_job("x"))
    assert rig.requests() == []
    rig.core.may_start_local(b"t", "l", rig.now)
    rig.pass_ms(60_000)
    assert not any(r.HasField("park") for r in sent(rig))


@pytest.mark.parametrize(("away_ms", "at_once"), [(5000, True), (4999, False)])
def test_a_run_that_waits_for_far_timers_only_is_parked_at_once(away_ms: int, at_once: bool) -> None:
    """ "Far" by the time of the event fed last, and what went by since."""
    rig = opened_rig()
    rig.now += 1
    script = rig.granted_run(run=RunGrant(events=[event(1)], length=2, from_start=True))
    script.waiting = Waits(0, 0, 2, 1_000_002 + away_ms)
    rig.news(b"t", opened(2))
    assert [r.HasField("park") for r in rig.requests()] == [True] * at_once


@pytest.mark.parametrize("waits", [Waits(1, 0, 1, 10**15), Waits(0, 1, 1, 10**15), Waits(0, 0, 0, None)])
def test_other_waits_are_not_parked_at_once(waits: Waits) -> None:
    rig = opened_rig()
    script = rig.granted_run(run=RunGrant(events=[event(1)], length=2, from_start=True))
    script.waiting = waits
    rig.news(b"t", opened(2))
    assert rig.requests() == []


def test_r5_after_sending_park_nothing_is_fed_until_answered() -> None:
    rig = opened_rig()
    script = confirmed(rig)
    rig.pass_ms(30_000)
    (park,) = sent(rig)
    rig.news(b"t", event(3))
    assert script.fed == 2
    rig.reconnect()
    assert rig.request() == park  # not even after a reconnect
    rig.answer(park, ANSWER_NEWS, events=[event(3), event(4)])
    assert script.fed == 4 and rig.held() == {b"t"}
    rig.pass_ms(1000)
    assert [r.seen for r in sent(rig)] == [4]  # it is open, and says what it has seen


def test_r5_news_before_the_park_was_sent_calls_it_off() -> None:
    rig = opened_rig(ends(3, Outcome(result=Payload(data=b"1"))))
    confirmed(rig)
    rig.cut()
    rig.pass_ms(30_000)
    rig.open()
    rig.news(b"t", event(3))
    request = rig.request()
    assert (request.WhichOneof("final"), request.seen) == ("complete", 3)


def test_news_without_the_event_asks_for_it() -> None:
    rig = opened_rig()
    confirmed(rig)
    rig.pass_ms(30_000)
    rig.answer(sent(rig)[0], ANSWER_NEWS)
    ask = rig.request()
    assert ask.WhichOneof("final") is None and ask.seen == 2
    rig.answer(ask, events=[event(3)])
    assert rig.script.fed == 3


@pytest.mark.parametrize(
    ("outcome", "final"),
    [
        (Outcome(result=Payload(data=b"7")), "complete"),
        (Outcome(result=None), "complete"),
        (Outcome(failure=Failure(message="no")), "fail"),
        (Outcome(cancelled=True), "cancelled"),
    ],
)
def test_the_outcome_is_the_last_word(outcome: Outcome, final: str) -> None:
    rig = opened_rig(ends(2, outcome))
    script = rig.granted_run()
    request = rig.request()
    assert (request.WhichOneof("final"), request.seen) == (final, 2)
    assert request.complete.result.data == (b"7" if outcome.result else b"")
    assert request.fail.failure.message == ("no" if outcome.failure else "")
    assert rig.held() == {b"t"}
    rig.answer(request)
    assert script.closed and rig.held() == set() and rig.core.counts() == (0, 0)


@pytest.mark.parametrize(
    ("outcome", "notes"),
    [
        (Outcome(result=None), []),
        (Outcome(cancelled=True), []),
        (
            Outcome(failure=Failure(type="ValueError", message="no" * 200)),
            [
                Note(
                    "info",
                    "run_failed",
                    (("run", "r"), ("workflow", "flow"), ("type", "ValueError"), ("message", "no" * 100)),
                )
            ],
        ),
    ],
)
def test_a_failure_is_noted_once_it_was_taken(outcome: Outcome, notes: list[Note]) -> None:
    rig = opened_rig(ends(2, outcome))
    rig.granted_run()
    rig.answer(rig.request(), ANSWER_NEWS, events=[event(3)])  # it was said, and not taken
    request = rig.request()
    rig.drained()
    assert all(note.event == "session_opened" for note in rig.notes)
    rig.notes.clear()
    rig.answer(request)
    rig.drained()
    assert rig.notes == notes


def test_r8_what_had_returned_stays_returned_and_completes_again_after_news() -> None:
    rig = opened_rig(ends(2, Outcome(result=Payload(data=b"7"))))
    script = rig.granted_run()
    rig.answer(rig.request(), ANSWER_NEWS, events=[event(3)])
    assert script.fed == 3
    request = rig.request()
    assert (request.complete.result.data, request.seen, request.seq) == (b"7", 3, 2)


def test_r5_no_outcome_while_an_event_is_known_of_and_missing() -> None:
    rig = opened_rig(ends(2, Outcome(cancelled=True)))
    rig.granted_run(run=RunGrant(events=[event(1), opened(2)], length=3, from_start=True))
    assert rig.requests() == []
    rig.news(b"t", event(3))
    assert rig.request().HasField("cancelled")


def test_local_steps_that_run_when_the_code_ends_are_cut_off() -> None:
    def plan(script: Script, fed: object) -> None:
        if script.fed == 1:
            asks_local(1)(script, script.events[-1])
        elif script.fed == 3:
            script.outcome = Outcome(cancelled=True)

    rig = opened_rig(plan)
    rig.granted_run()
    rig.of(StartLocal)
    rig.core.may_start_local(b"t", "l", rig.now)
    rig.news(b"t", event(3))
    assert rig.of(CancelLocal) == [CancelLocal(b"t", "l", "run ended")]
    rig.core.local_ended(b"t", "l", Report("cancelled"), rig.now)
    request = rig.request()
    assert request.HasField("cancelled") and not request.checkpoints


def test_r7_a_divergence_is_the_last_word_and_nothing_more_is_fed() -> None:
    def plan(script: Script, fed: object) -> None:
        script.divergence = Divergence("a", "b")

    rig = opened_rig(plan)
    script = rig.granted_run()
    assert script.fed == 1
    request = rig.request()
    assert (request.diverged.expected, request.diverged.found) == ("a", "b")
    rig.answer(request)
    assert script.closed and rig.held() == set()
    rig.drained()
    words = (("run", "r"), ("workflow", "flow"), ("expected", "a"), ("found", "b"))
    assert rig.notes[-1] == Note("error", "run_diverged", words)


def test_r6_a_cached_coroutine_goes_on_where_it_was() -> None:
    rig = opened_rig()
    script = parked(rig)
    rig.deliver(run_job())
    (claim,) = rig.claims()
    assert (claim.after_position, claim.after_revision) == (2, 102)
    rig.go(claim, b"u", run=again(PARKED, opened(4), length=4))
    assert len(rig.scripts) == 1 and script.fed == 4 and rig.held() == {b"u"}


def test_a_coroutine_is_told_what_other_owners_did_whether_it_was_kept_or_is_fresh() -> None:
    rig = opened_rig()
    script = parked(rig)
    before = PassedBefore(until=3, marks=["a"])
    rig.push(run_job(), b"u", run=again(PARKED, opened(4), length=4, before=before))
    assert script.before == (3, ("a",))
    rig.push(run_job("r2"), b"v", run=again(event(1), opened(2), length=2, from_start=True, before=before))
    assert (rig.script.context.passed_until, list(rig.script.context.marks)) == (3, ["a"])


@pytest.mark.parametrize(
    ("grant", "kept"),
    [
        (again(PARKED, opened(4), length=4), True),
        (again(length=4), True),  # the events follow as news
        (again(event(2), PARKED, opened(4), length=4), True),  # they overlap, and fit
        (again(event(2, 999), PARKED, opened(4), length=4), False),
        (again(event(1), event(2), PARKED, opened(4), length=4, from_start=True), False),
        (again(PARKED, opened(4), length=4, accepted_until=3), False),
        (again(opened(4), length=4), False),
        (again(event(1), length=1), False),
    ],
)
def test_r6_a_cache_is_used_only_with_a_history_that_it_extends(grant: RunGrant, kept: bool) -> None:
    rig = opened_rig()
    script = parked(rig)
    rig.push(run_job(), b"u", run=grant)
    assert script.closed is not kept
    assert len(rig.scripts) == (1 if kept else 2)


def test_r6_another_incarnation_finds_no_cache() -> None:
    rig = opened_rig()
    script = parked(rig)
    rig.deliver(run_job(incarnation=8))
    (claim,) = rig.claims()
    assert claim.after_position == 0
    rig.go(claim, b"u", run=again(event(1), opened(2), length=2, from_start=True))
    assert script.closed and rig.script.context.incarnation == 8


def test_r6_the_cache_forgets_what_was_parked_longest_ago() -> None:
    rig = opened_rig(cache_runs=1, run_slots=3)
    first, second = confirmed(rig, b"a", "ra"), confirmed(rig, b"b", "rb")
    rig.pass_ms(31_000)
    for request in sent(rig):
        rig.answer(request)
    assert first.closed and not second.closed


def test_r6_the_cache_is_bounded_by_what_its_coroutines_were_fed() -> None:
    sizes = event(1, run_started=RunStarted(workflow="flow")).ByteSize() + opened(2).ByteSize()
    rig = opened_rig(cache_bytes=2 * sizes, run_slots=3)
    scripts = [confirmed(rig, bytes([n]), f"r{n}") for n in range(3)]
    rig.pass_ms(31_000)
    for request in sent(rig):
        rig.answer(request)
    assert [script.closed for script in scripts] == [True, False, False]
    rig.push(run_job("r1"), b"u", run=again(event(3, run_parked=RunParked(cached=True)), opened(4), length=4))
    assert scripts[1].fed == 4 and not scripts[2].closed


@pytest.mark.parametrize("changes", [{"cache_runs": 0}, {"always_replay": True}])
def test_no_cache_is_announced_where_there_is_none(changes: dict[str, Any]) -> None:
    rig = opened_rig(**changes)
    confirmed(rig)
    rig.pass_ms(30_000)
    (park,) = sent(rig)
    assert not park.park.cached
    rig.answer(park)
    assert rig.script.closed


def test_a_park_that_was_fenced_drops_the_coroutine() -> None:
    rig = opened_rig()
    script = confirmed(rig)
    rig.pass_ms(30_000)
    rig.answer(sent(rig)[0], ANSWER_LEASE_LOST)
    assert script.closed and rig.held() == set()


def test_the_answer_to_a_park_reaches_the_cache_before_the_next_go_of_the_same_frame() -> None:
    rig = opened_rig()
    script = confirmed(rig)
    rig.pass_ms(30_000)
    (park,) = sent(rig)
    rig.receive(
        grants=[
            Grant(token=b"u", job=run_job(), push_number=9, sent_ms=rig.now, run=again(PARKED, opened(4), length=4))
        ],
        owner_answers=[OwnerAnswer(run_id="r", token=b"t", seq=park.seq, answer=ANSWER_OK)],
    )
    assert script.fed == 4 and rig.held() == {b"u"}


def test_r6_a_coroutine_of_another_incarnation_is_never_used() -> None:
    rig = opened_rig()
    script = parked(rig)
    rig.push(run_job(incarnation=8), b"u", run=again(PARKED, opened(4), length=4))
    assert script.closed and rig.request().seen == 0


def woken(rig: Rig, token: bytes = b"u", **fields: Any) -> None:
    """Push GO for the parked run r, with its news."""
    rig.push(run_job(), token, run=again(PARKED, opened(4), length=4), **fields)


def wakes(rig: Rig) -> list[int]:
    """What was stated of parked runs."""
    return [frame.credits.wakes for frame in (*rig.sent, *rig.frames()) if frame.HasField("credits")]


def test_a_parked_run_whose_coroutine_is_kept_needs_no_run_slot() -> None:
    rig = opened_rig(run_slots=1)
    script = parked(rig)
    assert wakes(rig)[-1] == 1
    rig.granted_run(b"other", "other")
    woken(rig)
    assert script.fed == 4 and rig.core.counts() == (0, 2) and rig.core.free_run_slots() == 0
    rig.pass_ms(1000)
    assert wakes(rig)[-1] == 0 and not [r for r in sent(rig) if r.HasField("release")]


def test_a_wake_whose_coroutine_was_dropped_takes_a_run_slot_or_is_released() -> None:
    rig = opened_rig(run_slots=1, cache_runs=1)
    parked(rig)
    confirmed(rig, b"b", "rb")
    rig.pass_ms(30_000)
    rig.answer(sent(rig)[-1])  # its coroutine takes the place of the first
    woken(rig)
    assert rig.core.counts() == (0, 1) and rig.core.free_run_slots() == 0
    rig.push(run_job("rc"), b"c", run=again(event(1), opened(2), length=2, from_start=True))
    assert [r.release.reason for r in rig.requests() if r.HasField("release")] == ["no slot"]


def test_as_many_are_woken_beside_the_run_slots_as_there_are_wake_slots() -> None:
    rig = opened_rig(run_slots=2, wake_slots=1)
    for n in (1, 2):
        confirmed(rig, bytes([n]), f"r{n}")
    rig.pass_ms(31_000)
    for request in sent(rig):
        rig.answer(request, position=3, revision=103)
    assert wakes(rig)[-1] == 1 and rig.core.free_run_slots() == 2
    for n in (1, 2):
        rig.push(run_job(f"r{n}"), bytes([10 + n]), run=again(PARKED, opened(4), length=4))
    assert rig.core.counts() == (0, 2) and rig.core.free_run_slots() == 1, "the second took a run slot"
    assert [script.fed for script in rig.scripts] == [4, 4]


def test_r9_a_woken_run_that_rests_is_parked_in_its_turn_but_not_to_free_a_run_slot() -> None:
    rig = opened_rig(run_slots=1)
    parked(rig)
    confirmed(rig, b"other", "other")
    woken(rig)
    rig.pass_ms(1000)
    for request in sent(rig):
        rig.answer(request)
    rig.receive(run_job_waits=True)
    assert [r.token for r in rig.requests() if r.HasField("park")] == [b"other"]
    rig.pass_ms(1000)
    assert [r.token for r in sent(rig) if r.HasField("park")] == [b"u"]


def test_r9_with_a_free_slot_nothing_is_parked_at_once() -> None:
    rig = opened_rig(run_slots=2)
    confirmed(rig)
    rig.receive(run_job_waits=True)
    assert rig.requests() == []


def test_r9_a_run_whose_park_met_news_may_be_parked_again() -> None:
    rig = opened_rig(run_slots=1)
    confirmed(rig)
    rig.receive(run_job_waits=True)
    rig.answer(rig.request(), ANSWER_NEWS, events=[event(3)])
    park = rig.request()
    assert park.HasField("park") and park.seen == 3
