"""Runs well-known programs and libraries with prefork in the place of `multiprocessing.Pool` and of
`concurrent.futures.ProcessPoolExecutor`, and compares what they print with what they print without:
programs.py [NAME ...]

They are no dependencies of this project. Have them in a virtual environment of their own:
pip install flake8 isort autopep8 autoflake emcee schwimmbad dynesty scipy pyswarms numpy \
    "dask[array,dataframe,distributed]" xarray tqdm
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))
SOURCE = [str(STDLIB / name) for name in ("json", "email", "logging", "asyncio")]

INSTALL = """
import sys, os, runpy, prefork, prefork.pool, atexit
made = []
if os.environ["POOLS"] == "prefork":
    prefork.install()
    original = prefork.pool.Pool.__init__
    def count(self, *args, **kwargs):
        made.append(self.__class__)
        original(self, *args, **kwargs)
    prefork.pool.Pool.__init__ = count
    atexit.register(lambda: print("pools of prefork:", len(made), file=sys.stderr))
"""

TOOL = (
    INSTALL
    + """
if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.argv[0] = name
    runpy.run_module(name, run_name="__main__", alter_sys=True)
"""
)

MODEL = (
    INSTALL
    + """
import multiprocessing.pool, numpy as np
def log_likelihood(x):
    return -0.5 * float(np.sum(np.asarray(x) ** 2))
"""
)

EMCEE = (
    MODEL
    + """
import emcee
if __name__ == "__main__":
    np.random.seed(1)
    with multiprocessing.Pool(2) as pool:
        sampler = emcee.EnsembleSampler(8, 2, log_likelihood, pool=pool)
        state = sampler.run_mcmc(np.random.randn(8, 2), 50)
    print(sampler.get_chain().sum())
"""
)

SCHWIMMBAD = (
    MODEL
    + """
import multiprocess.pool  # its pools are derived from these
if "prefork" in multiprocessing.pool.Pool.__module__:
    multiprocess.pool.Pool = multiprocessing.pool.Pool
import schwimmbad
if __name__ == "__main__":
    done = []
    with schwimmbad.choose_pool(mpi=False, processes=2) as pool:
        print(pool.map(log_likelihood, [[i, i] for i in range(20)], callback=done.append))
        print(pool.size, len(done))
"""
)

DYNESTY = (
    MODEL
    + """
import dynesty
def prior(u):
    return 2 * u - 1
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        sampler = dynesty.NestedSampler(
            log_likelihood, prior, 2, nlive=50, pool=pool, rstate=np.random.default_rng(1)
        )
        sampler.run_nested(print_progress=False, maxiter=60)
    print(sampler.results.logz[-1])
"""
)

SCIPY = (
    MODEL
    + """
from scipy import optimize, integrate
def cost(x):
    return -log_likelihood(x)
if __name__ == "__main__":
    found = optimize.differential_evolution(
        cost, [(-5, 5)] * 2, workers=2, updating="deferred", seed=1, maxiter=20
    )
    print(found.nfev, round(found.fun, 12))
    print(optimize.brute(cost, [(-2, 2)] * 2, Ns=9, workers=2, finish=None))
"""
)

PYSWARMS = (
    MODEL
    + """
import logging; logging.disable()
from pyswarms.single import GlobalBestPSO
def costs(x):
    return (x ** 2).sum(axis=1)
if __name__ == "__main__":
    np.random.seed(1)
    swarm = GlobalBestPSO(10, 2, {"c1": 0.5, "c2": 0.3, "w": 0.9})
    print(swarm.optimize(costs, 20, n_processes=2, verbose=False))
"""
)

CONCURRENT_DOWNLOADS = (
    INSTALL
    + """
# what many a script does: collects by callback, counts down what is left, kills on Ctrl-C
import multiprocessing, time
from multiprocessing import pool as mp_pool
def work(i):
    return i * i
if __name__ == "__main__":
    got = []
    pool = mp_pool.Pool(4)
    results = [pool.apply_async(work, (i,), callback=got.append) for i in range(200)]
    while any(not r.ready() for r in results):
        time.sleep(0.001)
    print(len(got), sorted(got)[-1], len(pool._cache))
    a_map = pool.map_async(work, range(100), chunksize=5)
    while not a_map.ready():
        assert a_map._number_left * a_map._chunksize <= 100
    print(sum(a_map.get()), pool._processes, all(w.is_alive() for w in pool._pool))
    pool.close(); pool.join()
"""
)

EXECUTOR = (
    INSTALL
    + """
import concurrent.futures
Executor = concurrent.futures.ProcessPoolExecutor
if os.environ["POOLS"] == "prefork":
    class Executor(prefork.ProcessPoolExecutor):
        def __init__(self, *args, **kwargs):
            made.append(self.__class__)
            super().__init__(*args, **kwargs)
"""
)

DASK = (
    EXECUTOR
    + """
