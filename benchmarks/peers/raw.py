"""What the parts allow by themselves: RabbitMQ through aio-pika and bare frames, a Redis script, a gRPC stream."""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aio_pika
import grpc
import pamqp.body
import pamqp.commands as amqp
import pamqp.frame
import pamqp.header
import redis.asyncio as aredis
import uvloop

from benchmarks.drive import Metrics, bounded
from benchmarks.measure import Probe
from benchmarks.peers.stage import Stage, Team, options, services
from benchmarks.processes import free_port, wait_for_port

BODY = b"x" * 200
QUEUE = "bench-quorum"

COMMIT = """
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'result', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'e', ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[1])
return redis.call('HINCRBY', KEYS[1], 'done', 1)
"""


def rate(count: int, began: float) -> Metrics:
    return {"per_s": round(count / (time.perf_counter() - began), 1)}


async def aio_pika_round(count: int) -> Metrics:
    """Publish, confirm, deliver and ack on a quorum queue, 200 under way."""
    async with await aio_pika.connect(services()["rabbitmq"]["url"]) as connection:
        publisher, consumer = await connection.channel(publisher_confirms=True), await connection.channel()
        await consumer.set_qos(prefetch_count=200)
        queue = await consumer.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        got, done = 0, asyncio.Event()

        async def deliver(message: Any) -> None:
            nonlocal got
            await message.ack()
            got += 1
            if got == count:
                done.set()

        async def send(_: int) -> None:
            message = aio_pika.Message(BODY, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await publisher.default_exchange.publish(message, routing_key=QUEUE)

        tag = await queue.consume(deliver)
        began = time.perf_counter()
        sending = asyncio.create_task(bounded(count, 200, send))
        await done.wait()
        await sending
        found = rate(count, began)
        await queue.cancel(tag)
        return found


class Frames(asyncio.Protocol):
    """Just enough AMQP 0-9-1 on a socket to find the broker's own limit: it counts, and acks once a read."""

    def __init__(self, count: int) -> None:
        self.count, self.got, self.confirmed = count, 0, 0
        self.progress, self.done = asyncio.Event(), asyncio.Event()
        self._rest = b""
        self._awaited: tuple[tuple[int, int], asyncio.Future[None]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        buffer, offset, last = self._rest + data, 0, 0
        while len(buffer) - offset >= 7:
            kind, _channel, size = struct.unpack_from(">BHI", buffer, offset)
            if len(buffer) - offset < size + 8:
                break
            if kind == 1:
                last = self._method(buffer, offset + 7) or last
            offset += size + 8
        self._rest = buffer[offset:]
        if last:
            self.transport.write(pamqp.frame.marshal(amqp.Basic.Ack(last, True), 1))
        self.progress.set()
        if self.got >= self.count and self.confirmed >= self.count:
            self.done.set()

    def _method(self, buffer: bytes, place: int) -> int:
        """Take one method; returns the tag of a delivery, else 0."""
        method = struct.unpack_from(">HH", buffer, place)
        if method == (60, 60):
            self.got += 1
            return int(struct.unpack_from(">Q", buffer, place + 5 + buffer[place + 4])[0])
        if method == (60, 80):
            tag, multiple = struct.unpack_from(">QB", buffer, place + 4)
            self.confirmed = tag if multiple else self.confirmed + 1
        elif self._awaited is not None and self._awaited[0] == method:
            awaited, self._awaited = self._awaited[1], None
            awaited.set_result(None)
        elif method in ((10, 50), (20, 40)):
            raise RuntimeError(f"closed by the broker: {buffer[place : place + 200]!r}")
        return 0

    async def call(self, frame: Any, answer: tuple[int, int], channel: int = 1) -> None:
        """Send a method and wait for its answer."""
        done = asyncio.get_running_loop().create_future()
        self._awaited = (answer, done)
        self.transport.write(frame if isinstance(frame, bytes) else pamqp.frame.marshal(frame, channel))
        await done

    async def open(self) -> None:
        """Log in, declare the queue, consume from it."""
        await self.call(b"AMQP\x00\x00\x09\x01", (10, 10))
        await self.call(amqp.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), (10, 30), 0)
        self.transport.write(pamqp.frame.marshal(amqp.Connection.TuneOk(100, 131072, 0), 0))
        await self.call(amqp.Connection.Open("/"), (10, 41), 0)
        await self.call(amqp.Channel.Open(), (20, 11))
        await self.call(amqp.Confirm.Select(), (85, 11))
        await self.call(amqp.Queue.Declare(queue=QUEUE, durable=True, arguments={"x-queue-type": "quorum"}), (50, 11))
        await self.call(amqp.Basic.Qos(0, 200, False), (60, 11))
        await self.call(amqp.Basic.Consume(queue=QUEUE), (60, 21))


async def frames_round(count: int) -> Metrics:
    """The same with bare frames, 1,000 under way."""
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: Frames(count), "127.0.0.1", services()["rabbitmq"]["port"])
    await protocol.open()
    message = pamqp.frame.marshal(amqp.Basic.Publish(routing_key=QUEUE), 1)
    message += pamqp.frame.marshal(pamqp.header.ContentHeader(0, len(BODY), amqp.Basic.Properties(delivery_mode=2)), 1)
    message += pamqp.frame.marshal(pamqp.body.ContentBody(BODY), 1)
    sent, began = 0, time.perf_counter()
    while sent < count:
        room = min(1000 - (sent - protocol.confirmed), count - sent)
        if room > 0:
            protocol.transport.write(message * room)
            sent += room
        protocol.progress.clear()
        await protocol.progress.wait()
    await asyncio.wait_for(protocol.done.wait(), 120)
    found = rate(count, began)
    protocol.transport.close()
    return found


