"""The history of a run with all values that its code looks at, wherever they are kept: what a replay needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from treadle.client.runs import RunHandle
from treadle.client.views import RunInfo
from treadle.protocol.errors import WrongState
from treadle.protocol.sealing import UNREAD, place_of, values_of
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent, HistoryFile

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("present_history", "whole_history")

_TRIES: Final = 10
"""A part of a run may be over in less time than its history takes to read."""


async def present_history(run: RunHandle[Any]) -> tuple[RunInfo, list[HistoryEvent]]:
    """Return how a run stands, and the history that it has then: of one that goes on as new meanwhile, the next one.

    Raises:
        NotFound: There is no such run.
        WrongState: Again and again it went on as new before its history was read (reason HISTORY_REPLACED).
    """
    for left in reversed(range(_TRIES)):
        info = await run.get()
        try:
            return info, [event async for event in run.history(incarnation=info.incarnation)]
        except WrongState as error:
            if error.reason != "HISTORY_REPLACED" or not left:
                raise
    raise AssertionError("the last try returns or raises")


async def whole_history(client: Client, run_id: str) -> HistoryFile:
    """Return the history of a run as it stands.

    Raises:
        NotFound: There is no such run.
        PayloadUnreadable: A value cannot be decrypted here, or is missing in the blob store.
        BlobStoreUnavailable: The blob store cannot be reached.
        ConfigError: The blob store is not one that this process can use.
    """
    values = client.values
    info, events = await present_history(client.run(run_id))
    history = HistoryFile(
        namespace=client.namespace,
        run_id=run_id,
        incarnation=info.incarnation,
        payload_limit=await values.limit(),
    )
    children: dict[str, str] = {}
    for event in events:
        history.events.append(event)
        kind = event.WhichOneof("kind")
        if kind is None:
            continue
        message: Any = getattr(history.events[-1], kind)
        if kind == "child_scheduled":
            children[message.command_id] = message.run_id
        if kind in UNREAD:
            continue
        place = place_of(kind, message, client.namespace, run_id, children)
        for name in values_of(message).payloads:
            payload: Payload = getattr(message, name)
            if payload.encoding:
                payload.CopyFrom(await values.open_at(payload, place))
        for name in values_of(message).failures:
            failure: Failure = getattr(message, name)
            if failure.HasField("sealed"):
                failure.CopyFrom(values.open_error_at(failure, place))
    return history
