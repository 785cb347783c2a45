"""What `@workflow(cron=…)` declares, and what a scheduled run is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from treadle.client.calls import scheduled_call
from treadle.protocol.errors import ConfigError, PayloadError
from treadle.protocol.schedules import overlap_name, overlap_of
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Payload, Tag
from treadle.v1.schedule_pb2 import (
    OCCURRENCE_CAUSE_BACKFILL,
    OVERLAP_POLICY_QUEUE_ALL,
    OccurrenceCause,
    OverlapPolicy,
    ScheduleSpec,
)
from treadle.v1.schedule_pb2 import Occurrence as WireOccurrence
from treadle.worker import Occurrence, workflow
from treadle.worker.app import Registry
from treadle.worker.config import WorkerConfig
from treadle.worker.loop.execution import WorkflowExecution, execution_factory
from treadle.worker.loop.port import RunContext
from treadle.worker.worker import Worker

MS = 1_795_000_000_000
JANUARY = datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=1)))
FEBRUARY = datetime(2027, 2, 1, tzinfo=UTC)


def occurrence(cause: OccurrenceCause.ValueType = OCCURRENCE_CAUSE_BACKFILL) -> WireOccurrence:
    return WireOccurrence(schedule_id="s", scheduled_ms=MS, timezone="Europe/Berlin", utc_offset_s=3_600, cause=cause)


def result_of(flow: Any, input: bytes = b"", occurrence: WireOccurrence | None = None) -> Any:
    """Start the code of a run; returns what it returned at once, or raises what it raised."""
    make = execution_factory(Registry().add(flow))
    execution = make(RunContext(namespace="ns", run_id="r", incarnation=1, workflow=flow.name))
    assert isinstance(execution, WorkflowExecution)
    started = h.RunStarted(input=Payload(data=input), occurrence=occurrence)
    execution.feed(h.HistoryEvent(position=1, time_ms=MS, run_started=started))
    outcome = execution.outcome
    assert outcome is not None
    if outcome.failure is not None:
        raise PayloadError(outcome.failure.message)
    assert outcome.result is not None
    return flow.signature.decode_result(outcome.result)


# --- declaring -------------------------------------------------------------------------------------------------------
def test_a_decorator_declares_a_schedule() -> None:
    @workflow(
        cron="0 6 * * *", tz="Europe/Berlin", overlap="queue-all", catch_up="1h", jitter="10m", timeout="2h", pool="p"
    )
    async def nightly() -> None: ...

    assert nightly.schedule == ScheduleSpec(
        cron="0 6 * * *",
        timezone="Europe/Berlin",
        overlap=OVERLAP_POLICY_QUEUE_ALL,
        catch_up_ms=3_600_000,
        jitter_ms=600_000,
        timeout_ms=7_200_000,
    )

    @workflow(cron="@daily", start=JANUARY, until=FEBRUARY, tags={"team": "crm", "n": 3})
    async def for_a_month() -> None: ...

    assert for_a_month.schedule == ScheduleSpec(
        cron="@daily",
        start_ms=1_798_758_000_000,
        until_ms=1_801_440_000_000,
        tags=[Tag(key="n", value="3"), Tag(key="team", value="crm")],
    )

    @workflow(every=timedelta(minutes=5))
    async def often(n: int = 3) -> None: ...

    assert often.schedule == ScheduleSpec(every_ms=300_000)

    @workflow
    async def plain(n: int) -> None: ...

    assert plain.schedule is None
    worker = Worker(WorkerConfig(app="x", pool="p"), Registry().add(nightly, often, plain))
    (spec,) = worker._request.specs  # what it registers: the workflows of its pool
    assert (spec.name, spec.schedule.cron) == ("nightly", "0 6 * * *")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cron": "0 6 * *"}, "cron '0 6 \\* \\*': give 5 fields"),
        ({"cron": "* * * * * *"}, "for seconds use every"),
        ({"cron": "0 6 * * *", "tz": "Europe/Berlyn"}, "tz 'Europe/Berlyn' is not known"),
        ({"cron": "0 6 * * *", "every": "1h"}, "give cron or every, not both"),
        ({"tz": "Europe/Berlin"}, "give cron or every too"),
        ({"every": "10ms"}, "every '10ms': give a second at least"),
        ({"every": "soon"}, "every 'soon'"),
        ({"every": "1h", "overlap": "maybe"}, "overlap 'maybe': use one of skip, queue-one"),
        ({"every": "1h", "jitter": "-1s"}, "jitter"),
        ({"until": FEBRUARY, "tags": {"a": 1}}, "until, tags: this belongs to a schedule"),
        ({"every": "1h", "start": datetime(2027, 2, 1)}, "start .*give a datetime with a zone"),
        ({"every": "1h", "until": "2027-02-01"}, "until '2027-02-01': give a datetime with a zone"),
        ({"every": "1h", "start": FEBRUARY, "until": JANUARY}, "until .* lies before start"),
        ({"every": "1h", "start": datetime(1969, 1, 1, tzinfo=UTC)}, "give a time after 1970"),
        ({"every": "1h", "tags": {"a=b": "c"}}, "tag 'a=b'"),
    ],
)
def test_what_cannot_be_kept_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    async def nightly() -> None: ...

    with pytest.raises(ConfigError, match=f"workflow nightly at .*{said}|workflow nightly.*{said}"):
        workflow(**options)(nightly)


def test_a_parameter_that_nobody_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match="no value for parameter 'path'"):

        @workflow(every="1h")
        async def imports(path: str, occurrence: Occurrence) -> None: ...


def test_policies_have_names() -> None:
    for policy in OverlapPolicy.values():
        if policy:
            assert overlap_of(overlap_name(policy)) == overlap_of(overlap_name(policy).replace("-", "_")) == policy
    assert overlap_name(99) == "99"  # type: ignore[arg-type]


# --- running ---------------------------------------------------------------------------------------------------------
@workflow
async def told(occurrence: Occurrence) -> list[str]:
    return [occurrence.schedule, occurrence.scheduled_at.isoformat(), occurrence.cause, occurrence.timezone]


@workflow
async def maybe(name: str = "nobody", *, occurrence: Occurrence | None = None) -> str:
    return f"{name} {occurrence.cause if occurrence else None}"


def test_a_run_is_told_its_occurrence() -> None:
    at = datetime.fromtimestamp(MS / 1000, timezone(timedelta(hours=1)))
    assert result_of(told, occurrence=occurrence()) == ["s", at.isoformat(), "backfill", "Europe/Berlin"]
    assert result_of(maybe, b'{"name":"Ada"}', occurrence()) == "Ada backfill"
    assert result_of(maybe, occurrence=occurrence(0)) == "nobody time"  # type: ignore[arg-type]


def test_without_a_schedule_it_is_an_argument_like_others() -> None:
    assert result_of(maybe) == "nobody None"
    given = told.signature.encode_call((Occurrence("by hand", datetime(2026, 1, 1), "trigger"),), {})
    assert result_of(told, given.data, occurrence())[0] == "by hand", "what the input says counts"
    with pytest.raises(PayloadError, match="argument occurrence is missing"):
        result_of(told)


def test_a_client_leaves_the_occurrence_out() -> None:
    spec, payload = scheduled_call(maybe, ("Ada",))
    assert (spec.workflow, spec.pool, payload.data) == ("maybe", "default", b'{"name":"Ada"}')
    assert scheduled_call(told, ())[1].data == b"{}"
    assert scheduled_call("by-name", ())[1] == Payload()
    assert scheduled_call("by-name", ({"a": 1},))[1].data == b'{"a":1}'
    with pytest.raises(TypeError, match="too many positional"):
        scheduled_call(told, (1, 2))

    @workflow
    async def imports(path: str, occurrence: Occurrence) -> None: ...

    with pytest.raises(TypeError, match="missing a required argument: 'path'"):
        scheduled_call(imports, ())
    with pytest.raises(PayloadError, match="argument path"):
        scheduled_call(imports, (3,))
