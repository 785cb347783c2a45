"""Histories as files: one run each, in the binary form of protobuf, or as JSON where the name ends in .json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from treadle.protocol.errors import ConfigError
from treadle.v1.history_pb2 import HistoryFile

__all__ = ("history_files", "read_history", "write_history")

_SUFFIXES = (".json", ".history")


def write_history(path: Path, history: HistoryFile) -> None:
    """Write a file.

    Raises:
        ConfigError: It cannot be written.
    """
    from google.protobuf.json_format import MessageToJson

    data = MessageToJson(history, indent=1).encode() if path.suffix == ".json" else history.SerializeToString()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"history file {path}: cannot be written: {error.strerror or error}") from error


def read_history(path: Path) -> HistoryFile:
    """Read a file.

    Raises:
        ConfigError: It cannot be read, or is no history.
    """
    from google.protobuf.json_format import Parse, ParseError
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
        history = Parse(data, HistoryFile()) if path.suffix == ".json" else HistoryFile.FromString(data)
    except OSError as error:
        raise ConfigError(f"history file {path}: cannot be read: {error.strerror or error}") from error
    except (ParseError, DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"history file {path}: is no history of a run: {error}") from error
    if not history.events or not history.events[0].HasField("run_started"):
        raise ConfigError(
            f"history file {path}: has no start of a run; write it with `treadle run history RUN -o FILE`"
        )
    return history


def history_files(folder: Path) -> Iterator[Path]:
    """Return the files of a folder that are histories by their names (.history, .json), sorted.

    Raises:
        ConfigError: There is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if not found:
        raise ConfigError(f"folder {folder}: has no history; their names end in {' or '.join(_SUFFIXES)}")
    return iter(found)
