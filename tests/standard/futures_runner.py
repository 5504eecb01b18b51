"""Runs CPython's own tests of `concurrent.futures.ProcessPoolExecutor` on ours:

futures_runner.py METHOD PART

METHOD is a start method; PART is one of those in `PARTS`.

Some installations of Python 3.11 and 3.12 come without these tests, though with others. Then those
of 3.11 are taken from where `make cpython-tests` has put them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import os
import sys
import unittest
from pathlib import Path

import prefork

NAME = "test.test_concurrent_futures"

PLACE = Path(__file__).resolve().parents[2] / "build" / "cpython-tests"


def are_here() -> bool:
    return importlib.util.find_spec("test") is not None and (
        importlib.util.find_spec(NAME) is not None
    )


COME_ALONG = are_here()
if not COME_ALONG and PLACE.exists():  # for the workers that import this file, too
    importlib.import_module("test").__path__.append(str(PLACE))

PARTS = {
    "AsCompleted": 5,
    "ExecutorDeadlock": 7,
    "FailingInitializer": 1,
    "Initializer": 1,
    "ProcessPoolExecutor": 9,
    "ProcessPoolShutdown": 7,
    "Wait": 7,
}
"""What is run, and how many tests there are at least."""

LEFT_OUT = {
    "test_killed_child": "there, the death of a worker breaks the pool; here, it does not",
    "test_broken_process_pool_traceback": "likewise",
    "test_traceback_when_child_process_terminates_abruptly": "likewise",
    "test_force_shutdown_workers_dead_pool": "likewise",
    "test_force_shutdown_workers_dead_workers": "likewise",
    "test_gc_during_max_tasks_worker_exit_gh152967": "the calls of an executor that was dropped "
    "fail there; here, they are finished",
    "test_shutdown_no_wait_max_tasks_gh119592": "likewise",
    "test_force_shutdown_during_max_tasks_worker_exit": "it sets private attributes",
    "test_failed_worker_replacement_breaks_pool": "it replaces a private function",
    "test_terminate_workers": "likewise",
    "test_kill_workers": "likewise",
    "test_force_shutdown_workers": "it replaces methods of the workers' process objects; what "
    "these calls do is in test_executor.py",
    "test_force_shutdown_workers_invalid_op": "it calls a private method",
    "test_ressources_gced_in_workers": "it needs the pool to be idle for an event of a manager",
    "test_max_tasks_per_child": "with fork it expects an error: here, any start method will do",
    "test_saturation": "it reads a private semaphore, and counts workers that are started on "
    "demand: here, all are started at once",
    "test_idle_process_reuse_one": "likewise",
    "test_idle_process_reuse_multiple": "likewise",
    "test_processes_terminate": "it counts those, and then waits for them by their objects",
    "test_max_tasks_per_child_defaults_to_spawn_context": "here, it does not",
    "test_python_finalization_error": "it replaces a private function of threading, to break the "
    "pool when that starts its second thread: here, all threads but one are started by then",
    "test_traceback": "it wants the cause of an exception to be of a private class: here, it is "
    "multiprocessing.pool.RemoteTraceback",
    "test_cancel_futures": "it takes calls for started that have just been handed in, and wants "
    "them not to be cancelled; what `cancel_futures` does is in test_executor.py",
    "test_exit_at_task_unpickle": "SystemExit ends the worker here, as in multiprocessing.Pool",
    "test_exit_during_result_pickle_on_worker": "likewise",
    "test_exit_during_func_exec_on_worker": "likewise",
    "test_error_at_task_unpickle": "it breaks the pool there; here, the call fails with that error",
    "test_error_during_result_pickle_on_worker": "here, it is a MaybeEncodingError with that error "
    "as its cause, as in multiprocessing.Pool",
    "test_max_workers_negative": "the error is of the same type, in other words",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "it replaces private parts",
}

if not COME_ALONG:
    LEFT_OUT["test_interpreter_shutdown"] = "it starts a script that would not find these tests"


def main(method: str, part: str) -> int:
    name = f"ProcessPool{method.capitalize()}{part}Test"
    tests = unittest.TestSuite()
    for module in modules():
        if (cls := getattr(module, name, None)) is not None:
            prepare(cls)
            found = unittest.defaultTestLoader.loadTestsFromTestCase(cls)
            tests.addTests(each for each in found if each._testMethodName not in LEFT_OUT)
    result = unittest.TextTestRunner(verbosity=2).run(tests)
    print(f"{result.testsRun} of {PARTS[part]}")
    return not result.wasSuccessful() or result.testsRun < PARTS[part]


def modules():
    package = importlib.import_module(NAME)
    if not hasattr(package, "__path__"):  # Python 3.11
        return [package]
    names = ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait")
    return [importlib.import_module(f"{package.__name__}.test_{name}") for name in names]


def prepare(cls) -> None:
    # A worker that dies there breaks the pool. Here its call alone fails, and its error says so.
    module = sys.modules[cls.__module__]
    if cls.__name__.endswith("DeadlockTest"):
        module.BrokenProcessPool = prefork.PreforkError
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = with_ours(module.assert_python_ok)
    if hasattr(cls, "_assert_logged"):  # in the worker; here, it is logged in the pool's process
        cls._assert_logged = lambda self, message: contextlib.nullcontext()


def with_ours(run):
    """Their tests start scripts, isolated, which import the executor. Have that be ours."""

    def run_with_ours(option: str, script: str):
        replace = "import concurrent.futures as c, prefork; c.ProcessPoolExecutor = "
        whole = f"{replace}prefork.ProcessPoolExecutor\n{script}"
        return run(option, whole, PYTHONPATH=os.pathsep.join(sys.path), __isolated=False)

    return run_with_ours


class _ManagerThread:
    def __init__(self, executor) -> None:
        self._pool = executor.pool

    def join(self) -> None:
        self._pool.join()


class _CallQueue:
    def join_thread(self) -> None:
        pass


if __name__ == "__main__":

    class ProcessPoolExecutor(prefork.ProcessPoolExecutor):
        """With names of the inside that the tests wait for."""

        @property
        def _executor_manager_thread(self) -> _ManagerThread:
            return _ManagerThread(self)

        @property
        def _call_queue(self) -> _CallQueue:
            return _CallQueue()

    concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor
    sys.exit(main(*sys.argv[1:]))
