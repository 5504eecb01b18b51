"""Runs CPython's own tests of `multiprocessing.Pool` on this pool:

runner.py METHOD CLASS

METHOD is a start method; CLASS is one of those in `CLASSES`.
"""

from __future__ import annotations

import multiprocessing
import sys
import unittest

CLASSES = {
    "WithProcessesTestPool": 20,
    "WithProcessesTestPoolWorkerErrors": 2,
    "WithProcessesTestPoolWorkerLifetime": 4,
    "TestInitializers": 2,
}
"""What is run, and how many tests there are at least."""

LEFT_OUT = {
    "WithProcessesTestPool.test_resource_warning": "it sets the pool's private `_state`, which can "
    "only be read here; a pool that is really dropped while it runs is in test_drop_in.py",
}
"""Not run, and why. Of the other classes of these tests, none is about pools of processes, but for
`TestPoolNotLeakOnFailure`: that hands in a mock as a context, which is refused here."""


def main(name: str) -> int:
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(globals()[name])
    chosen = [each for each in tests if each.id().partition(".")[2] not in LEFT_OUT]
    setUpModule()  # noqa: F821
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(chosen))
    tearDownModule()  # noqa: F821
    print(f"{result.testsRun} of {tests.countTestCases()}")
    return not result.wasSuccessful() or result.testsRun < CLASSES[name]


if __name__ in ("__main__", "__mp_main__"):  # as spawned children find their classes in here, too
    sys.modules["cloudpickle"] = None  # type: ignore[assignment] # theirs fail to return a lambda

    import test._test_multiprocessing as theirs

    import prefork

    prefork.install()
    theirs.ProcessesMixin.Pool = staticmethod(multiprocessing.Pool)
    theirs.install_tests_in_module_dict(globals(), sys.argv[1])

if __name__ == "__main__":
    sys.exit(main(sys.argv[2]))
