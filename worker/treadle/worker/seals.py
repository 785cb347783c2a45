"""The values of a run as its owner opens and seals them (the core's port `RunSeals`), and the shell that does the I/O.

Which values there are is read off the messages. What the code never looks at is not opened: the input of a step is matched
by its digest, and only the worker that runs the step fetches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message

from treadle.client.blobs import home_of
from treadle.client.vault import Vault
from treadle.protocol.errors import BlobStoreUnavailable, CodecFailed, PayloadError
from treadle.protocol.ids import hook_id
from treadle.protocol.sealing import FROM_RUN, TO_RUN, TO_STEP, UNREAD, Place, place_of, values_of
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent, SignalReceived
from treadle.v1.worker_service_pb2 import Command, FailureHook
from treadle.worker.backoff import Backoff
from treadle.worker.clock import monotonic_ms
from treadle.worker.core.port import OpenEvent, SealItem, WorkerCorePort
from treadle.worker.loop.port import Outcome, RunContext

__all__ = ("Carrier", "EventSeals")

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T", Command, Outcome)


class EventSeals:
    """See `RunSeals`."""

    def __init__(self, vault: Vault, run: RunContext) -> None:
        self._vault = vault
        self._run = run
        self._homes = [home_of(run.namespace, run.run_id, run.incarnation)]
        self._outcome_homes = self._homes
        self._children: dict[str, str] = {}
        self._retries = 0
        self._letters: dict[str, Payload] = {}  # signals whose values are in the store, as they were sent

    # --- in --------------------------------------------------------------------------------------------------------
    def open(self, event: HistoryEvent) -> bool:
        """Open in place what is here. False: a value must be fetched, or the codec failed, which may pass."""
        try:
            return self._open(event)
        except CodecFailed:
            return False

    def _open(self, event: HistoryEvent) -> bool:
        kind = event.WhichOneof("kind") or ""
        message: Any = getattr(event, kind) if kind else None
        if kind == "run_started" and message.HasField("parent"):
            parent = message.parent  # its history has the outcome, too, and must not lose it before this run does
            self._outcome_homes = [*self._homes, home_of(self._run.namespace, parent.run_id, parent.incarnation)]
        elif kind == "run_retried":
            self._retries = message.number
        elif kind == "child_scheduled":
            self._children[message.command_id] = message.run_id
        if message is None or kind in UNREAD:
            return True
        values = values_of(message)
        for name in values.payloads:
            payload: Payload = getattr(message, name)
            if payload.encoding:
                if not self._vault.is_here(payload):
                    return False
                payload.CopyFrom(self._vault.open(payload, self._place_in(kind, message)))
        for name in values.failures:
            failure: Failure = getattr(message, name)
            if failure.HasField("sealed"):
                failure.CopyFrom(self._vault.open_failure(failure, self._place_in(kind, message)))
        return True

    async def fetch(self, event: HistoryEvent) -> HistoryEvent:
        """Return the event with all its values.

        Raises:
            PayloadError: One cannot be opened.
            BlobStoreUnavailable, CodecFailed: Try again later.
        """
        fetched = HistoryEvent()
        fetched.CopyFrom(event)
        if event.HasField("signal_received"):
            self._letters[event.signal_received.signal_id] = event.signal_received.data
        kind = event.WhichOneof("kind") or ""
        message = getattr(fetched, kind)
        for name in values_of(message).payloads:
            payload: Payload = getattr(message, name)
            if payload.encoding:
                payload.CopyFrom(await self._vault.opened(payload, self._place_in(kind, message)))
        self._open(fetched)
        return fetched

    def _place_in(self, kind: str, message: Any) -> Place:
        return place_of(kind, message, self._run.namespace, self._run.run_id, self._children)

    # --- out -------------------------------------------------------------------------------------------------------
    def seal(self, item: T) -> T | None:
        """Seal what needs no store; None: it does, or the codec failed, which may pass."""
        try:
            return self._seal(item)
        except CodecFailed:
            return None

    def _seal(self, item: T) -> T | None:
        if isinstance(item, Outcome):
            value, homes, place = self._said_last(item)
            if value is None:
                return self._outcome(item, None)
            here = self._vault.seal_here(value, place, homes)
            return None if here is None else self._outcome(item, here)
        kind, message = _asked(item)
        if message is None:
            return item
        place, homes = self._place_out(kind, message, item.command_id)
        payloads: list[Payload] = [getattr(message, n) for n in values_of(message).payloads if message.HasField(n)]
        sealed: list[Payload] = []
        for payload in payloads:
            here = self._vault.seal_here(payload, place, homes)
            if here is None:
                return None
            sealed.append(here)
        # What may fail comes first: an error that is sealed already stays as it is, a value would be sealed twice.
        self._seal_failures(message, place)
        for payload, here in zip(payloads, sealed, strict=True):
            payload.CopyFrom(here)
        return item

    async def store(self, item: Command | Outcome) -> Command | Outcome:
        """Return what is sent instead, once its values are in the store. Raises BlobStoreUnavailable, CodecFailed."""
        if isinstance(item, Outcome):
            value, homes, place = self._said_last(item)
            stored_value = None if value is None else await self._vault.sealed(value, place, homes)
            return self._outcome(item, stored_value)
        stored = Command()
        stored.CopyFrom(item)
        kind, message = _asked(stored)
        assert message is not None
        place, homes = self._place_out(kind, message, item.command_id)
        for name in values_of(message).payloads:
            if message.HasField(name):
                payload: Payload = getattr(message, name)
                payload.CopyFrom(await self._vault.sealed(payload, place, homes))
        self._seal_failures(message, place)
        return stored

    def carried(self, letter: SignalReceived) -> SignalReceived:
        """Return what is sent of a signal that goes on with the next part: the reference that came, or sealed anew.

        Raises:
            CodecFailed: The codec raised.
        """
        sealed = SignalReceived()
        sealed.CopyFrom(letter)
        known = self._letters.get(letter.signal_id)
        place = Place(self._run.namespace, self._run.run_id, TO_RUN)
        sealed.data.CopyFrom(self._vault.seal(letter.data, place, []) if known is None else known)
        return sealed

    def _said_last(self, outcome: Outcome) -> tuple[Payload | None, list[str], Place]:
        """The value that the code ended with, where it is kept, and what it is for."""
        run = self._run
        if outcome.next_input is not None:
            return outcome.next_input, self._homes, Place(run.namespace, run.run_id, TO_RUN)
        return outcome.result, self._outcome_homes, self._from_run()

    def _outcome(self, outcome: Outcome, value: Payload | None) -> Outcome:
        if outcome.next_input is not None:
            return replace(outcome, next_input=value)
        failure = outcome.failure
        if failure is not None:
            failure = self._vault.seal_failure(failure, self._from_run())
        hook = outcome.hook
        if hook is not None:  # it is small, and stays in its message
            run_id = hook_id(self._run.namespace, self._run.run_id, self._run.incarnation, self._retries)
            sealed = self._vault.seal(hook.input, Place(self._run.namespace, run_id, TO_RUN), [])
            hook = FailureHook(workflow=hook.workflow, pool=hook.pool, input=sealed)
        return replace(outcome, result=value, failure=failure, hook=hook)

    def _seal_failures(self, message: Message, place: Place) -> None:
        for name in values_of(message).failures:
            if message.HasField(name):
                failure: Failure = getattr(message, name)
                failure.CopyFrom(self._vault.seal_failure(failure, place))

    def _from_run(self) -> Place:
        return Place(self._run.namespace, self._run.run_id, FROM_RUN)

    def _place_out(self, kind: str, message: Any, command_id: str) -> tuple[Place, list[str]]:
        run = self._run
        if kind == "schedule_step":
            return Place(run.namespace, run.run_id, TO_STEP, command_id), self._homes
        if kind == "schedule_child":
            return Place(run.namespace, message.run_id, TO_RUN), [home_of(run.namespace, message.run_id, None)]
        return self._from_run(), self._homes


def _asked(command: Command) -> tuple[str, Any]:
    """The kind of a command, and its message if that has values."""
    kind = command.WhichOneof("kind") or ""
    message = getattr(command, kind) if kind else None
    if message is None or not any(values_of(message)):
        return kind, None
    return kind, message


class Carrier:
    """Does what the core wants fetched and stored, and tells it. A store that is away, or a codec that fails, is asked
    again, while it is wanted.
    """

    def __init__(self, core: WorkerCorePort, changed: Callable[[], None]) -> None:
        self._core = core
        self._changed = changed
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, action: OpenEvent) -> None:
        """Fetch the values of an event."""
        self._spawn(self._open(action))

    def seal(self, action: SealItem) -> None:
        """Store the values of what the code said."""
        self._spawn(self._seal(action))

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, action: OpenEvent) -> None:
        assert isinstance(action.seals, EventSeals)
        backoff = Backoff()
        event, wrong = action.event, None
        while self._core.owns(action.owner_token):
            try:
                event = await action.seals.fetch(action.event)
            except PayloadError as error:
                wrong = error
            except (BlobStoreUnavailable, CodecFailed) as error:
                _log.warning("value_not_opened", error=str(error), remedy="it is tried again")
                await asyncio.sleep(backoff.next_s())
                continue
            self._core.event_opened(action.owner_token, event, wrong, monotonic_ms())
            self._changed()
            return

    async def _seal(self, action: SealItem) -> None:
        assert isinstance(action.seals, EventSeals)
        backoff = Backoff()
        while self._core.owns(action.owner_token):
            try:
                item = await action.seals.store(action.item)
            except (BlobStoreUnavailable, CodecFailed) as error:
                _log.warning("value_not_sealed", error=str(error), remedy="it is tried again")
                await asyncio.sleep(backoff.next_s())
                continue
            self._core.item_sealed(action.owner_token, action.number, item, monotonic_ms())
            self._changed()
            return
