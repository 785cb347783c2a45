"""When schedules are due: cron lines, intervals, clocks that are put forward and back, jitter, and what was missed."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.controlplane.machine.occurrences import (
    MISSED_KEPT,
    after,
    check,
    come_due,
    run_id_of,
    starts_at,
    upcoming,
)
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.ids import RunKey
from treadle.v1.schedule_pb2 import ScheduleSpec

RECORD = RunKey("ns", "~schedule/nightly")
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
MINUTE = 60_000


def ms(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def local(spec: ScheduleSpec, at: int) -> str:
    return datetime.fromtimestamp(at / 1000, ZoneInfo(spec.timezone or "UTC")).isoformat(timespec="minutes")


def days(cron: str, zone: str, since: str, count: int) -> list[str]:
    spec = ScheduleSpec(cron=cron, timezone=zone)
    return [local(spec, at) for at in upcoming(spec, ms(since, zone), count)]


# --- clocks that are put forward and back ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cron", "zone", "since", "expected"),
    [
        # Spring: 02:00 to 03:00 is not there. A fixed time comes at the first instant behind the gap, once.
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-28T12:00",
            ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00", "2026-03-31T02:30+02:00"],
        ),
        (
            "30 2 * * *",
            NEW_YORK,
            "2026-03-07T12:00",
            ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00", "2026-03-10T02:30-04:00"],
        ),
        ("0,30 2 * * *", BERLIN, "2026-03-29T00:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-29T00:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
        ("0 6 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T06:00+02:00", "2026-03-30T06:00+02:00"]),
        # A line that follows real time: the hour is not there, and nothing is made up for.
        (
            "0 * * * *",
            BERLIN,
            "2026-03-29T00:30",
            ["2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"],
        ),
        ("*/30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-30T02:00+02:00", "2026-03-30T02:30+02:00"]),
        # Autumn: 02:00 to 03:00 is there twice. A fixed time comes once, the first time.
        (
            "30 2 * * *",
            BERLIN,
            "2026-10-24T12:00",
            ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00", "2026-10-27T02:30+01:00"],
        ),
        (
            "30 1 * * *",
            NEW_YORK,
            "2026-10-31T12:00",
            ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00", "2026-11-03T01:30-05:00"],
        ),
        ("0 6 * * *", BERLIN, "2026-10-24T12:00", ["2026-10-25T06:00+01:00", "2026-10-26T06:00+01:00"]),
        # A line that follows real time comes in both.
        (
            "0 * * * *",
            BERLIN,
            "2026-10-25T01:30",
            ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"],
        ),
        (
            "*/30 1 * * *",
            NEW_YORK,
            "2026-11-01T00:30",
            [
                "2026-11-01T01:00-04:00",
                "2026-11-01T01:30-04:00",
                "2026-11-01T01:00-05:00",
                "2026-11-01T01:30-05:00",
                "2026-11-02T01:00-05:00",
            ],
        ),
    ],
)
def test_clocks_that_are_put_forward_and_back(cron: str, zone: str, since: str, expected: list[str]) -> None:
    assert days(cron, zone, since, len(expected)) == expected


def test_within_the_second_pass_of_an_hour_a_fixed_time_does_not_come_again() -> None:
    spec = ScheduleSpec(cron="30 2 * * *", timezone=BERLIN)
    first = ms("2026-10-25T00:30")  # 02:30+02:00
    second_pass = ms("2026-10-25T01:10")  # 02:10+01:00
    assert after(spec, first - 1) == first
    assert local(spec, after(spec, second_pass)) == "2026-10-26T02:30+01:00"


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, "Australia/Lord_Howe", "America/Santiago", "UTC", ""])
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 0-3 * * *", "15 0,1,2,3 * * *", "0 0 * * SUN", "5 */2 * * *"])
def test_a_year_is_strictly_in_order_wherever_one_asks_from(zone: str, cron: str) -> None:
    spec = ScheduleSpec(cron=cron, timezone=zone)
    start, end = ms("2026-01-01T00:00"), ms("2027-01-01T00:00")
    found = []
    at = after(spec, start)
    while at < end:
        found.append(at)
        at = after(spec, at)
    assert found == sorted(set(found)) and len(found) >= 50
    for one, following in zip(found[::37], found[1::37], strict=False):
        between = (one + following) // 2
        assert after(spec, between) == after(spec, one) == following
        assert after(spec, following - 1) == following


def test_a_leap_day_and_the_last_day_of_a_month() -> None:
    assert days("0 0 29 2 *", "UTC", "2026-03-01T00:00", 2) == ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00"]
    assert days("0 0 L * *", "UTC", "2026-02-01T00:00", 2) == ["2026-02-28T00:00+00:00", "2026-03-31T00:00+00:00"]
    assert days("@monthly", BERLIN, "2026-02-02T00:00", 1) == ["2026-03-01T00:00+01:00"]


# --- intervals -------------------------------------------------------------------------------------------------------
@given(every=st.integers(1_000, 10**9), at=st.integers(0, 2 * 10**12))
def test_an_interval_comes_at_its_multiples(every: int, at: int) -> None:
    found = after(ScheduleSpec(every_ms=every), at)
    assert at < found <= at + every and found % every == 0


# --- what is due -----------------------------------------------------------------------------------------------------
def due(spec: ScheduleSpec, next_ms: int, now: int, looks: int = 500, starts: int = 20) -> tuple[list[int], int, int]:
    found = come_due(RECORD, spec, next_ms, now, looks=looks, starts=starts)
    return found.live, found.missed_count, found.next_ms


def test_what_is_older_than_the_catch_up_window_is_missed() -> None:
    spec = ScheduleSpec(cron="*/10 * * * *")
    nine, now = ms("2026-05-01T09:00"), ms("2026-05-01T10:00")
    assert due(spec, nine, now) == ([now], 6, now + 10 * MINUTE), "one minute by default"
    assert due(spec, nine, now + 60_000)[0] == [now], "at the end of the window it is caught up with"
    assert due(spec, nine, now + 60_001)[:2] == ([], 7)
    spec.catch_up_ms = 25 * MINUTE
    assert due(spec, nine, now) == ([now - 20 * MINUTE, now - 10 * MINUTE, now], 4, now + 10 * MINUTE)
    assert due(spec, nine, nine - 1) == ([], 0, nine), "nothing is early"


def test_of_what_was_missed_the_last_hundred_are_kept_and_all_are_counted() -> None:
    year = 365 * 86_400_000
    found = come_due(RECORD, ScheduleSpec(every_ms=1_000), 1_000, year, looks=500, starts=20)
    assert found.missed_count + len(found.live) == found.next_ms // 1_000 - 1
    assert len(found.missed) == MISSED_KEPT == 100 and found.missed[-1] + 1_000 == found.live[0]
    assert found.live[0] == year - 60_000, "what is surely missed is leapt over"
    cron = come_due(RECORD, ScheduleSpec(cron="* * * * *"), MINUTE, year, looks=500, starts=20)
    assert (cron.missed_count, cron.live, cron.next_ms) == (500, [], 501 * MINUTE), "a commit looks at so many"


def test_one_look_finds_only_so_many_starts() -> None:
    spec = ScheduleSpec(every_ms=1_000, catch_up_ms=10**8)
    live, missed, next_ms = due(spec, 1_000, 100_000, starts=20)
    assert (len(live), missed, next_ms) == (20, 0, 21_000)


@given(
    every=st.integers(1_000, 100_000),
    jitter=st.integers(0, 200_000),
    window=st.integers(1_000, 300_000),
    looks=st.lists(st.integers(0, 500_000), min_size=1, max_size=30),
)
def test_each_occurrence_is_found_once_in_order_and_none_is_invented(
    every: int, jitter: int, window: int, looks: list[int]
) -> None:
    """However late, and at whatever times, somebody looks: each one is live or missed, exactly once, and never early."""
    spec = ScheduleSpec(every_ms=every, jitter_ms=jitter, catch_up_ms=window)
    first = next_ms = after(spec, 1_000_000)
    now, live, missed = 1_000_000, [], 0
    for pause in looks:
        now += pause
        found = come_due(RECORD, spec, next_ms, now, looks=7, starts=3)
        for at in found.live:
            starts = starts_at(RECORD, spec, at)
            assert starts <= now <= starts + window and at <= starts <= at + jitter
        live += found.live
        missed += found.missed_count
        next_ms = found.next_ms
    assert live == sorted(set(live)) and all(at % every == 0 for at in live)
    assert len(live) + missed == (next_ms - first) // every


@given(at=st.integers(0, 2**45), jitter=st.integers(0, 10**9))
def test_jitter_is_the_same_whoever_computes_it(at: int, jitter: int) -> None:
    spec = ScheduleSpec(every_ms=1_000, jitter_ms=jitter)
    assert at <= starts_at(RECORD, spec, at) == starts_at(RECORD, spec, at) <= at + jitter


@given(
    every=st.integers(1_000, 100_000),
    jitter=st.integers(0, 1_000_000),
    window=st.integers(1_000, 300_000),
    share=st.floats(0, 1),
)
def test_where_somebody_looks_in_time_nothing_is_missed(every: int, jitter: int, window: int, share: float) -> None:
    spec = ScheduleSpec(every_ms=every, jitter_ms=jitter, catch_up_ms=window)
    first = next_ms = after(spec, 1_000_000)
    now, live = 0, []
    for _ in range(20):
        now = max(now, starts_at(RECORD, spec, next_ms) + int(share * window))
        found = come_due(RECORD, spec, next_ms, now, looks=500, starts=500)
        assert not found.missed_count and found.live
        live += found.live
        next_ms = found.next_ms
    assert live == list(range(first, next_ms, every))


def test_jitter_ends_before_the_next_occurrence_of_a_cron_line() -> None:
    spec = ScheduleSpec(cron="0 * * * *", jitter_ms=120 * MINUTE)
    next_ms, now = ms("2026-05-01T00:00"), 0
    for _ in range(24):
        now = max(now, starts_at(RECORD, spec, next_ms))
        assert next_ms <= now < next_ms + 60 * MINUTE
        live, missed, next_ms = due(spec, next_ms, now)
        assert len(live) == 1 and not missed


def test_the_last_occurrence_has_the_share_of_any_other() -> None:
    """Otherwise it could start behind the instant from which on it counts as missed beyond doubt."""
    spec = ScheduleSpec(every_ms=10_000, jitter_ms=600_000, catch_up_ms=1_000)
    for last in range(1_000_000, 1_500_000, 10_000):
        spec.until_ms = 0
        starts = starts_at(RECORD, spec, last)
        spec.until_ms = last
        assert starts_at(RECORD, spec, last) == starts < last + 10_000
        assert due(spec, last, starts + 1_000)[:2] == ([last], 0)


def test_jitter_spreads() -> None:
    spec = ScheduleSpec(every_ms=100_000, jitter_ms=60_000)
    shares = {starts_at(RunKey("ns", f"~schedule/s{n}"), spec, 10**9) - 10**9 for n in range(100)}
    assert len(shares) > 90 and max(shares) - min(shares) > 50_000


# --- names -----------------------------------------------------------------------------------------------------------
def test_a_run_is_named_by_its_occurrence_in_the_zone_of_the_schedule() -> None:
    spec = ScheduleSpec(cron="0 6 * * *", timezone=BERLIN)
    assert run_id_of("nightly", spec, ms("2026-11-23T06:00", BERLIN)) == "nightly-2026-11-23T06:00:00+01:00"
    assert run_id_of("n", ScheduleSpec(every_ms=1_500), 1_500) == "n-1970-01-01T00:00:01.500+00:00"
    twice = [run_id_of("n", spec, ms(at)) for at in ("2026-10-25T00:00", "2026-10-25T01:00")]
    assert twice == ["n-2026-10-25T02:00:00+02:00", "n-2026-10-25T02:00:00+01:00"], "the hour that comes twice"


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ScheduleSpec(cron="0 25 * * *"), r"field 2 \(hour\) is '25'"),
        (ScheduleSpec(cron="60 * * * *"), r"field 1 \(minute\) is '60'"),
        (ScheduleSpec(cron="0 0 30 2 *"), r"field 3 \(day-of-month\)"),
        (ScheduleSpec(cron="0 0 * JUNO *"), r"field 4 \(month\) is 'JUNO'"),
        (ScheduleSpec(cron="0 0 * * 1#6"), r"field 5 \(day-of-week\)"),
        (ScheduleSpec(cron="* * * *"), "this has 4"),
        (ScheduleSpec(cron="0 0 6 * * *"), "this has 6"),
        (ScheduleSpec(cron="@often"), "this has 1"),
        (ScheduleSpec(cron="1," * 100 + "1 * * * *"), "200 characters"),
        (ScheduleSpec(cron="@daily", every_ms=1_000), "not both"),
        (ScheduleSpec(), "either cron or every"),
        (ScheduleSpec(every_ms=999), "every_ms 999"),
        (ScheduleSpec(every_ms=-1), "every_ms -1"),
        (ScheduleSpec(every_ms=2**60), "every_ms"),
        (ScheduleSpec(cron="@daily", timezone="Mars/Olympus"), "'Mars/Olympus' is not known"),
        (ScheduleSpec(cron="@daily", timezone="../../etc/passwd"), "not known"),
        (ScheduleSpec(cron="@daily", timezone="Europe"), "not known"),
        (ScheduleSpec(cron="@daily", timezone="a\0b"), "not known"),
        (ScheduleSpec(cron="@daily", catch_up_ms=1), "catch_up_ms 1"),
        (ScheduleSpec(cron="@daily", jitter_ms=-5), "jitter_ms -5"),
        (ScheduleSpec(cron="@daily", overlap=77), "overlap 77"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_kept_is_refused(spec: ScheduleSpec, said: str) -> None:
    with pytest.raises(FieldInvalid, match=said):
        check(spec)


@pytest.mark.parametrize(
    "cron", ["*/15 8-18 * * MON-FRI", "@hourly", " @Daily ", "0 0 LW * *", "0 9 * * 5L", "0 0 * 2 MON#5"]
)
def test_what_can_be_kept_is_taken(cron: str) -> None:
    check(ScheduleSpec(cron=cron, timezone=BERLIN, jitter_ms=1, catch_up_ms=86_400_000))


@given(st.text(st.sampled_from("0123456789*/,-#L@ JANMO"), max_size=30))
def test_a_line_is_refused_with_its_field_or_gives_times(cron: str) -> None:
    spec = ScheduleSpec(cron=cron, timezone=NEW_YORK)
    try:
        check(spec)
    except FieldInvalid:
        return
    start = ms("2026-01-01T00:00")
    found = list(upcoming(spec, start, 3))
    assert found == sorted(set(found)) and all(at > start for at in found)


def test_behind_the_end_of_the_calendar_there_is_nothing() -> None:
    end = int((datetime(9999, 12, 31, tzinfo=UTC) - timedelta(days=1)).timestamp() * 1000)
    assert after(ScheduleSpec(cron="@yearly"), end) == 0


def test_without_cron_lines_cronsim_is_not_needed() -> None:
    """Tests of users run on the machine, and have no server extra."""
    code = "import sys; sys.modules['cronsim'] = None; import treadle.testing; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
