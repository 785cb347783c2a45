"""The values that a client sends and reads: sealed for the run they go to, opened from the one they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from treadle.client.blobs import home_of
from treadle.client.stream import RunStream
from treadle.client.vault import ABOVE_BYTES, Vault, limit_of, vault_of
from treadle.client.views import RunInfo, run_info
from treadle.protocol.deferral import DeferralToken
from treadle.protocol.errors import PayloadUnreadable
from treadle.protocol.payloads import check_size
from treadle.protocol.sealing import FROM_RUN, FROM_STEP, TO_RUN, Codec, Place, place_of, place_of_schedule, values_of
from treadle.v1.blob_service_pb2 import GetBlobStoreResponse
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import Run, StartAnswer, StartRunRequest

__all__ = ("LARGEST_BYTES", "HistoryReader", "Values")

_SMALL_BYTES: Final = ABOVE_BYTES - 2048
LARGEST_BYTES: Final = 1 << 30
"""No setting allows more."""


class Values:
    """What one client does with values. Small ones need nobody; for the first large one the control plane is asked where
    large ones are kept, unless that was told.

    Args:
        namespace: Of all values.
        codec: Encrypts; None: nothing is encrypted.
        blobs: URL of the store; "": where the control plane says.
        ask: Asks the control plane.
        near: The control plane is on this machine.
    """

    def __init__(
        self,
        namespace: str,
        *,
        codec: Codec | None,
        blobs: str,
        ask: Callable[[], Awaitable[GetBlobStoreResponse]],
        near: bool,
    ) -> None:
        self._namespace = namespace
        self._codec = codec
        self._blobs = blobs
        self._ask = ask
        self._near = near
        self._small = Vault(namespace, codec=codec)
        self._large: Vault | None = None
        self._asking = asyncio.Lock()

    def stays(self, payload: Payload) -> bool:
        """Whether the value is sent as it is: nothing is encrypted, and it is small."""
        return self._codec is None and len(payload.data) <= _SMALL_BYTES

    async def seal(self, run_id: str, payload: Payload, what: str) -> Payload:
        """Return what is sent to a run instead of a value; a large one is in the store then. `what` is for errors.

        Raises:
            PayloadTooLarge: It has more bytes than are allowed.
            BlobStoreUnavailable: It could not be stored.
            ConfigError: The store is not one that this process can use.
        """
        place = Place(self._namespace, run_id, TO_RUN)
        return await self._sealed(payload, what, place, home_of(self._namespace, run_id, None))

    async def seal_result(self, step: DeferralToken, payload: Payload) -> Payload:
        """Return what is sent instead of the result of a step that is finished from outside. Raises as `seal`."""
        home = home_of(self._namespace, step.run_id, step.incarnation)
        return await self._sealed(payload, "result of the step", self._from_step(step), home)

    def seal_error(self, step: DeferralToken, failure: Failure) -> Failure:
        """Return what is sent instead of the error of a step that is finished from outside."""
        return self._small.seal_failure(failure, self._from_step(step))

    def _from_step(self, step: DeferralToken) -> Place:
        return Place(self._namespace, step.run_id, FROM_STEP, step.command_id)

    async def _sealed(self, payload: Payload, what: str, place: Place, home: str) -> Payload:
        if self.stays(payload):
            return payload
        vault = self._small if len(payload.data) <= _SMALL_BYTES else await self._vault()
        check_size(len(payload.data), vault.limit, what)
        return await vault.sealed(payload, place, [home])

    async def start(self, stream: RunStream, make: Callable[[], StartRunRequest]) -> tuple[int, str, StartAnswer]:
        """Start a run over the stream, once its input is sealed. `make` makes the request; see RunStream.start."""

        def made() -> StartRunRequest:
            request = make()
            if not self.stays(request.input):
                raise _ToSealError(request)
            return request

        try:
            return await stream.start(made)
        except _ToSealError as found:
            request = found.request
        what = f"workflow {request.workflow}"
        request.input.CopyFrom(await self.seal(request.run_id, request.input, what))
        return await stream.start(lambda: request)

    def seal_schedule(self, schedule_id: str, payload: Payload) -> Payload:
        """Return what is sent instead of the arguments of a schedule. They are small, and sealed for all of its runs."""
        return self._small.seal(payload, place_of_schedule(self._namespace, schedule_id), ())

    def open_schedule(self, schedule_id: str, payload: Payload) -> Payload:
        """Return the arguments of a schedule; what cannot be opened here stays sealed."""
        if not payload.encoding:
            return payload
        try:
            return self._small.open(payload, place_of_schedule(self._namespace, schedule_id))
        except PayloadUnreadable:
            return payload

    async def open(self, run_id: str, payload: Payload) -> Payload:
        """Return the encoded value of what a run said.

        Raises:
            PayloadUnreadable: It cannot be opened here.
            BlobMissing, BlobStoreUnavailable: It could not be fetched.
        """
        return await self.open_at(payload, Place(self._namespace, run_id, FROM_RUN))

    async def open_at(self, payload: Payload, place: Place) -> Payload:
        """Return the encoded value of what was sealed for a place. Raises as `open`."""
        if not payload.encoding:
            return payload
        vault = self._small if self._small.is_here(payload) else await self._vault()
        return await vault.opened(payload, place)

    def open_error_at(self, failure: Failure, place: Place) -> Failure:
        """Return an error that may be sealed. Raises PayloadUnreadable."""
        return self._small.open_failure(failure, place)

    async def limit(self) -> int:
        """Return how large values of workers with the settings of this client may be."""
        return limit_of(await self._ask(), blobs=self._blobs, codec=self._codec)

    def read(self, run: Run) -> RunInfo:
        """Return how a run stands, its values opened as far as that needs no store; what cannot be opened stays sealed."""
        if self._codec is not None:
            place = Place(self._namespace, run.run_id, FROM_RUN)
            if run.HasField("failure"):
                run.failure.CopyFrom(self.open_failure(run.run_id, run.failure))
            if run.HasField("result"):
                self._open_here(run.result, place)
            for said in run.progress:
                self._open_here(said.value, place._replace(direction=FROM_STEP, command_id=said.command_id))
        return run_info(run)

    def _open_here(self, payload: Payload, place: Place) -> None:
        if payload.encoding and self._small.is_here(payload):
            try:
                payload.CopyFrom(self._small.open(payload, place))
            except PayloadUnreadable:
                return

    def open_failure(self, run_id: str, failure: Failure) -> Failure:
        """Return the error a run ended with; one that cannot be opened here stays sealed."""
        try:
            return self._small.open_failure(failure, Place(self._namespace, run_id, FROM_RUN))
        except PayloadUnreadable:
            return failure

    def reader(self, run_id: str) -> HistoryReader | None:
        """Return what opens the events of a run's history; None: nothing is encrypted."""
        return None if self._codec is None else HistoryReader(self._small, self._namespace, run_id)

    def close(self) -> None:
        """Let the threads go."""
        self._small.close()
        if self._large is not None:
            self._large.close()

    async def _vault(self) -> Vault:
        async with self._asking:
            if self._large is None:
                told = GetBlobStoreResponse() if self._blobs else await self._ask()
                self._large = vault_of(
                    self._namespace,
                    codec=self._codec,
                    blobs=self._blobs,
                    told=told.blobs,
                    max_payload_bytes=told.max_payload_bytes,
                    near=self._near,
                )
            return self._large


