"""What comes to a run from outside, and what it shows: signals, questions with their answers, its state."""

from __future__ import annotations

import time
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.records import Records
from treadle.controlplane.api.starts import Engine, run_reply
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine import requests, signals
from treadle.controlplane.machine.view import first_of
from treadle.protocol.errors import RunClosed, Unavailable
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.history_pb2 import SignalAnswered, StatePublished
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

__all__ = ("Signals",)

_POLL_S: Final = 2.0
"""How long a question trusts that no hint means no answer."""


class Signals:
    """See the module.

    Args:
        engine: Decides and commits.
        records: Read for answers and states.
        hub: Wakes who waits for an answer.
        max_payload_bytes: Largest value.
    """

    def __init__(self, engine: Engine, records: Records, hub: HintHub, max_payload_bytes: int) -> None:
        self._engine, self._records, self._hub = engine, records, hub
        self._max_payload_bytes = max_payload_bytes

    async def send(self, request: pb.SignalRunRequest) -> RunHead:
        """Record a signal; returns the head of the run.

        Raises:
            RequestError: It was refused.
        """
        run = checks.run_of(request.namespace, request.run_id)
        asked = self._checked(request, asks=False)
        return run_reply(asked, await self._engine.ask(run, asked)).head

    async def ask(self, request: pb.AskRunRequest, wait_s: float) -> pb.AskRunResponse:
        """Record a question and wait for its answer, at most `wait_s` seconds.

        Raises:
            RequestError: It was refused, or the run closed without an answer.
        """
        run = checks.run_of(request.namespace, request.run_id)
        asked = self._checked(request, asks=True)
        field = signals.answer_field(request.signal_id)
        until = time.monotonic() + wait_s
        async with self._hub.subscribe(run) as woken:
            run_reply(asked, await self._engine.ask(run, asked))
            while True:
                head, data = await self._records.noted(run, field)
                if data is not None:
                    said = SignalAnswered.FromString(data)
                    answer = pb.AskRunResponse(answered=True)
                    if said.HasField("failure"):
                        answer.failure.CopyFrom(said.failure)
                    else:
                        answer.result.CopyFrom(said.result)
                    return answer
                if head.state == RUN_STATE_CLOSED:
                    raise RunClosed(
                        f"run {run.run_id!r} was closed without an answer to question {request.signal_id!r}",
                        remedy="see how the run ended; its last event names what its code had not received",
                    )
                if self._hub.closed:
                    raise Unavailable("this replica stops", remedy="ask again under the same id")
                left = until - time.monotonic()
                if left <= 0:
                    return pb.AskRunResponse()
                await woken.wait(min(left, _POLL_S))

    async def state(self, request: pb.GetStateRequest) -> pb.GetStateResponse:
        """Read the state that the run published last.

        Raises:
            NotFound: There is no such run.
        """
        run = checks.run_of(request.namespace, request.run_id)
        head, data = await self._records.noted(run, signals.STATE_FIELD)
        if data is None:
            return pb.GetStateResponse(incarnation=first_of(head))
        state = StatePublished.FromString(data).state
        return pb.GetStateResponse(published=True, state=state, incarnation=first_of(head))

    def _checked(self, request: pb.SignalRunRequest | pb.AskRunRequest, *, asks: bool) -> requests.SignalRun:
        checks.check_payload("data", request.data, self._max_payload_bytes)
        name = checks.signal_name_of(request.name)
        return requests.SignalRun(checks.signal_id_of(request.signal_id), name, request.data, asks)
