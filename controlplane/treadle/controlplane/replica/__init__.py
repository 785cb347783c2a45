"""What one replica of the control plane keeps in memory: its sessions, their credits, and what they were sent. No I/O.

Nothing here matters after a crash: every fact stands in the store, and every worker says again what was not answered.
"""

from .credits import CreditBook
from .replica import Page, Replica
from .session import OpenRun, Session

__all__ = ("CreditBook", "OpenRun", "Page", "Replica", "Session")