class _ToSealError(Exception):
    """The input of this request must be encrypted, or moved to the blob store, before it is sent."""

    def __init__(self, request: StartRunRequest) -> None:
        super().__init__()
        self.request = request


class HistoryReader:
    """Decrypts the values of a history, event by event, as far as they are in it. What cannot be opened stays sealed."""

    def __init__(self, vault: Vault, namespace: str, run_id: str) -> None:
        self._vault, self._namespace, self._run_id = vault, namespace, run_id
        self._children: dict[str, str] = {}

    def read(self, event: HistoryEvent) -> HistoryEvent:
        """Open it in place."""
        kind = event.WhichOneof("kind")
        if kind is None:
            return event
        message = getattr(event, kind)
        if kind == "child_scheduled":
            self._children[message.command_id] = message.run_id
        place = place_of(kind, message, self._namespace, self._run_id, self._children)
        for name in values_of(message).payloads:
            payload: Payload = getattr(message, name)
            if payload.encoding and self._vault.is_here(payload):
                try:
                    payload.CopyFrom(self._vault.open(payload, place))
                except PayloadUnreadable:
                    continue
        for name in values_of(message).failures:
            failure: Failure = getattr(message, name)
            if failure.HasField("sealed"):
                try:
                    failure.CopyFrom(self._vault.open_failure(failure, place))
                except PayloadUnreadable:
                    continue
        return event
