"""What only RabbitMQ does: properties, persistence, refusals, blocked connections, garbage, and being killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aio_pika
import pytest

from tests.contract.brokers import TRACEPARENT, Ear, Taker, fresh_queue, job, jobs, until
from tests.servers.rabbit_server import RabbitServer, free_port
from treadle.controlplane.broker.rabbitmq import RabbitBroker
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.protocol.topology import EXCHANGE, QUEUE_ARGUMENTS, Queue
from treadle.v1.job_pb2 import Job

pytestmark = pytest.mark.rabbitmq


@contextlib.asynccontextmanager
async def started(broker: RabbitBroker, ear: Ear) -> AsyncIterator[RabbitBroker]:
    await broker.start(ear)
    try:
        yield broker
    finally:
        await broker.stop()


@contextlib.asynccontextmanager
async def raw_channel(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A stock aio-pika channel: another program on the same broker."""
    connection = await aio_pika.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


def test_properties_are_standard_and_persistent(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        async with started(RabbitBroker(rabbit_url), ear) as broker, raw_channel(rabbit_url) as channel:
            await broker.declare(queue)
            long = job(queue, "long")
            long.run_id = "ü" * 200  # 400 bytes: over what an AMQP short string holds
            broker.publish([job(queue, "d1"), long])
            await until(lambda: ear.confirmed_ids == ["d1", "long"])
            raw = await channel.declare_queue(queue.name, passive=True)
            message = await raw.get(timeout=10)
            assert message.message_id == "d1"
            assert message.correlation_id == "upload-42"
            assert message.type == "validate"
            assert message.app_id == "treadle"
            assert message.content_type == "application/protobuf"
            assert message.headers["traceparent"] == TRACEPARENT
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            assert message.timestamp is not None
            assert message.exchange == EXCHANGE and message.routing_key == queue.name
            assert Job.FromString(message.body) == job(queue, "d1")
            other = await raw.get(timeout=10)
            assert other.correlation_id == "ü" * 127
            assert Job.FromString(other.body) == long

    asyncio.run(scenario())


def test_a_large_job_is_split_into_frames(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            large = job(queue, "large")
            large.input.data = bytes(range(256)) * 2000  # half a MiB; a frame holds 128 KiB
            await broker.consume(queue, 1, taker)
            broker.publish([large, job(queue, "next")])
            await taker.wait(2)
            assert taker.deliveries[0].job == large
            await until(lambda: ear.confirmed_ids == ["large", "next"])

    asyncio.run(scenario())


def test_garbage_is_no_job_and_the_consumer_lives(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url), ear) as broker, raw_channel(rabbit_url) as channel:
            await broker.declare(queue)
            await broker.consume(queue, 5, taker)
            exchange = await channel.get_exchange(EXCHANGE)
            for body in (b"\xff\xff not a job", b"", b"\n\x01x"):
                await exchange.publish(aio_pika.Message(body), routing_key=queue.name)
            broker.publish([job(queue, "d1")])
            await taker.wait(4)
            assert [d.job for d in taker.deliveries[:3]] == [None, None, None]
            assert taker.deliveries[0].body == b"\xff\xff not a job"
            assert taker.ids[3] == "d1"

    asyncio.run(scenario())


def test_confirmed_jobs_survive_the_broker(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        ids = [f"d{n}" for n in range(200)]
        async with started(RabbitBroker(rabbit.url), ear) as broker:
            await broker.declare(queue)
            broker.publish(jobs(queue, ids))
            await until(lambda: len(ear.confirmed_ids) == 200)
            await asyncio.to_thread(rabbit.restart)
            await broker.consume(queue, 50, taker)
            await taker.wait(200)
            assert taker.ids == ids

    asyncio.run(scenario())


@pytest.mark.kill
def test_a_killed_broker_loses_no_confirmed_job_and_consumers_come_back(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit.url), ear) as broker:
            await broker.declare(queue)
            await broker.consume(queue, 20, taker)
            produced: list[str] = []
            stop = asyncio.Event()

            async def produce() -> None:
                """Publish all the time; publish again what stays unconfirmed, as the outbox duty does."""
                while not stop.is_set():
                    ids = [f"d{len(produced) + n}" for n in range(5)]
                    produced.extend(ids)
                    broker.publish(jobs(queue, ids))
                    broker.publish(jobs(queue, sorted(set(produced) - set(ear.confirmed_ids))))
                    await asyncio.sleep(0.02)  # the rate of the load, no synchronisation

            producer = asyncio.create_task(produce())
            await until(lambda: len(taker.ids) > 200)
            rabbit.kill()
            before = len(produced)
            await until(lambda: len(produced) > before + 300)  # more than a second of an absent broker
            await asyncio.to_thread(rabbit.restart)
            back = len(taker.ids)
            await until(lambda: len(taker.ids) > back + 200, seconds=20, what="the consumer is back")
            stop.set()
            await producer
            await until(lambda: set(ear.confirmed_ids) == set(produced), what="everything is confirmed")
            await until(lambda: set(taker.ids) == set(produced), what="everything was delivered")
            assert ear.returned_ids == []

    asyncio.run(scenario())


def test_a_blocked_connection_keeps_memory_bounded_and_goes_on(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit.url, max_jobs=40, window=10), ear) as broker:
            await broker.declare(queue)
            await broker.consume(queue, 5, taker)
            await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.00001")
            try:
                broker.publish([job(queue, "first")])  # the broker blocks who publishes
                await state_of_the_publisher(rabbit, "blocked")
                ids = [f"d{n}" for n in range(100)]
                broker.publish(jobs(queue, ids))
                assert (await broker.depth(queue)).consumers == 1  # the other connection works
                assert not set(ids) & set(ear.confirmed_ids)
            finally:
                await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.6")
            await until(lambda: len(ear.confirmed_ids) >= 40)
            assert set(ear.confirmed_ids) <= {"first", *ids[:50]}  # the rest was dropped: the bound, and the window
            broker.publish(jobs(queue, [d for d in ids if d not in ear.confirmed_ids][:40]))
            await until(lambda: len(ear.confirmed_ids) >= 80)
            await taker.wait(80)
            assert len(ear.confirmed_ids) == len(set(ear.confirmed_ids))

    asyncio.run(scenario())


