"""The workers of `treadle dev`: one process for each pool of the app, all of them following the code.

An app that cannot be loaded any more (a syntax error, two steps of one name) keeps the old workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from treadle.cli.reload import PARENT_VARIABLE, Say, Supervisor, syntax_error
from treadle.protocol.errors import ConfigError

__all__ = ("Workers", "pools_of")

# In a process of its own: modules that were imported once would hide the change.
_LIST_POOLS = """
import json, sys
from treadle.protocol.errors import TreadleError
from treadle.worker.app import load_app
try:
    app = load_app(sys.argv[1])
except TreadleError as error:
    sys.exit(str(error))
things = [*app.workflows.values(), *app.steps.values()]
print(json.dumps(sorted({thing.pool for thing in things if thing.pool})))
"""


async def pools_of(app: str) -> list[str]:
    """Load the app in a process of its own and return the pools that it names.

    Raises:
        ConfigError: It cannot be loaded; says why.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LIST_POOLS, app, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise ConfigError(err.decode(errors="replace").strip() or f"app {app}: cannot be loaded")
    last_line = out.decode().splitlines()[-1]  # the app may print while it is imported
    return [str(pool) for pool in json.loads(last_line)]


class Workers:
    """The processes, by pool.

    Args:
        app: The app.
        words: The words after `treadle` that start the worker of a pool.
        say: Tells a person what happens.
        only: Serve this pool only; None: each that the app names.
        find_pools: Tells the pools of an app.
        program: What comes before the words.
    """

    def __init__(
        self,
        app: str,
        words: Callable[[str], Sequence[str]],
        *,
        say: Say,
        only: str | None = None,
        find_pools: Callable[[str], Awaitable[list[str]]] = pools_of,
        program: Sequence[str] = (sys.executable, "-m", "treadle.cli"),
    ) -> None:
        self._app = app
        self._words = words
        self._say = say
        self._only = only
        self._find_pools = find_pools
        self._program = list(program)
        self._members: dict[str, tuple[Supervisor, asyncio.Event, asyncio.Task[None]]] = {}

    @property
    def pids(self) -> dict[str, int | None]:
        """Process id of each pool's worker; None while it is between two."""
        return {pool: supervisor.pid for pool, (supervisor, _, _) in self._members.items()}

    async def run(self, changes: AsyncIterator[list[Path]], stop: asyncio.Event) -> None:
        """Keep the workers running until `stop` is set; then drain them.

        Args:
            changes: Batches of files that changed.
            stop: Set it to end.
        """
        stopping = asyncio.create_task(stop.wait())
        following = asyncio.create_task(self._follow(changes))
        try:
            await asyncio.wait([stopping, following], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
                await stopping
        finally:
            for task in (stopping, following):
                task.cancel()
            await asyncio.gather(stopping, following, return_exceptions=True)
            await self._leave(set(self._members))

    async def _follow(self, changes: AsyncIterator[list[Path]]) -> None:
        await self._adapt()
        async for paths in changes:
            broken = syntax_error(paths)
            if broken is not None:
                self._say(f"✗ {broken}\n  {self._kept()}")
                continue
            self._say(f"⟳ {', '.join(sorted({path.name for path in paths}))} changed")
            await self._adapt()

    async def _adapt(self) -> None:
        """Start the workers that the app needs now, start those again that run, end those of pools that are gone."""
        try:
            wanted = await self._find_pools(self._app)
        except ConfigError as error:
            self._say(f"✗ {error}\n  {self._kept()}")
            return
        if self._only is not None:
            wanted = [self._only]
        await self._leave(set(self._members) - set(wanted))
        for pool in wanted:
            if pool in self._members:
                self._members[pool][0].restart()
            else:
                self._start(pool)

    def _kept(self) -> str:
        return "the old worker goes on" if self._members else "no worker runs; it starts when the file is mended"

    def _start(self, pool: str) -> None:
        supervisor = Supervisor(
            [*self._program, *self._words(pool)],
            say=self._say,
            name=f"the worker of pool {pool}",
            env={PARENT_VARIABLE: str(os.getpid()), "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")},
        )
        ended = asyncio.Event()
        self._members[pool] = supervisor, ended, asyncio.create_task(supervisor.run(ended))

    async def _leave(self, pools: set[str]) -> None:
        leaving = [self._members.pop(pool) for pool in pools]
        for _, ended, _ in leaving:
            ended.set()
        for result in await asyncio.gather(*(task for _, _, task in leaving), return_exceptions=True):
            if isinstance(result, Exception):
                raise result
