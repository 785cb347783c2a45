"""Replays recorded histories in a process of its own, under conditions that must not matter.

Usage: replayer.py HISTORIES NOISE GC, where GC is "off", "normal" or "aggressive". HISTORIES is a file of JSON lines
{"workflow", "history": [hex, ...]}. Prints one line for each: the commands asked for at every prefix, as hex.
"""

from __future__ import annotations

import gc
import json
import sys
from random import Random
from typing import Any

from tests.replay.catalogue import REGISTRY
from tests.replay.harness import Server, replay
from treadle.v1.history_pb2 import HistoryEvent


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self
        self.body = bytearray(Random().randrange(10, 3000))


def main(path: str, noise: int, collector: str) -> None:
    if collector == "off":
        gc.disable()
    elif collector == "aggressive":
        gc.set_threshold(1, 1, 1)
    kept: list[Any] = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            server = Server(REGISTRY, REGISTRY.workflows[record["workflow"]])
            server.history = [HistoryEvent.FromString(bytes.fromhex(e)) for e in record["history"]]
            seen = []
            for upto in range(len(server.history) + 1):
                kept.extend([Cycle(), object(), {}] for _ in range(Random().randrange(noise + 1)))
                del kept[: Random().randrange(len(kept) + 1)]
                commands, execution = replay(server, upto)
                seen.append([c.hex() for c in commands])
                execution.close()
            sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
