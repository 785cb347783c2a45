"""The worker's AMQP lane on a real RabbitMQ: verdicts, pauses, lost channels, missing queues, and a killed broker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

import aio_pika
import pytest

from tests.contract.brokers import fresh_queue, job, until
from tests.servers.rabbit_server import RabbitServer
from treadle.protocol.topology import QUEUE_ARGUMENTS, Queue
from treadle.worker.amqp import Delivered, QueueConsumer
from treadle.worker.amqp_link import RPC_TIMEOUT, AmqpLink

pytestmark = pytest.mark.rabbitmq


class Hands:
    """What a worker does with deliveries: remembers them, with the tags that became void."""

    def __init__(self) -> None:
        self.taken: list[Delivered] = []
        self.lost: list[int] = []

    def delivered(self, found: Sequence[Delivered]) -> None:
        self.taken += found

    def channel_lost(self, tags: Sequence[int]) -> None:
        self.lost += tags

    @property
    def tags(self) -> list[int]:
        return [tag for tag, _, _ in self.taken]

    @property
    def ids(self) -> list[str]:
        return [job.dispatch_id if job is not None else "" for _, job, _ in self.taken]

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.taken) >= count, what=f"{count} deliveries, got {len(self.taken)}")


class Plane:
    """Stands for the control plane: declares and fills a queue, with stock aio-pika."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel, queue: Queue) -> None:
        self.channel = channel
        self.queue = queue

    async def declare(self) -> None:
        await self.channel.declare_queue(self.queue.name, durable=True, arguments=dict(QUEUE_ARGUMENTS))

    async def put(self, *ids: str) -> None:
        for dispatch_id in ids:
            await self.put_body(job(self.queue, dispatch_id).SerializeToString())

    async def put_body(self, body: bytes) -> None:
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.channel.default_exchange.publish(message, routing_key=self.queue.name)

    async def ready(self, count: int) -> None:
        async with asyncio.timeout(15):
            while True:
                seen = await self.channel.declare_queue(self.queue.name, passive=True)
                if seen.declaration_result.message_count == count:
                    return


@contextlib.asynccontextmanager
async def plane_of(url: str, queue: Queue) -> AsyncIterator[Plane]:
    connection = await aio_pika.connect(url)
    try:
        yield Plane(await connection.channel(), queue)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def consuming(
    url: str, queue: Queue, hands: Hands, *, prefetch: int = 5, look_every: float = 10.0
) -> AsyncIterator[QueueConsumer]:
    link = AmqpLink(url)
    consumer = QueueConsumer(link, queue.name, prefetch, hands.delivered, hands.channel_lost, look_every=look_every)
    consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()
        await link.close()


