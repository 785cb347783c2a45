"""Names in RabbitMQ. Declared by the control plane only; workers consume and never declare.

The arguments are the same on every version: `-1` as a delivery limit is accepted by 3.10 and then drops messages, the
default of 4.x is 20, and leaving it out on one version and setting it on the next is refused as inequivalent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from treadle.v1.job_pb2 import JOB_KIND_RUN, Job, JobKind

__all__ = ("EXCHANGE", "INLINE_INPUT_BYTES", "MAX_PROGRESS_BYTES", "QUEUE_ARGUMENTS", "Queue", "queue_of")

EXCHANGE: Final = "treadle.jobs"
"""Direct exchange, durable; the routing key is the queue's name."""

QUEUE_ARGUMENTS: Final[dict[str, str | int]] = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}

INLINE_INPUT_BYTES: Final = 64 * 1024
"""Largest encoded input that travels inside a job."""

MAX_PROGRESS_BYTES: Final = 16 * 1024
"""Largest encoded value that a step may say of how far it is: a place to go on from, not what was done."""


class Queue(NamedTuple):
    """One of the two queues of a pool."""

    namespace: str
    pool: str
    kind: JobKind.ValueType

    @property
    def name(self) -> str:
        return f"treadle.{self.namespace}.{self.pool}.{'runs' if self.kind == JOB_KIND_RUN else 'steps'}"


def queue_of(job: Job) -> Queue:
    """Return the queue that carries `job`."""
    return Queue(job.namespace, job.pool, job.kind)
