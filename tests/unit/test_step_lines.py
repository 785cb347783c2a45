"""Lines that are logged in a step name it, at no cost for steps that log nothing."""

from __future__ import annotations

import contextvars

import msgspec

from treadle.protocol.ids import idempotency_key, span_id, trace_id
from treadle.worker.current import STEP_INFO, LazyInfo, StepInfo
from treadle.worker.logs import of_step


def lazy(traceparent: str | None) -> LazyInfo:
    return LazyInfo("r", 7, "charge", 2, "ns", "0/charge#1", 1, traceparent)


def line_in(info: StepInfo, **said: object) -> dict[str, object]:
    def run() -> dict[str, object]:
        STEP_INFO.set(info)
        return dict(of_step(None, "info", dict(said)))

    return contextvars.copy_context().run(run)


def test_a_line_names_run_step_attempt_and_trace() -> None:
    assert of_step(None, "info", {"event": "outside"}) == {"event": "outside"}
    told = line_in(lazy("00-" + "a" * 32 + "-" + "b" * 16 + "-01"), event="hello", step="mine")
    assert told == {
        "event": "hello",
        "run": "r",
        "step": "mine",
        "attempt": 2,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }
    assert line_in(lazy(""))["trace_id"] == ""


def test_what_is_hashed_late_is_what_it_always_was() -> None:
    info = lazy(None)
    assert info.idempotency_key == idempotency_key("ns", "r", 7, "0/charge#1")
    span = span_id("ns", "r", 7, "step/0/charge#1/2")
    assert info.traceparent == f"00-{trace_id('ns', 'r', 7)}-{span}-01" == info.traceparent
    assert msgspec.to_builtins(info)["idempotency_key"] == info.idempotency_key
    assert "charge" in repr(info)
