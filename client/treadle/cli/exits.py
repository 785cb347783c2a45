"""Exit codes, and how an error is told: what failed, why, what to do."""

from __future__ import annotations

import sys
from enum import IntEnum

from treadle.protocol.errors import (
    BlobStoreUnavailable,
    CodecFailed,
    ConfigError,
    FieldInvalid,
    NotFound,
    PayloadError,
    RequestError,
    ResultTimeout,
    RunError,
    TreadleError,
    Unavailable,
)

__all__ = ("Exit", "exit_code", "tell")


class Exit(IntEnum):
    """What the exit codes of `treadle` mean."""

    OK = 0
    FAILED = 1
    """The run failed, was cancelled or terminated; or the request was refused."""
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    TIMEOUT = 5
    INTERRUPTED = 130


_CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (NotFound, Exit.NOT_FOUND),
    (Unavailable, Exit.UNAVAILABLE),
    (BlobStoreUnavailable, Exit.UNAVAILABLE),
    (CodecFailed, Exit.UNAVAILABLE),
    (ResultTimeout, Exit.TIMEOUT),
    (FieldInvalid, Exit.USAGE),
    (ConfigError, Exit.USAGE),
    (PayloadError, Exit.USAGE),
    (RunError, Exit.FAILED),
)


def exit_code(error: BaseException) -> Exit:
    """Return the exit code that an error stands for."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)


def tell(error: TreadleError) -> Exit:
    """Print the error to stderr and return its exit code."""
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, RequestError) and error.remedy:
        print(f"  fix: {error.remedy}", file=sys.stderr)
    return exit_code(error)
