"""`prefork map --app`: the command's main job, on two nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import Cluster, cluster_on

from helpers import DEADLINE, eventually, has_ended

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster(broker, tmp_path_factory):
    with cluster_on(broker, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class Command:
    def __init__(self, cluster: Cluster, target: str, *words: object, app: str = "project") -> None:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PROJECT_BROKER": cluster.broker.url,
            "CLUSTER_QUEUE": cluster.queue,
        }
        options = ["--app", f"cluster_{app}:app", "--queue", cluster.queue]
        command = [sys.executable, "-m", "prefork", "map", target, *options, *map(str, words)]
        self.process = subprocess.Popen(
            command,
            cwd=HERE,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self) -> int:
        try:
            self.out, self.err = self.process.communicate(timeout=2 * DEADLINE)
        finally:
            self.process.kill()
        return self.process.returncode

    def records(self) -> dict[str, dict]:
        return {json.dumps(r["input"]): r for r in map(json.loads, self.out.splitlines())}


@pytest.fixture
def inputs(tmp_path):
    def write(values) -> Path:
        path = tmp_path / "inputs.jsonl"
        path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
        return path

    return write


def test_many_inputs(cluster, inputs):
    command = Command(cluster, "cluster_work:double", "--jsonl", inputs(range(2000)))
    assert command.end() == 0, command.err
    records = command.records()
    assert len(records) == 2000
    assert all(records[str(x)]["result"] == 2 * x for x in range(2000))
    one = records["7"]
    assert one.keys() == {"input", "result", "seconds", "pid", "attempts"}
    assert one["pid"] > 0
    assert 0 <= one["seconds"] < DEADLINE


def test_ordered_with_keywords(cluster, inputs):
    values = [[1, 2], {"x": 5}, 7]
    words = ("--star", "--kwarg", "y=100", "--ordered")
    command = Command(cluster, "cluster_work:add", "--jsonl", inputs(values[1:]), *words)
    assert command.end() == 0, command.err
    assert [json.loads(line)["result"] for line in command.out.splitlines()] == [105, 107]
    command = Command(cluster, "cluster_work:add", "--jsonl", inputs(values[:1]), "--star")
    assert command.end() == 0, command.err
    assert command.records()["[1, 2]"]["result"] == 3


def test_what_fails_is_told_as_ever(cluster, inputs):
    command = Command(cluster, "cluster_work:fail", "--jsonl", inputs([1]))
    assert command.end() == 1
    error = command.records()["1"]["error"]
    assert (error["type"], error["message"]) == ("ValueError", "1 is not to be had")
    assert "in fail" in error["traceback"]
    assert command.records()["1"]["pid"] > 0
    command = Command(cluster, "cluster_work:die", "--jsonl", inputs([1, 2]), "--retries", 1)
    assert command.end() == 1
    record = command.records()["2"]
    assert record["error"]["type"] == "WorkerLostError"
    assert record["attempts"] == 2
    command = Command(cluster, "cluster_work:spin", "--star", "--timeout", "200ms",
                      "--jsonl", inputs([[]]))  # fmt: skip
    assert command.end() == 1
    assert command.records()["[]"]["error"]["type"] == "TimeLimitExceeded"


def test_it_goes_on_where_it_was(cluster, inputs, tmp_path):
    out, path = tmp_path / "out.jsonl", inputs(range(50))
    words = ("cluster_work:double", "--jsonl", path, "-o", out)
    command = Command(cluster, *words, "--limit", 20)
    assert command.end() == 0, command.err
    assert len(out.read_text().splitlines()) == 20
    command = Command(cluster, *words, "--resume")
    assert command.end() == 0, command.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(record["input"] for record in records) == list(range(50))


def test_ctrl_c_ends_what_runs(cluster, inputs, gate):
    path = inputs([[gate._address, x] for x in range(20)])
    command = Command(cluster, "cluster_work:enter", "--star", "--jsonl", path)
    visitors = [gate.arrival() for _ in range(2)]
    command.process.send_signal(signal.SIGINT)
    assert command.end() == -signal.SIGINT
    for visitor in visitors:
        eventually(lambda v=visitor: has_ended(v.pid), "what ran is ended")


def test_ctrl_c_while_nobody_answers(inputs, tmp_path):
    """Where the broker is to be, somebody listens who says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "silent.py").write_text(
            "from celery import Celery\n"
            f"app = Celery(broker='redis://127.0.0.1:{server.getsockname()[1]}/0')\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        words = ["cluster_work:double", "--app", "silent:app", "--jsonl", str(inputs([1, 2]))]
        command = [sys.executable, "-m", "prefork", "map", *words]
        with subprocess.Popen(command, cwd=HERE, env=env, stdout=-1, stderr=-1) as process:
            server.settimeout(DEADLINE)
            with server.accept()[0]:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=DEADLINE)
        assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--processes", "3"), "--processes does not go with --app"),
        (("--log-dir", "logs"), "--log-dir does not go with --app"),
        (("--max-memory", "1G"), "--max-memory does not go with --app"),
        (("--report", "r.html"), "--report does not go with --app"),
        (("--app", "cluster_work:version"), "is no celery application but a str"),
        (("--app", "cluster_nowhere:app"), "there is no module 'cluster_nowhere'"),
    ],
)
def test_what_does_not_go(cluster, words, reason):
    command = Command(cluster, "cluster_work:double", *words, "1")
    assert command.end() == 2
    assert reason in " ".join(command.err.split())


def test_functions_that_others_do_not_find(cluster):
    command = Command(cluster, "cluster_work:decorated", "1")
    assert command.end() == 2
    assert "top level" in " ".join(command.err.split())
    command = Command(cluster, HERE / "cluster_work.py:double", "1")
    assert command.end() == 2
    assert "it has to be a module" in " ".join(command.err.split())


def test_a_function_that_is_not_allowed_fails(cluster):
    command = Command(cluster, "json:loads", "1")
    assert command.end() == 1
    assert command.records()['"1"']["error"]["type"] == "NotAllowedError"
