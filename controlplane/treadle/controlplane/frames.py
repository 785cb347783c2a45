"""Refuses what no worker of ours would send, before it becomes a commit: it would harm others, or come up for ever."""

from __future__ import annotations

from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.events import check_event, check_event_name, keys_of
from treadle.protocol.ids import check_name, check_run_id
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.worker_service_pb2 import OwnerRequest, SessionRequest

__all__ = ("check_frame",)

_LONGEST_MS = 100 * 366 * 86_400_000
"""A hundred years: what is added to the time of day must stay a date."""


def check_frame(frame: SessionRequest, limit: int) -> None:
    """Look at the requests of owners; `limit` is how many commands and checkpoints one may carry.

    Raises:
        FieldInvalid: A pool is no name, a child's id is none, a delay is no delay, or there are too many commands.
    """
    for ask in frame.requests:
        if len(ask.commands) + len(ask.checkpoints) > limit:
            raise FieldInvalid(f"run {ask.run_id!r}: over {limit} commands in one request", field="requests.commands")
        _check_commands(ask)


def _check_commands(ask: OwnerRequest) -> None:
    for command in ask.commands:
        kind = command.WhichOneof("kind")
        if kind == "start_timer":
            _check_delay(ask, command.start_timer.delay_ms)
        elif kind == "schedule_step":
            _check_delay(ask, command.schedule_step.timeout_ms)
            _check_delay(ask, command.schedule_step.heartbeat_ms)
            _check_pool(ask, command.schedule_step.pool)
        elif kind == "wait_for_event":
            check_event_name(command.wait_for_event.name)
            keys_of(command.wait_for_event.match)
            _check_delay(ask, command.wait_for_event.timeout_ms)
        elif kind == "send_event":
            sent = command.send_event
            check_event(NamedEvent(event_id=sent.event_id, name=sent.name, data=sent.data))
        elif kind == "schedule_child":
            check_run_id(command.schedule_child.run_id)
            _check_pool(ask, command.schedule_child.pool)


def _check_pool(ask: OwnerRequest, pool: str) -> None:
    try:
        check_name("pool", pool)
    except ConfigError as error:
        raise FieldInvalid(f"run {ask.run_id!r}: {error}", field="requests.commands.pool") from error


def _check_delay(ask: OwnerRequest, delay_ms: int) -> None:
    if not 0 <= delay_ms <= _LONGEST_MS:
        raise FieldInvalid(f"run {ask.run_id!r}: a delay of {delay_ms} ms", field="requests.commands.delay_ms")
