"""Mistakes that a type checker must find, each where the comment says; checked by running one, never imported."""

from __future__ import annotations

from treadle.worker import step, workflow


@step(pool="csv")
async def validate(upload: str) -> int:
    return len(upload)


@step
def create(count: int) -> str:
    return "c" * count


@workflow
async def imports(upload: str) -> str:
    await validate(3)  # error: incompatible type "int"; expected "str"
    await validate()  # error: Missing positional argument "upload"
    await validate("a", 2)  # error: Too many arguments
    await create(count="2")  # error: incompatible type "str"; expected "int"
    await create(1, strict=True)  # error: Unexpected keyword argument "strict"
    number: int = await create(1)  # error: Incompatible types in assignment
    return number  # error: Incompatible return value type


@step(pool=3)  # error: No overload variant
async def pooled() -> None: ...


@workflow  # error: Argument 1 to "workflow" has incompatible type
def not_async() -> int:
    return 1


async def tested() -> None:
    await imports(1)  # error: incompatible type "int"; expected "str"
