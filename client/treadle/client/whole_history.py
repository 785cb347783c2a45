"""The history of a run with all values that its code looks at, wherever they are kept: what a replay needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.client.runs import RunHandle
from treadle.protocol.sealing import UNREAD, place_of, values_of
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryFile

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("whole_history",)


async def whole_history(client: Client, run_id: str) -> HistoryFile:
    """Return the history of a run as it stands.

    Raises:
        NotFound: There is no such run.
        PayloadUnreadable: A value cannot be decrypted here, or is missing in the blob store.
        BlobStoreUnavailable: The blob store cannot be reached.
        ConfigError: The blob store is not one that this process can use.
    """
    values = client.values
    info = await client.run(run_id).get()
    history = HistoryFile(
        namespace=client.namespace,
        run_id=run_id,
        incarnation=info.incarnation,
        payload_limit=await values.limit(),
    )
    children: dict[str, str] = {}
    async for event in RunHandle[object](client, run_id, incarnation=info.incarnation).history():
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
