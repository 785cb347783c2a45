"""What `-i` gives a command: JSON, @FILE, or @- for stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from treadle.protocol.errors import ConfigError

__all__ = ("read_object", "read_value")


def read_value(text: str) -> Any:
    """Return the value.

    Raises:
        ConfigError: The file cannot be read, or it is no JSON.
    """
    return _read(text)[1]


def read_object(text: str) -> dict[str, Any]:
    """Return arguments by parameter name.

    Raises:
        ConfigError: The file cannot be read, or it is no JSON object.
    """
    where, value = _read(text)
    if not isinstance(value, dict):
        raise ConfigError(
            f'{where}: give a JSON object by parameter name, like \'{{"name": "Ada"}}\', not {str(value)[:40]!r}'
        )
    return value


def _read(text: str) -> tuple[str, Any]:
    where = "--input"
    if text.startswith("@"):
        where = "stdin" if text == "@-" else text[1:]
        try:
            text = sys.stdin.read() if text == "@-" else Path(where).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--input: cannot read {where!r}: {error}") from error
    try:
        return where, json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}; a text needs quotes of its own: '\"yes\"'") from error
