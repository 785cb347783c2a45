"""What the client's stream of runs sends, takes, and sends again: no I/O, tickets are plain names."""

from __future__ import annotations

from google.rpc.code_pb2 import ALREADY_EXISTS, UNAVAILABLE
from google.rpc.status_pb2 import Status

from treadle.client.traffic import FRAME_BYTES, FRAME_STARTS, Traffic
from treadle.v1.common_pb2 import Payload
from treadle.v1.run_service_pb2 import Run, RunEnd, StartAnswer, StartRunRequest, StreamRunsRequest, StreamRunsResponse


def request(run_id: str, size: int = 2) -> StartRunRequest:
    return StartRunRequest(run_id=run_id, request_id=f"q-{run_id}", workflow="w", input=Payload(data=b"x" * size))


def answer(number: int, *, watched: bool = True, code: int = 0) -> StreamRunsResponse:
    status = Status(code=code).SerializeToString() if code else b""
    return StreamRunsResponse(starts=[StartAnswer(number=number, incarnation=7, watched=watched, status=status)])


def end(number: int, run_id: str = "r", size: int = 0) -> StreamRunsResponse:
    return StreamRunsResponse(ends=[RunEnd(number=number, run=Run(run_id=run_id, result=Payload(data=b"x" * size)))])


def sent(traffic: Traffic[str]) -> StreamRunsRequest:
    """Everything that is to be sent, as one frame."""
    whole = StreamRunsRequest()
    while (frame := traffic.frame()) is not None:
        whole.MergeFrom(frame)
    return whole


def ids(frame: StreamRunsRequest) -> list[str]:
    return [item.request.run_id for item in frame.starts]


def test_what_collects_goes_in_one_frame_within_bounds() -> None:
    traffic: Traffic[str] = Traffic("prod")
    assert traffic.frame() is None
    for n in range(FRAME_STARTS + 1):
        traffic.start(request(f"r{n}"), f"t{n}", 10.0)
    first, second = traffic.frame(), traffic.frame()
    assert first is not None and second is not None
    assert (first.namespace, len(first.starts), len(second.starts)) == ("prod", FRAME_STARTS, 1)
    assert all(item.watch and not item.request.namespace for item in first.starts)
    for name, size in (("small", 10), ("large", FRAME_BYTES), ("larger", 2 * FRAME_BYTES), ("last", 10)):
        traffic.start(request(name, size), name, 10.0)
    frames = [ids(frame) for frame in iter(traffic.frame, None)]
    assert frames == [["small"], ["large"], ["larger"], ["last"]], "what is too large for a frame goes alone"


def test_an_answered_start_is_not_sent_again_and_its_end_needs_no_asking() -> None:
    traffic: Traffic[str] = Traffic("default")
    number = traffic.start(request("r"), "start", 10.0)
    sent(traffic)
    ((ticket, found),) = traffic.take(answer(number))
    assert (ticket, isinstance(found, StartAnswer)) == ("start", True)
    assert traffic.end(number, "r", 7, "one") == traffic.end(number, "r", 7, "two") == number
    assert not traffic.pending, "the server has promised to tell it"
    assert [ticket for ticket, _ in traffic.take(end(number))] == ["one", "two"]
    assert traffic.end(number, "r", 7, "three") == number
    assert [watch.number for watch in sent(traffic).watches] == [number], "it was told once: now it is asked for"


def test_an_end_that_nobody_waits_for_is_kept_within_bounds() -> None:
    traffic: Traffic[str] = Traffic("default")
    numbers = [traffic.start(request(f"r{n}"), "t", 10.0) for n in range(20)]
    for n in numbers:
        traffic.take(answer(n))
        traffic.take(end(n, f"r{n}", 1 << 20))
    sent(traffic)
    kept = [traffic.end(n, "", 7, "t") for n in numbers]
    assert [isinstance(found, Run) for found in kept] == [False] * 5 + [True] * 15, "16 MiB, the newest"
    assert isinstance(traffic.end(numbers[-1], "", 7, "t"), int), "handed out once"
    assert len(sent(traffic).watches) == 6


