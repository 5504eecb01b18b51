"""What a worker says about its tasks: its whole life in the test's process, on a real channel. Its
signals are left out; they are this process's own."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from prefork._ipc.channel import Channel
from prefork._ipc.outcome import decode, decode_exit, decode_reason
from prefork._ipc.pickling import CallPickler
from prefork._ipc.wire import ACCEPT, CALL, EACH, KEYWORDS, LIMITED, MAP, STARMAP, Kind, Report
from prefork._ipc.worker_end import WorkerEnd
from prefork._worker import main as worker
from prefork._worker.options import Hook, WorkerOptions
from prefork.errors import SoftTimeLimitExceeded


@pytest.fixture(autouse=True)
def without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*args: object) -> None: ...

    for name in ("set_action", "forget_handlers", "unblock", "stacks.install", "stacks.uninstall"):
        monkeypatch.setattr(f"prefork._worker.main.{name}", nothing)
    monkeypatch.setattr("prefork._worker.main.signal.set_wakeup_fd", nothing)


class Desk:
    """The pool's side of one worker, which runs when it is told to."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.channel.open()
        self._end = self.channel.take_worker_end()
        self._jobs = 0
        self._calls = CallPickler()

    def put(
        self, func: Callable[..., Any], arguments: Any, flags: int = CALL, first: int = 0
    ) -> int:
        """Send a task; returns the job's number."""
        self._jobs += 1
        pickled, length, _ = self._calls.pickle(func, arguments)
        soft_timeout = 60.0 if flags & LIMITED else 0.0
        ticket = self.channel.stage(self._jobs, soft_timeout, flags, pickled, None, length, first)
        assert ticket is not None
        assert self.channel.send([ticket])
        return self._jobs

    def run(
        self,
        options: WorkerOptions = WorkerOptions(),  # noqa: B008
        max_tasks: int | None = None,
    ) -> list[Report]:
        """Have the worker do all of that, and leave; returns what it has said."""
        self.channel.send_leave()
        with contextlib.suppress(SystemExit):
            worker.main(options, self._end, max_tasks)
        reports: list[Report] = []
        while (more := self.channel.receive()) is not None:
            reports += more
        assert self.channel.eof
        return reports


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.channel.close()


def outcomes(reports: list[Report]) -> list[tuple[int, tuple[bool, Any]]]:
    return [(job, decode(kind, payload)) for kind, job, _, _, payload in reports if job]


def test_it_is_ready_runs_what_it_is_sent_and_leaves(desk: Desk) -> None:
    one = desk.put(divmod, (7, 2))
    two = desk.put(int, (("7",), {"base": 8}), CALL | KEYWORDS)
    ready, *reports = desk.run()
    assert ready[0] == Kind.READY
    assert outcomes(reports) == [(one, (True, (3, 1))), (two, (True, 7))]
    assert desk.channel.reclaim(9) == []


def test_what_it_runs_is_on_its_board(desk: Desk) -> None:
    desk.put(len, ("abc",))
    _, (_, job, started, seconds, _) = desk.run()
    assert desk.channel.running() == (job, started)
    assert desk.channel.accepted() == started
    assert seconds >= 0.0


def test_a_start_is_told_if_somebody_wants_to_know(desk: Desk) -> None:
    desk.put(len, ("abc",), CALL | ACCEPT)
    assert [kind for kind, *_ in desk.run()] == [Kind.READY, Kind.ACCEPTED, Kind.DONE]


def test_what_a_task_raises_is_its_outcome(desk: Desk) -> None:
    desk.put(int, ("seven",))
    desk.put(len, ("abc",))
    (_, (ok, error)), (_, good) = outcomes(desk.run())
    assert not ok
    assert isinstance(error, ValueError)
    assert good == (True, 3)


def test_a_chunk_has_one_outcome_or_one_for_each_item(desk: Desk) -> None:
    desk.put(int, ["1", "2"], MAP)
    desk.put(divmod, [(7, 2), (9, 4)], STARMAP | LIMITED)
    desk.put(int, ["1", "two"], MAP)
    desk.put(int, ["1", "two"], EACH | LIMITED)
    map_, starmap, failed, (_, (ok, each)) = outcomes(desk.run())
    assert map_[1] == (True, [1, 2])
    assert starmap[1] == (True, [(3, 1), (2, 1)])
    assert isinstance(failed[1][1], ValueError)
    assert ok
    assert [outcome.ok for outcome in each] == [True, False]


def test_what_unpickling_may_take_comes_before_the_limits_begin(desk: Desk) -> None:
    clocks: list[float] = []
    WhenUnpickled.look = lambda: clocks.append(desk.channel.running()[1])
    desk.put(max, (WhenUnpickled(), 1), LIMITED)
    before = time.monotonic()
    _, (_, job, started, _, _) = desk.run(WorkerOptions(load_seconds=1000.0))
    assert clocks[0] - started == pytest.approx(1000.0)
    assert desk.channel.running()[0] == job
    assert before <= desk.channel.running()[1] <= time.monotonic()


class WhenUnpickled:
    look: ClassVar[Callable[[], object]]

    def __reduce__(self) -> Any:
        return WhenUnpickled.now, ()

    @classmethod
    def now(cls) -> int:
        cls.look()
        return 0


def test_a_call_that_cannot_be_unpickled_fails_alone(desk: Desk) -> None:
    desk.put(NoUnpickle(), ())
    desk.put(len, ("abc",))
    (_, (ok, error)), (_, good) = outcomes(desk.run())
    assert not ok
    assert "while unpickling the call in a worker process" in error.__notes__[0]
    assert good == (True, 3)