async def state_of_the_publisher(rabbit: RabbitServer, wanted: str) -> None:
    async with asyncio.timeout(60):  # each look starts an Erlang VM
        while True:
            listing = await asyncio.to_thread(rabbit.ctl, "list_connections", "client_properties", "state")
            if any("treadle-server publish" in line and line.endswith(wanted) for line in listing.splitlines()):
                return


def test_inequivalent_arguments_name_the_argument_and_the_repair(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue = fresh_queue()
        async with started(RabbitBroker(rabbit_url), Ear()) as broker, raw_channel(rabbit_url) as channel:
            await channel.declare_queue(queue.name, durable=True, arguments={"x-queue-type": "quorum"})
            with pytest.raises(ConfigError) as refused:
                await broker.declare(queue)
            text = str(refused.value)
            assert queue.name in text
            assert "x-delivery-limit" in text
            assert f"rabbitmqctl --vhost '/' delete_queue {queue.name}" in text
            await channel.queue_delete(queue.name)
            await broker.declare(queue)

    asyncio.run(scenario())


def test_queues_have_exactly_the_arguments_of_the_topology(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue = fresh_queue()
        async with started(RabbitBroker(rabbit_url), Ear()) as broker, raw_channel(rabbit_url) as channel:
            await broker.declare(queue)
            await channel.declare_queue(queue.name, durable=True, arguments=dict(QUEUE_ARGUMENTS))
            with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed):
                await channel.declare_queue(
                    queue.name, durable=True, arguments={**QUEUE_ARGUMENTS, "x-delivery-limit": 20}
                )

    asyncio.run(scenario())


def test_a_deleted_queue_is_declared_again_by_its_consumer(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url), ear) as broker, raw_channel(rabbit_url) as channel:
            await broker.declare(queue)
            await broker.consume(queue, 5, taker)
            broker.publish([job(queue, "before")])
            await taker.wait(1)
            await channel.queue_delete(queue.name)
            await has_consumer(broker, queue)
            broker.publish([job(queue, "after")])
            await taker.wait(2)

    asyncio.run(scenario())


async def has_consumer(broker: RabbitBroker, queue: Queue) -> None:
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(Unavailable):
                if (await broker.depth(queue)).consumers:
                    return


def test_a_consumer_that_the_broker_forgot_is_found(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url, look_every=0.2), ear) as broker:
            await broker.declare(queue)
            consumer = await broker.consume(queue, 5, taker)
            await has_consumer(broker, queue)
            # Cancel it behind the back of our side, as a broker does that forgets it.
            await forget(broker, queue, consumer)
            broker.publish([job(queue, "d1")])
            await taker.wait(1)

    asyncio.run(scenario())


async def forget(broker: RabbitBroker, queue: Queue, consumer: object) -> None:
    connection = await broker._consuming.wait()
    for channel in connection.channels.values():
        for tag in list(getattr(channel, "consumers", ())):
            assert channel is not None
            await channel.basic_cancel(tag)


def test_an_absent_broker_is_named_without_its_password() -> None:
    async def scenario() -> None:
        port = free_port()
        broker = RabbitBroker(f"amqp://app:s3cret@127.0.0.1:{port}/prod")
        with pytest.raises(Unavailable) as refused:
            await broker.start(Ear())
        assert f"127.0.0.1:{port}" in str(refused.value)
        assert "s3cret" not in str(refused.value)
        assert "start" in refused.value.remedy

    asyncio.run(scenario())


def test_a_refused_login_is_a_setting_to_correct(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        broker = RabbitBroker(f"amqp://guest:wrong@127.0.0.1:{rabbit.port}/")
        with pytest.raises(ConfigError, match="login") as refused:
            await broker.start(Ear())
        assert "wrong" not in str(refused.value)

    asyncio.run(scenario())


def test_asking_an_absent_broker_is_unavailable(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        queue = fresh_queue()
        async with started(RabbitBroker(rabbit.url), Ear()) as broker:
            await broker.declare(queue)
            rabbit.kill()
            with pytest.raises(Unavailable):
                await broker.depth(queue)
            with pytest.raises(Unavailable):
                await broker.declare(queue)
            broker.publish([job(queue, "d1")])  # never raises

    asyncio.run(scenario())


def test_declaring_a_queue_many_times_at_once(rabbit_url: str) -> None:
    async def scenario() -> None:
        """RabbitMQ 3.10 closes the connection with INTERNAL_ERROR when two declare a new quorum queue at once."""
        async with started(RabbitBroker(rabbit_url), Ear()) as one, started(RabbitBroker(rabbit_url), Ear()) as two:
            for _ in range(5):
                queue = fresh_queue()
                await asyncio.gather(*(broker.declare(queue) for broker in (one, two, one, two)))
                assert (await one.depth(queue)).ready == 0

    asyncio.run(scenario())
