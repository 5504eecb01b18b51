"""Functions for `prefork map` to run. Imported by the command and by its workers."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prefork import SoftTimeLimitExceeded

print("functions.py is imported")

NOT_CALLABLE = 42


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Shapes:
    @staticmethod
    def area(side: str) -> int:
        return int(side) ** 2


def same(value: Any) -> Any:
    return value


class _Async:
    async def __call__(self, value: Any) -> Any:
        return value


async_object = _Async()


async def coroutine(value: Any) -> Any:
    return value


def number(text: str) -> int:
    return int(text)


def shout(value: str) -> str:
    print(f"I say {value}")
    print(f"I complain of {value}", file=sys.stderr)
    return value


def behave(value: str) -> Any:
    """Do what the input says."""
    match value.partition(" "):
        case "crash", _, _:
            ctypes.string_at(0)
        case "exit", _, code:
            os._exit(int(code))
        case "sys.exit", _, code:
            sys.exit(int(code))
        case "raise", _, text:
            raise LookupError(text)
        case "loop", _, _:
            while True:
                pass
        case "hang", _, fifo:
            Path(fifo).write_text(f"{os.getpid()}\n")
            while True:
                signal.pause()
        case "sleep", _, seconds:
            time.sleep(float(seconds))
        case "wait", _, fifo:
            return Path(fifo).read_text()
        case "tell", _, fifo:
            return Path(fifo).write_text("go")
        case "fill", _, length:
            return "x" * int(length)
    return value


def patient(value: str) -> str:
    """Take the soft limit for an answer."""
    try:
        while True:
            pass
    except SoftTimeLimitExceeded:
        return "cleaned up"


def speak(value: str) -> str:
    """In all the ways that there are."""
    print(f"print {value}")
    os.write(2, f"write {value}\n".encode())
    os.system(f"echo child {value}")
    return value


def wait_for_long(value: str) -> str:
    """Quick, unless it is told for how long."""
    if value.startswith("sleep "):
        time.sleep(float(value[6:]))
    return value


def die_once(marker: str) -> str:
    """End the process the first time, and return the next time."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "survived"
    os._exit(1)


def log_and_behave(value: str) -> Any:
    """`file|what`: append `what` to the file, then behave so."""
    path, _, what = value.partition("|")
    with open(path, "a") as file:
        file.write(f"{what}\n")
    return behave(what)


def rich(kind: str) -> Any:
    """Results that JSON has no form for."""
    import decimal
    import enum
    import uuid

    import numpy as np

    return {
        "set": {2, 1},
        "mixed set": {1},
        "bytes": b"\xffabc",
        "dataclass": [Point(1, 2)],
        "path": Path("x"),
        "decimal": decimal.Decimal("0.10"),
        "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "date": datetime.date(2026, 1, 2),
        "duration": datetime.timedelta(minutes=1.5),
        "uuid": uuid.UUID(int=1),
        "enum": enum.Enum("Colour", {"RED": "red"}).RED,  # type: ignore[attr-defined]
        "scalar": np.float32(1.5),
        "integer": np.int64(3),
        "array": np.arange(4).reshape(2, 2),
        "model": Model(),
    }[kind]


class Model:
    """Has what pydantic's models have."""

    def model_dump(self) -> dict[str, Any]:
        return {"a": 1, "at": datetime.date(2026, 1, 2)}


def power(base: float, exponent: float = 2, *, plus: float = 0) -> float:
    return base**exponent + plus


def not_json(kind: str) -> Any:
    circle: list[Any] = []
    circle.append(circle)
    return {
        "object": Shapes(),
        "nan": {"deep": [float("nan")]},
        "circle": circle,
        "key": {(1, 2): 3},
        "iterator": iter([1]),
    }[kind]


def modules(value: str) -> list[str]:
    """Which of the command line's own packages a worker has loaded."""
    return sorted(name for name in ("click", "rich") if name in sys.modules)


def stdin(value: str) -> str:
    return sys.stdin.read()


def fork_and_return(value: str) -> str:
    """A child comes back from the function, too."""
    os.fork()
    return value
