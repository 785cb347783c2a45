"""Conditions on events: what they may say, what they cost, and how a wrong one is told."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from treadle.controlplane.events.conditions import compiled, seen
from treadle.controlplane.events.triggers import starts_of
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import check_trigger, pattern_fits
from treadle.v1.common_pb2 import EventTrigger, NamedEvent, Payload
from treadle.v1.state_pb2 import RegisteredTrigger

NOW_MS = 1_700_000_000_000


def event(data: Any, name: str = "orders.paid") -> NamedEvent:
    return NamedEvent(event_id="e1", name=name, data=Payload(data=json.dumps(data).encode()))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("event.data.amount > 100", True),
        ("event.data.amount > 100 && event.data.country == 'DE'", True),
        ("event.data.country in ['AT', 'CH']", False),
        ("'vip' in event.data.tags", True),
        ("has(event.data.refund)", False),
        ("!has(event.data.refund) && size(event.data.tags) == 2", True),
        ("event.data.country.startsWith('D') || event.data.missing == 1", True),
        ("event.data.missing == 1", False),
        ("event.data.amount", False),
        ("event.name == 'orders.paid' && event.id == 'e1'", True),
        ("event.time > timestamp('2023-01-01T00:00:00Z')", True),
        ("event.data.country.matches('^[A-Z]{2}$')", True),
    ],
)
def test_what_a_condition_says(text: str, holds: bool) -> None:
    data = {"amount": 120.5, "country": "DE", "tags": ["vip", "new"]}
    assert compiled(text).holds(seen(event(data), NOW_MS)) is holds
    assert compiled(text) is compiled(text), "it is compiled once"


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("event.data.a ==", "line 1, column 16", "mismatched input"),
        ("event.data.a\n  == && 3", "line 2, column 6", "extraneous input"),
        ("event.data.a > 3 && oder.b", "line 1, column 21", "'oder' is not known"),
        ("event.data.a > 3 &&\n  nofunc(event)", "line 2, column 3", "'nofunc'"),
        ("event.data.xs.all(x, x > 3)", "line 1, column 19", "no loops"),
        ("event.data.xs.map(x, event.data.xs.map(y, x + y)).size() > 3", "column 19", "no loops"),
        ("(" * 21 + "1" + ")" * 21, "line 1, column 21", "20 deep"),
        ("[" * 400 + "]" * 400, "column 21", "20 deep"),
        ("event.data.a == '" + "x" * 1000 + "'", "line 1, column 1001", "1,018 characters"),
        ("", "line 1, column 1", ""),
    ],
)
def test_a_wrong_one_is_told_with_its_place(text: str, place: str, why: str) -> None:
    with pytest.raises(FieldInvalid) as told:
        compiled(text)
    assert place in str(told.value) and why in str(told.value), told.value
    assert told.value.field == "when" and "CEL" in told.value.remedy


def test_brackets_in_text_are_no_nesting() -> None:
    assert compiled("event.data.a == '" + "(" * 50 + "'").holds(seen(event({"a": "(" * 50}), NOW_MS))


def test_time_is_bounded_by_length() -> None:
    """The dearest condition that is allowed, over the largest event."""
    data = {"s": "a" * 30_000, "xs": list(range(5_000))}
    parts = ["event.data.s.matches('(a+)+b$')", "-1 in event.data.xs", "event.data.s + event.data.s == 'a'"]
    text = " || ".join((parts * 20)[:24])
    assert len(text) < 1_000
    view = seen(event(data), NOW_MS)
    condition = compiled(text)
    began = time.perf_counter()
    assert not condition.holds(view)
    assert time.perf_counter() - began < 1.0


def test_names_of_events() -> None:
    assert pattern_fits("contacts.uploaded", "contacts.uploaded")
    assert not pattern_fits("contacts.uploaded", "contacts.uploaded.twice")
    assert pattern_fits("contacts.*", "contacts.uploaded") and pattern_fits("contacts.*", "contacts.a.b")
    assert not pattern_fits("contacts.*", "contacts") and not pattern_fits("contacts.*", "contactsx.a")
    assert pattern_fits("*", "anything")
    for wrong in ("contacts*", "*.uploaded", "a.*.b", "", "a b", "x" * 201):
        with pytest.raises(FieldInvalid):
            check_trigger(EventTrigger(names=[wrong]))
    check_trigger(EventTrigger(names=["a.b", "c.*", "*"]))


def test_which_workflows_start() -> None:
    def known(workflow: str, *names: str, when: str = "") -> RegisteredTrigger:
        return RegisteredTrigger(
            workflow=workflow, code=workflow, pool="p", trigger=EventTrigger(names=names, condition=when)
        )

    triggers = [
        known("a", "orders.paid", "orders.*"),
        known("b", "orders.*", when="event.data.amount > 100"),
        known("c", "orders.*", when="event.data.amount > 1000"),
        known("d", "other"),
    ]
    assert [s.workflow for s in starts_of(triggers, event({"amount": 101}), NOW_MS)] == ["a", "b"]
    encrypted = event({"amount": 5000})
    encrypted.data.encoding = "secret"
    assert [s.workflow for s in starts_of(triggers, encrypted, NOW_MS)] == ["a"]
