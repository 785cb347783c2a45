"""Spans as bytes: what protobuf writes, byte for byte, whatever is in them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from treadle.protocol import otlp_wire as wire
from treadle.protocol.ids import span_id, span_ids

Values = dict[str, str | int | bool]

texts = st.text(st.characters(codec="utf-8"), max_size=300)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
values = st.dictionaries(names, texts | st.booleans() | st.integers(-(2**63), 2**63 - 1), max_size=12)
times = st.integers(1, 2**64 - 1)
flags = st.sampled_from([wire.LOCAL, wire.REMOTE])
span_parts = st.tuples(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=8, max_size=8),
    st.just(b"") | st.binary(min_size=8, max_size=8),
    texts,
    st.integers(1, 5),
    times,
    times,
    values,
    st.lists(st.tuples(names, times, values), max_size=2),
    st.lists(
        st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), values, flags), max_size=2
    ),
    st.tuples(st.integers(0, 2), texts),
    flags,
)


def pairs(said: Values) -> list[KeyValue]:
    def value(one: str | int | bool) -> AnyValue:
        if isinstance(one, bool):
            return AnyValue(bool_value=one)
        return AnyValue(int_value=one) if isinstance(one, int) else AnyValue(string_value=one)

    return [KeyValue(key=key, value=value(one)) for key, one in said.items()]


def as_message(parts: tuple) -> Span:  # type: ignore[type-arg]
    trace, own, parent, name, kind, start, end, said, events, links, (code, text), flag = parts
    return Span(
        trace_id=trace,
        span_id=own,
        parent_span_id=parent,
        name=name,
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=pairs(said),
        events=[Span.Event(name=n, time_unix_nano=t, attributes=pairs(v)) for n, t, v in events],
        links=[Span.Link(trace_id=t, span_id=s, attributes=pairs(v), flags=f) for t, s, v, f in links],
        status=Status(code=code, message=text),
        flags=flag,
    )


def as_bytes(parts: tuple) -> bytes:  # type: ignore[type-arg]
    trace, own, parent, name, kind, start, end, said, events, links, (code, text), flag = parts
    head, under = wire.ids(trace, parent)
    back = [wire.attributes(said), *(wire.event(*event) for event in events)]
    back += [wire.link(t, s, wire.link_attributes(v), f) for t, s, v, f in links]
    return wire.span(
        (head, own, under, wire.name_and_kind(name, kind)), start, end, (*back, wire.status(code, text, flag))
    )


@given(st.lists(st.tuples(st.dictionaries(names, texts, max_size=3), names, texts, st.lists(span_parts, max_size=3))))
def test_a_request_is_what_protobuf_writes(groups: list) -> None:  # type: ignore[type-arg]
    message = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=pairs(of)),
                scope_spans=[
                    ScopeSpans(
                        scope=InstrumentationScope(name=name, version=version), spans=[as_message(one) for one in some]
                    )
                ],
            )
            for of, name, version, some in groups
        ]
    )
    made = wire.request(
        (wire.resource(of), wire.scope(name, version), [as_bytes(one) for one in some])
        for of, name, version, some in groups
    )
    assert made == message.SerializeToString()


def test_an_attribute_that_equals_another_is_not_taken_for_it() -> None:
    said: Values = {"a": True, "b": False}
    other: Values = {"a": 1, "b": 0}
    for _ in range(2):
        for one in (said, other):
            assert wire.attributes(one) == Span(attributes=pairs(one)).SerializeToString()


@given(names, names, st.integers(0, 2**64 - 1), texts)
def test_ids_of_the_spans_of_a_run_are_those_of_single_spans(namespace: str, run: str, number: int, path: str) -> None:
    assert span_ids(namespace, run, number)(path).hex() == span_id(namespace, run, number, path)
