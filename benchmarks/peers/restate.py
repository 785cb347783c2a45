"""Restate: its server from npm, its Python SDK under granian (or hypercorn).

Variants: "run-…": steps are `ctx.run_typed` blocks in one handler, the usual durable step; "call-…": each step is a call of
another service's handler.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import restate

from benchmarks.drive import append_line
from benchmarks.measure import always
from benchmarks.peers import home
from benchmarks.peers.stage import STEP_LOG_VARIABLE, Stage, Team, crashed, measure, options, reach
from benchmarks.processes import free_port, kill_tree, spawn, wait_for_port
from benchmarks.sizes import ORDER, SLOW_STEP_S

VARIANTS = ["run-granian", "call-granian"]

steps = restate.Service("steps")
bench = restate.Service("bench")


async def step(x: dict[str, Any]) -> dict[str, Any]:
    x["n"] += 1
    return x


async def slow_step(run: int, index: int) -> int:
    append_line(os.environ[STEP_LOG_VARIABLE], run, index)
    await asyncio.sleep(SLOW_STEP_S)
    return index


@steps.handler()
async def one(ctx: restate.Context, x: dict[str, Any]) -> dict[str, Any]:
    return await step(x)


@bench.handler()
async def chain(ctx: restate.Context, given: dict[str, Any]) -> int:
    x = given["x"]
    for _ in range(given["n"]):
        x = await ctx.run_typed("step", step, x=x)
    return int(x["n"])


@bench.handler()
async def chaincall(ctx: restate.Context, given: dict[str, Any]) -> int:
    x = given["x"]
    for _ in range(given["n"]):
        x = await ctx.service_call(one, x)
    return int(x["n"])


@bench.handler()
async def fan(ctx: restate.Context, given: dict[str, Any]) -> int:
    futures = await restate.gather(*(ctx.run_typed("step", step, x=dict(given["x"])) for _ in range(given["n"])))
    return len([await future for future in futures])


@bench.handler()
async def fancall(ctx: restate.Context, given: dict[str, Any]) -> int:
    futures = await restate.gather(*(ctx.service_call(one, given["x"]) for _ in range(given["n"])))
    return len([await future for future in futures])


@bench.handler()
async def sleeper(ctx: restate.Context, given: dict[str, Any]) -> float:
    left = given["n"] - await ctx.time()
    await ctx.sleep(dt.timedelta(seconds=max(left, 0)))
    return time.time() - given["n"]


@bench.handler()
async def slow(ctx: restate.Context, given: dict[str, Any]) -> int:
    for index in range(given["steps"]):
        await ctx.run_typed("slow", slow_step, run=given["n"], index=index)
    return int(given["steps"])


app = restate.app(services=[steps, bench])


class Client:
    """Restate's ingress over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, port: int, suffix: str) -> None:
        self._session, self._base, self._suffix = session, f"http://127.0.0.1:{port}", suffix

    def _place(self, name: str, arguments: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        handler = name + (self._suffix if name in ("chain", "fan") else "")
        body = {"n": arguments[0], "x": dict(ORDER)} | ({"steps": arguments[1]} if len(arguments) > 1 else {})
        return f"{self._base}/bench/{handler}", body

    async def start(self, name: str, *arguments: Any) -> str:
        url, body = self._place(name, arguments)
        async with self._session.post(f"{url}/send", json=body) as answer:
            answer.raise_for_status()
            return str((await answer.json())["invocationId"])

    async def result(self, handle: str) -> Any:
        async with self._session.get(f"{self._base}/restate/invocation/{handle}/attach") as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)

    async def call(self, name: str, *arguments: Any) -> Any:
        url, body = self._place(name, arguments)
        async with self._session.post(url, json=body) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)


@asynccontextmanager
async def connect(port: int, suffix: str) -> AsyncIterator[Client]:
    """A client with as many connections as it needs."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        yield Client(session, port, suffix)


def start_server(stage: Stage) -> tuple[int, int, int]:
    """Start the server as it ships; returns its pid and the ports of ingress and admin."""
    ingress, admin, node = free_port(), free_port(), free_port()
    places = (home() / "npm/node_modules/@restatedev").glob("restate-server-linux-*/bin/restate-server")
    config = stage.folder / "restate.toml"
    config.write_text(
        f'disable-telemetry = true\nbind-address = "127.0.0.1:{node}"\nadvertised-address = "http://127.0.0.1:{node}/"\n'
        f'[ingress]\nbind-address = "127.0.0.1:{ingress}"\n[admin]\nbind-address = "127.0.0.1:{admin}"\n'
    )
    command: list[object] = [next(places), "--config-file", config, "--base-dir", stage.folder / "restate"]
    command += ["--no-logo", "--node-name", "bench"]
    env = {"RESTATE_LISTEN_MODE": "tcp", "RUST_LOG": "warn", "DO_NOT_TRACK": "1"}
    server = spawn(command, stage.log("server"), env, stage.folder)
    stage.cleanup.callback(kill_tree, server, signal.SIGTERM)
    wait_for_port(ingress, server)
    return server.pid, ingress, admin


def start_service(stage: Stage, kind: str, admin: int) -> Team:
    """Serve the handlers and make them known."""
    port, target = free_port(), "benchmarks.peers.restate:app"
    command: list[object] = [sys.executable, "-m", kind]
    if kind == "hypercorn":
        command += [target, "--bind", f"127.0.0.1:{port}"]
    else:
        command += ["--interface", "asgi", "--http", "2", "--host", "127.0.0.1", "--port", port, "--no-ws"]
        command += ["--log-level", "warning", target]
    env = {STEP_LOG_VARIABLE: str(stage.step_log.path)}
    team = Team(command, stage.log("worker"), env, Path.cwd())
    team.start()
    stage.cleanup.callback(team.stop)
    assert team.process is not None
    wait_for_port(port, team.process)
    register(admin, f"http://127.0.0.1:{port}")
    return team


def register(admin: int, uri: str) -> None:
    """Tell the server of the handlers; it takes a moment until it listens to that."""
    body = json.dumps({"uri": uri}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{admin}/deployments", body, {"content-type": "application/json"}
    )
    end = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def main() -> None:
    with options("restate") as stage:
        for kind in ("granian", "hypercorn"):
            variants = [name for name in (stage.variants or VARIANTS) if name.endswith(kind)]
            if not variants:
                continue
            pid, ingress, admin = start_server(stage)
            team = start_service(stage, kind, admin)
            groups = {"server": always(pid), "worker": team.pids}
            for variant in variants:
                called = variant.startswith("call")
                open_client = partial(connect, ingress, "call" if called else "")
                if stage.part != "W5":
                    measure(
                        stage,
                        variant,
                        "b" if called else "a",
                        groups,
                        open_client,
                        reach(stage.sizes),
                        sleeper=not called,
                    )
                elif not called:  # its limit of invocations counts per partition, so the client bounds them
                    crashed(stage, variant, groups, open_client, team, lanes=stage.sizes.crash_slots)


if __name__ == "__main__":
    main()
