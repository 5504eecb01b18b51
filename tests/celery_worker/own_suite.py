"""Celery's own integration tests, run on this pool, or beside it on celery's own.

    python tests/celery_worker/own_suite.py             # in place of the stock pool
    python tests/celery_worker/own_suite.py --stock     # the stock pool, to compare
    python tests/celery_worker/own_suite.py -- -k chord # the rest is for pytest

The tests are in celery's source distribution, of the version that is installed here. They are
unpacked into `build/celery-suite`, with a virtual environment of what else they import. A Redis of
their own is broker and backend. It takes some ten minutes; that is why it is run by hand.

What is left out, and why:

    test_backend, test_cache_backend, test_database_backend, test_request_backend_down,
    test_serialization, test_security, test_upgrade, test_loader, test_beat, test_logfile_format,
    test_events_state_memory_leak, test_mem_leak_in_exception_handling, test_backend_leak_...
        no pool is used in them; or they need servers that are not the pool's business
    marked `amqp` (by their names: quorum, rabbitmq)
        they need RabbitMQ with its management plugin, and skip themselves on Redis

Exits with pytest's code. Nothing is retried, except what celery's authors have marked as flaky.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from servers import Redis

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "celery-suite"

FILES = (
    "tasks",
    "inspect",
    "worker",
    "canvas",
    "group_chains",
    "redis_backend",
    "connection_recovery",
)
NEEDED = (
    "django",
    "pydantic",
    "pytest-celery",
    "pytest-order",
    "pytest-rerunfailures",
    "pytest-subtests",
    "pytest-timeout",
)

PLUGIN = """
from celery import concurrency

concurrency.ALIASES["prefork"] = "prefork.celery:TaskPool"


def pytest_sessionfinish():
    used = concurrency.get_implementation("prefork")
    print(f"\\nthe pool was {used.__module__}:{used.__name__}")
"""


def unpacked(celery: str) -> Path:
    """Celery's source distribution."""
    folder = BUILD / f"celery-{celery}"
    if not folder.exists():
        options = ("--no-binary", ":all:", "--no-deps", "--dest", str(BUILD))
        pip = [sys.executable, "-m", "pip", "download", "--quiet", *options, f"celery=={celery}"]
        subprocess.run(pip, check=True)
        with tarfile.open(BUILD / f"celery-{celery}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    return folder


def environment(celery: str) -> Path:
    """The interpreter of a virtual environment that has all that the tests import."""
    python = BUILD / "venv" / "bin" / "python"
    done = BUILD / "venv" / f"has-{celery}"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", BUILD / "venv"], check=True)
        install = [python, "-m", "pip", "install", "--quiet", f"celery[redis]=={celery}", *NEEDED]
        subprocess.run(install, check=True)
        done.touch()
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description="Run celery's own integration tests.")
    parser.add_argument("--stock", action="store_true", help="on celery's own pool, to compare")
    parser.add_argument("--only", nargs="+", choices=FILES, default=FILES, help="these files")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    options = parser.parse_args()
    celery = version("celery")
    BUILD.mkdir(parents=True, exist_ok=True)
    folder, python = unpacked(celery), environment(celery)
    (BUILD / "in_place_of_the_stock_pool.py").write_text(PLUGIN)
    data = BUILD / "redis"
    data.mkdir(exist_ok=True)
    plugin = [] if options.stock else ["-p", "in_place_of_the_stock_pool"]
    with contextlib.closing(Redis(data)) as redis:
        files = [f"t/integration/test_{name}.py" for name in options.only]
        return subprocess.run(
            [python, "-m", "pytest", "-q", "-rfEs", *plugin, *files, *options.pytest],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(
                    [os.environ.get("PYTHONPATH", str(ROOT / "src")), str(BUILD)]
                ),
                "TEST_BROKER": redis.url,
                "TEST_BACKEND": redis.url.removesuffix("0") + "1",
                # Some of the tests have this one built in.
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": str(redis.port),
            },
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
