"""User values as bytes: JSON by type hints.

What msgspec knows (numbers, text, bytes, dates, UUIDs, enums, tuples, sets, dataclasses, TypedDicts, NamedTuples, attrs,
msgspec structs), paths, and pydantic models (which is not imported unless the user did). Never pickle.

The bytes of a value are the same in every process: sets are sorted, dicts keep their order.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final

import msgspec

from treadle.protocol.errors import PayloadError, PayloadTooLarge, PayloadUnreadable
from treadle.v1.common_pb2 import Payload

__all__ = ("MAX_PAYLOAD_BYTES", "check_size", "decode", "decoder", "encode", "encode_bytes", "may_hold_sets")

MAX_PAYLOAD_BYTES: Final = 1 << 20
"""Largest payload in bytes that is carried inside messages, 1 MiB: what is larger belongs into a blob store."""

_ENCODINGS: Final = ("", "json")
_EMPTY: Final = b"null"
_DEPTH: Final = 40


def _to_builtin(value: Any) -> Any:
    if hasattr(type(value), "__pydantic_serializer__"):
        if hasattr(value, "model_dump"):
            return value.model_dump(mode="json", by_alias=True, round_trip=True)
        return value.__pydantic_serializer__.to_python(value, mode="json", by_alias=True, round_trip=True)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"no encoding for values of type {_type_name(type(value))}")


def _from_builtin(type_: Any, value: Any) -> Any:
    if hasattr(type_, "__pydantic_validator__"):
        return type_.__pydantic_validator__.validate_json(msgspec.json.encode(value))
    if isinstance(type_, type) and issubclass(type_, PurePath):
        if not isinstance(value, str):
            raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
        return type_(value)
    if isinstance(value, type_):
        return value
    raise TypeError(f"values of type {_type_name(type_)} cannot be decoded")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_builtin)
_SORTING: Final = msgspec.json.Encoder(enc_hook=_to_builtin, order="deterministic")


def encode(
    value: Any, *, what: str, limit: int = MAX_PAYLOAD_BYTES, sets: bool = True, fields: bool = False
) -> Payload:
    """Return the value as a payload; see `encode_bytes`."""
    return Payload(data=encode_bytes(value, what=what, limit=limit, sets=sets, fields=fields))


def encode_bytes(
    value: Any, *, what: str, limit: int = MAX_PAYLOAD_BYTES, sets: bool = True, fields: bool = False
) -> bytes:
    """Return the value as JSON.

    Args:
        value: Any value that JSON by type hints can carry.
        what: What it is, for errors ("result of step validate").
        limit: Largest size in bytes.
        sets: False: the caller knows from the type hints that the value holds no sets.
        fields: The value is a dict whose keys are names of arguments, to be named so in errors.

    Raises:
        PayloadError: It holds something that cannot be encoded; says which field.
        PayloadTooLarge: It has more bytes than `limit`.
    """
    try:
        data = _ENCODER.encode(value)
        if sets and _can_hold_sets(value) and not _is_sorted(value, data):
            data = _ENCODER.encode(_without_sets(value))
    except Exception as error:  # hooks and properties of user types may raise anything
        path, culprit = _culprit(value)
        raise PayloadError(
            f"{what}: cannot encode {_place(path, fields)}of type {_type_name(type(culprit))}: {error}. Use JSON-like "
            "values, dataclasses, msgspec structs or pydantic models"
        ) from error
    if len(data) > limit:
        path = _largest(value) if fields else ""
        check_size(len(data), limit, what, f" (mostly {_place(path, fields).strip()})" if path else "")
    return data


def check_size(size: int, limit: int, what: str, where: str = "") -> None:
    """Refuse a value of more than `limit` bytes. `where`: its largest part, in words.

    Raises:
        PayloadTooLarge: It has more.
    """
    if size > limit:
        raise PayloadTooLarge(
            f"{what}: {size:,} bytes of JSON are more than the limit of {limit:,}{where}. Store it elsewhere (file, "
            "object store, database) and pass its address"
        )


def decode(payload: Payload, type_: Any, *, what: str) -> Any:
    """Return the value of a payload as a `type_`.

    Args:
        payload: JSON; no data at all is read as null.
        type_: The type hint; Any for plain JSON values.
        what: What it is, for errors.

    Raises:
        PayloadError: It is not JSON, or does not fit the type; says which field.
        PayloadUnreadable: It is sealed.
    """
    if payload.encoding not in _ENCODINGS:
        raise PayloadUnreadable(
            f"{what}: encoding {payload.encoding!r} is not known here; configure the codec (TREADLE_KEYS_FILE) or the blob "
            "store (TREADLE_BLOBS) of who made it"
        )
    data = payload.data or _EMPTY
    try:
        return decoder(type_)(data)
    except msgspec.ValidationError as error:
        raise PayloadError(f"{what}: does not fit {_type_name(type_)}: {_readable(error)}") from error
    except msgspec.DecodeError as error:
        raise PayloadError(f"{what}: not JSON ({error}): {data[:60]!r}") from error
    except Exception as error:  # constructors of user types may raise anything
        raise PayloadError(f"{what}: cannot decode as {_type_name(type_)}: {_readable(error)}") from error


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes bytes as this type; made once for each type."""
    try:
        return _decoder(type_)
    except TypeError:  # the hint is not hashable
        return msgspec.json.Decoder(type_, dec_hook=_from_builtin).decode


