"""A pool is asked from outside what it does; whoever asks, and however, it goes on."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gate import enter
from helpers import DEADLINE, eventually, stop
from prefork import Pool, Terminated
from prefork._inspection import asking, endpoint
from prefork._inspection.asking import AskingError
from prefork._inspection.questions import IS_SUPPORTED, Address, encode

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="there are no abstract Unix sockets here")

OWNER = """
import sys
from prefork import Pool

if __name__ == "__main__":
    pool = Pool(1)
    pool.apply(abs, (1,))
    print("ready", flush=True)
    if sys.stdin.readline() == "end\\n":
        pool.terminate()
        print("ended", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def owner(script):
    """Another process with a pool."""
    started = script(OWNER)
    assert started.process.stdout.readline() == "ready\n"
    return started.process


@pytest.fixture
def asked(make_pool):
    """Of a pool in this process."""
    before = set(ours())
    pool = make_pool(1)
    pool.apply(abs, (1,))
    (address,) = set(ours()) - before
    return address


def ours():
    """Pools of this process that can be asked; other processes run other tests."""
    return [address for address in asking.find() if address.pid == os.getpid()]


def client():
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind("")
    made.settimeout(DEADLINE)
    return made


def test_what_a_pool_tells(make_pool, gate, context):
    before = set(ours())
    pool = make_pool(2, context=context)
    running = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    (address,) = set(ours()) - before
    assert address[:2] == (os.geteuid(), os.getpid())
    told = asking.ask(address)
    assert (told["phase"], told["processes"], told["running"]) == ("running", 2, 1)
    assert told["start_method"] == context.get_start_method()
    its = next(worker for worker in told["workers"] if worker["pid"] == visitor.pid)
    assert (its["state"], its["job"], its["function"]) == ("busy", running.job, "gate.enter")
    assert "in enter" in asking.stacks(address, [visitor.pid])[visitor.pid]
    visitor.go()
    assert running.get(DEADLINE) is None


def test_it_can_be_turned_off(make_pool, monkeypatch):
    before = ours()
    make_pool(1, observable=False)
    monkeypatch.setenv(endpoint.VARIABLE, "0")
    make_pool(1)
    assert ours() == before
    monkeypatch.delenv(endpoint.VARIABLE)
    make_pool(1)
    assert len(ours()) == len(before) + 1


def test_what_observable_may_be():
    with pytest.raises(TypeError, match='observable must be a bool or "control", not 7'):
        Pool(1, observable=7)  # type: ignore[arg-type]


def test_nothing_is_left_behind(make_pool):
    before = ours()
    pool = make_pool(1)
    assert ours() != before
    pool.terminate()
    assert ours() == before


def test_a_pool_costs_one_descriptor_and_its_workers_none(make_pool):
    def sockets():
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.lexists(x) and os.readlink(x).startswith("socket") for x in links)

    without = make_pool(1, context="fork", observable=False)
    here = sockets()
    pool = make_pool(1, context="fork")
    alike = make_pool(1, context="fork", observable=False)
    grown = sockets() - here
    alone = sockets()
    alike.terminate()
    assert grown - 2 * (alone - sockets()) == 1
    assert pool.apply(sockets) == without.apply(sockets)


def test_no_descriptor_is_no_reason_to_fail(make_pool, monkeypatch):
    def refuse(*args):
        raise OSError(24, "Too many open files")

    before = ours()
    monkeypatch.setattr(endpoint, "_socket", refuse)
    assert make_pool(1).apply(abs, (-1,)) == 1
    assert ours() == before


def test_a_bug_in_there_does_not_end_the_pool(make_pool, monkeypatch, caplog):
    pool = make_pool(1)
    address = ours()[-1]

    def fail(self):
        raise ValueError("a bug")

    monkeypatch.setattr("prefork._engine.observer.Observer.statistics", fail)
    with pytest.raises(AskingError, match=r"has ended|does not answer"):
        asking.ask(address)
    assert pool.apply(abs, (-1,)) == 1
    assert address not in ours()
    eventually(lambda: "cannot be asked from outside any more" in caplog.text, "it is logged")


# --- who asks


@pytest.mark.parametrize(
    "question",
    [b"", b"\xff\0\n" * 80, b"x" * 10_000, b"stacks", b"stacks -1", b"stacks 1e3", b"stacks " * 40,
     b"stacks" + b" 1" * 99, b"terminate 1 1", b"statistics statistics",
     b"stacks 99999999999999999999999"],
)  # fmt: skip
def test_garbage_is_answered_or_ignored(asked, question):
    with client() as sock:
        sock.sendto(question, asked.name)
    assert asking.ask(asked)["phase"] == "running"


def test_descriptors_that_come_along_are_not_kept(asked):
    before = len(os.listdir("/proc/self/fd"))
    with client() as sock:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2] * 30))
        for _ in range(20):
            sock.sendmsg([b"statistics"], [rights], 0, asked.name)
            sock.recv(1 << 18)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_does_not_read_holds_up_nobody(asked):
    silent = [client() for _ in range(100)]
    try:
        for sock in silent:
            sock.sendto(b"statistics", asked.name)
        assert asking.ask(asked)["phase"] == "running"
    finally:
        for sock in silent:
            sock.close()


def test_who_is_gone_when_the_answer_comes(asked):
    for _ in range(50):
        with client() as sock:
            sock.sendto(b"statistics", asked.name)
    assert asking.ask(asked)["phase"] == "running"


