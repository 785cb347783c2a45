"""Every error goes over the wire and comes back as itself."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc.aio import AioRpcError, Metadata

from treadle.client.status import from_rpc_error, from_status, to_status
from treadle.protocol import errors

ERRORS: list[errors.TreadleError] = [
    errors.FieldInvalid("argument `upload`: expected str", field="input.upload", remedy="pass a str"),
    errors.FieldInvalid("nobody registered 'x'", field="workflow", reason="WORKFLOW_UNKNOWN"),
    errors.NotFound("no run 'a'", remedy="see `treadle run list`"),
    errors.NotFound("no workflow 'w'", reason="WORKFLOW_NOT_FOUND"),
    errors.RunIdConflict("run 'a' is open"),
    errors.RunClosed("run 'a' is closed"),
    errors.LeaseLost("another token holds it"),
    errors.Refused("the outbox is full"),
    errors.Refused("pool 'crm' is not yours", reason="POOL_NOT_ALLOWED"),
    errors.Refused("no valid token", reason="TOKEN_INVALID"),
    errors.Unavailable("Redis at localhost:6379 does not answer"),
    errors.PayloadError("input has 2 MiB, the limit is 1 MiB"),
    errors.ConfigError("invalid pool name 'A'"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'reason', '')}")
def test_there_and_back(error: errors.TreadleError) -> None:
    back = from_status(to_status(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("reason", "remedy", "field"):
        assert getattr(back, name, None) == getattr(error, name, None)


def rpc_error(
    code: grpc.StatusCode, details: str = "", *, trailing: tuple[tuple[str, str | bytes], ...] = ()
) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailing), details=details)


def test_a_call_that_failed_carries_the_status() -> None:
    status = to_status(errors.NotFound("no run 'a'", remedy="list them"))
    error = rpc_error(
        grpc.StatusCode.NOT_FOUND,
        "no run 'a'",
        trailing=(("grpc-status-details-bin", status.SerializeToString()),),
    )
    back = from_rpc_error(error)
    assert isinstance(back, errors.NotFound)
    assert (back.reason, back.remedy) == ("RUN_NOT_FOUND", "list them")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Refused),
        (grpc.StatusCode.UNIMPLEMENTED, errors.RequestError),
        (grpc.StatusCode.ABORTED, errors.RequestError),
    ],
)
def test_a_status_of_somebody_else_is_read_by_its_code(code: grpc.StatusCode, kind: type[errors.RequestError]) -> None:
    assert type(from_rpc_error(rpc_error(code, "boom"))) is kind


@pytest.mark.parametrize("text", ["Internal error from Core", "Received RST_STREAM with error code 2"])
def test_a_connection_that_breaks_under_a_call_is_no_error_of_the_server(text: str) -> None:
    back = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, text), target="localhost:7430")
    assert isinstance(back, errors.Unavailable) and "localhost:7430" in str(back)
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "a bug"))) is errors.RequestError


def test_nobody_there_names_the_address_and_the_remedy() -> None:
    back = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "refused"), target="localhost:7430")
    assert isinstance(back, errors.Unavailable)
    assert "localhost:7430" in str(back)
    assert "treadle server" in back.remedy


def test_an_unknown_exception_does_not_show_its_text() -> None:
    back = from_status(to_status(KeyError("a secret")))
    assert isinstance(back, errors.RequestError)
    assert back.reason == "INTERNAL"
    assert "secret" not in str(back)


def test_details_for_clients_in_other_languages() -> None:
    kinds = {d.TypeName() for d in to_status(errors.FieldInvalid("x", field="f")).details}
    assert BadRequest.DESCRIPTOR.full_name in kinds
    retry = [d for d in to_status(errors.Unavailable("x")).details if d.Is(RetryInfo.DESCRIPTOR)]
    assert retry