@lru_cache(maxsize=1024)
def _decoder(type_: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(type_, dec_hook=_from_builtin).decode


def may_hold_sets(type_: Any) -> bool:
    """Whether values of this type may hold sets, as far as its hints tell; the order of sets differs by process."""
    try:
        return _holds_sets(msgspec.inspect.type_info(type_), set())
    except Exception:  # a type that msgspec does not know is encoded by hooks: anything may be in it
        return True


def _holds_sets(info: Any, seen: set[Any]) -> bool:
    if isinstance(
        info,
        msgspec.inspect.AnyType | msgspec.inspect.SetType | msgspec.inspect.FrozenSetType | msgspec.inspect.CustomType,
    ):
        return True
    cls = getattr(info, "cls", None)
    if cls is not None:
        if cls in seen:
            return False
        seen.add(cls)
    parts: list[Any] = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type")]
    parts += getattr(info, "item_types", ())
    parts += getattr(info, "types", ())
    parts += [field.type for field in getattr(info, "fields", ())]
    return any(_holds_sets(part, seen) for part in parts if part is not None)


_ATOMS: Final[frozenset[type]] = frozenset(
    (
        str,
        int,
        float,
        bool,
        type(None),
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        uuid.UUID,
    )
)


def _can_hold_sets(value: Any) -> bool:
    """Whether a set may be somewhere in the value; plain dicts and lists of plain values are quick to look through."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list and kind is not tuple:
        return kind not in _ATOMS
    return not _ATOMS.issuperset(map(type, value)) and any(map(_can_hold_sets, value))


def _is_sorted(value: Any, data: bytes) -> bool:
    """Whether the bytes are those of sorted sets and dicts, so that nothing has to be done; this is quick to know."""
    try:
        return data == _SORTING.encode(value)
    except TypeError:  # it sorts only dicts whose keys are text
        return False


def _without_sets(value: Any) -> Any:
    """The value as JSON has it, its sets as sorted lists."""
    return _sorted_sets(value, msgspec.to_builtins(value, str_keys=True, enc_hook=_to_builtin))


def _sorted_sets(value: Any, plain: Any) -> Any:
    """Sort the lists of `plain` that are sets in `value`; both are walked side by side, `plain` in the order of `value`."""
    if isinstance(plain, dict):
        if isinstance(value, Mapping):
            return {k: _sorted_sets(part, item) for (k, item), part in zip(plain.items(), value.values(), strict=True)}
        names = _names(value)
        return {k: _sorted_sets(getattr(value, names.get(str(k), str(k)), item), item) for k, item in plain.items()}
    if not isinstance(plain, list):
        return plain
    parts = list(value) if isinstance(value, AbstractSet | list | tuple) else plain
    items = [_sorted_sets(part, item) for part, item in zip(parts, plain, strict=True)]
    return sorted(items, key=_ENCODER.encode) if isinstance(value, AbstractSet) else items


def _names(value: Any) -> dict[str, str]:
    """Names of fields by the names that JSON has for them, where they differ."""
    if isinstance(value, msgspec.Struct):
        return {field.encode_name: field.name for field in msgspec.structs.fields(value)}
    return {}


def _culprit(value: Any, path: str = "") -> tuple[str, Any]:
    """The innermost part that cannot be encoded, and the way to it."""
    if path.count(".") + path.count("[") > _DEPTH:
        return path, value
    for key, part in _parts(value):
        try:
            _ENCODER.encode(part)
        except Exception:
            return _culprit(part, f"{path}{key}")
    return path, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, msgspec.Struct):
        return [(f".{name}", getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return [("[an element]", item) for item in value]
    return []


def _largest(value: dict[str, Any]) -> str:
    sizes = {name: len(_ENCODER.encode(part)) for name, part in value.items()}
    return f"[{max(sizes, key=sizes.__getitem__)!r}]" if sizes else ""


def _place(path: str, fields: bool) -> str:
    if not path:
        return "a value " if not fields else ""
    if not fields:
        return f"field {path.removeprefix('.')} "
    name, _, rest = path.removeprefix("['").partition("']")
    return f"argument {name}{rest} "


def _type_name(type_: Any) -> str:
    if not isinstance(type_, type):
        return str(type_).replace("typing.", "")
    return type_.__qualname__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__qualname__}"


def _readable(error: Exception) -> str:
    return str(error).replace("`", "").replace(" - at $.", ", in field ").replace(" - at $", ", at field ")[:2000]