import dask, dask.array
def add(*numbers):
    return sum(numbers)
if __name__ == "__main__":
    with Executor(2) as executor:
        each = [dask.delayed(add)(i, i) for i in range(50)]
        total = dask.delayed(add)(*each)
        array = dask.array.arange(10_000, chunks=500)
        with dask.config.set(scheduler=executor):
            print(total.compute(), (array * 2).sum().compute())
        print(dask.compute(total, total + 1, scheduler=executor))
"""
)

DISTRIBUTED = (
    EXECUTOR
    + """
import asyncio, math, operator
from distributed import Client, Scheduler, Worker
async def main(executor):
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        async with Worker(scheduler.address, executor=executor, nthreads=2, dashboard=False):
            async with Client(scheduler.address, asynchronous=True) as client:
                print(sum(await client.gather(client.map(math.isqrt, range(200)))))
                print(repr(await client.submit(operator.truediv, 5, 0).exception()))
                many = client.map(math.isqrt, range(5), pure=False)
                print(await client.submit(sum, many))
if __name__ == "__main__":
    with Executor(2) as executor:
        asyncio.run(main(executor))
"""
)

TABLES = (
    EXECUTOR
    + """
import numpy as np, pandas as pd, xarray as xr
def describe(group):
    key, frame = group
    return key, frame["x"].mean().round(9), len(frame)
def summary(frame):
    return frame.describe()
def trend(block):
    return block.mean("time")
if __name__ == "__main__":
    frame = pd.DataFrame({"key": np.arange(10_000) % 7, "x": np.arange(10_000) ** 0.5})
    cube = xr.DataArray(np.arange(6_000.0).reshape(6, 1_000), dims=["place", "time"])
    with Executor(2) as executor:
        print(list(executor.map(describe, frame.groupby("key"))))
        parts = [frame.iloc[i::4] for i in range(4)]
        print(pd.concat(executor.map(summary, parts)).sum().sum())
        blocks = [cube.isel(place=i) for i in range(6)]
        print(xr.concat(executor.map(trend, blocks), "place").values)
"""
)

PROGRESS_BARS = (
    EXECUTOR
    + """
import tqdm, tqdm.contrib.concurrent
def square(i):
    return i * i
if __name__ == "__main__":
    tqdm.contrib.concurrent.ProcessPoolExecutor = Executor
    if os.environ["POOLS"] == "prefork":  # where tqdm looks it up
        concurrent.futures.ProcessPoolExecutor = Executor
    print(sum(tqdm.contrib.concurrent.process_map(square, range(500), max_workers=2, chunksize=5)))
    with Executor(2) as executor:
        futures = [executor.submit(square, i) for i in range(200)]
        done = concurrent.futures.as_completed(futures)
        print(sum(future.result() for future in tqdm.tqdm(done, total=len(futures))))
"""
)

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "flake8": (TOOL, ["flake8", "--isolated", "-j", "2", *SOURCE]),
    "isort": (TOOL, ["isort", "--check", "--jobs", "2", *SOURCE]),
    "autopep8": (TOOL, ["autopep8", "--diff", "-r", "-j", "2", SOURCE[0]]),
    "autoflake": (TOOL, ["autoflake", "-r", "--jobs", "2", SOURCE[0]]),
    "emcee": (EMCEE, []),
    "schwimmbad": (SCHWIMMBAD, []),
    "dynesty": (DYNESTY, []),
    "scipy": (SCIPY, []),
    "pyswarms": (PYSWARMS, []),
    "dask": (DASK, []),
    "distributed": (DISTRIBUTED, []),
    "pandas and xarray": (TABLES, []),
    "tqdm": (PROGRESS_BARS, []),
    "a script": (CONCURRENT_DOWNLOADS, []),
}
"""The program's source, and its arguments."""


def run(name: str, pools: str) -> tuple[int, str, str]:
    source, arguments = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(source)
        done = subprocess.run(
            [sys.executable, str(program), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "POOLS": pools},
            cwd=folder,
            check=False,
        )
    return done.returncode, "\n".join(sorted(done.stdout.splitlines())), done.stderr


def main(names: list[str]) -> int:
    failed = 0
    for name in names or PROGRAMS:
        theirs, ours = run(name, "standard"), run(name, "prefork")
        made = re.search(r"pools of prefork: (\d+)", ours[2])
        same = theirs[:2] == ours[:2] and made is not None and int(made[1]) > 0
        failed += not same
        count = made[1] if made else "no"
        lines = len(ours[1].splitlines())
        print(
            f"{name}: {'the same' if same else 'DIFFERS'}: {lines} lines, {count} pools", flush=True
        )
        if not same:
            print("standard:", theirs[0], theirs[1][-1000:], theirs[2][-2000:])
            print("prefork:", ours[0], ours[1][-1000:], ours[2][-2000:])
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
