"""One attempt, as the executors see it: what to run, under which limits, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from treadle.v1.common_pb2 import Payload
from treadle.worker.core.port import Attempt, Report
from treadle.worker.current import StepInfo
from treadle.worker.spans import SpanFacts
from treadle.worker.steps import Step

__all__ = ("Call",)

_NO_FACTS: Final = SpanFacts()


@dataclass(slots=True, kw_only=True)
class Call:
    """One attempt, as the executors see it. (Not frozen: one is made for each step, and freezing triples its price.)

    Attributes:
        step: The step.
        payload: Its encoded arguments.
        info: What the step may know; its `cancel_reason` is set when it is cut off.
        timeout_ms: Longest duration; 0: no limit.
        left_ms: What is left of the step's total timeout; 0: no limit.
        alone: In a child process of its own.
        local: A local step; these have threads of their own, so that they cannot keep pool steps from starting.
        may_start: Asked as the last thing before user code.
        ended: Told the end, on the event loop, once; None: `may_start` said no, or it was cut off before.
        facts: For its span.
        attempt: Of a pool step: what was granted.
        heartbeat_ms: Longest silence; 0: no limit.
        progress: What an attempt before it said last of how far it was.
        said: Told what the code says of its progress (None: that it goes on), on the event loop, before `ended`.
    """

    step: Step[..., Any]
    payload: Payload
    info: StepInfo
    may_start: Callable[[], bool]
    ended: Callable[[Report | None], None]
    timeout_ms: int = 0
    left_ms: int = 0
    alone: bool = False
    local: bool = False
    facts: SpanFacts = _NO_FACTS
    attempt: Attempt | None = None
    heartbeat_ms: int = 0
    progress: Payload | None = None
    said: Callable[[Call, bytes | None], None] | None = None
