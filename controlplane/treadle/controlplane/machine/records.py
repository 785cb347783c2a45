"""Records: what lives in a shard like a run and executes no code. Their names begin with "~"."""

from __future__ import annotations

from treadle.v1.state_pb2 import RUN_STATE_RECORD, RunHead

from .view import RunView

__all__ = ("forget", "make")


def make(view: RunView) -> RunHead:
    """Begin a record under the view's name; the caller fills it in."""
    run = view.run
    view.head = RunHead(namespace=run.namespace, run_id=run.run_id, state=RUN_STATE_RECORD, created_ms=view.now)
    view.dirty = True
    return view.head


def forget(view: RunView) -> None:
    """The record goes, and nothing stays of it; in a commit of its own, for what comes in the same one would go with it."""
    if not view.may_sweep:
        return  # in a batch with others: the timer is still due
    view.deleted = view.forgotten = view.dirty = True
