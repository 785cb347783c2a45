"""The codec of the hot AMQP frames, against pamqp, and in pieces of any size."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from treadle.protocol.amqp_frames import (
    CUT_BYTES,
    HEARTBEAT,
    LARGEST_BODY,
    FrameError,
    FrameStream,
    HotChannel,
    ack_frame,
    message_frames,
    message_properties,
    nack_frame,
    publish_frame,
)

HOT, COLD = 1, 2
SMALL_FRAMES = 4096

short = st.text(max_size=60)
tags = st.integers(1, 2**63 - 1)  # pamqp writes no more


def properties(message_id: str, headers: dict[str, str], type: str = "validate") -> bytes:
    return message_properties(
        content_type="application/protobuf",
        headers=headers,
        correlation_id="upload-42",
        message_id=message_id,
        timestamp=1_700_000_000,
        type=type,
        app_id="treadle",
    )


def frames_of(data: bytes) -> list[Any]:
    """What pamqp reads in it."""
    found = []
    while data:
        size, _, what = frame.unmarshal(data)
        found.append(what)
        data = data[size:]
    return found


def content(channel: int, method: Any, body: bytes, piece: int, message_id: str | None = None) -> list[bytes]:
    header = ContentHeader(body_size=len(body), properties=spec.Basic.Properties(message_id=message_id, priority=3))
    parts = [ContentBody(body[at : at + piece]) for at in range(0, len(body), piece)]
    return [frame.marshal(part, channel) for part in (method, header, *parts)]


def deliver(tag: int, body: bytes, piece: int = 1000, channel: int = HOT) -> list[bytes]:
    return content(channel, spec.Basic.Deliver("ctag1.x", tag, False, "treadle.jobs", "treadle.a.b.steps"), body, piece)


def returned(message_id: str | None, body: bytes, piece: int = 1000) -> list[bytes]:
    return content(HOT, spec.Basic.Return(312, "NO_ROUTE", "treadle.jobs", "q"), body, piece, message_id)


def hot_stream() -> tuple[FrameStream, HotChannel]:
    stream, channel = FrameStream(), HotChannel(HOT)
    stream.hot[HOT] = channel
    return stream, channel


# --- made -----------------------------------------------------------------------------------------------------------
@given(
    key=short,
    message_id=short,
    type=short,
    headers=st.dictionaries(short, st.text(max_size=300)),
    body=st.binary(max_size=9000),
)
def test_a_message_is_what_pamqp_reads(
    key: str, message_id: str, type: str, headers: dict[str, str], body: bytes
) -> None:
    listed = properties(message_id, headers, type)
    data = message_frames(publish_frame(7, "treadle.jobs", key), 7, listed, body, SMALL_FRAMES)
    publish, header, *parts = frames_of(data)
    assert isinstance(publish, spec.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == (
        "treadle.jobs",
        key,
        True,
        False,
    )
    assert header.body_size == len(body)
    assert header.properties.content_type == "application/protobuf"
    assert header.properties.headers == headers
    assert header.properties.delivery_mode == 2
    assert (header.properties.correlation_id, header.properties.message_id) == ("upload-42", message_id)
    assert (header.properties.message_type, header.properties.app_id) == (type, "treadle")
    assert header.properties.timestamp == datetime.fromtimestamp(1_700_000_000, UTC)
    assert header.properties.priority is None and header.properties.expiration is None
    assert b"".join(part.value for part in parts) == body
    assert all(len(part.value) <= SMALL_FRAMES - 8 for part in parts)


@given(tag=tags, channel=st.integers(1, 65535), multiple=st.booleans())
def test_verdicts_are_what_pamqp_writes(tag: int, channel: int, multiple: bool) -> None:
    assert ack_frame(channel, tag, multiple=multiple) == frame.marshal(spec.Basic.Ack(tag, multiple), channel)
    assert nack_frame(channel, tag) == frame.marshal(spec.Basic.Nack(tag, False, True), channel)


def test_the_publish_and_the_heartbeat_are_what_pamqp_writes() -> None:
    expected = frame.marshal(spec.Basic.Publish(exchange="treadle.jobs", routing_key="q", mandatory=True), 3)
    assert publish_frame(3, "treadle.jobs", "q") == expected
    assert frame.marshal(Heartbeat(), 0) == HEARTBEAT


def test_a_string_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        publish_frame(1, "treadle.jobs", "ü" * 128)


# --- read -----------------------------------------------------------------------------------------------------------
events = st.one_of(
    st.tuples(st.just("deliver"), tags, st.binary(max_size=3000)),
    st.tuples(st.just("return"), short, st.binary(max_size=3000)),
    st.tuples(st.just("ack"), tags, st.booleans()),
    st.tuples(st.just("nack"), tags, st.booleans()),
    st.tuples(st.just("cold"), st.integers(0, 4), st.binary(max_size=40)),
)


def cold_frames(which: int, body: bytes) -> list[bytes]:
    return [
        [frame.marshal(Heartbeat(), 0)],
        [frame.marshal(spec.Queue.DeclareOk("q", 3, 1), HOT)],
        deliver(5, body, 17, COLD),
        [frame.marshal(spec.Basic.Cancel("ctag1.x", True), HOT)],
        [frame.marshal(spec.Connection.Blocked("low on memory"), 0)],
    ][which]


@given(st.data(), st.lists(events, max_size=12))
def test_any_cutting_of_a_stream_gives_the_same(data: st.DataObject, happened: list[Any]) -> None:
    stream, channel = hot_stream()
    wire, cold = b"", b""
    for kind, what, detail in happened:
        if kind == "deliver":
            wire += b"".join(deliver(what, detail, 997))
        elif kind == "return":
            wire += b"".join(returned(what, detail))
        elif kind == "cold":
            here = b"".join(cold_frames(what, detail))
            wire, cold = wire + here, cold + here
        else:
            method = spec.Basic.Ack(what, detail) if kind == "ack" else spec.Basic.Nack(what, detail, False)
            wire += frame.marshal(method, HOT)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(wire) - 1)), max_size=30)))
    passed = b"".join(stream.feed(wire[a:b]) for a, b in pairwise([0, *cuts, len(wire)]))
    assert passed == cold
    assert channel.deliveries == [(what, detail) for kind, what, detail in happened if kind == "deliver"]
    assert channel.returned == [what for kind, what, _ in happened if kind == "return"]
    assert channel.confirms == [
        (what, detail, kind == "ack") for kind, what, detail in happened if kind in ("ack", "nack")
    ]
    assert stream.blocked is any(event[:2] == ("cold", 4) for event in happened)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_for_and_never_kept_beyond_a_frame(noise: bytes) -> None:
    stream, _ = hot_stream()
    try:
        for byte in noise:
            stream.feed(bytes((byte,)))
    except FrameError:
        return
    assert len(stream._rest) < 128 * 1024


@given(st.data(), st.binary(min_size=1, max_size=60))
def test_a_damaged_frame_is_an_error_of_the_connection(data: st.DataObject, body: bytes) -> None:
    """A flipped byte anywhere is noticed as a FrameError, or changes a value; nothing else is raised."""
    wire = bytearray(b"".join([*deliver(9, body), *returned("d1", body), frame.marshal(spec.Basic.Ack(3, True), HOT)]))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    stream, _ = hot_stream()
    try:
        stream.feed(bytes(wire))
    except FrameError as error:
        assert str(error)


def test_a_return_without_an_id_has_none() -> None:
    stream, channel = hot_stream()
    stream.feed(b"".join(returned(None, b"x")))
    assert channel.returned == [""]


def test_every_property_before_the_id_is_skipped() -> None:
    stream, channel = hot_stream()
    listed = spec.Basic.Properties(
        content_type="a", content_encoding="b", headers={"k": "v", "n": 1}, delivery_mode=2, priority=1,
        correlation_id="c", reply_to="r", expiration="9", message_id="d1", user_id="u", app_id="z",
    )  # fmt: skip
    method = spec.Basic.Return(312, "NO_ROUTE", "x", "q")
    header = ContentHeader(body_size=0, properties=listed)
    stream.feed(frame.marshal(method, HOT) + frame.marshal(header, HOT))
    assert channel.returned == ["d1"]


def test_a_closed_channel_may_not_be_written_to() -> None:
    for closing in (spec.Channel.Close(404, "NOT_FOUND", 60, 40), spec.Channel.CloseOk()):
        stream, channel = hot_stream()
        data = frame.marshal(closing, HOT)
        assert stream.feed(data) == data  # the library answers it
        assert channel.closed


def test_the_negotiated_frame_size_is_kept_and_enforced() -> None:
    stream, channel = hot_stream()
    stream.feed(frame.marshal(spec.Connection.Tune(2047, SMALL_FRAMES, 10), 0))
    assert stream.frame_max == SMALL_FRAMES
    stream.feed(b"".join(deliver(1, b"x" * 9000, SMALL_FRAMES - 8)))
    assert channel.deliveries == [(1, b"x" * 9000)]
    too_large = b"".join(deliver(2, b"x" * 9000, SMALL_FRAMES - 7))
    for cut in (1000, len(too_large)):  # with its end, and before
        stream, channel = hot_stream()
        stream.feed(frame.marshal(spec.Connection.Tune(2047, SMALL_FRAMES, 10), 0))
        with pytest.raises(FrameError, match="4097 bytes"):
            stream.feed(too_large[:cut])


def test_of_an_oversized_message_only_the_beginning_is_kept() -> None:
    stream, channel = hot_stream()
    piece, size = 128 * 1024 - 8, LARGEST_BODY + 1
    method = deliver(1, b"")[0]
    stream.feed(method + frame.marshal(ContentHeader(body_size=size, properties=spec.Basic.Properties()), HOT))
    sent = 0
    while sent < size:
        part = b"y" * min(piece, size - sent)
        stream.feed(frame.marshal(ContentBody(part), HOT))
        sent += len(part)
    ((tag, body),) = channel.deliveries
    assert (tag, len(body)) == (1, CUT_BYTES)
    stream.feed(b"".join(deliver(2, b"next")))
    assert channel.deliveries[1] == (2, b"next")


@pytest.mark.parametrize("hello", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_who_speaks_something_else_is_named_by_its_first_bytes(hello: bytes) -> None:
    with pytest.raises(FrameError, match=hello[:4].decode()):
        FrameStream().feed(hello)