async def commits(port: int, count: int) -> Metrics:
    """A script of four writes, in pipelines of 50."""
    client = aredis.Redis(port=port)
    digest = await client.script_load(COMMIT)
    began = time.perf_counter()
    for batch in range(count // 50):
        pipeline = client.pipeline(transaction=False)
        for number in range(batch * 50, batch * 50 + 50):
            key = number % 500
            pipeline.evalsha(digest, 3, f"run:{key}", f"ev:{key}", "timers", "running", BODY, str(number))
        await pipeline.execute()
    found = rate(count // 50 * 50, began)
    await client.aclose()
    return found


async def echo_server(port: int) -> None:
    async def echo(requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    server = grpc.aio.server()
    method: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("B", {"S": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def echoes(port: int, count: int) -> Metrics:
    """Messages sent and echoed on one stream."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream("/B/S")()

        async def send() -> None:
            for _ in range(count):
                await call.write(BODY)
            await call.done_writing()

        began = time.perf_counter()
        sending, got = asyncio.create_task(send()), 0
        while await call.read() is not grpc.aio.EOF:
            got += 1
        await sending
        assert got == count
        return rate(count, began)


def bench(stage: Stage) -> None:
    """All parts."""
    count, given, groups = stage.sizes.of(10_000, 500), services(), stage.service_groups()

    def series(variant: str, workload: str, work: Callable[[], Coroutine[Any, Any, Metrics]], who: str) -> None:
        def measured(_probe: Probe) -> Metrics:
            found: Metrics = uvloop.run(work())
            return found

        stage.series(variant, workload, {who: groups.get(who, team.pids)}, measured)

    port = free_port()
    team = Team([sys.executable, "-m", "benchmarks.peers.raw", "echo", port], stage.log("echo"), {}, Path.cwd())
    team.start()
    stage.cleanup.callback(team.stop)
    assert team.process is not None
    wait_for_port(port, team.process)
    series("aio-pika quorum", "raw-rabbitmq", lambda: aio_pika_round(count), "rabbitmq")
    series("frames quorum", "raw-frames", lambda: frames_round(count * 5), "rabbitmq")
    series("always", "raw-redis", lambda: commits(given["redis-always"]["port"], count * 2), "redis-always")
    series("everysec", "raw-redis", lambda: commits(given["redis"]["port"], count * 2), "redis")
    series("grpc.aio", "raw-grpc", lambda: echoes(port, count), "echo")


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        uvloop.run(echo_server(int(sys.argv[2])))
    else:
        with options("raw") as stage:
            bench(stage)
