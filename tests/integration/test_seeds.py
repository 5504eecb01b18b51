"""Random numbers that depend on the item alone."""

from __future__ import annotations

import os
import random
import sys

import pytest

from prefork import Pool, current_worker

numpy = pytest.importorskip("numpy")

SEED = 2024
N = 7


def draw(_: object) -> tuple[float, float, float]:
    """One of each, the second of its stream."""
    for _ in range(2):
        legacy, own = numpy.random.random(), current_worker().rng.random()
        draws = random.random(), float(legacy), float(own)
    return draws


def expected(seed: int, position: int) -> tuple[float, float, float]:
    """By the formulas of the documentation."""
    plain = random.Random(f"{seed} {position}")
    sequence = numpy.random.SeedSequence(seed).spawn(position + 1)[position]
    legacy = numpy.random.RandomState()
    legacy.seed(sequence.generate_state(4))
    rng = numpy.random.default_rng(sequence)
    for _ in range(2):
        draws = plain.random(), legacy.random_sample(), rng.random()
    return draws


EXPECTED = [expected(SEED, position) for position in range(N)]

ITEMS = [(i,) for i in range(N)]
VERBS = {
    "map": lambda pool, **o: pool.map(draw, range(N), **o),
    "map_async": lambda pool, **o: pool.map_async(draw, range(N), **o).get(),
    "starmap": lambda pool, **o: pool.starmap(draw, ITEMS, **o),
    "starmap_async": lambda pool, **o: pool.starmap_async(draw, ITEMS, **o).get(),
    "imap": lambda pool, **o: list(pool.imap(draw, range(N), **o)),
    "imap_unordered": lambda pool, **o: list(pool.imap_unordered(draw, range(N), **o)),
}


def test_the_numbers_are_those_of_the_documentation(make_pool, context):
    pool = make_pool(2, context=context)
    assert pool.map(draw, range(N), seed=SEED) == EXPECTED


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_they_are_the_same_whoever_draws_them(make_pool, verb, chunksize, workers):
    pool = make_pool(workers)
    drawn = VERBS[verb](pool, chunksize=chunksize, seed=SEED)
    order = sorted if verb == "imap_unordered" else list
    assert order(drawn) == order(EXPECTED)


def test_a_view_has_them_too(make_pool):
    assert make_pool(1).options(timeout=60).map(draw, range(N), seed=SEED) == EXPECTED


def test_without_a_seed_they_differ(make_pool):
    pool = make_pool(1)
    assert len({*pool.map(draw, range(N)), *pool.map(draw, range(N), seed=None)}) == 2 * N
    assert set(pool.map(draw, range(N), seed=SEED + 1)).isdisjoint(EXPECTED)


def generators(_: object = None) -> tuple[object, ...]:
    kind, key, *rest = numpy.random.get_state()
    return random.getstate(), kind, tuple(key), *rest


@pytest.mark.parametrize("raises", [False, True])
def test_afterwards_the_generators_go_on_where_they_were(make_pool, raises):
    pool = make_pool(1)
    before = pool.apply(generators)
    if raises:
        with pytest.raises(ZeroDivisionError):
            pool.map(divmod_by_zero, range(N), seed=SEED)
    else:
        pool.map(draw, range(N), seed=SEED)
    assert pool.apply(generators) == before


def divmod_by_zero(x: int) -> object:
    random.random()
    return divmod(x, 0)


def test_the_traceback_begins_in_the_task(make_pool):
    with pytest.raises(ZeroDivisionError) as caught:
        make_pool(1).map(divmod_by_zero, [1], seed=SEED)
    first = str(caught.value.__cause__).split("File ")[1]
    assert "in divmod_by_zero" in first


def die_at_first(x: object) -> object:
    if current_worker().job.attempt == 1:
        random.random()
        os._exit(1)
    return draw(x)


def test_a_retry_draws_the_same(make_pool):
    pool = make_pool(2)
    assert pool.map(die_at_first, range(N), 3, seed=SEED, retries=1) == EXPECTED


def draw_plain(_: object) -> float:
    random.random()
    return random.random()


def test_without_numpy_the_others_are_the_same(make_pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy.random", None)
    monkeypatch.setattr("prefork._worker.seeding._found", [])
    pool = make_pool(1, context="fork")
    assert pool.map(draw_plain, range(N), seed=SEED) == [plain for plain, _, _ in EXPECTED]
    with pytest.raises(ImportError):
        pool.apply(own_generator)


def own_generator() -> float:
    return float(current_worker().rng.random())


def test_the_generator_of_a_worker_is_its_own(make_pool, context):
    pool = make_pool(3, context=context)
    assert len(set(pool.map(draw_own, range(30), 1))) == 30


def draw_own(_: object) -> float:
    return own_generator()


def draw_inside(_: object) -> list[float]:
    current_worker().rng.random()
    with Pool(2, context="fork") as pool:
        return pool.map(draw_own, range(2), 1)


def test_workers_that_a_task_makes_have_others(make_pool):
    inside = make_pool(1).map(draw_inside, range(2), seed=SEED)
    assert len({number for numbers in inside for number in numbers}) == 4


@pytest.mark.parametrize(
    ("seed", "error"),
    [("x", TypeError), (1.5, TypeError), (True, TypeError), (-1, ValueError)],
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_seed_that_is_none_is_refused(make_pool, verb, seed, error):
    pool = make_pool(1)
    with pytest.raises(error, match="seed must be"):
        VERBS[verb](pool, seed=seed)


def test_a_single_call_has_none(make_pool):
    with pytest.raises(TypeError, match="seed"):
        make_pool(1).apply(draw, (1,), seed=SEED)
