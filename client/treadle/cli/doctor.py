"""`treadle doctor`: ask the control plane what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treadle.v1.pool_service_pb2 import Check

__all__ = ("check_lines", "doctor")


async def doctor(*, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """Check the control plane, Redis and RabbitMQ; each line says ✓ or ✗, and what to do."""
    from treadle.cli.output import emit
    from treadle.cli.plain import plain

    connection = connection or Connection()
    async with connection.client() as client:
        checks = await client.check_health()
    emit(
        ({"ok": check.ok, **plain(check)} for check in checks),
        output,
        lambda: print("\n".join(check_lines(connection.server, checks))),
    )
    return 0 if all(check.ok for check in checks) else 1


def check_lines(server: str, checks: Iterable[Check]) -> list[str]:
    """Return a line for each check, and one with the remedy beneath what is not fine."""
    lines = [f"✓ control plane   answers at {server}"]
    for check in checks:
        lines.append(f"{'✓' if check.ok else '✗'} {check.name}   {check.detail}".rstrip())
        if not check.ok and check.remedy:
            lines.append(f"    fix: {check.remedy}")
    return lines
