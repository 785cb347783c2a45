"""Names of everything in Redis, and how timers are written as members of their sorted set.

    <prefix>:{<shard>}:r:<namespace>/<run id>    string: the run's revision (8 bytes) and head
    <prefix>:{<shard>}:f:<namespace>/<run id>    hash: the run's fields, while it has any
    <prefix>:{<shard>}:l:<namespace>/<run id>    list: the history
    <prefix>:{<shard>}:t:<namespace>/<run id>    string with expiry: tombstone
    <prefix>:{<shard>}:times                     sorted set: timers by due time
    <prefix>:{<shard>}:outbox                    hash: dispatch id -> time written (8 bytes) and entry
    <prefix>:{<shard>}:i:<index>                 sorted set: members of an index
    <prefix>:{<shard>}:duty, :round              string with expiry: holder of duty lease; hash: last round
    <prefix>:{<shard>}:w:<worker id>             hash with expiry: a worker's record
    <prefix>:{<shard>}:beats, :workers           sorted sets: open records by last beat; all records
    <prefix>:{<shard>}:traces, :spans           set, hash: runs with unexported history; how far each was exported
    <prefix>:{<shard>}:left:<member>             list with expiry: head and history that left before they were exported
    <prefix>:{<shard>}:unknown, :garbage         list: what is kept aside (each with a ":size" beside it)
    <prefix>:{<namespace>}:registry, :steps      hash: name -> pool
    <prefix>:{pools}:pools                       set: <namespace>/<pool>
    <prefix>:hints                               channel

A shard's keys carry its number as hash tag, so that one script may touch them all on Redis Cluster.
"""

from __future__ import annotations

from treadle.controlplane.store.port import Timer
from treadle.protocol.ids import SHARDS, RunKey

__all__ = ("SEPARATOR", "Keys", "run_name", "timer_member", "timer_of")

SEPARATOR = b"\x1f"  # no run id has it: they are printable


def run_name(run: RunKey) -> bytes:
    """Return "<namespace>/<run id>"; a namespace has no slash."""
    return f"{run.namespace}/{run.run_id}".encode()


def timer_member(name: bytes, command_id: str) -> bytes:
    """Return the member of a command's timer; `name` is the run's, see `run_name`."""
    return name + SEPARATOR + command_id.encode()


def timer_of(member: bytes, due_ms: int) -> Timer:
    """Return the timer that `timer_member` wrote."""
    name, _, command_id = member.partition(SEPARATOR)
    namespace, _, run_id = name.decode().partition("/")
    return Timer(RunKey(namespace, run_id), command_id.decode(), due_ms)


class Keys:
    """Names under one prefix.

    Attributes:
        shards: What the names of each shard begin with, by shard: b"treadle:{17}:".
        hints: The channel.
        pools: The set of pools.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.shards = tuple(f"{prefix}:{{{shard}}}:".encode() for shard in range(SHARDS))
        self.hints = f"{prefix}:hints"
        self.pools = f"{prefix}:{{pools}}:pools"

    def of_shard(self, shard: int, name: str) -> bytes:
        """Return a key of a shard."""
        return self.shards[shard] + name.encode()

    def of_namespace(self, namespace: str, name: str) -> str:
        """Return a key in the namespace's own slot."""
        return f"{self._prefix}:{{{namespace}}}:{name}"