def test_a_broken_stream_sends_everything_unanswered_again_once() -> None:
    traffic: Traffic[str] = Traffic("default")
    one, two, three = (traffic.start(request(f"r{n}"), f"t{n}", 10.0) for n in (1, 2, 3))
    sent(traffic)
    late = traffic.start(request("r4"), "t4", 10.0)
    traffic.take(answer(one))
    traffic.take(answer(three, watched=False))
    traffic.end(one, "r1", 7, "w1")
    other = traffic.end(0, "elsewhere", 0, "w2")
    assert other == late + 1
    assert traffic.broken(met=True) == []
    again = sent(traffic)
    assert ids(again) == ["r2", "r4"]
    assert [item.number for item in again.starts] == [two, late], "the same numbers, and so the same request ids"
    assert [(w.number, w.run_id, w.incarnation) for w in again.watches] == [(one, "r1", 7), (other, "elsewhere", 0)]
    assert not traffic.pending
    assert [ticket for ticket, _ in traffic.take(answer(two)) + traffic.take(answer(two))] == ["t2"], "one answer each"


def test_who_leaves_is_forgotten() -> None:
    traffic: Traffic[str] = Traffic("default")
    unsent = traffic.start(request("r1"), "t1", 10.0)
    traffic.leave(unsent, "t1")
    assert ids(sent(traffic)) == []
    number = traffic.start(request("r2"), "t2", 10.0)
    sent(traffic)
    traffic.leave(number, "t2")
    assert traffic.take(answer(number)) == []
    watched = traffic.end(0, "r", 0, "a")
    assert isinstance(watched, int)
    assert traffic.end(watched, "r", 0, "b") == watched
    sent(traffic)
    traffic.leave(watched, "a")
    assert not traffic.pending, "somebody still waits"
    traffic.leave(watched, "b")
    assert list(sent(traffic).unwatch) == [watched]
    traffic.broken(met=True)
    assert not traffic.pending


def test_a_start_refused_for_the_moment_is_sent_again_but_not_for_ever() -> None:
    traffic: Traffic[str] = Traffic("default")
    number = traffic.start(request("r"), "t", 10.0)
    for _ in range(4):
        assert len(sent(traffic).starts) == 1
        assert traffic.take(answer(number, code=UNAVAILABLE)) == []
        assert traffic.put_off
        assert not traffic.pending, "not at once"
        traffic.again()
    assert len(traffic.take(answer(number, code=UNAVAILABLE))) == 1
    other = traffic.start(request("s"), "t", 10.0)
    assert len(traffic.take(answer(other, code=ALREADY_EXISTS))) == 1, "no use to ask again"


def test_starts_are_given_up_when_their_time_is_over_or_nobody_was_ever_there() -> None:
    traffic: Traffic[str] = Traffic("default")
    traffic.start(request("r1"), "t1", 10.0)
    traffic.start(request("r2"), "t2", 11.0)
    traffic.end(0, "r", 0, "w")
    assert traffic.next_due == 10.0
    assert traffic.overdue(9.0) == []
    assert traffic.overdue(10.0) == ["t1"]
    assert [traffic.broken(met=False) for _ in range(5)] == [[], [], [], [], ["t2"]]
    assert len(sent(traffic).watches) == 1, "a result is waited for as long as it takes"
    traffic.start(request("r3"), "t3", 20.0)
    assert [traffic.broken(met=True) for _ in range(9)] == [[]] * 9, "it was there before: until the deadline"
    assert sorted(traffic.give_up()) == ["t3", "w"]
    assert not traffic.pending


def test_how_much_may_be_unanswered_is_bounded() -> None:
    traffic: Traffic[str] = Traffic("default")
    for n in range(16):
        assert traffic.room > 0
        number = traffic.start(request(f"r{n}", 1 << 20), "t", 10.0)
    assert traffic.room == 0
    sent(traffic)
    assert traffic.room == 0, "sent is not answered"
    traffic.take(answer(number))
    assert traffic.room > 0
    small: Traffic[str] = Traffic("default")
    while small.room:
        number = small.start(request("r"), "t", 10.0)
    assert number == 5_000
