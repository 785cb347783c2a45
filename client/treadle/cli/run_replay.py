"""`treadle run replay`: local code over recorded histories, before it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.cli.exits import Exit
from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.v1.history_pb2 import HistoryFile
    from treadle.worker.replay import Replayed

__all__ = ("replay",)


async def replay(
    run: str,
    app: str,
    /,
    *,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Execute local code over the history of a run, and tell the first event that it does not agree with.

    No step runs and nothing is changed. The exit code is 1 if code and history disagree anywhere.

    Parameters
    ----------
    run
        Id of a run, whose history is downloaded; or a file that `treadle run history RUN -o FILE` wrote; or a folder of such
        files.
    app
        The code: path/to/app.py, package.module, or package.module:name.
    """
    from treadle.cli.output import emit, note
    from treadle.worker.app import load_app
    from treadle.worker.replay import replay_history

    histories = await _histories(run, connection or Connection())
    registry = load_app(app)
    replayed = [(name, replay_history(registry, history)) for name, history in histories]
    wrong = [found for _, found in replayed if found.differs]

    def draw() -> None:
        for name, found in replayed:
            note(_line(name, found))
        note(f"{len(replayed) - len(wrong)} of {len(replayed)} histories fit the code")

    emit((_plain(name, found) for name, found in replayed), output, draw)
    return Exit.FAILED if wrong else Exit.OK


async def _histories(run: str, connection: Connection) -> list[tuple[str, HistoryFile]]:
    from treadle.cli.history_file import history_files, read_history

    path = Path(run)
    if path.is_dir():
        return [(str(file), read_history(file)) for file in history_files(path)]
    if path.is_file():
        return [(run, read_history(path))]
    return [(run, await download(run, connection))]


async def download(run: str, connection: Connection) -> HistoryFile:
    """Return the history of a run as it stands, with its values. Raises as `whole_history`."""
    from treadle.client.whole_history import whole_history

    async with connection.client() as client:
        return await whole_history(client, run)


def _line(name: str, found: Replayed) -> str:
    if not found.differs:
        return f"✓ {name}   {found.workflow}, {found.events} events"
    return (
        f"✗ {name}   {found.workflow}: the first difference is at event {found.position} of {found.events}\n"
        f"    the history has: {found.expected}\n"
        f"    the code:        {found.found}"
    )


def _plain(name: str, found: Replayed) -> dict[str, Any]:
    value = {"history": name, "run": found.run_id, "workflow": found.workflow, "events": found.events}
    if not found.differs:
        return {**value, "fits": True}
    return {**value, "fits": False, "position": found.position, "expected": found.expected, "found": found.found}
