"""Each line that ends in `# wrong` must be a type error; no other line may be one."""

from __future__ import annotations

from treadle.testing import Lab
from treadle.worker import step, workflow


@step
def count(word: str) -> int:
    return len(word)


@workflow
async def order(item: str, amount: int) -> float:
    return amount / len(item)


def wrong(lab: Lab) -> None:
    lab.start(order, "book")  # wrong
    lab.start(order, "book", "two")  # wrong
    lab.start(order, "book", "two", id="a")  # wrong
    lab.start(count, "book")  # wrong
    text: str = lab.start(order, "book", 2).result()  # wrong
    lab.replace(count, returns=text)  # wrong
    lab.replace(count, calls=wrong)  # wrong
    lab.replace(count)  # wrong
    lab.replace(count, returns=1, raises=OSError)  # wrong
    lab.later("2d", lab.start(order, "book", 2).signal)  # wrong