class NoUnpickle:
    def __reduce__(self) -> Any:
        return int, ("not a number",)

    def __call__(self) -> None: ...


def stop(code: object) -> None:
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(None, 0), (3, 3), ("a message", 1), pytest.param(3 + (1 << 99999), 3, id="huge")],
)
def test_a_task_that_exits_says_with_which_code_and_nothing_after_it_is_run(
    desk: Desk, code: object, expected: int
) -> None:
    job = desk.put(stop, (code,))
    unread = desk.put(len, ("abc",))
    *_, (kind, number, _, _, payload) = desk.run()
    assert (kind, number) == (Kind.EXITING, job)
    exitcode, why = decode_exit(payload)
    assert exitcode == expected
    assert why.startswith("it raised SystemExit")
    assert desk.channel.reclaim(9) == [unread]


def test_it_leaves_after_its_share(desk: Desk) -> None:
    jobs = [desk.put(len, ("abc",)) for _ in range(3)]
    reports = desk.run(max_tasks=2)
    assert [job for job, _ in outcomes(reports)] == jobs[:2]
    assert desk.channel.reclaim(9) == jobs[2:]


def test_it_leaves_if_it_has_too_much_memory_and_says_so(desk: Desk) -> None:
    desk.put(len, ("abc",))
    unread = desk.put(len, ("abc",))
    *_, (kind, _, _, _, payload) = desk.run(WorkerOptions(max_memory=1))
    assert kind == Kind.LEAVING
    assert "KiB of memory, more than 1 KiB" in decode_reason(payload)
    assert desk.channel.reclaim(9) == [unread]


initialised: list[object] = []


def test_its_initializer_comes_first(desk: Desk) -> None:
    initialised.clear()
    desk.put(len, (initialised,))
    initializer = Hook(initialised.append, ("done",))
    (_, (ok, _)), *_ = outcomes(desk.run(WorkerOptions(initializer)))
    assert ok
    assert initialised == ["done"]


def test_one_whose_initializer_fails_is_never_ready(desk: Desk) -> None:
    unread = desk.put(len, ("abc",))
    ((kind, _, _, _, payload),) = desk.run(WorkerOptions(Hook(int, ("seven",))))
    assert kind == Kind.BROKEN
    ok, error = decode(kind, payload)
    assert not ok
    assert isinstance(error, ValueError)
    assert desk.channel.reclaim(9) == [unread]


def test_an_initializer_travels_as_a_pickle_of_its_own() -> None:
    initialised.clear()
    arrived = pickle.loads(pickle.dumps(Hook(mark, ("there",))))
    assert initialised == []
    arrived.load()()
    assert initialised == ["there"]


def mark(text: str) -> None:
    initialised.append(text)


def test_options_are_plain() -> None:
    options = WorkerOptions()
    assert options.max_memory is None
    assert options.soft_limit is SoftTimeLimitExceeded


def test_a_soft_limit_that_passes_as_soon_as_the_clock_is_seen_is_heeded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may be kept from running, at whatever moment, from
    when it has told what its clock says until that signal is there."""
    handlers: list[Callable[..., object]] = []
    monkeypatch.setattr(worker, "set_action", lambda signum, call: handlers.append(call))

    class Clock:
        def __init__(self, clock: Any) -> None:
            self._clock = clock

        def __setitem__(self, place: int, value: float) -> None:
            self._clock[place] = value
            if place == 1 and value > self._clock[2]:  # the task's own time runs
                monkeypatch.setattr(time, "monotonic", lambda: value + 61.0)
                handlers[-1](0, None)

    open_end = WorkerEnd.open

    def opened(end: WorkerEnd) -> Any:
        black_box = open_end(end)
        end.clock = Clock(end.clock)  # type: ignore[assignment]
        return black_box

    monkeypatch.setattr(WorkerEnd, "open", opened)
    job = desk.put(len, ("abc",), CALL | LIMITED)
    ((found, (ok, error)),) = outcomes(desk.run())
    assert (found, ok) == (job, False)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert desk.channel.heeded() == desk.channel.running()[1]  # so it need not be told again


# ---- items that have outcomes of their own


class Look:
    """A task that tells what the pool would see now."""

    found: ClassVar[Any] = None

    def __init__(self, desk: Desk) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self._desk = desk

    def __call__(self, item: object) -> object:
        page = self._desk.channel.page()
        self.seen.append((page.base, len(page.outcomes), page.begun))
        return item

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, ()


def _found() -> Any:
    return Look.found


def test_what_is_done_is_noted_before_the_next_item_begins(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(desk)
    monkeypatch.setattr(Look, "found", look)
    job = desk.put(look, [1, "two", None], EACH)
    _, report = desk.run()
    assert look.seen == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
    assert outcomes([report]) == [(job, (True, [(True, 1), (True, "two"), (True, None)]))]
    assert desk.channel.page().begun == 0


def test_a_job_goes_on_where_another_worker_has_left_it(desk: Desk) -> None:
    desk.put(int, ["1", "2", "3"], EACH, first=2)
    _, report = desk.run()
    ((_, outcome),) = outcomes([report])
    assert outcome == (True, [(True, 3)])


def test_what_has_no_room_on_the_page_is_reported_as_a_part(desk: Desk) -> None:
    sizes = [10, 40_000, 40_000, 10]
    job = desk.put(bytes, sizes, EACH)
    _, part, report = desk.run()
    assert (part[:3], report[:2]) == ((Kind.PART, job, 3.0), (Kind.OUTCOMES, job))
    found = [decode(Kind.OUTCOMES, each[-1])[1] for each in (part, report)]
    assert [len(outcome.value) for outcome in [*found[0], *found[1]]] == sizes
    assert [len(each) for each in found] == [3, 1]
