"""Confirms against a plain model: every message is settled once, whatever the order of the broker's words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from treadle.controlplane.broker.confirms import Outgoing, Unconfirmed
from treadle.v1.job_pb2 import Job

steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 5)),
        st.tuples(st.just("one"), st.integers(0, 40)),
        st.tuples(st.just("upto"), st.integers(0, 40)),
        st.tuples(st.just("forget"), st.integers(0, 40)),
        st.tuples(st.just("all"), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_it_is_a_map_from_numbers_to_messages(happened: list[tuple[str, int]]) -> None:
    line, model, published = Unconfirmed(), dict[int, Outgoing](), 0
    for kind, value in happened:
        if kind == "publish":
            for _ in range(value):
                published += 1
                model[published] = outgoing = Outgoing(Job(dispatch_id=str(published)), "q", b"x" * published)
                outgoing.at = published
                line.append(outgoing)
            continue
        if kind == "one":
            found, gone = line.settle(value, False), [value]
        elif kind == "upto":
            upto = value if value else published
            if upto > published:  # no broker says that; it is about nothing that is known
                assert line.settle(upto, True) == []
                continue
            found, gone = line.settle(value, True), [number for number in model if number <= upto]
        elif kind == "forget":
            found, gone = line.forget_before(value), [number for number in model if number < value]
        else:
            found, gone = line.take_all(), list(model)
        assert found == [model.pop(number) for number in gone if number in model]
        assert line.count == len(model)
        assert line.bytes == sum(len(outgoing.body) for outgoing in model.values())
