"""The client's side: chunks to nodes, what they say back, and which of them live.

A node works for a client as long as it holds a *lease*. It asks for one each second, with the time
of its own clock; the client sends that time back, and from it on the node may begin items for
`lease` seconds, by its own clock. The client gives a node up when it has granted nothing for that
long and a margin, by its own: by then the node has begun nothing for a while, and never will again
for this session. So what the node had not begun can go elsewhere at once, and no clocks are
compared. While the client itself has no connection, it gives nobody up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from prefork._describe import describe
from prefork._system.log import DEBUG, WARNING
from prefork._system.threads import BackgroundThread
from prefork.cluster.backlog import Chunk
from prefork.cluster.carrying import Report
from prefork.cluster.engine import ClusterEngine
from prefork.cluster.letters import NODE_QUEUE, Letter, Link, written
from prefork.cluster.nodes import Answers, Node
from prefork.cluster.posting import MakePost
from prefork.cluster.statistics import NodeStatistics
from prefork.errors import PoolBrokenError, PreforkError

__all__ = ["LetterCarrier"]

HELLO_SECONDS: Final = 1.0
MARGIN: Final = 0.5
SUSPECT_SECONDS: Final = 2.5  # a node that is silent for so long is sent nothing more
MOST_AT_ONCE: Final = 256  # letters that are read before others' turn


class LetterCarrier:
    """A `Carrier` for one client.

    Args:
        id: of the client, 32 hexadecimal digits.
        make_post: what the letters go by; its box is `client_box(id)`.
        codec: the name of that.
        lease: seconds.
        patience: seconds to wait for the first node.
        alone: seconds after which, without any node, what waits is given up.
        outage: seconds after which, without the broker, it is, too; None: never.
    """

    def __init__(
        self,
        id: str,
        make_post: MakePost,
        codec: str,
        lease: float,
        patience: float,
        alone: float,
        outage: float | None,
    ) -> None:
        self._codec = codec
        self.lease = lease
        self._patience = patience
        self._alone = alone
        self._outage = outage
        self.id = id
        self._events: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_awake = False  # a look at what is to be sent is among the events
        self._post = make_post(self._received, self._connection_is)
        self._thread = BackgroundThread(self._run, "prefork-Carrier")
        self._engine: ClusterEngine | None = None
        self.nodes: dict[str, Node] = {}  # by session
        self._ended: dict[str, str] = {}  # sessions that are over, and the nodes' queues
        self._connected: float | None = None  # since when (monotonic)
        self._last_connected = 0.0
        self._error: Exception | None = None  # why there is no connection
        self._had_node = threading.Event()  # or there will be none
        self._failure: PoolBrokenError | None = None
        self._last_node = 0.0
        self._next_hello = 0.0
        self._is_all_read = False  # of what has come
        self._looked = 0.0  # when it was looked at the nodes last
        self._answers: dict[str, Answers] = {}
        self.late = 0  # letters of sessions that were over

    # ---- from any thread

    @property
    def processes(self) -> int:
        return sum(node.processes for node in list(self.nodes.values()))

    def start(self, engine: ClusterEngine) -> None:
        self._engine = engine
        self._thread.start()
        self._post.start()
        if not self._had_node.wait(self._patience):
            raise self._nobody()
        if self._failure is not None:
            raise self._failure

    def _nobody(self) -> PoolBrokenError:
        if self._connected is None:
            error = PoolBrokenError(
                f"{self._post.address} could not be reached within "
                f"{self._patience:g} s: {self._error}"
            )
            error.__cause__ = self._error
            return error
        return PoolBrokenError(
            f"no worker has answered within {self._patience:g} s on {self._post.address}: "
            f"{self._post.advice}"
        )

    def fail(self, error: PoolBrokenError) -> None:
        """There is no node, nor will there be."""
        self._failure = error
        self._had_node.set()
        self._events.put(lambda: self._give_up(error))

    def _give_up(self, error: PoolBrokenError) -> None:
        assert self._engine is not None
        self._engine.give_up_after_reports(error)

    def statistics(self) -> tuple[NodeStatistics, ...]:
        now = time.monotonic()
        return tuple(node.statistics(now) for node in list(self.nodes.values()))

    def wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self._events.put(self._look)

    def stop(self) -> None:
        self._events.put(None)

    def join(self, timeout: float | None) -> bool:
        return self._thread.join(timeout) and self._post.join(timeout)

    def is_current(self) -> bool:
        return self._thread.is_current

    def ask(self, what: str, patience: float) -> dict[str, Any]:
        """What the nodes say to a question, by their names; of those that answer in time."""
        answers = Answers()
        self._events.put(lambda: self._ask(what, answers))
        answers.all_here.wait(patience)
        self._events.put(lambda: self._answers.pop(answers.id, None))
        return answers.by_name()

    def _received(self, body: bytes) -> None:
        if body:
            self._events.put(lambda: self._read(body))

    def _connection_is(self, here: bool, error: Exception | None, box: str = "") -> None:
        self._events.put(lambda: self._note_connection(here, error, box))

    # ---- in its own thread

    def _run(self) -> None:
        engine = self._engine
        assert engine is not None
        try:
            while self._step():
                pass
        except BaseException as exc:  # a bug
            engine.give_up(_bug(exc))
        finally:
            now = time.monotonic()
            for session, node in self.nodes.items():
                end = {"session": session, "closing": True}
                self._post.tell(node.box, written("end", end))
                if now > node.heard + SUSPECT_SECONDS:  # perhaps nobody will ever read it
                    self._post.delete(node.box)
            self._post.stop()

    def _step(self) -> bool:
        """Handle what there is, or wait for it; False: it is over."""
        self._is_all_read = False
        try:
            patience = max(0.0, self._next_due() - time.monotonic())
            for number in range(MOST_AT_ONCE):
                event = self._events.get(number == 0, patience)
                if event is None:
                    return False
                event()
        except queue.Empty:
            self._is_all_read = True
        now = time.monotonic()
        self._see_to_nodes(now)
        self._send(now)
        return True

    def _next_due(self) -> float:
        assert self._engine is not None
        due = self._engine.next_due()
        return self._next_hello if due is None else min(due, self._next_hello)

    def _look(self) -> None:
        self._is_awake = False
        self._withdraw()

    def _note_connection(self, here: bool, error: Exception | None, box: str) -> None:
        now = time.monotonic()
        if not here:
            self._connected, self._error = None, error
        elif not box:
            self._connected = self._last_connected = self._next_hello = now
        for node in self.nodes.values():
            if here and box in {"", node.box}:
                node.link.send_again(now, at_once=True)

    # ---- nodes come and go

    def _see_to_nodes(self, now: float) -> None:
        assert self._engine is not None
        self._engine.run_due(now)
        if now < self._next_hello:
            return
        if self._connected is not None and now > self._looked + SUSPECT_SECONDS:
            self._connected = now  # it is we who were not there: what nodes have said is to be read
        self._looked = now
        self._next_hello = now + HELLO_SECONDS
        self._look()  # if a signal has hit `wake` between its two steps
        hello = {"client": self.id, "lease": self.lease, "codec": self._codec}
        self._post.tell_all(written("hello", hello))
        for node in list(self.nodes.values()):
            if self._is_lost(node, now):
                self._lose(node, now)
            elif self._post.is_lossy:
                node.link.send_again(now)
        self._see_whether_alone(now)

    def _is_lost(self, node: Node, now: float) -> bool:
        if self._connected is None or not self._is_all_read:
            return False  # what it has said may still come
        return now > max(node.granted, self._connected) + self.lease + MARGIN

    def _lose(self, node: Node, now: float) -> None:
        assert self._engine is not None
        # Did it say that it had begun something, and that has not come, as when we had no
        # connection? Then whatever it has may have run.
        is_uncertain = node.link.is_behind or (
            self._connected is not None and node.heard < self._connected
        )
        del self.nodes[node.link.session]
        silence = now - node.heard
        text = "node %s has been silent for %.1f s: it is given up"
        self._engine.log.note(WARNING, text, node.name, silence)
        for chunk in reversed(list(node.chunks.values())):
            if is_uncertain or chunk.id in node.started:
                self._engine.lost(chunk, node.name, silence)
            else:
                self._engine.given_back(chunk)
        self._end(node.link.session, node.box)
        self._post.delete(node.box)

    def _end(self, session: str, box: str) -> None:
        """Have a node drop a session. It has to be told again if it speaks of it again."""
        self._ended[session] = box
        if len(self._ended) > 1000:
            del self._ended[next(iter(self._ended))]
        self._post.tell(box, written("end", {"session": session}))

    def _see_whether_alone(self, now: float) -> None:
        """Give up what waits for a node, or for the broker, that has not been there for long."""
        assert self._engine is not None
        if self._connected is not None:
            self._last_connected = now
        if self.nodes or self._connected is None:
            self._last_node = now
        if not self._had_node.is_set():
            return  # `start` has its own patience
        reason = ""
        if now > self._last_node + self._alone:
            reason = f"no worker has answered for {self._alone:g} s any more"
        elif self._outage is not None and now > self._last_connected + self._outage:
            reason = f"{self._post.address} could not be reached for {self._outage:g} s"
        if reason:
            broken = PoolBrokenError(reason)
            broken.__cause__ = self._error if self._connected is None else None
            self._engine.give_up(broken)

    # ---- out

    def _send(self, now: float) -> None:
        assert self._engine is not None
        while (node := self._freest(now)) is not None:
            if (chunk := self._engine.take()) is None:
                return
            kind = chunk.kind
            node.chunks[chunk.id] = chunk
            head = {
                "chunk": chunk.id,
                "function": kind.name,
                "how": kind.how,
                "codec": self._codec,
                "code": kind.code,
                "value": kind.value,
                "seed": kind.seed,
                "timeout": kind.timeout,
                "soft_timeout": kind.soft_timeout,
            }
            refused = partial(self._refused, node, chunk)
            node.link.send("chunk", head, now, chunk.texts(), refused)

    def _refused(self, node: Node, chunk: Chunk) -> tuple[str, dict[str, Any], Sequence[str]]:
        """The broker does not take it, but it does take others."""
        assert self._engine is not None
        if node.chunks.pop(chunk.id, None) is not None:
            node.started.discard(chunk.id)
            size = sum(map(len, chunk.texts()))
            error = PreforkError(
                f"{self._post.address} does not take a message of {size} bytes, as it seems: raise "
                "its limit, or write what is large to where all machines can read, and pass its "
                "name"
            )
            failures: dict[int, BaseException] = dict.fromkeys(range(chunk.size), error)
            self._engine.reported(chunk, Report([], failures, set(), 0.0))
        return "nothing", {}, ()

    def _freest(self, now: float) -> Node | None:
        """The node that has room for most; None: none has room."""
        if self._connected is None:
            return None
        nodes = [
            node
            for node in self.nodes.values()
            if not node.is_leaving and now < node.heard + SUSPECT_SECONDS and node.room() > 0
        ]
        return max(nodes, key=Node.room, default=None)

    def _withdraw(self) -> None:
        """Have nodes end what nobody wants any more."""
        now = time.monotonic()
        for node in self.nodes.values():
            if unwanted := [c.id for c in node.chunks.values() if not c.is_wanted()]:
                for number in unwanted:
                    del node.chunks[number]
                    node.started.discard(number)
                node.link.send("drop", {"chunks": unwanted}, now)

    # ---- in

    def _read(self, body: bytes) -> None:
        assert self._engine is not None
        try:
            letter = Letter.read(body)
            session = letter.field("session", str)
            if (node := self.nodes.get(session)) is not None:
                now = time.monotonic()
                node.heard = now
                # Who goes, goes, whether all that it has sent before has come or not.
                if node.link.heed(letter, now) or letter.kind == "gone":
                    self._heed(node, letter, now)
            elif session in self._ended:
                self.late += 1
                self._end(session, self._ended[session])
            elif letter.kind == "renew":
                self._welcome(session, letter)
        except Exception as exc:  # whatever it is, it must not end what serves all others
            self._engine.log.note(WARNING, "a letter cannot be read: %s", describe(exc))

    def _welcome(self, session: str, letter: Letter) -> None:
        assert self._engine is not None
        box = letter.field("box", str)
        if not NODE_QUEUE.fullmatch(box):
            raise ValueError(f"{box!r} is no node's queue")
        node = Node(
            letter.field("node", str),
            box,
            max(1, letter.field("processes", int)),
            letter.field("python", str),
            Link(session, self._post, box),
        )
        self._engine.log.note(DEBUG, "node %s has come", node.name)
        self.nodes[session] = node
        self._grant(node, letter)
        self._had_node.set()

    def _heed(self, node: Node, letter: Letter, now: float) -> None:
        match letter.kind:
            case "renew":
                node.processes = max(1, letter.field("processes", int))
                node.is_leaving = letter.field("leaving", bool)
                self._grant(node, letter)
            case "report":
                self._report(node, letter)
            case "answer":
                if (answers := self._answers.get(letter.field("question", str))) is not None:
                    answers.add(node.link.session, node.name, letter.head.get("answer"))
            case "gone":
                del self.nodes[node.link.session]
                self._go(node)
                self._post.delete(node.box)  # one of ours may have come too late for it

    def _grant(self, node: Node, letter: Letter) -> None:
        asked = letter.field("time", (int, float))
        node.granted = time.monotonic()  # before it can be heard of there
        node.link.tell("grant", {"time": asked, "lease": self.lease})

    def _report(self, node: Node, letter: Letter) -> None:
        assert self._engine is not None
        for number in letter.field("started", list):
            if number in node.chunks:
                node.started.add(number)
                self._engine.started(node.chunks[number])
        if letter.head.get("chunk") is None:
            return
        number = letter.field("chunk", int)
        if (chunk := node.chunks.pop(number, None)) is None:
            return  # it was dropped
        node.started.discard(number)
        node.items += chunk.size
        self._engine.reported(chunk, node.report(chunk, letter))

    def _go(self, node: Node) -> None:
        """It has ended, in order: what it had not begun goes elsewhere."""
        assert self._engine is not None
        for chunk in reversed(list(node.chunks.values())):
            if node.link.is_behind or chunk.id in node.started:
                self._engine.lost(chunk, node.name, 0.0)
            else:
                self._engine.given_back(chunk)

    def _ask(self, what: str, answers: Answers) -> None:
        self._answers[answers.id] = answers
        answers.expect(len(self.nodes))
        for node in self.nodes.values():
            node.link.tell("ask", {"question": answers.id, "what": what})


def _bug(error: BaseException) -> PoolBrokenError:
    broken = PoolBrokenError("the thread that speaks to the nodes has failed")
    broken.__cause__ = error
    return broken
