"""Every rule about runs, and no I/O: what may happen to a run, given its state, a request and the time.

    load -> `decide(loaded, requests, env)` -> one Change for the store, one reply a request, effects for after the commit

`decide` never waits, reads no clock and draws no random number of its own. Theory of operation: each request is looked at
with the head of the run and the rows that it names; all requests of a batch to one run share one working copy
(`view.RunView`), so that a batch makes one commit. Rules of attempts stand in `attempts`, of runs in `runs`, of owners in
`owners`, of holders that may be dead in `leases`, of time in `timers`.
"""

from .decide import decide
from .env import Credit, Env, Settings
from .requests import Decision, Request

__all__ = ("Credit", "Decision", "Env", "Request", "Settings", "decide")
