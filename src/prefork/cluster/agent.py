"""The node's side: it lives in the node's main process, and runs chunks in a pool.

    letters ─► Session.waiting ─► "these are about to run" ─► Pool.each_async ─► report

A chunk is a job of several items of an ordinary pool: so each item has an outcome of its own, and
its limits; a process that dies costs the one item that it was at. One chunk is handed to each
process at a time. Before, the client is told so, and the broker has to have that letter: what a
client was not told of has not begun.

Items are begun only while the client's lease holds, which the pool's processes look up themselves
(`runner.Board`). A node without a lease waits: what was handed to it stays, and what runs goes on,
until the client grants another one, says that it has given the session up, or has been silent for
`patience` seconds: then all that is left of it is ended, and its queue deleted.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from prefork._describe import describe
from prefork._ipc.outcome import Outcome
from prefork._system.log import CRITICAL, DEBUG, WARNING, Log
from prefork._system.threads import BackgroundThread
from prefork.cluster import runner
from prefork.cluster.clock import lease_time
from prefork.cluster.codecs import write_error
from prefork.cluster.errors import NotAllowedError
from prefork.cluster.letters import CLIENT_QUEUE, Letter, Link, client_box
from prefork.cluster.names import Allowed
from prefork.cluster.posting import MakePost, Told
from prefork.cluster.runner import Board
from prefork.cluster.sessions import Session, Work, sorted_out
from prefork.errors import PreforkError
from prefork.pool import Pool

__all__ = ["Agent"]

RENEW_SECONDS: Final = 1.0
MOST_SESSIONS: Final = 256
MOST_AT_ONCE: Final = 256
LONGEST_LEASE: Final = 3600.0
AWAY_SECONDS: Final = 2.5  # after so long between two looks, it was this process that stood still
SMALL: Final = 1 << 16  # bytes of results that what is about to run may wait for
SILENT_SECONDS: Final = 5.0  # a client that was not heard of for so long is sent nothing again


class Agent:
    """
    Args:
        make_post: what the letters go by; its box is a `node_box()`.
        name: of the node, for people.
        allow: what may be run.
        codecs: which of them are accepted.
        pool: runs it.
        board: that was made before this pool was.
        patience: seconds.
    """

    def __init__(
        self,
        make_post: MakePost,
        name: str,
        allow: Allowed,
        codecs: frozenset[str],
        pool: Pool,
        board: Board,
        patience: float,
    ) -> None:
        self._name = name
        self._allow = allow
        self._codecs = codecs
        self._pool = pool
        self._board = board
        self._patience = patience
        self._log = Log()
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._post = make_post(self._received, self._connection_is)
        self._sessions: dict[str, Session] = {}  # by client
        self._ending: list[Session] = []  # that are over, while something of theirs still runs
        self._free_slots = list(range(MOST_SESSIONS))
        self._turn = 0
        self._next_look = 0.0
        self._looked = 0.0
        self._connected: float | None = None  # since when
        self._is_leaving = self._is_abandoned = False
        self._is_over = False
        self.ended = threading.Event()
        self._thread = BackgroundThread(self._run, "prefork-Agent")

    # ---- from any thread

    def start(self) -> None:
        self._thread.start()
        self._post.start()

    def leave(self) -> None:
        """Begin nothing more, tell the clients, and end when what runs has ended."""
        self._events.put(self._leave)

    def abandon(self) -> None:
        """End what runs, and then likewise."""
        self._events.put(self._abandon)

    def join(self, timeout: float | None = None) -> bool:
        return self._thread.join(timeout) and self._post.join(timeout)

    def _received(self, body: bytes) -> None:
        if body:
            self._events.put(lambda: self._read(body))

    def _connection_is(self, here: bool, error: Exception | None, box: str = "") -> None:
        self._events.put(lambda: self._note_connection(here, error))

    # ---- in its own thread

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._step()
        except BaseException as exc:  # a bug: what runs must not go on without an account
            self._log.note(CRITICAL, "the cluster's agent has failed: it ends", error=exc)
            for session in list(self._sessions.values()):
                self._end(session)
        finally:
            self._post.stop()
            self.ended.set()

    def _step(self) -> None:
        """Handle what there is, or wait for it."""
        is_idle = not (self._sessions or self._ending)
        left = max(0.0, self._next_look - lease_time())
        try:
            for number in range(MOST_AT_ONCE):
                self._events.get(number == 0, None if is_idle else left)()
        except queue.Empty:
            pass
        now = lease_time()
        if now >= self._next_look:
            if self._connected is not None and now > self._looked + AWAY_SECONDS:
                self._connected = now  # it is we who were not there: what has come is to be read
            self._looked = now
            self._next_look = now + RENEW_SECONDS
            for session in list(self._sessions.values()):
                self._see_to(session, now)
        self._begin_work(now)
        if self._is_leaving:
            self._see_whether_all_has_ended()

    def _note_connection(self, here: bool, error: Exception | None) -> None:
        if here:
            self._connected = now = lease_time()
            for session in self._sessions.values():
                session.link.send_again(now, at_once=True)
                self._renew(session, now)
        else:
            self._connected = None
            level = WARNING if self._sessions else DEBUG
            text = "the cluster's agent has no connection: %s"
            self._log.note(level, text, "it has ended" if error is None else describe(error))

    # ---- sessions

    def _see_to(self, session: Session, now: float) -> None:
        if self._connected is None:
            return  # whether it is there cannot be known
        if now > max(session.heard, session.until, self._connected) + self._patience:
            text = "a client has been silent for too long: what it has here is ended"
            self._log.note(WARNING, text)
            self._end(session)
            self._post.delete(client_box(session.client))
            return
        # Else it would only fill its queue.
        if self._post.is_lossy and now < session.heard + SILENT_SECONDS:
            session.link.send_again(now)
        self._renew(session, now)

    def _renew(self, session: Session, now: float) -> None:
        session.link.tell(
            "renew",
            {
                "time": now,
                "node": self._name,
                "box": self._post.name,
                "processes": self._pool.processes,
                "python": platform.python_version(),
                "leaving": self._is_leaving,
            },
        )

    def _hello(self, letter: Letter) -> None:
        client = letter.field("client", str)
        box = client_box(client)
        if not CLIENT_QUEUE.fullmatch(box):
            raise ValueError(f"{client!r} is no client")
        if (known := self._sessions.get(client)) is not None:
            known.heard = lease_time()
            return
        if self._is_leaving:
            return
        codec = letter.field("codec", str)
        if codec not in self._codecs:
            text = "a client asks for %s, which serve() does not accept here"
            self._log.note(WARNING, text, codec)
            return
        if not self._free_slots:
            self._log.note(WARNING, "there are %s clients: no more are served", MOST_SESSIONS)
            return
        link = Link(uuid.uuid4().hex, self._post, box)
        session = Session(client, self._free_slots.pop(), link, lease_time())
        self._board.write(session.slot, session.token, 0.0)
        self._sessions[client] = session
        self._log.note(DEBUG, "a client has come")
        self._renew(session, lease_time())

    def _end(self, session: Session) -> None:
        """Have nothing left of it; its slot is free when what runs has ended."""
        session.is_over = True
        self._board.write(session.slot, session.token, 0.0)
        session.waiting.clear()
        del self._sessions[session.client]
        self._ending.append(session)
        for number, work in list(session.running.items()):
            self._end_work(session, number, work)
        self._free_slots_of_ended()

    @staticmethod
    def _end_work(session: Session, number: int, work: Work) -> None:
        if work.handle is None:  # it was to be begun
            del session.running[number]
        else:
            work.handle.terminate()

    def _free_slots_of_ended(self) -> None:
        for session in [each for each in self._ending if not each.running]:
            self._ending.remove(session)
            self._free_slots.append(session.slot)

    # ---- letters

    def _read(self, body: bytes) -> None:
        try:
            letter = Letter.read(body)
            if letter.kind == "hello":
                self._hello(letter)
                return
            name = letter.field("session", str)
            for session in self._sessions.values():
                if session.link.session == name:
                    self._heed(session, letter)
                    return
        except Exception as exc:  # whatever it is, it must not end what serves all others
            self._log.note(WARNING, "a letter cannot be read: %s", describe(exc))

    def _heed(self, session: Session, letter: Letter) -> None:
        if letter.kind == "end":
            self._end(session)
            if letter.head.get("closing"):  # one of ours may have come too late for it
                self._post.delete(client_box(session.client))
            return
        now = lease_time()
        if not session.link.heed(letter, now):
            return
        session.heard = now
        match letter.kind:
            case "grant" if not self._is_abandoned:
                lease = min(LONGEST_LEASE, letter.field("lease", (int, float)))
                asked = min(now, letter.field("time", (int, float)))
                session.until = max(session.until, asked + lease)
                self._board.write(session.slot, session.token, session.until)
            case "chunk":
                self._take(session, letter, now)
            case "drop":
                self._drop(session, letter)
            case "ask":
                self._answer(session, letter)

    def _take(self, session: Session, letter: Letter, now: float) -> None:
        try:
            work = Work(letter, session.slot, session.token)
        except ValueError as exc:
            number = letter.field("chunk", int)
            self._refuse(session, number, len(letter.texts), exc, now)
            raise
        try:
            if work.codec not in self._codecs:
                raise NotAllowedError(f"this node does not accept {work.codec}: see serve()")
            self._allow.check(work.name, by_value=bool(work.value))
        except NotAllowedError as exc:
            self._refuse(session, work.number, len(work.texts), exc, now)
            return
        if self._is_leaving:
            self._give_back(session, work, now)
        else:
            session.waiting.append(work)

    def _drop(self, session: Session, letter: Letter) -> None:
        numbers = set(letter.field("chunks", list))
        session.waiting = deque(w for w in session.waiting if w.number not in numbers)
        for number, work in list(session.running.items()):
            if number in numbers:
                self._end_work(session, number, work)

    def _answer(self, session: Session, letter: Letter) -> None:
        question, what = letter.field("question", str), letter.field("what", str)
        if what != "stacks":
            raise ValueError(f"{what!r} is no question")

        def look() -> None:  # it may take a second
            stacks = {str(pid): text for pid, text in self._pool.dump_stacks().items()}
            answer = {"question": question, "answer": stacks}
            self._events.put(lambda: session.link.tell("answer", answer))

        BackgroundThread(look, "prefork-Stacks").start()

    # ---- work

    def _begin_work(self, now: float) -> None:
        """Hand over what there is room for, one client's after another's."""
        room = self._pool.processes - self._count_running()
        chosen: dict[str, list[Work]] = {}
        while room > 0 and (session := self._next_session(now)) is not None:
            chosen.setdefault(session.client, []).append(session.waiting.popleft())
            room -= 1
        for client, works in chosen.items():
            self._announce(self._sessions[client], works, now)

    def _count_running(self) -> int:
        return sum(len(s.running) for s in (*self._sessions.values(), *self._ending))

    def _next_session(self, now: float) -> Session | None:
        sessions = [
            s for s in self._sessions.values() if s.waiting and now < s.until and s.link.is_open
        ]
        if not sessions:
            return None
        self._turn += 1
        return sessions[self._turn % len(sessions)]

    def _announce(self, session: Session, works: list[Work], now: float) -> None:
        """Say that they are about to run, and have them begun once the client knows."""
        told = self._about_to_run(session, works)
        session.link.send("report", {"started": [work.number for work in works]}, now, told=told)

    def _about_to_run(self, session: Session, works: list[Work]) -> Told:
        """They count as running from now on; what is to be called once the client knows, or if
        that is not certain."""
        session.running.update((work.number, work) for work in works)
        return lambda known: self._events.put(lambda: self._begin_all(session, works, known))

    def _begin_all(self, session: Session, works: list[Work], are_known: bool) -> None:
        now = lease_time()
        for work in works if are_known else reversed(works):
            if session.running.get(work.number) is not work:
                continue  # nobody wants it any more
            if are_known:
                self._begin(session, work)
                continue
            del session.running[work.number]
            if self._is_leaving:
                self._give_back(session, work, now)
            else:
                session.waiting.appendleft(work)

    def _begin(self, session: Session, work: Work) -> None:
        work.began = lease_time()
        try:
            work.handle = self._pool.each_async(
                work.runner,
                work.texts,
                lambda outcomes: self._events.put(lambda: self._done(session, work, outcomes)),
                lambda error: self._events.put(lambda: self._failed(session, work, error)),
                **work.limits,
            )
        except Exception as exc:  # the pool has given up; or a limit is none
            self._failed(session, work, exc)

    def _failed(self, session: Session, work: Work, error: BaseException) -> None:
        self._done(session, work, [Outcome(False, error)] * len(work.texts))

    def _done(self, session: Session, work: Work, outcomes: list[Outcome]) -> None:
        del session.running[work.number]
        if session.is_over:
            self._free_slots_of_ended()
            return
        texts, failures, not_run = sorted_out(outcomes)
        now = lease_time()
        self._say(session, work.number, texts, failures, not_run, now, now - work.began)

    def _refuse(
        self, session: Session, number: int, size: int, error: Exception, now: float
    ) -> None:
        text = write_error(error, "")
        self._say(session, number, [], [(at, text) for at in range(size)], [], now)

    def _give_back(self, session: Session, work: Work, now: float) -> None:
        self._say(session, work.number, [], [], list(range(len(work.texts))), now)

    def _say(
        self,
        session: Session,
        number: int,
        texts: list[str],
        failures: list[tuple[int, str]],
        not_run: list[int],
        now: float,
        seconds: float = 0.0,
    ) -> None:
        """What a chunk has come to; and what is begun in its place, in the same letter."""
        head = {"chunk": number, "failures": failures, "not_run": not_run, "seconds": seconds}
        next_work: list[Work] = []
        is_its_turn = now < session.until and not self._others_wait(session)
        has_room = self._count_running() < self._pool.processes
        if session.waiting and is_its_turn and has_room and not self._is_leaving:
            next_work = [session.waiting.popleft()]
        if next_work and sum(map(len, texts)) > SMALL:  # it need not wait for all of that
            self._announce(session, next_work, now)
            next_work = []
        told = self._about_to_run(session, next_work) if next_work else None
        report = {"started": [work.number for work in next_work], **head}
        refused = partial(_too_large, report, len(texts) + len(failures) + len(not_run), texts)
        session.link.send("report", report, now, texts, refused, told)

    def _others_wait(self, session: Session) -> bool:
        return any(s.waiting for s in self._sessions.values() if s is not session)

    # ---- the end

    def _leave(self) -> None:
        self._is_leaving = True
        self._next_look = 0.0
        now = lease_time()
        for session in self._sessions.values():
            waiting, session.waiting = session.waiting, deque()
            for work in waiting:
                self._give_back(session, work, now)

    def _abandon(self) -> None:
        """What runs fails as what it is, killed; the pool knows what of a chunk that is, and the
        rest comes back, as no lease is left."""
        self._leave()
        self._is_abandoned = True
        for session in self._sessions.values():
            session.until = 0.0
            self._board.write(session.slot, session.token, 0.0)
        for worker in self._pool.statistics().workers:
            if worker.job is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    def _see_whether_all_has_ended(self) -> None:
        if self._count_running():
            return
        heard_since = lease_time() - SILENT_SECONDS
        sessions = self._sessions.values()
        # What was reported is to come, first: there may be no connection now.
        if not self._is_abandoned and any(
            session.link.is_awaiting and session.heard > heard_since for session in sessions
        ):
            return
        for session in sessions:
            session.link.send("gone", {}, lease_time())
        self._is_over = True


def _too_large(
    report: dict[str, Any], items: int, texts: Sequence[str]
) -> tuple[str, dict[str, Any], Sequence[str]]:
    """What is said of a chunk in the place of results that the broker does not take."""
    size = sum(map(len, texts)) + sum(len(text) for _, text in report["failures"])
    error = PreforkError(
        f"the broker does not take a message of {size} bytes, as it seems: raise its limit, or "
        "have the function write what is large to where all machines can read, and return its name"
    )
    text = write_error(error, "")
    failures = [(at, text) for at in range(items) if at not in report["not_run"]]
    return "report", {**report, "failures": failures}, ()


def make_pool(processes: int) -> tuple[Pool, Board]:
    """The node's pool, and the memory that its processes share with it."""
    runner.board = board = Board(MOST_SESSIONS)
    return Pool(processes, context="fork"), board