def test_deliveries_are_handed_over_and_settled(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            await plane.put("a", "b", "c", "d")
            async with consuming(rabbit_url, queue, hands, prefetch=4) as consumer:
                await hands.wait(4)
                assert hands.ids == ["a", "b", "c", "d"]
                assert hands.taken[0][1] == job(queue, "a")
                for index in (3, 0, 2):
                    consumer.ack(hands.tags[index])
                consumer.ack(hands.tags[0])  # twice changes nothing
                consumer.ack(99_999)  # unknown changes nothing
                assert consumer.unsettled == 1
                consumer.give_back(hands.tags[1])
                await hands.wait(5)
                assert hands.ids[4] == "b"
                consumer.ack(hands.tags[4])
            await plane.ready(0)
            assert hands.lost == []

    asyncio.run(scenario())


def test_what_has_no_verdict_at_the_stop_goes_back(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            await plane.put("a", "b", "c")
            async with consuming(rabbit_url, queue, hands) as consumer:
                await hands.wait(3)
                consumer.ack(hands.tags[2])  # said just before the stop: still written
            await plane.ready(2)

    asyncio.run(scenario())


def test_garbage_is_no_job_and_the_consumer_lives(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            await plane.put_body(b"\xff\xff not a job")
            await plane.put("a")
            async with consuming(rabbit_url, queue, hands) as consumer:
                await hands.wait(2)
                assert hands.taken[0][1:] == (None, b"\xff\xff not a job")
                assert hands.ids[1] == "a"
                for tag in hands.tags:
                    consumer.ack(tag)
            await plane.ready(0)

    asyncio.run(scenario())


def test_a_pause_takes_nothing_and_keeps_verdicts_possible(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            async with consuming(rabbit_url, queue, hands, prefetch=2) as consumer:
                await plane.put("a", "b")
                await hands.wait(2)
                consumer.pause()
                await consumer.wait_consuming(False)
                await plane.put("c")
                consumer.ack(hands.tags[0])
                consumer.give_back(hands.tags[1])
                await plane.ready(2)
                assert hands.ids == ["a", "b"]
                consumer.resume(prefetch=1)
                await hands.wait(3)
                await plane.ready(1)  # prefetch 1 now
                consumer.ack(hands.tags[2])
                await hands.wait(4)
                assert sorted(hands.ids[2:]) == ["b", "c"]

    asyncio.run(scenario())


def test_prefetch_changes_without_a_pause(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            async with consuming(rabbit_url, queue, hands, prefetch=1) as consumer:
                await plane.put("a", "b", "c")
                await hands.wait(1)
                consumer.pause()
                consumer.resume(prefetch=3)
                await hands.wait(3)
                assert sorted(hands.ids) == ["a", "b", "c"]

    asyncio.run(scenario())


def test_it_waits_for_a_queue_that_is_not_declared_yet(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with consuming(rabbit_url, queue, hands) as consumer, plane_of(rabbit_url, queue) as plane:
            connection_open = consumer._link
            await until(lambda: connection_open.up)
            assert not consumer.consuming
            await plane.declare()
            await plane.put("a")
            await hands.wait(1)
            await plane.channel.queue_delete(queue.name)
            await consumer.wait_consuming(False)
            await plane.declare()
            await plane.put("b")
            await hands.wait(2)
            assert hands.ids == ["a", "b"]

    asyncio.run(scenario())


def test_a_worker_never_declares(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with consuming(rabbit_url, queue, hands) as consumer:
            await until(lambda: consumer._pause_s > 0.3)  # it was refused a few times
        async with plane_of(rabbit_url, queue) as plane:
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await plane.channel.declare_queue(queue.name, passive=True)

    asyncio.run(scenario())


def test_a_lost_channel_voids_its_tags(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            await plane.put("a", "b")
            async with consuming(rabbit_url, queue, hands, prefetch=2) as consumer:
                await hands.wait(2)
                old = list(hands.tags)
                connection = await consumer._link.wait()
                for channel in list(connection.channels.values()):
                    assert channel is not None
                    await channel.close()
                await hands.wait(4)
                assert hands.lost == old
                assert not set(hands.tags[2:]) & set(old)
                consumer.ack(old[0])  # void: must not ack the new delivery with the same AMQP tag
                consumer.give_back(hands.tags[2])
                await hands.wait(5)
                assert sorted(hands.ids[2:4]) == ["a", "b"]

    asyncio.run(scenario())


def test_a_consumer_that_the_broker_forgot_is_found(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit_url, queue) as plane:
            await plane.declare()
            async with consuming(rabbit_url, queue, hands, look_every=0.2) as consumer:
                await consumer.wait_consuming()
                connection = await consumer._link.wait()
                for channel in list(connection.channels.values()):
                    for tag in list(getattr(channel, "consumers", ())):
                        assert channel is not None
                        await channel.basic_cancel(tag)  # behind the consumer's back
                await plane.put("a")
                await hands.wait(1)

    asyncio.run(scenario())


@pytest.mark.kill
def test_it_survives_a_broker_that_is_killed(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with plane_of(rabbit.url, queue) as plane:
            await plane.declare()
            await plane.put("a", "b", "c")
        async with consuming(rabbit.url, queue, hands, prefetch=3) as consumer:
            await hands.wait(3)
            old = list(hands.tags)
            rabbit.kill()
            await until(lambda: hands.lost == old)
            consumer.ack(old[0])  # void
            await asyncio.to_thread(rabbit.restart)
            await hands.wait(6)
            assert sorted(hands.ids[3:]) == ["a", "b", "c"]
            for tag in hands.tags[3:]:
                consumer.ack(tag)
            async with plane_of(rabbit.url, queue) as plane:
                await plane.put("d")
                await hands.wait(7)
                consumer.ack(hands.tags[6])

    asyncio.run(scenario())


def test_stop_does_not_wait_for_an_absent_broker(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        queue, hands = fresh_queue(), Hands()
        async with consuming(rabbit.url, queue, hands) as consumer:
            await until(lambda: consumer._link.up)
            rabbit.kill()
            await until(lambda: not consumer._link.up)
            async with asyncio.timeout(RPC_TIMEOUT - 1):
                await consumer.stop()

    asyncio.run(scenario())


def test_no_prefetch_is_refused() -> None:
    async def scenario() -> None:
        name = f"treadle.t{secrets.token_hex(3)}.csv.steps"
        with pytest.raises(ValueError, match="prefetch 0"):
            QueueConsumer(AmqpLink("amqp://127.0.0.1/"), name, 0, Hands().delivered, Hands().channel_lost)

    asyncio.run(scenario())
