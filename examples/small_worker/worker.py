"""A whole worker in one file, with gRPC and the generated messages only; one in another language does the same.

`python examples/small_worker/worker.py 127.0.0.1:7430 images` runs steps of the pool "images", one at a time. User code starts
only within 4 s of sending the question that GO answered; beats list what is held until its report is answered.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import threading
import time

import grpc

from treadle.v1 import state_pb2 as state
from treadle.v1 import worker_service_pb2 as wire
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub

STEPS = {"thumbnail": lambda width, height: f"{width // 4}x{height // 4}"}  # called with their arguments by name
RIGHT_MS, WAIT_MS = 4_000, 2_500
WORKER, SESSION = secrets.token_hex(8), secrets.token_hex(16)
held: tuple[int, list[state.HeldToken]] = (1, [])  # id and list; replaced whole, so the other thread never sees half


def now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000  # goes on while the machine is suspended


def beat(stub: WorkerServiceStub, namespace: str, pool: str) -> None:
    known = False
    while True:  # while the last step runs, too
        try:
            if not known:  # at first, and when the server has forgotten this worker
                who = wire.RegisterRequest(namespace=namespace, pool=pool, worker_id=WORKER, session_id=SESSION)
                who.step_slots, who.sent_ms = 1, now_ms()
                who.steps.extend(STEPS)
                stub.Register(who, timeout=10)
            sent, (list_id, tokens) = now_ms(), held  # the time first: what the list lacks was not held then
            beat = wire.BeatRequest(worker_id=WORKER, session_id=SESSION, sent_ms=sent, list_id=list_id, held=tokens)
            beat.list_given = True
            known = not stub.Beat(beat, timeout=2).ignored
        except grpc.RpcError as error:
            print(error, file=sys.stderr)
        time.sleep(1)


def run(grant: wire.Grant) -> wire.AttemptReport:
    job, report = grant.job, wire.AttemptReport(token=grant.token, kind=wire.REPORT_KIND_RELEASED)
    report.run_id, report.incarnation, report.command_id = job.run_id, job.incarnation, job.command_id
    if now_ms() < grant.sent_ms + RIGHT_MS:  # asked last, just before the code; too late is given back
        try:
            result = STEPS[job.name](**json.loads(job.input.data))
            report.kind, report.result.data = wire.REPORT_KIND_COMPLETED, json.dumps(result).encode()
        except Exception as error:
            report.kind = wire.REPORT_KIND_FAILED
            report.failure.type, report.failure.message = type(error).__name__, str(error)
    return report


def main(server: str, pool: str, namespace: str = "default") -> None:
    global held
    stub, stop = WorkerServiceStub(grpc.insecure_channel(server)), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # the step that runs is finished and reported
    threading.Thread(target=beat, args=(stub, namespace, pool), daemon=True).start()
    report: wire.AttemptReport | None = None
    while report or not stop.is_set():
        try:
            if report and report.kind == wire.REPORT_KIND_COMPLETED:  # until it is answered; twice changes nothing
                stub.Complete(wire.CompleteRequest(namespace=namespace, worker_id=WORKER, report=report), timeout=10)
            elif report:
                stub.Fail(wire.FailRequest(namespace=namespace, worker_id=WORKER, report=report), timeout=10)
            report, held = None, (secrets.randbits(63), [])
            claim = wire.ClaimRequest(namespace=namespace, worker_id=WORKER, pool=pool, wait_ms=WAIT_MS)
            claim.claim_id, claim.sent_ms = secrets.randbits(63), now_ms()
            answer = wire.ClaimResponse() if stop.is_set() else stub.Claim(claim, timeout=WAIT_MS / 1000 + 2)
            if answer.verdict == wire.VERDICT_GO:
                token, job = answer.grant.token, answer.grant.job
                held = (claim.claim_id, [state.HeldToken(run_id=job.run_id, command_id=job.command_id, token=token)])
                report = run(answer.grant)
        except grpc.RpcError as error:
            print(error, file=sys.stderr)
            time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
