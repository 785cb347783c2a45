"""How a function is called over the wire: a JSON object by parameter name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, cast

import msgspec

from treadle.protocol.errors import ConfigError, PayloadError
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES, decode, decoder, encode, encode_bytes, may_hold_sets
from treadle.v1.common_pb2 import Payload

__all__ = ("Signature",)

_RAW: Final = dict[str, msgspec.Raw]
_MISSING: Final = object()


class Signature:
    """The parameters of a step or workflow, and what it returns.

    `*args` and `**kwargs` are refused: the names of arguments are part of what is recorded.

    Args:
        function: The function; its type hints decide how values are decoded.
        what: What it is, for errors ("step validate").

    Raises:
        ConfigError: It has `*args` or `**kwargs`, or a hint cannot be resolved or decoded.
    """

    __slots__ = (
        "_call",
        "_decode",
        "_decoders",
        "_defaults",
        "_names",
        "_positional",
        "_result",
        "_sets",
        "_signature",
        "returns",
        "returns_sets",
        "what",
    )

    def __init__(self, function: Callable[..., Any], *, what: str) -> None:
        self.what = what
        self._signature = inspect.signature(function)
        hints = _hints(function, what)
        self._names: tuple[str, ...] = tuple(self._signature.parameters)
        self._positional = 0
        self._decoders: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
                raise ConfigError(f"{what}: takes {stars}{name}; give its parameters names, or pass a list or a dict")
            if parameter.kind is not parameter.KEYWORD_ONLY:
                self._positional += 1
            self._decoders[name] = _checked(hints.get(name, Any), f"{what}: parameter {name}")
        self._sets = any(map(may_hold_sets, self._decoders.values()))
        self.returns: Any = _checked(hints.get("return", Any), f"{what}: its result")
        self.returns_sets = may_hold_sets(self.returns)
        self._result = f"{what}: its result"
        self._decode: Callable[[bytes], Any] = decoder(self.returns)
        parameters = self._signature.parameters.values()
        self._defaults = tuple((i, p.default) for i, p in enumerate(parameters) if p.default is not p.empty)
        self._call = _call_decoder(self._decoders, {self._names[i] for i, _ in self._defaults})

    @property
    def required(self) -> tuple[str, ...]:
        """The parameters that have no default."""
        optional = {self._names[index] for index, _ in self._defaults}
        return tuple(name for name in self._names if name not in optional)

    def taking(self, kind: type) -> tuple[str, ...]:
        """The parameters whose hint is this type, alone or in a union."""
        return tuple(name for name, hint in self._decoders.items() if hint is kind or kind in typing.get_args(hint))

    def encode_some(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, given: Collection[str]) -> Payload:
        """Return the arguments of a call in which parameters may be left out that somebody else gives.

        Raises:
            TypeError: Others are missing, or there are too many or unknown ones.
            PayloadError: An argument cannot be encoded, or they are too large together.
        """
        try:
            named = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.what}: {error}") from None
        missing = [name for name in self.required if name not in named and name not in given]
        if missing:
            raise TypeError(f"{self.what}: missing a required argument: {missing[0]!r}")
        return Payload(data=encode_bytes(named, what=self.what, sets=self._sets, fields=True))

    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, limit: int = MAX_PAYLOAD_BYTES) -> Payload:
        """Return the arguments as they go over the wire; defaults are left to the callee.

        Raises:
            TypeError: Arguments are missing, too many or unknown, as in an ordinary call.
            PayloadError: An argument cannot be encoded, or they are too large together.
        """
        return Payload(data=self.encode_arguments(args, kwargs, limit=limit))

    def encode_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, limit: int = MAX_PAYLOAD_BYTES
    ) -> bytes:
        """The same as bytes, without a message around them."""
        if kwargs or len(args) != self._positional or len(self._names) != self._positional:
            try:
                named = self._signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{self.what}: {error}") from None
        else:
            named = dict(zip(self._names, args, strict=True))
        return encode_bytes(named, what=self.what, limit=limit, sets=self._sets, fields=True)

    def decode_call(
        self, payload: Payload, given: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) to call the function with, each argument as its hint says.

        Args:
            payload: The encoded arguments.
            given: Values, as they are, of parameters that the payload leaves out.

        Raises:
            PayloadError: An argument is missing, unknown, or does not fit its type; names it.
        """
        data = payload.data
        if data and not payload.encoding and not given:
            try:
                values = msgspec.structs.astuple(self._call(data))
            except Exception:  # told below, argument by argument
                pass
            else:
                return self._split(values)
        return self._decode_slowly(payload, given or {})

    def _split(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put defaults where nothing was given, and names to keyword-only parameters."""
        for index, default in self._defaults:
            if values[index] is _MISSING:
                values = (*values[:index], default, *values[index + 1 :])
        count = self._positional
        if count == len(values):
            return values, {}
        return values[:count], dict(zip(self._names[count:], values[count:], strict=True))

    def _decode_slowly(self, payload: Payload, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Argument by argument, so that an error can name it."""
        if not payload.data:
            sent: dict[str, msgspec.Raw] = {}
        else:
            sent = cast("dict[str, msgspec.Raw]", decode(payload, _RAW, what=f"{self.what}: arguments"))
        unknown = [name for name in sent if name not in self._decoders]
        if unknown:
            raise PayloadError(
                f"{self.what}: has no parameter {unknown[0]!r}; it takes {', '.join(self._names) or 'nothing'}"
            )
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for index, (name, parameter) in enumerate(self._signature.parameters.items()):
            raw = sent.get(name)
            if raw is not None:
                value = decode(Payload(data=bytes(raw)), self._decoders[name], what=f"{self.what}: argument {name}")
            elif name in given:
                value = given[name]
            elif parameter.default is not parameter.empty:
                value = parameter.default
            else:
                raise PayloadError(f"{self.what}: argument {name} is missing")
            if index < self._positional:
                args.append(value)
            else:
                kwargs[name] = value
        return tuple(args), kwargs

    def encode_result(self, value: Any, *, limit: int = MAX_PAYLOAD_BYTES) -> Payload:
        """Return what the function returned as a payload.

        Raises:
            PayloadError: It cannot be encoded or is too large.
        """
        return encode(value, what=self._result, limit=limit, sets=self.returns_sets)

    def decode_result(self, payload: Payload) -> Any:
        """Return the result as the return hint says.

        Raises:
            PayloadError: It does not fit.
        """
        if not payload.encoding:
            try:
                return self._decode(payload.data or b"null")
            except Exception:  # told below
                pass
        return decode(payload, self.returns, what=self._result)


def _call_decoder(types: dict[str, Any], optional: set[str]) -> Callable[[bytes], Any]:
    """The function that decodes all arguments at once, in the order of the parameters."""
    places = {name: f"p{index}" for index, name in enumerate(types)}  # a parameter may have any name
    fields: list[Any] = [
        (places[name], type_, _MISSING) if name in optional else (places[name], type_) for name, type_ in types.items()
    ]
    renamed = {place: name for name, place in places.items()}
    struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, rename=renamed)
    return decoder(struct)


def _hints(function: Callable[..., Any], what: str) -> dict[str, Any]:
    target = inspect.unwrap(function)
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        # Types of an enclosing function are out of reach of get_type_hints, but not of its closure.
        variables = inspect.getclosurevars(target).nonlocals if hasattr(target, "__code__") else {}
        try:
            return typing.get_type_hints(target, localns=dict(variables), include_extras=True)
        except NameError:
            raise ConfigError(
                f"{what}: cannot resolve its type hints: {error}. Define or import the type at module level, outside "
                "`if TYPE_CHECKING`"
            ) from error


def _checked(hint: Any, what: str) -> Any:
    hint = Any if hint is inspect.Parameter.empty else hint
    if hint is type(None) or hint is typing.NoReturn:
        return Any if hint is typing.NoReturn else None
    try:
        decoder(hint)
    except Exception as error:
        raise ConfigError(f"{what}: no JSON for the type {hint!r}: {error}") from error
    return hint
