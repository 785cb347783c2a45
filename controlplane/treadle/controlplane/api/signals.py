"""What comes to a run from outside, and what it shows: signals, questions with their answers, its state."""

from __future__ import annotations

import time
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.starts import Engine, run_reply
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine import requests, signals
from treadle.controlplane.store.port import Loaded, RunStore, Want
from treadle.protocol.errors import NotFound, RunClosed
from treadle.protocol.ids import RunKey
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
        store: Read for answers and states.
        hub: Wakes who waits for an answer.
        max_payload_bytes: Largest value.
    """

    def __init__(self, engine: Engine, store: RunStore, hub: HintHub, max_payload_bytes: int) -> None:
        self._engine, self._store, self._hub = engine, store, hub
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
                found = await self._load(run, field)
                if field in found.fields:
                    said = SignalAnswered.FromString(found.fields[field])
                    answer = pb.AskRunResponse(answered=True)
                    if said.HasField("failure"):
                        answer.failure.CopyFrom(said.failure)
                    else:
                        answer.result.CopyFrom(said.result)
                    return answer
                if RunHead.FromString(found.head).state == RUN_STATE_CLOSED:
                    raise RunClosed(
                        f"run {run.run_id!r} was closed without an answer to question {request.signal_id!r}",
                        remedy="see how the run ended; its last event names what its code had not received",
                    )
                left = until - time.monotonic()
                if left <= 0 or self._hub.closed:
                    return pb.AskRunResponse()
                await woken.wait(min(left, _POLL_S))

    async def state(self, request: pb.GetStateRequest) -> pb.GetStateResponse:
        """Read the state that the run published last.

        Raises:
            NotFound: There is no such run.
        """
        found = await self._load(checks.run_of(request.namespace, request.run_id), signals.STATE_FIELD)
        incarnation = RunHead.FromString(found.head).incarnation
        data = found.fields.get(signals.STATE_FIELD)
        if data is None:
            return pb.GetStateResponse(incarnation=incarnation)
        return pb.GetStateResponse(published=True, state=StatePublished.FromString(data).state, incarnation=incarnation)

    def _checked(self, request: pb.SignalRunRequest | pb.AskRunRequest, *, asks: bool) -> requests.SignalRun:
        checks.check_payload("data", request.data, self._max_payload_bytes)
        name = checks.signal_name_of(request.name)
        return requests.SignalRun(checks.signal_id_of(request.signal_id), name, request.data, asks)

    async def _load(self, run: RunKey, field: str) -> Loaded:
        (found,) = await self._store.load([Want(run, fields=[field])])
        if not found.head:
            raise NotFound(
                f"no run {run.run_id!r} in namespace {run.namespace!r}",
                remedy="check the id and the namespace; closed runs are deleted after their retention",
            )
        return found