def test_only_so_many_are_heard_in_a_second(make_pool, monkeypatch):
    """A flood costs the pool next to nothing, and later everybody is heard again."""
    heard = []

    def note(_):
        heard.append(time.monotonic())
        return b""

    monkeypatch.setattr("prefork._engine.answers.Answers._statistics", note)
    monkeypatch.setattr(endpoint, "PER_SECOND", 5)
    pool = make_pool(1)
    address = ours()[-1]
    with client() as sock:
        for _ in range(12):
            sock.sendto(b"statistics", address.name)
    assert pool.apply(abs, (-1,)) == 1
    eventually(lambda: len(heard) == 12, "all are heard in the end")
    assert heard[5] - heard[0] >= 0.9  # a second from when the first of them came, at least


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_not_answered(asked):
    code = """if True:
        import os, socket, sys
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        os.setuid(54321)
        sock.bind("")
        sock.settimeout(0.3)
        sock.sendto(b"statistics", sys.argv[1].encode().replace(b"@", b"\\0"))
        try:
            print(sock.recv(100000))
        except TimeoutError:
            print("silence")
    """
    name = asked.name.decode().replace("\0", "@")
    run = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, check=True
    )
    assert run.stdout == "silence\n", run.stderr
    assert asking.ask(asked)["phase"] == "running"


# --- what may be asked


def test_the_stacks_of_many_workers_take_few_questions(make_pool, monkeypatch):
    """No more than so many are heard in a second."""
    questions = []
    ask_all = asking.ask_all

    def note(addresses, question=""):
        questions.append(question)
        return ask_all(addresses, question)

    pool = make_pool(20)
    eventually(lambda: {w.state for w in pool.statistics().workers} == {"idle"}, "they are ready")
    pids = {worker.pid for worker in pool.statistics().workers}
    monkeypatch.setattr(asking, "ask_all", note)
    assert set(asking.stacks(ours()[-1], pids)) == pids
    assert len(questions) < len(pids)


def test_a_process_that_is_not_there():
    with pytest.raises(AskingError, match=r"^there is no process 99999999$"):
        asking.find(99999999)


def test_a_process_without_pools():
    with pytest.raises(AskingError, match=r"^process 1 (has no pool|is another user's)"):
        asking.find(1)


def test_a_process_of_another_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(AskingError, match=rf"^process {os.getpid()} is another user's$"):
        asking.find(os.getpid())


def test_a_stopped_process(owner):
    (address,) = asking.find(owner.pid)
    stop(owner.pid)
    with pytest.raises(AskingError, match=rf"^process {owner.pid} is stopped"):
        asking.ask(address)
    os.kill(owner.pid, signal.SIGCONT)
    assert asking.ask(address)["phase"] == "running"


def test_a_process_that_is_stopped_or_ends_after_it_was_asked(owner, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(asking, "read_text", lambda path: "")  # it runs, as far as is known
    address = Address(os.geteuid(), owner.pid, 1)
    stop(owner.pid)
    with pytest.raises(AskingError, match=r"does not answer|has ended"):
        asking.ask(address)
    owner.kill()
    owner.wait()
    with pytest.raises(AskingError, match=rf"^pool 1 of process {owner.pid} has ended$"):
        asking.ask(address)


def test_a_pool_that_has_ended(owner):
    (address,) = asking.find(owner.pid)
    owner.stdin.write("end\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "ended\n"
    with pytest.raises(AskingError, match="has ended"):
        asking.ask(address)
    with pytest.raises(AskingError, match="has no pool"):
        asking.find(owner.pid)


@pytest.mark.parametrize("answer", [b"", b"\0", b"x" * 100, b"x\x9c\xab\x56\x02\0"])
def test_what_is_answered_may_be_garbage(answer):
    answers_wrongly(Address(os.geteuid(), os.getpid(), 999_999), answer, "cannot be understood")


def test_whoever_has_taken_the_name_of_anothers_pool_is_not_believed():
    address = Address(os.geteuid() + 1, os.getpid(), 999_999)
    answers_wrongly(address, encode({"phase": "running"}), "is not what it says")


def answers_wrongly(address, answer, why):
    """Somebody answers at this address; what is asked there fails so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as false:
        false.bind(address.name)

        def serve():
            _, asker = false.recvfrom(1000)
            false.sendto(answer, asker)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AskingError, match=why):
            asking.ask(address)
        thread.join()


def test_a_pool_without_threads_answers_when_it_is_driven(make_pool, monkeypatch):
    pool = make_pool(1, threads=False)
    address = ours()[-1]
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.1)
    with pytest.raises(AskingError, match="does not answer"):
        asking.ask(address)
    with client() as sock:
        sock.sendto(b"statistics", address.name)
        sock.setblocking(False)
        while True:
            pool.handle_events(DEADLINE)
            try:
                assert sock.recv(1 << 18)
                break
            except BlockingIOError:
                pass


# --- to end a job


def test_a_job_can_be_ended_only_where_that_is_allowed(make_pool, gate):
    pool = make_pool(1, observable="control")
    address = ours()[-1]
    other = make_pool(1)
    others = ours()[-1]
    jobs = {each: each.apply_async(enter, (gate,)) for each in (pool, other)}
    visitors = {visitor.pid: visitor for visitor in (gate.arrival(), gate.arrival())}
    with pytest.raises(AskingError, match='was not made with observable="control"'):
        asking.terminate(others, jobs[other].pid, jobs[other].job)
    with pytest.raises(AskingError, match="does not run job 123456789 any more"):
        asking.terminate(address, jobs[pool].pid, 123456789)
    asking.terminate(address, jobs[pool].pid, jobs[pool].job)
    with pytest.raises(Terminated):
        jobs[pool].get(DEADLINE)
    visitors[jobs[other].pid].go()
    assert jobs[other].get(DEADLINE) is None
