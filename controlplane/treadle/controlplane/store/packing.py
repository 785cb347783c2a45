"""How a batch travels to a script: one binary string, each part behind its length.

One argument a batch instead of thousands: the client library's loop over arguments costs more than Redis
does. Parts are any bytes. Lua reads a run of parts with one call of `struct.unpack` (">I4c0" a part), which is
as fast as cmsgpack; Redis 7.0's cmsgpack refuses msgpack's `bin`, and msgspec writes no other kind for bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

import msgspec

from treadle.controlplane.store.keys import Keys, run_name, timer_member
from treadle.controlplane.store.port import Beat, Change, Hint, Want
from treadle.protocol.ids import worker_shard
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("pack_beats", "pack_changes", "pack_wants", "read_hints")

_LENGTH = Struct(">I").pack
_LENGTHS = tuple(map(_LENGTH, range(4096)))
_REVISION = Struct(">Q").pack
_CHANGE = Struct(">Bd9H").pack  # flags, not before, counts: see scripts/commit.lua
_WANT = Struct(">BIIqH").pack  # flags, field limit, event at, events after (-1: none), number of fields
_BEAT = Struct(">dBqqqB").pack  # sent, has list, loop lag, steps running, runs open, draining
_RESTART, _DELETE, _TRACED, _ALL_FIELDS = 1, 2, 4, 1

_encode = msgspec.msgpack.Encoder().encode
_decode_hints = msgspec.msgpack.Decoder(list[Hint]).decode


def read_hints(message: bytes, sender: bytes) -> list[Hint]:
    """Return the hints of one published message; none of one that this `sender` published.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    if message.startswith(sender):
        return []
    return _decode_hints(memoryview(message)[len(sender) :])


def _lengths_before(parts: Iterable[bytes]) -> list[bytes]:
    out: list[bytes] = []
    for part in parts:
        size = len(part)
        out.append(_LENGTHS[size] if size < 4096 else _LENGTH(size))
        out.append(part)
    return out


def pack_changes(changes: Sequence[Change], keys: Keys, *, traced: bool = False) -> bytes:
    """Return a batch of changes for scripts/commit.lua; `traced`: sampled runs whose history grows are noted."""
    out: list[bytes] = [_LENGTH(len(changes))]
    names = [run_name(change.run) for change in changes]
    out += _lengths_before(
        [b"%sr:%s" % (keys.shards[change.run.shard], name) for change, name in zip(changes, names, strict=True)]
    )
    for change, name in zip(changes, names, strict=True):
        out += _pack_delete(change, keys, name) if change.delete else _pack_write(change, keys, name, traced)
    return b"".join(out)


def _fixed(change: Change, keys: Keys, name: bytes, hint: bytes) -> list[bytes]:
    return [
        keys.shards[change.run.shard],
        name,
        _REVISION(change.expect) if change.expect else b"",
        hint,
    ]


def _times(change: Change, name: bytes) -> list[bytes]:
    parts: list[bytes] = []
    for command_id, due_ms in change.timers_set.items():
        parts += (b"%d" % due_ms, timer_member(name, command_id))
    for command_id in change.timers_del:
        parts.append(timer_member(name, command_id))
    for index, member, score in change.index_add:
        parts += (index.encode(), b"%d" % score, member.encode())
    for index, member in change.index_del:
        parts += (index.encode(), member.encode())
    return parts


def _pack_write(change: Change, keys: Keys, name: bytes, traced: bool) -> list[bytes]:
    parts = _fixed(change, keys, name, b"" if change.hint is None else _encode(change.hint))
    parts.append(_REVISION(change.revision) + change.head)
    for field, value in change.set_fields.items():
        parts += (field.encode(), value)
    parts += [field.encode() for field in change.del_fields]
    parts += change.events
    for dispatch_id, entry in change.outbox_add.items():
        parts += (dispatch_id.encode(), entry)
    parts += [dispatch_id.encode() for dispatch_id in change.outbox_del]
    parts += _times(change, name)
    header = _CHANGE(
        (_RESTART if change.restart else 0) + (_TRACED if traced and change.traced and change.events else 0),
        change.not_before_ms,
        2 * len(change.set_fields),
        len(change.del_fields),
        len(change.events),
        2 * len(change.outbox_add),
        len(change.outbox_del),
        2 * len(change.timers_set),
        len(change.timers_del),
        3 * len(change.index_add),
        2 * len(change.index_del),
    )
    return [header, *_lengths_before(parts)]


def _pack_delete(change: Change, keys: Keys, name: bytes) -> list[bytes]:
    parts = _fixed(change, keys, name, b"")
    parts += (change.tombstone, b"%d" % change.tombstone_ms)
    parts += _times(change, name)
    timers, index = (
        (len(change.timers_set), len(change.timers_del)),
        (
            len(change.index_add),
            len(change.index_del),
        ),
    )
    counts = (1, 0, 0, 0, 0, 2 * timers[0], timers[1], 3 * index[0], 2 * index[1])
    return [_CHANGE(_DELETE, 0, *counts), *_lengths_before(parts)]


def pack_wants(wants: Sequence[Want], keys: Keys) -> bytes:
    """Return a batch of wants for scripts/load.lua."""
    out: list[bytes] = []
    for want in wants:
        fields = () if want.all_fields else want.fields
        after = -1 if want.events_after is None else want.events_after
        flags = _ALL_FIELDS if want.all_fields else 0
        out.append(_WANT(flags, want.field_limit, want.event_at, after, len(fields)))
        parts = [keys.shards[want.run.shard], run_name(want.run)]
        parts += [field.encode() for field in fields]
        out += _lengths_before(parts)
    return b"".join(out)


def pack_beats(beats: Sequence[Beat], keys: Keys) -> bytes:
    """Return a batch of beats for scripts/beat.lua."""
    out: list[bytes] = []
    for beat in beats:
        has_list = beat.held is not None
        held = WorkerRecord(held=beat.held).SerializeToString() if has_list else b""
        out.append(
            _BEAT(
                beat.sent_ms,
                has_list,
                beat.loop_lag_ms,
                beat.steps_running,
                beat.runs_open,
                beat.draining,
            )
        )
        key = keys.of_shard(worker_shard(beat.worker_id), f"w:{beat.worker_id}")
        parts = (key, keys.shards[worker_shard(beat.worker_id)], beat.worker_id.encode())
        out += _lengths_before((*parts, beat.session_id.encode(), _REVISION(beat.list_id), held))
    return b"".join(out)
