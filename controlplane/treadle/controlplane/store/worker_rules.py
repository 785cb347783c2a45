"""What a beat, and the opening and closing of a session, do to a worker's record: pure functions.

The pair (`beat_sent_ms`, held tokens) of a record is always one true statement of the worker: "when I
sent this, I held exactly these". So nothing but a beat that brings the list, or names the list the record
has, moves `beat_sent_ms`; everything else only counts against silence. Otherwise an old list under a new send
time would deny a living token.
"""

from __future__ import annotations

from treadle.controlplane.store.port import Beat, BeatResult
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("RECORD_TTL_MS", "apply_beat", "close_record", "open_record")

RECORD_TTL_MS = 3_600_000
"""A record goes when there was no beat for this long."""


def open_record(stored: WorkerRecord | None, new: WorkerRecord, now_ms: int) -> WorkerRecord | None:
    """Return the record with the session of `new` opened; None when `stored` has one that was sent later."""
    if stored is not None and stored.session_sent_ms > new.session_sent_ms:
        return None
    record = WorkerRecord()
    record.CopyFrom(new)
    record.closed_ms = 0
    record.drained = False
    record.last_beat_ms = now_ms
    record.beat_sent_ms = stored.beat_sent_ms if stored is not None else 0
    record.list_id = stored.list_id if stored is not None else 0
    del record.held[:]
    if stored is not None:
        record.held.extend(stored.held)
    record.started_ms = (stored.started_ms if stored is not None else 0) or new.started_ms or now_ms
    return record


def close_record(stored: WorkerRecord | None, session_id: str, drained: bool, now_ms: int) -> WorkerRecord | None:
    """Return the record closed; None when it names another session. Closing again changes nothing."""
    if stored is None or stored.session_id != session_id:
        return None
    record = WorkerRecord()
    record.CopyFrom(stored)
    if not record.closed_ms:
        record.closed_ms = now_ms
        record.drained = drained
    return record


def apply_beat(stored: WorkerRecord | None, beat: Beat, now_ms: int) -> tuple[WorkerRecord | None, BeatResult]:
    """Return the record after the beat (None: unchanged) and the answer."""
    if stored is None or stored.session_id != beat.session_id or stored.closed_ms or stored.beat_sent_ms > beat.sent_ms:
        return None, BeatResult(ignored=True, want_list=False)
    record = WorkerRecord()
    record.CopyFrom(stored)
    record.last_beat_ms = now_ms
    record.loop_lag_ms = beat.loop_lag_ms
    record.steps_running = beat.steps_running
    record.runs_open = beat.runs_open
    record.draining = beat.draining
    if beat.held is not None:
        record.list_id = beat.list_id
        del record.held[:]
        record.held.extend(beat.held)
    elif record.list_id != beat.list_id:
        return record, BeatResult(ignored=False, want_list=True)
    record.beat_sent_ms = beat.sent_ms
    return record, BeatResult(ignored=False, want_list=False)
