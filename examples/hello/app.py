"""The smallest app: `treadle dev examples/hello/app.py`, then `treadle run start greet -i '{"name": "Ada"}' --watch`."""

from __future__ import annotations

import asyncio

from treadle.worker import step, workflow


@step
async def greeting(name: str) -> str:
    return f"Hello, {name}!"


@workflow
async def greet(name: str) -> str:
    text = await greeting(name)
    await asyncio.sleep(2)  # durable: kill everything now, start `treadle dev` again, and it goes on
    return text
