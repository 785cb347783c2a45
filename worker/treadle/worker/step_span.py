"""A `process {step}` span that is hardly there: a note of what happened, unless user code touches it.

A span of the SDK costs more than many a step. Most steps never ask for their span: then its note is all that is made, and
is written as bytes of OTLP when the step ends. The first touch makes a span of the SDK, with the start that was noted.
The note of a local step says nothing that the attempt's own span does not say, since no message brought it: it is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Token
from random import getrandbits
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AnyValue, Attributes

if TYPE_CHECKING:
    from treadle.worker.current import StepInfo
    from treadle.worker.spans import Outcome, SpanFacts

__all__ = ("Noted", "StepSpan")

((_CURRENT, _),) = set_span_in_context(INVALID_SPAN, Context()).items()  # the key under which a context has its span

_touch: Final = threading.RLock()
"""Whether a span was touched before its end is decided once. (Reentrant: what the SDK calls may ask for the span.)"""


class StepSpan(Span):
    """The span.

    Args:
        info: The attempt.
        facts: What else is known of it.
        outcome: How it ended; read when it has.
        make: Makes the SDK's span, which started then (ns since 1970); raises nothing.
    """

    __slots__ = ("_make", "_span", "end_ns", "facts", "info", "outcome", "span_id", "start_ns")

    def __init__(
        self, info: StepInfo, facts: SpanFacts, outcome: Outcome, make: Callable[[StepInfo, SpanFacts, int], Span]
    ) -> None:
        self.info = info
        self.facts = facts
        self.outcome = outcome
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self.span_id = getrandbits(64) or 1
        self._make = make
        self._span: Span | None = None

    def finish(self) -> Span | None:
        """The attempt has ended. Returns the SDK's span, to be ended; None: nobody touched it, and the note is whole."""
        with _touch:
            self.end_ns = time.time_ns()
            return self._span

    def _touched(self) -> Span:
        with _touch:
            if self._span is None:
                self._span = INVALID_SPAN  # for what the SDK may call meanwhile
                self._span = self._late() if self.end_ns else self._make(self.info, self.facts, self.start_ns)
            return self._span

    @property
    def told(self) -> bool:
        """Whether the note is exported."""
        return bool(self.facts.dispatch_id)

    def _late(self) -> Span:
        """For code that outlived its attempt: the note, which is exported under this id, or the attempt's span."""
        _, trace, attempt, flags = self.info.traceparent.split("-")
        span_id = self.span_id if self.told else int(attempt, 16)
        return NonRecordingSpan(
            SpanContext(int(trace, 16), span_id, is_remote=not self.told, trace_flags=TraceFlags(int(flags, 16)))
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what copies and pickles look for, on an object that has nothing yet
            raise AttributeError(name)
        return getattr(self._touched(), name)

    def get_span_context(self) -> SpanContext:
        return self._touched().get_span_context()

    def is_recording(self) -> bool:
        return self._touched().is_recording()

    def end(self, end_time: int | None = None) -> None:
        self._touched().end(end_time)

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        self._touched().set_attributes(attributes)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        self._touched().set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._touched().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._touched().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._touched().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._touched().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self._touched().record_exception(exception, attributes, timestamp, escaped)


class Noted:
    """Around user code, with its span as the current one. At the end the note is `put`, or the SDK's span is closed.

    Args:
        info, facts, outcome, make: See StepSpan.
        put: Takes the note of a span that nobody touched.
        close: Ends a span of the SDK.
    """

    __slots__ = ("_close", "_put", "_span", "_token")

    def __init__(
        self,
        info: StepInfo,
        facts: SpanFacts,
        outcome: Outcome,
        make: Callable[[StepInfo, SpanFacts, int], Span],
        put: Callable[[StepSpan], None],
        close: Callable[[Span, Outcome], None],
    ) -> None:
        self._span = StepSpan(info, facts, outcome, make)
        self._put, self._close = put, close
        self._token: Token[Context] | None = None

    def __enter__(self) -> Outcome:
        self._token = attach(Context({_CURRENT: self._span}))
        return self._span.outcome

    def __exit__(self, *raised: object) -> None:
        if self._token is not None:
            detach(self._token)
        touched = self._span.finish()
        if touched is not None:
            self._close(touched, self._span.outcome)
        elif self._span.told:
            self._put(self._span)
