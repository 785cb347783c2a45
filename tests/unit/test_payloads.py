from __future__ import annotations

import enum
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from treadle.protocol.errors import ConfigError, PayloadError
from treadle.protocol.payloads import decode, encode, may_hold_sets
from treadle.protocol.signature import Signature
from treadle.v1.common_pb2 import Payload


class Color(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Row:
    city: str
    when: datetime
    tags: set[str] = field(default_factory=set)


class Upload(msgspec.Struct):
    name: str
    rows: list[Row] = []


class Address(pydantic.BaseModel):
    street: str
    moved: date
    number: int = pydantic.Field(alias="no")


@dataclass
class Envelope:
    address: Address
    path: Path


WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (1, int),
        ("ä", str),
        (b"\x00\xff", bytes),
        (None, None),
        (Color.RED, Color),
        (Point(1, 2), Point),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        (frozenset("ab"), frozenset[str]),
        (WHEN, datetime),
        (date(2026, 1, 2), date),
        (timedelta(minutes=3), timedelta),
        (Decimal("1.10"), Decimal),
        (uuid.UUID(int=7), uuid.UUID),
        ({"b": 1, "a": [2]}, dict[str, Any]),
        ({3: "x"}, dict[int, str]),
        (Row("Rome", WHEN, {"a", "b"}), Row),
        (Upload("u", [Row("Oslo", WHEN)]), Upload),
        (Address(street="s", moved=date(2020, 1, 1), no=4), Address),
        (Envelope(Address(street="s", moved=date(2020, 1, 1), no=4), Path("a/b")), Envelope),
        ([1.5, None, True], list[Any]),
    ],
)
def test_a_value_comes_back_as_it_was(value: Any, type_: Any) -> None:
    assert decode(encode(value, what="x"), type_, what="x") == value


def test_dicts_keep_their_order_and_sets_are_sorted() -> None:
    assert encode({"b": 1, "a": 2}, what="x").data == b'{"b":1,"a":2}'
    value = {"z": {"q", "c", "w", "a"}, "b": [Row("Rome", WHEN, {"y", "x"})]}
    text = encode(value, what="x").data.decode()
    assert text.startswith('{"z":["a","c","q","w"],"b":[')
    assert '"tags":["x","y"]' in text


def test_bytes_are_the_same_whatever_the_hash_seed() -> None:
    script = (
        "from treadle.protocol.payloads import encode\n"
        "print(encode({'b': {f'w{i}' for i in range(50)}, 'a': 1}, what='x').data)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_pydantic_is_not_imported_for_others() -> None:
    script = "import sys, treadle.protocol.payloads as p; p.encode([1], what='x'); print('pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout == "False\n", done.stderr


class Opaque:
    pass


def test_what_cannot_be_encoded_is_named_with_its_field() -> None:
    with pytest.raises(PayloadError, match=r"result of f: cannot encode field rows\[1\]\.tags of type .*Opaque"):
        encode(
            Upload("u", [Row("a", WHEN), Row("b", WHEN, Opaque())]),  # type: ignore[arg-type]
            what="result of f",
        )


def test_values_nested_without_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PayloadError, match="cannot encode"):
        encode(endless, what="x")


def test_what_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(PayloadError, match=r"x: 102 bytes of JSON are more than the limit of 100"):
        encode("a" * 100, what="x", limit=100)
    assert len(encode("a" * 98, what="x", limit=100).data) == 100


@pytest.mark.parametrize(
    ("data", "type_", "message"),
    [
        (b'{"name": 3}', Upload, "Expected str, got int, in field name"),
        (b'{"name": "u", "rows": [{"city": "a"}]}', Upload, "missing required field when, in field rows"),
        (b"[1", list[int], "not JSON"),
        (b'{"street": "s", "moved": "no", "no": 1}', Address, "moved"),
        (b'"green"', Color, "green"),
    ],
)
def test_what_does_not_fit_is_named_with_its_field(data: bytes, type_: Any, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode(Payload(data=data), type_, what="thing")
    assert str(caught.value).startswith("thing: ")
    assert message in str(caught.value)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(PayloadError, match="encoding 'aes' is not known"):
        decode(Payload(data=b"1", encoding="aes"), int, what="x")


def test_only_types_that_may_hold_sets_are_sorted() -> None:
    assert not may_hold_sets(list[dict[str, int]])
    assert may_hold_sets(Row)
    assert may_hold_sets(Upload)
    assert may_hold_sets(Any)
    assert may_hold_sets(Address)


def greet(name: str, times: int = 2, *, at: datetime | None = None) -> str:
    return name


SIGNATURE = Signature(greet, what="step greet")


def test_a_call_comes_back_as_it_was() -> None:
    payload = SIGNATURE.encode_call(("Ann",), {"at": WHEN})
    assert payload.data == b'{"name":"Ann","at":"2026-03-01T12:30:00Z"}'
    assert SIGNATURE.decode_call(payload) == (("Ann", 2), {"at": WHEN})
    assert SIGNATURE.decode_call(SIGNATURE.encode_call(("Ann", 3), {})) == (("Ann", 3), {"at": None})


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("a", 1, 2), {}), (("a",), {"nope": 1})])
def test_wrong_arguments_are_a_type_error(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match="step greet"):
        SIGNATURE.encode_call(args, kwargs)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"name": 1}', "step greet: argument name: does not fit str"),
        (b"{}", "argument name is missing"),
        (b'{"name": "a", "nme": 1}', "has no parameter 'nme'; it takes name, times, at"),
        (b"[1]", "arguments: does not fit"),
        (b"", "argument name is missing"),
    ],
)
def test_arguments_that_do_not_fit_are_named(data: bytes, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        SIGNATURE.decode_call(Payload(data=data))
    assert message in str(caught.value)


def test_an_argument_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(PayloadError, match=r"step greet: cannot encode argument name of type .*Opaque"):
        SIGNATURE.encode_call((Opaque(),), {})
    with pytest.raises(PayloadError, match=r"mostly argument name"):
        SIGNATURE.encode_call(("a" * 100, 1), {}, limit=50)


def test_signatures_that_cannot_be_recorded_are_refused() -> None:
    def stars(*names: str) -> None: ...
    def keywords(**options: str) -> None: ...
    def unknown(value: Opaque | set[int] | list[int]) -> None: ...

    with pytest.raises(ConfigError, match=r"takes \*names"):
        Signature(stars, what="step stars")
    with pytest.raises(ConfigError, match=r"takes \*\*options"):
        Signature(keywords, what="step keywords")
    with pytest.raises(ConfigError, match="parameter value: no JSON for the type"):
        Signature(unknown, what="step unknown")
