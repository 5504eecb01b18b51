"""Jobs start in the order in which they were handed in, where they are long or nothing is known of
them yet: one may wait for another that came before it, as long as a worker is free for that."""

from __future__ import annotations

import pytest

from gate import Gate, enter
from helpers import DEADLINE, eventually, mark, marked
from prefork import WorkerState


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("leaves", [0, 1])
def test_a_job_may_wait_for_one_that_was_handed_in_before(make_pool, context, tmp_path, leaves):
    """Whichever of two long ones ends, the other one holds up nothing but its worker."""
    pool = make_pool(2, context=context)
    eventually(lambda: {w.state for w in pool.statistics().workers} == {WorkerState.IDLE}, "idle")
    with Gate() as gate:
        for value in range(2):
            pool.apply_async(enter, (gate, value))
        visitors = sorted([gate.arrival() for _ in range(2)], key=lambda visitor: visitor.value)
        earlier = pool.apply_async(mark, (tmp_path / "mark",))
        later = pool.apply_async(marked, (tmp_path / "mark",))
        visitors[leaves].go()
        earlier.get(DEADLINE)
        later.get(DEADLINE)
