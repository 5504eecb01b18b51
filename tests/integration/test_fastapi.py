"""The example for FastAPI, run by a real uvicorn."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import signal
from pathlib import Path

import pytest

from helpers import DEADLINE, eventually, has_ended

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "asyncio.md"
SERVE = """
import socket
import sys
import uvicorn
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    own = socket.create_server(("127.0.0.1", 0))  # who connects now waits until it is served
    print(own.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config("app:app", log_level="warning")).run(sockets=[own])
"""


class Server:
    """uvicorn with the example, on a port of its own."""

    def __init__(self, script, folder):
        (code,) = re.findall(r":caption: app.py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        (folder / "app.py").write_text(code)
        (folder / "serve.py").write_text(SERVE)
        self.script = script(folder / "serve.py", folder)
        self.port = int(self.script.process.stdout.readline())

    @contextlib.contextmanager
    def request(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            yield connection

    def get(self, path):
        with self.request(path) as connection:
            return answer(connection)

    def running(self):
        return self.get("/running")


def answer(connection):
    with connection.getresponse() as response:
        assert response.status == 200
        return json.load(response)


@pytest.fixture
def server(script, tmp_path):
    return Server(script, tmp_path)


def test_a_request_gets_its_answer(server):
    assert server.get("/primes/100") == 25


def test_a_request_that_is_cut_off_ends_its_job(server):
    with server.request(f"/primes/{10**12}"):
        (pid,) = eventually(server.running, "its job runs")
    eventually(lambda: has_ended(pid), "its worker was killed")
    eventually(lambda: not server.running(), "nothing runs")
    assert server.get("/primes/100") == 25


def test_sigterm_drains(server):
    with server.request("/primes/300000") as request:

        def is_on_its_way():  # or has come, if nobody had a chance to look meanwhile
            return server.running() or select.select([request.sock], [], [], 0)[0]

        eventually(is_on_its_way, "its job runs")
        server.script.process.send_signal(signal.SIGTERM)
        assert answer(request) == 25997
    status, _, err = server.script.finish()
    assert status in (0, -signal.SIGTERM)
    assert err == ""
    assert not server.script.leftovers()
