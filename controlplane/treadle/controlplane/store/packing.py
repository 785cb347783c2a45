"""How a batch travels to a script: one binary string, each part behind its length.

One argument a batch instead of thousands: the client library's loop over arguments costs more than Redis
does. Parts are any bytes. Lua reads a run of parts with one call of `struct.unpack` (">I4c0" a part), which is
as fast as cmsgpack; Redis 7.0's cmsgpack refuses msgpack's `bin`, and msgspec writes no other kind for bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import msgspec

from treadle.controlplane.store.keys import Keys, run_name, timer_member
from treadle.controlplane.store.port import Beat, Change, Hint, Want
from treadle.protocol.ids import worker_shard
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("lengths_before", "pack_beats", "pack_changes", "pack_wants", "read_hints")

_LENGTH = Struct(">I").pack
_LENGTHS = tuple(map(_LENGTH, range(4096)))
_REVISION = Struct(">Q").pack
_CHANGE = Struct(">Bd9H").pack  # flags, not before, counts: see scripts/commit.lua
_WANT = Struct(">BIIqH").pack  # flags, field limit, event at, events after (-1: none), number of fields
_BEAT = Struct(">dBqqqB").pack  # sent, has list, loop lag, steps running, runs open, draining
_RESTART, _DELETE, _TRACED, _UNREAD, _ENDED, _ALL_FIELDS = 1, 2, 4, 8, 16, 1

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


def lengths_before(parts: Sequence[bytes]) -> list[bytes]:
    """Return parts as scripts take them."""
    out: list[bytes] = []
    add = out.append
    for part in parts:
        size = len(part)
        add(_LENGTHS[size] if size < 4096 else _LENGTH(size))
        add(part)
    return out


def pack_changes(changes: Sequence[Change], keys: Keys, *, traced: bool = False) -> bytes:
    """Return a batch of changes for scripts/commit.lua; `traced`: sampled runs whose history grows are noted."""
    runs: list[bytes] = []
    rest: list[bytes] = []
    for change in changes:
        run = change.run
        shard, name = keys.shards[run.shard], run_name(run)
        runs.append(b"%sr:%s" % (shard, name))
        parts = [shard, name, _REVISION(change.expect) if change.expect else b""]
        if change.delete:
            rest.append(_delete(change, name, parts))
        else:
            rest.append(_write(change, name, parts, traced))
        rest += lengths_before(parts)
    return b"".join([_LENGTH(len(changes)), *lengths_before(runs), *rest])


def _times(change: Change, name: bytes, parts: list[bytes]) -> tuple[int, int, int, int]:
    """Add timers and index entries; returns how many parts of each kind."""
    for command_id, due_ms in change.timers_set.items():
        parts += (b"%d" % due_ms, timer_member(name, command_id))
    for command_id in change.timers_del:
        parts.append(timer_member(name, command_id))
    for index, member, score in change.index_add:
        parts += (index.encode(), b"%d" % score, member.encode())
    for index, member in change.index_del:
        parts += (index.encode(), member.encode())
    timers_set, index_add = change.timers_set, change.index_add
    return 2 * len(timers_set), len(change.timers_del), 3 * len(index_add), 2 * len(change.index_del)


def _write(change: Change, name: bytes, parts: list[bytes], traced: bool) -> bytes:
    """Add the parts of a change behind the fixed ones; returns its header."""
    set_fields, events = change.set_fields, change.events
    del_fields = change.keep_fields if change.restart else change.del_fields  # all others go with a restart
    outbox_add, outbox_del = change.outbox_add, change.outbox_del
    parts.append(b"" if change.hint is None else _encode(change.hint))
    parts.append(_REVISION(change.revision) + change.head)
    for field, value in set_fields.items():
        parts += (field.encode(), value)
    for field in del_fields:
        parts.append(field.encode())
    parts += events
    for dispatch_id, entry in outbox_add.items():
        parts += (dispatch_id.encode(), entry)
    for dispatch_id in outbox_del:
        parts.append(dispatch_id.encode())
    times = _times(change, name, parts)
    flags = (_RESTART if change.restart else 0) + (_TRACED if traced and change.traced and events else 0)
    if change.unread:
        flags += _UNREAD
    if change.ended:
        flags += _ENDED
    counts = 2 * len(set_fields), len(del_fields), len(events), 2 * len(outbox_add), len(outbox_del)
    return _CHANGE(flags, change.not_before_ms, *counts, *times)


def _delete(change: Change, name: bytes, parts: list[bytes]) -> bytes:
    parts += (b"", change.tombstone, b"%d" % change.tombstone_ms)
    return _CHANGE(_DELETE, 0, 1, 0, 0, 0, 0, *_times(change, name, parts))


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
        out += lengths_before(parts)
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
        out += lengths_before((*parts, beat.session_id.encode(), _REVISION(beat.list_id), held))
    return b"".join(out)
