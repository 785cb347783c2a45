"""Tokens that finish a step from outside: what `defer` makes, and what the control plane checks.

A token names the run, its incarnation, the step and the try, signed with a key that only the holders of the step's attempts
and the control plane know. All attempts of a try make the same token, so one that was handed out before its worker died
still works. Whoever reads a token learns the names in it; nobody makes one without the key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from treadle.protocol.errors import FieldInvalid

__all__ = ("DeferralToken", "make_token", "read_token")

_PREFIX: Final = "tds_"
_SIGNATURE, _INCARNATION, _TRY, _LENGTH = 16, 8, 4, 2
_FIXED: Final = _SIGNATURE + _INCARNATION + _TRY + _LENGTH
_LONGEST: Final = 4_000


@dataclass(frozen=True, slots=True)
class DeferralToken:
    """What a token says.

    Attributes:
        run_id, incarnation, command_id, try_number: Which try of which step.
        signature: 16 bytes that only who knows the key can make.
    """

    run_id: str
    incarnation: int
    command_id: str
    try_number: int
    signature: bytes

    def is_signed(self, key: bytes, namespace: str) -> bool:
        """Whether it was made with this key in this namespace. Takes as long for a wrong one as for a right one."""
        good = _sign(key, namespace, self.run_id, self.incarnation, self.command_id, self.try_number)
        return hmac.compare_digest(good, self.signature)

    def __repr__(self) -> str:
        return f"DeferralToken({self.run_id!r}, {self.command_id!r}, try {self.try_number})"


def make_token(key: bytes, *, namespace: str, run_id: str, incarnation: int, command_id: str, try_number: int) -> str:
    """Return the token of a try."""
    name = run_id.encode()
    packed = b"".join(
        (
            _sign(key, namespace, run_id, incarnation, command_id, try_number),
            incarnation.to_bytes(_INCARNATION, "big"),
            try_number.to_bytes(_TRY, "big"),
            len(name).to_bytes(_LENGTH, "big"),
            name,
            command_id.encode(),
        )
    )
    return _PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def read_token(token: str) -> DeferralToken:
    """Return what a token says; whether it is true is to be checked.

    Raises:
        FieldInvalid: It is none. The error does not repeat it.
    """
    try:
        if not token.startswith(_PREFIX) or len(token) > _LONGEST:
            raise ValueError
        text = token[len(_PREFIX) :]
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(packed) < _FIXED:
            raise ValueError
        end = _FIXED + int.from_bytes(packed[_FIXED - _LENGTH : _FIXED], "big")
        run_id, command_id = packed[_FIXED:end].decode(), packed[end:].decode()
        if not run_id or not command_id:
            raise ValueError
    except (ValueError, binascii.Error):
        raise FieldInvalid(
            "token: this is no token of a step",
            field="token",
            remedy=f"give what defer() returned in the step, whole; it begins with {_PREFIX!r}",
        ) from None
    at = _SIGNATURE + _INCARNATION
    return DeferralToken(
        run_id=run_id,
        incarnation=int.from_bytes(packed[_SIGNATURE:at], "big"),
        command_id=command_id,
        try_number=int.from_bytes(packed[at : at + _TRY], "big"),
        signature=packed[:_SIGNATURE],
    )


def _sign(key: bytes, namespace: str, run_id: str, incarnation: int, command_id: str, try_number: int) -> bytes:
    parts = "\x1f".join((namespace, run_id, str(incarnation), command_id, str(try_number)))
    return blake2b(parts.encode(), digest_size=_SIGNATURE, key=key, person=b"treadle-defer-v1").digest()
