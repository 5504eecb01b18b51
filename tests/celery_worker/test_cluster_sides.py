"""The client's side and a node's, each alone, with a post that keeps letters in lists."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import cluster_work as work
import pytest

import inside
import prefork.celery.cluster_pool
from helpers import eventually
from prefork import MaybeDecodingError, PoolBrokenError
from prefork.celery import ClusterPool
from prefork.cluster.agent import SILENT_SECONDS, Agent
from prefork.cluster.clock import lease_time
from prefork.cluster.codecs import write_error
from prefork.cluster.errors import NodeLostError
from prefork.cluster.letters import AGAIN_SECONDS, Letter, node_box, written
from prefork.cluster.names import AllowList
from prefork.cluster.nodes import Answers
from prefork.cluster.runner import Board

DEADLINE = 30.0
LEASE = 1.0


class Post:
    """Has letters in lists; what a test sends comes from `receive`."""

    address = "fake://"
    is_lossy = True
    made: list[Post]

    def __init__(self, app, name, group, member, receive, on_connection) -> None:
        self.name, self.receive, self.on_connection = name, receive, on_connection
        self.sent: list[tuple[str, Letter]] = []
        self.deleted: list[str] = []
        self.works = True
        self.made.append(self)

    def start(self) -> None:
        self.on_connection(True, None)
        for node in Node.at_start:
            node.comes(self)

    def send(self, box: str, body: bytes, told: Any = None) -> bool:
        self.sent.append((box, Letter.read(body)))
        if told is not None:
            told(self.works)
        return self.works

    def tell(self, box: str, body: bytes) -> bool:
        return self.send(box, body)

    def tell_all(self, body: bytes) -> bool:
        return True

    def delete(self, box: str) -> None:
        self.deleted.append(box)

    def stop(self) -> None:
        pass

    def join(self, timeout: float | None = None) -> bool:
        return True


class Node:
    """What a client hears of one."""

    at_start: list[Node]

    def __init__(self, name: str) -> None:
        self.name = name
        self.session, self.box = uuid.uuid4().hex, f"prefork.node.{uuid.uuid4().hex}"
        self.number = 0

    def comes(self, post: Post) -> None:
        self.post = post
        self.renew()

    def write(self, kind: str, head: dict[str, Any], texts=(), number: int = 0) -> None:
        numbers = {"number": number, "sent": self.number, "received": 10**9}
        fields = {"session": self.session, **numbers, **head}
        self.post.receive(written(kind, fields, texts))

    def renew(self) -> None:
        head = {"time": 0.0, "node": self.name, "box": self.box, "processes": 1, "python": "3"}
        self.write("renew", {**head, "leaving": False})

    def report(self, lost: bool = False, texts=(), **head: Any) -> None:
        self.number += 1
        fields = {"started": [], "failures": [], "not_run": [], "seconds": 0.1, **head}
        if not lost:
            self.write("report", fields, texts, self.number)

    def chunk(self) -> Letter:
        """The first that it was sent."""

        def found() -> list[Letter]:
            return [letter for box, letter in list(self.post.sent) if box == self.box]

        return next(
            letter
            for letter in eventually(
                lambda: [each for each in found() if each.kind == "chunk"], "a chunk has come"
            )
        )


@pytest.fixture(autouse=True)
def posts(monkeypatch) -> list[Post]:
    Post.made, Node.at_start = [], []
    monkeypatch.setattr(prefork.celery.cluster_pool, "BrokerPost", Post)
    return Post.made


class App:
    class conf:
        task_default_queue = "celery"


@pytest.fixture
def node() -> Node:
    Node.at_start.append(Node("n1"))
    return Node.at_start[0]


@pytest.fixture
def pool(node) -> Iterator[ClusterPool]:
    pool = ClusterPool(App, lease=LEASE, broker_timeout=LEASE)
    yield pool
    pool.terminate()


# ---- the client's side


@pytest.mark.parametrize("ends", ["silent", "gone"])
def test_what_a_node_may_have_begun_is_not_run_again(pool, node, ends):
    """Though the word for that was lost, and other words have come since."""
    result = pool.apply_async(work.double, (1,))
    number = node.chunk().head["chunk"]
    node.report(lost=True, started=[number])
    node.renew()
    other = Node("n2")
    other.comes(node.post)
    if ends == "gone":
        node.write("gone", {})
    until = time.monotonic() + DEADLINE
    while not result.ready() and time.monotonic() < until:
        other.renew()
        result.wait(0.2)
    with pytest.raises(NodeLostError, match="n1"):
        result.get(0.0)
    assert not [box for box, letter in node.post.sent if letter.kind == "chunk" and box != node.box]


def test_letters_that_are_none_end_nothing(pool, node):
    for body in (b"[" * 100_000, b"x", b'{"version": 1}'):
        node.post.receive(body)
    node.report(started=[[]])
    result = pool.apply_async(work.double, (1,))
    node.report(chunk=node.chunk().head["chunk"], texts=["2"])
    assert result.get(DEADLINE) == 2


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    value: int


def test_an_error_that_cannot_be_read_is_its_items_own(pool, node):
    result = pool.apply_async(work.double, (1,))
    failures = [(0, write_error(Frozen(1)))]
    node.report(chunk=node.chunk().head["chunk"], failures=failures)
    with pytest.raises(MaybeDecodingError):
        result.get(DEADLINE)
    assert pool.each_async(work.double, []).get(DEADLINE) == []


def test_a_bug_is_told_to_all_who_wait(pool, node, monkeypatch):
    result = pool.apply_async(work.double, (1,))
    number = node.chunk().head["chunk"]

    def bug(*args: Any) -> None:
        raise SystemExit

    inside.break_cluster(pool, bug, monkeypatch)
    node.report(chunk=number, texts=["2"])
    with pytest.raises(PoolBrokenError, match="a thread of the pool has failed"):
        result.get(DEADLINE)
    assert pool.terminate() is None
    assert pool.join(DEADLINE)


def test_what_was_reported_is_told_though_no_node_is_left(pool, node):
    results = [pool.apply_async(work.double, (x,)) for x in (1, 2)]
    number = node.chunk().head["chunk"]
    hold = inside.hold_deliveries(pool)
    node.report(chunk=number, texts=["2"])
    inside.lose_all_nodes(pool, PoolBrokenError("no node is left"))
    hold.set()
    assert results[0].get(DEADLINE) == 2
    with pytest.raises(PoolBrokenError, match="no node is left"):
        results[1].get(DEADLINE)


def test_a_broker_that_does_not_come_back(pool, node):
    result = pool.apply_async(work.double, (1,))
    node.chunk()
    node.post.on_connection(False, OSError("refused"))
    with pytest.raises(PoolBrokenError, match="could not be reached for 1 s"):
        result.get(DEADLINE)


# ---- a node's side


class Pool:
    processes = 1

    begun = 0

    def each_async(self, func, items, done, failed, **limits) -> None:
        self.begun += 1


class Client:
    """What a node hears of one."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.id = uuid.uuid4().hex
        self.box = f"prefork.client.{self.id}"

    def hello(self) -> None:
        hello = {"version": 1, "kind": "hello", "client": self.id, "lease": 1.0, "codec": "json"}
        self.agent._read(json.dumps(hello).encode())


