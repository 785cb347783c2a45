"""Verdicts on deliveries: whatever the order, the broker ends up with exactly what was decided."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from treadle.protocol.delivery_tags import DeliveryTags, Verdict


def tags(count: int) -> DeliveryTags:
    made = DeliveryTags()
    for tag in range(1, count + 1):
        made.delivered(tag)
    return made


def test_an_ack_of_many_stops_below_the_first_open_tag() -> None:
    open_tags = tags(5)
    for tag in (1, 2, 4, 5):
        assert open_tags.ack(tag)
    assert open_tags.take() == [
        Verdict(2, ack=True, multiple=True),
        Verdict(4, ack=True),
        Verdict(5, ack=True),
    ]
    assert open_tags.open == (3,)
    assert open_tags.take() == []


def test_nacks_come_before_an_ack_that_would_cover_them() -> None:
    open_tags = tags(3)
    open_tags.ack(1)
    open_tags.ack(3)
    open_tags.give_back(2)
    assert open_tags.take() == [Verdict(2, ack=False), Verdict(3, ack=True, multiple=True)]


def test_a_second_verdict_and_an_unknown_tag_change_nothing() -> None:
    open_tags = tags(1)
    assert open_tags.ack(1)
    assert not open_tags.give_back(1)
    assert not open_tags.ack(0)
    assert open_tags.take() == [Verdict(1, ack=True)]


@given(st.lists(st.tuples(st.sampled_from(["deliver", "ack", "back", "take"]), st.integers(0, 20)), max_size=80))
def test_the_broker_does_exactly_what_was_decided(script: list[tuple[str, int]]) -> None:
    made, next_tag = DeliveryTags(), 1
    unacked: list[int] = []
    acked: set[int] = set()
    requeued: set[int] = set()
    wanted_acks: set[int] = set()
    wanted_backs: set[int] = set()

    def broker(frames: list[Verdict]) -> None:
        for frame in frames:
            assert frame.tag in unacked  # else RabbitMQ closes the channel
            covered = [t for t in unacked if t <= frame.tag] if frame.multiple else [frame.tag]
            for tag in covered:
                unacked.remove(tag)
            (acked if frame.ack else requeued).update(covered)

    for verb, number in script:
        if verb == "deliver":
            unacked.append(next_tag)
            made.delivered(next_tag)
            next_tag += 1
        elif verb == "take":
            broker(made.take())
        elif verb == "ack":
            if made.ack(number):
                wanted_acks.add(number)
        elif made.give_back(number):
            wanted_backs.add(number)
    broker(made.take())
    assert acked == wanted_acks
    assert requeued == wanted_backs
    assert tuple(unacked) == made.open
