"""The public face of the client is what it says, and nothing more."""

from __future__ import annotations

import inspect

import treadle.client as face
from treadle.client import Client, RunHandle, Schedules, SyncClient, SyncRunHandle, SyncSchedules


def test_all_names_are_there_once() -> None:
    assert len(set(face.__all__)) == len(face.__all__)
    assert all(hasattr(face, name) for name in face.__all__)


def test_the_blocking_twins_have_the_same_calls() -> None:
    for one, twin in ((Client, SyncClient), (RunHandle, SyncRunHandle), (Schedules, SyncSchedules)):
        for name, function in inspect.getmembers(twin, inspect.isfunction):
            if name.startswith("_"):
                continue
            assert list(inspect.signature(function).parameters) == list(
                inspect.signature(getattr(one, name)).parameters
            ), f"{twin.__name__}.{name}"
