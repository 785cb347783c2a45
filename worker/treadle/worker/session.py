"""The session behind a port of two methods, and how it is opened over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from grpc import aio

from treadle.client.config import auth_metadata, open_channel
from treadle.client.status import from_rpc_error
from treadle.protocol.errors import RequestError
from treadle.v1.worker_service_pb2 import RegisterRequest, RegisterResponse, SessionRequest, SessionResponse
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub
from treadle.worker.config import WorkerConfig

__all__ = ("Endpoint", "GrpcEndpoint", "SessionBroken", "SessionPort")

REGISTER_TIMEOUT_S: Final = 10.0

_BROKEN: Final = (aio.AioRpcError, aio.UsageError, aio.InternalError, asyncio.InvalidStateError)
"""What a stream raises that is gone, or was given up on this side."""


class SessionBroken(Exception):
    """The stream broke, or could not be opened; says why. `refused`: the server answered, and said no."""

    def __init__(self, message: str, *, refused: RequestError | None = None) -> None:
        super().__init__(message)
        self.refused = refused


class SessionPort(Protocol):
    """An open stream to one replica. Each method is called by one task at a time."""

    async def send(self, frame: SessionRequest) -> None:
        """Write a frame; returns when the transport has taken it. Nothing follows a goodbye: the replica ends the stream.

        Raises:
            SessionBroken: The stream is gone.
        """
        ...

    async def receive(self) -> SessionResponse | None:
        """Return the next frame; None: the replica ended the stream.

        Raises:
            SessionBroken: The stream is gone.
        """
        ...


class Endpoint(Protocol):
    """The control plane, as a worker reaches it. `address` is one of those that the worker was given."""

    async def register(self, address: str, request: RegisterRequest) -> RegisterResponse:
        """Announce the worker.

        Raises:
            RequestError: Refused, or (Unavailable) there was no answer.
        """
        ...

    def open(self, address: str) -> AbstractAsyncContextManager[SessionPort]:
        """Open a stream over a connection of its own; leaving it ends the stream."""
        ...


class _Stream:
    """SessionPort over a grpc.aio stream."""

    def __init__(self, call: aio.StreamStreamCall[Any, Any]) -> None:
        self._call = call

    async def send(self, frame: SessionRequest) -> None:
        try:
            await self._call.write(frame)
            if frame.goodbye:
                await self._call.done_writing()
        except _BROKEN as error:
            raise self._broken(error) from error

    async def receive(self) -> SessionResponse | None:
        try:
            response = await self._call.read()
        except _BROKEN as error:
            raise self._broken(error) from error
        if response is aio.EOF:
            return None
        assert isinstance(response, SessionResponse)
        return response

    @staticmethod
    def _broken(error: Exception) -> SessionBroken:
        if not isinstance(error, aio.AioRpcError):
            return SessionBroken(f"{type(error).__name__}: {error}")
        why = from_rpc_error(error)
        refused = why if isinstance(why, RequestError) and why.code not in ("UNAVAILABLE", "UNKNOWN") else None
        return SessionBroken(f"{error.code().name}: {error.details()}", refused=refused)


class GrpcEndpoint:
    """Endpoint over grpc.aio."""

    def __init__(self, config: WorkerConfig) -> None:
        self._tls = config.credentials()
        self._insecure = config.insecure
        self._metadata = auth_metadata(config.token)

    async def register(self, address: str, request: RegisterRequest) -> RegisterResponse:
        async with self._channel(address) as channel:
            try:
                return await WorkerServiceStub(channel).Register(
                    request, timeout=REGISTER_TIMEOUT_S, metadata=self._metadata
                )
            except aio.AioRpcError as error:
                raise from_rpc_error(error) from error

    @asynccontextmanager
    async def open(self, address: str) -> AsyncIterator[SessionPort]:
        async with self._channel(address) as channel:
            call = WorkerServiceStub(channel).Session(metadata=self._metadata)
            try:
                yield _Stream(call)
            finally:
                call.cancel()

    def _channel(self, address: str) -> aio.Channel:
        # A connection of its own: gRPC would otherwise hand out the one that has just gone silent.
        own = [("grpc.use_local_subchannel_pool", 1)]
        return open_channel(address, tls=self._tls, insecure=self._insecure, options=own)
