"""What code awaits when it calls a step or a child, and what cancelling that does: one of three modes.

"try": the step is told, and the caller goes on at once. "wait": the step is told, and the caller goes on when it has ended.
"abandon": the caller goes on at once, and nobody is told. In each mode the caller gets CancelledError, once: also when the
step returned although it was told, because a cancel that may be lost on the way is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.v1.common_pb2 import ON_CANCEL_WAIT
from treadle.worker.loop.future import DurableFuture

if TYPE_CHECKING:
    from treadle.worker.loop.durable_loop import DurableLoop
    from treadle.worker.loop.ledger import Ask, Ledger

__all__ = ("StepFuture",)


class StepFuture(DurableFuture):
    """The outcome of a step or a child.

    Attributes:
        ask: What was asked for.
        ledger: Told when the code needs it no longer.
    """

    __slots__ = ("ask", "ledger")

    ask: Ask
    ledger: Ledger

    def cancel(self, msg: object = None) -> bool:
        if self.done():
            return False
        ask = self.ask
        loop: DurableLoop = self.get_loop()  # type: ignore[assignment]
        if ask.on_cancel == ON_CANCEL_WAIT and not (ask.dropped or loop.finished):
            self.ledger.await_end(ask, msg)
            return True  # as a task does that takes its time: CancelledError comes with the outcome
        super().cancel(msg)
        self.ledger.drop(ask)
        return True

    def ended(self) -> bool:
        """The outcome is there. Whether it was cancelled, and had only waited for that."""
        ask = self.ask
        return ask.cancelling and super().cancel(ask.cancel_message)
