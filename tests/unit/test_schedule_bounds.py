"""First and last dates of schedules, both included; and the tags of their runs."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.schedule_rig import BEGIN, HOUR, MINUTE, ScheduleRig, at, hourly, specified, trigger

from treadle.controlplane.machine import children
from treadle.controlplane.machine.occurrences import after, check, come_due, upcoming
from treadle.controlplane.machine.requests import StartRun
from treadle.controlplane.machine.schedule_requests import (
    BackfillSchedule,
    ChangeSchedule,
    CreateSchedule,
    DeclareSchedule,
    PauseSchedule,
    ResumeSchedule,
)
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Payload, Tag
from treadle.v1.schedule_pb2 import OVERLAP_POLICY_ALLOW, OVERLAP_POLICY_QUEUE_ALL, ScheduleSpec

RECORD = RunKey("ns", "~schedule/s")


def bounded(start: float | None = None, until: float | None = None) -> ScheduleSpec:
    """Due at each whole hour between these, in hours since the beginning of a rig."""
    spec = hourly(OVERLAP_POLICY_ALLOW)
    spec.start_ms = 0 if start is None else int(BEGIN + start * HOUR)
    spec.until_ms = 0 if until is None else int(BEGIN + until * HOUR)
    return spec


def change(rig: ScheduleRig, *fields: str, **values: int) -> None:
    rig.told(ChangeSchedule(f"{fields} {values}", fields, ScheduleSpec(**values), Payload()))  # type: ignore[arg-type]


# --- reckoning -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("start", "until", "found"),
    [
        (0, 2 * HOUR, [0, 1, 2]),  # both are included
        (1, 2 * HOUR - 1, [1]),
        (-1, 2 * HOUR + 1, [0, 1, 2]),
        (2 * HOUR, 2 * HOUR, [2]),
    ],
)
@pytest.mark.parametrize("timing", [{"every_ms": HOUR}, {"cron": "0 * * * *"}])
def test_both_bounds_are_included(timing: dict[str, int], start: int, until: int, found: list[int]) -> None:
    spec = ScheduleSpec(start_ms=BEGIN + start, until_ms=BEGIN + until, **timing)  # type: ignore[arg-type]
    check(spec)
    assert list(upcoming(spec, 0, 10)) == [BEGIN + n * HOUR for n in found]
    assert after(spec, BEGIN + found[-1] * HOUR) == 0
    assert after(spec, BEGIN + found[0] * HOUR - 1) == BEGIN + found[0] * HOUR


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-5, 60), st.sampled_from((1, 7, 60)))
def test_a_bounded_schedule_is_part_of_the_unbounded_one(start: int, length: int, since: int, minutes: int) -> None:
    every = ScheduleSpec(every_ms=minutes * MINUTE)
    first, last = BEGIN + start * MINUTE, BEGIN + (start + length) * MINUTE
    spec = ScheduleSpec(every_ms=minutes * MINUTE, start_ms=first, until_ms=last)
    ms = BEGIN + since * MINUTE
    expected = [when for when in upcoming(every, ms, 200) if first <= when <= last]
    assert list(upcoming(spec, ms, 200)) == expected


def test_a_bound_in_an_hour_that_comes_twice_is_an_instant() -> None:
    """02:30 of 25 October 2026 in Berlin: once in summer time, and once more."""
    zone = ZoneInfo("Europe/Berlin")
    first, second = (int(datetime(2026, 10, 25, 2, 30, fold=n, tzinfo=zone).timestamp()) * 1000 for n in (0, 1))
    assert second - first == HOUR
    spec = ScheduleSpec(cron="*/30 * * * *", timezone="Europe/Berlin", start_ms=second)
    assert list(islice(upcoming(spec, 0, 2), 2)) == [second, second + 30 * MINUTE]
    spec = ScheduleSpec(cron="*/30 * * * *", timezone="Europe/Berlin", start_ms=first, until_ms=second)
    assert list(upcoming(spec, 0, 9)) == [first, first + 30 * MINUTE, second]
    fixed = ScheduleSpec(cron="30 2 * * *", timezone="Europe/Berlin", start_ms=second, until_ms=second)
    with pytest.raises(FieldInvalid):
        check(fixed)  # a fixed time comes in the first pass only


@pytest.mark.parametrize(
    ("start", "until"),
    [(BEGIN + 2 * HOUR, BEGIN + HOUR), (BEGIN + 1, BEGIN + HOUR - 1), (-1, 0), (0, -1), (0, 10**15)],
)
def test_bounds_without_an_occurrence_between_them_are_refused(start: int, until: int) -> None:
    with pytest.raises(FieldInvalid):
        check(ScheduleSpec(every_ms=HOUR, start_ms=start, until_ms=until))


def test_what_is_missed_ends_with_the_schedule() -> None:
    """However long nobody was there: what an interval leaps over is counted up to its end."""
    spec = bounded(1, 300)
    due = come_due(RECORD, spec, BEGIN + HOUR, BEGIN + 10_000 * HOUR, looks=500, starts=20)
    assert (due.missed_count, len(due.missed), due.missed[-1], due.live) == (300, 100, BEGIN + 300 * HOUR, [])
    assert due.next_ms == 0
    due = come_due(RECORD, spec, BEGIN + HOUR, BEGIN + 300 * HOUR + 30_000, looks=500, starts=20)
    assert (due.missed_count, due.live, due.next_ms) == (299, [BEGIN + 300 * HOUR], 0)


# --- the record ------------------------------------------------------------------------------------------------------
def test_it_begins_with_its_first_and_ends_with_its_last_occurrence() -> None:
    rig = ScheduleRig(bounded(3, 5))
    assert rig.timer == rig.record.next_ms == BEGIN + 3 * HOUR
    rig.sleep(3 * HOUR - 1)
    assert rig.started() == []
    rig.sleep(10 * HOUR)
    assert rig.started() == [at(3), at(4), at(5)]
    assert (rig.record.next_ms, rig.timer, rig.record.missed_count) == (0, 0, 0)


def test_nothing_is_missed_before_the_first() -> None:
    rig = ScheduleRig(bounded(3))
    rig.now += 4 * HOUR + 10_000
    rig.fire()
    assert (rig.started(), list(rig.record.missed)) == ([at(4)], [BEGIN + 3 * HOUR])


def test_the_last_one_starts_late_by_its_share_of_the_jitter() -> None:
    spec = bounded(1, 1)
    spec.jitter_ms = 10 * MINUTE
    rig = ScheduleRig(spec)
    rig.sleep(HOUR)
    assert rig.started() == [] and rig.timer > BEGIN + HOUR, "the bound is one of when it is due"
    rig.sleep(10 * MINUTE)
    assert rig.started() == [at(1)] and rig.timer == 0


def test_what_waited_for_an_open_run_starts_after_the_end() -> None:
    spec = bounded(1, 2)
    spec.overlap = OVERLAP_POLICY_QUEUE_ALL
    rig = ScheduleRig(spec)
    rig.sleep(5 * HOUR)
    assert rig.started() == [at(1)]
    rig.end(at(1))
    assert rig.started() == [at(1), at(2)]


def test_an_end_that_is_moved_ends_it_or_lets_it_go_on() -> None:
    rig = ScheduleRig(bounded(1, 3))
    rig.sleep(2 * HOUR + 1)
    change(rig, "until_ms", until_ms=BEGIN + 2 * HOUR)
    assert (rig.record.next_ms, rig.timer) == (0, 0)
    rig.sleep(2 * HOUR)
    change(rig, "until_ms", until_ms=BEGIN + 6 * HOUR)
    assert rig.record.next_ms == BEGIN + 5 * HOUR, "what lies behind is left out"
    change(rig, "until_ms", until_ms=0)
    rig.sleep(3 * HOUR)
    assert rig.started() == [at(n) for n in (1, 2, 5, 6, 7)] and rig.timer


def test_a_start_that_is_moved_moves_the_next_occurrence() -> None:
    rig = ScheduleRig(bounded())
    change(rig, "start_ms", start_ms=BEGIN + 5 * HOUR)
    assert rig.record.next_ms == BEGIN + 5 * HOUR
    refused = rig.refused(ChangeSchedule("c", ["until_ms"], ScheduleSpec(until_ms=BEGIN + HOUR), Payload()))
    assert isinstance(refused, FieldInvalid) and refused.field == "until_ms"
    change(rig, "start_ms", start_ms=0)
    assert rig.timer == BEGIN + HOUR


def test_a_pause_over_the_end_ends_it() -> None:
    rig = ScheduleRig(bounded(1, 2))
    rig.told(PauseSchedule(""))
    rig.sleep(5 * HOUR)
    rig.told(ResumeSchedule())
    assert (rig.record.next_ms, rig.timer, rig.started()) == (0, 0, [])


def test_people_may_start_it_at_any_time_and_make_up_for_what_lay_between_the_bounds() -> None:
    rig = ScheduleRig(bounded(2, 3))
    rig.told(trigger())
    assert len(rig.started()) == 1, "before it begins"
    rig.sleep(10 * HOUR)
    assert rig.started()[1:] == [at(2), at(3)]
    reply = rig.told(BackfillSchedule("b", BEGIN, 0, True))
    assert reply.occurrences == 2


def test_declared_bounds_count_like_any_timing() -> None:
    rig = ScheduleRig()
    rig.told(DeclareSchedule(specified(bounded(None, 2))))
    assert rig.timer == BEGIN + HOUR
    rig.told(DeclareSchedule(specified(bounded(4, 5))))
    assert rig.record.next_ms == BEGIN + 4 * HOUR
    rig.sleep(9 * HOUR)
    assert rig.started() == [at(4), at(5)]


# --- tags --------------------------------------------------------------------------------------------------------------
def tags_of_starts(rig: ScheduleRig) -> list[dict[str, str]]:
    found = []
    for letter in rig.posted:
        _, request = children.request_of(letter)
        assert isinstance(request, StartRun)
        found.append({tag.key: tag.value for tag in request.tags})
    return found


def test_each_run_has_the_tags_that_the_schedule_has_when_it_starts() -> None:
    spec = bounded()
    spec.tags.extend([Tag(key="team", value="b"), Tag(key="kind", value="nightly")])
    rig = ScheduleRig(spec)
    assert [tag.key for tag in rig.record.spec.tags] == ["kind", "team"]
    rig.sleep(HOUR)
    rig.told(trigger())
    changed = ScheduleSpec(tags=[Tag(key="team", value="c")])
    rig.told(ChangeSchedule("c1", ["tags"], changed, Payload()))
    rig.sleep(HOUR)
    rig.told(ChangeSchedule("c2", ["tags"], ScheduleSpec(), Payload()))
    rig.sleep(HOUR)
    both = {"kind": "nightly", "team": "b"}
    assert tags_of_starts(rig) == [both, both, {"team": "c"}, {}]
    assert datetime.fromtimestamp(rig.timer / 1000, UTC).minute == 0, "tags move nothing"


@pytest.mark.parametrize(
    "tags", [[Tag(key="", value="x")], [Tag(key="a"), Tag(key="a")], [Tag(key=f"k{n}") for n in range(21)]]
)
def test_tags_that_cannot_be_are_refused(tags: list[Tag]) -> None:
    spec = specified(hourly())
    spec.tags.extend(tags)
    refused = ScheduleRig().ask(CreateSchedule("create", spec, Payload()))
    assert isinstance(refused, FieldInvalid) and refused.field == "tags"
