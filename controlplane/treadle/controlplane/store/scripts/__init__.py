"""The Lua scripts of the store. Each is one atomic step; parts.lua stands in front of every other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

__all__ = ("Script", "script")


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its text, and the SHA-1 by which Redis knows it."""

    name: str
    text: bytes
    sha: str


@cache
def script(name: str) -> Script:
    """Return the script `<name>.lua`."""
    folder = files(__name__)
    text = (folder / "parts.lua").read_bytes() + b"\n" + (folder / f"{name}.lua").read_bytes()
    return Script(name, text, sha1(text, usedforsecurity=False).hexdigest())