PATIENCE = 60.0


@pytest.fixture
def agent() -> Agent:
    codecs = frozenset({"json"})
    board = Board(256)

    def make_post(receive, on_connection):
        return Post(App, node_box(), "g", "n1", receive, on_connection)

    agent = Agent(make_post, "n1", AllowList(["work"]), codecs, Pool(), board, PATIENCE)  # type: ignore[arg-type]
    agent._note_connection(True, None)
    return agent


@pytest.fixture
def client(agent) -> Client:
    client = Client(agent)
    client.hello()
    return client


def look(agent: Agent, client: Client, after: float) -> bool:
    """So many seconds from now on; whether the client is still known."""
    agent._see_to(agent._sessions[client.id], lease_time() + after)
    return client.id in agent._sessions


def hear(agent: Agent) -> None:
    """Have it handle what it was told of."""
    while not agent._events.empty():
        agent._events.get()()


def test_a_client_that_is_silent_for_long_is_forgotten(agent, client, posts):
    assert look(agent, client, PATIENCE - 1.0)
    assert not look(agent, client, PATIENCE + 1.0)
    assert posts[0].deleted == [client.box]


def test_a_client_that_still_says_hello_is_not(agent, client, posts):
    agent._sessions[client.id].heard -= 2 * PATIENCE
    agent._connected -= 2 * PATIENCE
    client.hello()
    assert look(agent, client, 1.0)
    assert posts[0].deleted == []


def test_without_a_connection_nobody_is_forgotten(agent, client):
    agent._note_connection(False, OSError())
    assert look(agent, client, 100 * PATIENCE)
    agent._note_connection(True, None)
    assert look(agent, client, PATIENCE - 1.0)


