"""Which place a new worker takes, and what it finds there."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import pytest

from fakes import FakePool
from prefork._engine import places
from prefork._engine.places import Places, free_places, make_places
from prefork._worker.environment import THREADS_VARIABLES


@pytest.fixture
def pool(pool: FakePool) -> FakePool:
    """Its two workers are there."""
    pool.start(2)
    return pool


def free(pool: FakePool, wanted: int = 1) -> list[int]:
    generation = pool.spawner.generation
    return free_places(pool.state.workers, wanted, generation, pool.supervisor.processes)


def test_those_that_nobody_has_come_first_and_the_lowest_of_them(pool: FakePool) -> None:
    assert free(pool, 3) == [2, 3, 4]  # it has two workers
    first, _ = pool.workers
    first.die()
    pool.supervise()
    pool.supervisor.resize(+2)
    assert free(pool, 2) == [2, 3]


def test_a_place_of_one_that_leaves_is_taken_over(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    leaving = pool.worker_of(job)
    leaving.begin()
    with pool.state.lock:
        pool.dispatcher.dismiss(leaving.handle, "enough")
    assert free(pool) == [leaving.child.index]
    pool.supervisor.resize(+1)
    assert free(pool, 3) == [2, leaving.child.index, 3]


def test_a_restart_gives_the_places_of_those_who_go_next(pool: FakePool) -> None:
    pool.supervisor.replace_all()
    assert sorted(free(pool, 3)) == [0, 1, 2]
    pool.settle()
    (third,) = pool.workers[2:]
    third.become_ready()
    pool.settle()
    (gone,) = [worker for worker in pool.workers if worker.told_to_leave]
    assert third.child.index == gone.child.index
    assert pool.workers[3].child.index == 1 - gone.child.index
    assert {worker.child.index for worker in pool.workers} == {0, 1}


# --- threads


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_visible_cpus", lambda: 8)
    for name in THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def threads(processes: int, cpus: int = 8, most: Any = None, **given: Any) -> str | None:
    env, affinity = given.get("env"), given.get("cpu_affinity")
    place = make_places(processes, cpus, False, env, affinity, most)[0]
    return None if place is None else place.variables.get("OMP_NUM_THREADS")


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("processes", "cpus", "expected"),
    [(8, 8, "1"), (4, 8, "2"), (3, 8, "2"), (20, 8, "1"), (1, 8, None), (1, 2, "2")],
)
def test_each_worker_gets_its_share_of_the_cpus(
    processes: int, cpus: int, expected: str | None
) -> None:
    assert threads(processes, cpus) == expected


@pytest.mark.usefixtures("many_cpus")
def test_who_knows_better_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads(8, most=5) == "5"
    assert threads(8, most=math.inf) is None
    assert threads(8, env={"OMP_NUM_THREADS": "7"}) == "7"
    assert threads(8, env={"MKL_NUM_THREADS": "7"}) is None
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert threads(8) is None
    assert threads(8, most=5) == "5"


@pytest.mark.usefixtures("many_cpus")
def test_a_worker_that_is_bound_to_cpus_has_a_thread_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    assert threads(2, cpu_affinity=[range(3)]) == "3"
    assert threads(8, cpu_affinity=True) == "1"


def test_libraries_that_are_loaded_need_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", places)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="install threadpoolctl"):
        make_places(2, 2, True, None, None, 1)


def test_most_places_have_nothing() -> None:
    assert Places()[0] is None
    made = make_places(1, 10_000, False, None, None, None)
    assert made[0] is None
    assert made[7] is None