def test_what_a_silent_client_has_not_confirmed_is_not_sent_again_and_again(agent, client, posts):
    link = agent._sessions[client.id].link
    link.send("report", {"started": [1]}, lease_time())

    def reports() -> int:
        return sum(letter.kind == "report" for _, letter in posts[0].sent)

    assert look(agent, client, AGAIN_SECONDS + 0.1)
    assert reports() == 2
    assert look(agent, client, SILENT_SECONDS + AGAIN_SECONDS + 1.0)
    assert reports() == 2


def test_what_nobody_wants_any_more_is_not_begun(agent, client, posts):
    """Though the client was told that it was about to be."""
    session = agent._sessions[client.id]
    head = {"function": "work:f", "codec": "json", "how": "one", "code": "", "chunk": 1}
    agent._take(session, Letter("chunk", head, ["1"]), lease_time())
    session.until = lease_time() + 60.0
    agent._begin_work(lease_time())
    agent._drop(session, Letter("drop", {"chunks": [1]}, []))
    hear(agent)
    assert agent._pool.begun == 0
    assert not session.running


def test_a_node_that_leaves_gives_back_what_waits(agent, client, posts):
    """And begins none of it, though there is room and a lease. It goes when the client has said
    that it knows."""
    session, post = agent._sessions[client.id], posts[0]
    now = lease_time()
    head = {"function": "work:f", "codec": "json", "how": "one", "code": ""}
    for number in (1, 2, 3):
        agent._take(session, Letter("chunk", {**head, "chunk": number}, ["1"]), now)
    session.until = now + 60.0
    agent._leave()
    hear(agent)
    reports = [letter.head for _, letter in post.sent if letter.kind == "report"]
    assert [(head["chunk"], head["started"], head["not_run"]) for head in reports] == [
        (number, [], [0]) for number in (1, 2, 3)
    ]
    assert agent._pool.begun == 0
    agent._see_whether_all_has_ended()
    assert not agent._is_over
    known = {"number": 0, "sent": 0, "received": 3, "lease": 1.0, "time": now}
    agent._heed(session, Letter("grant", known, []))
    agent._see_whether_all_has_ended()
    assert agent._is_over
    assert post.sent[-1][1].kind == "gone"


def test_a_node_that_leaves_does_not_wait_for_a_client_that_is_silent(agent, client):
    session = agent._sessions[client.id]
    head = {"function": "work:f", "codec": "json", "how": "one", "code": "", "chunk": 1}
    agent._take(session, Letter("chunk", head, ["1"]), lease_time())
    agent._leave()
    session.heard -= 60.0
    agent._see_whether_all_has_ended()
    assert agent._is_over


def test_what_cannot_be_said_does_not_pile_up(agent, client, posts):
    """And what was not said has not begun."""
    session, post = agent._sessions[client.id], posts[0]
    now = lease_time()
    head = {"function": "work:f", "codec": "json", "how": "one", "code": "", "chunk": 1}
    agent._take(session, Letter("chunk", head, ["1"]), now)
    session.until = now + 60.0
    post.works = False
    before = len(post.sent)
    for _ in range(100):
        agent._begin_work(now)
        hear(agent)
    assert len(post.sent) == before + 1
    assert agent._pool.begun == 0
    post.works = True
    assert look(agent, client, 0.0)  # this says that it is there
    agent._begin_work(now)
    hear(agent)
    assert agent._pool.begun == 1


@pytest.mark.parametrize(
    "forged", [{"value": "gASVBgAAAAAAAABLAS4="}, {"codec": "by value"}, {"codec": "pickle"}]
)
def test_code_that_comes_with_a_letter_is_refused(agent, client, posts, forged):
    session, now = agent._sessions[client.id], lease_time()
    head = {"function": "work:f", "codec": "json", "how": "one", "code": "", "chunk": 1}
    agent._take(session, Letter("chunk", head | forged, ["1"]), now)
    assert not session.waiting
    agent._begin_work(now)
    assert agent._pool.begun == 0
    assert "NotAllowedError" in str(posts[0].sent[-1][1])


def test_nodes_of_one_name_have_an_answer_each():
    answers = Answers()
    answers.expect(3)
    for session, name in (("a", "n1"), ("b", "n1"), ("c", "n2")):
        answers.add(session, name, session)
    assert answers.all_here.is_set()
    assert answers.by_name() == {"n1": "a", "n1 (2)": "b", "n2": "c"}


def test_a_lease_goes_on_while_the_machine_sleeps():
    assert abs(lease_time() - time.clock_gettime(time.CLOCK_BOOTTIME)) < DEADLINE
