"""Context variables of the code that hands in a call are there in the task."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time

import pytest

from helpers import DEADLINE, NEVER
from prefork import Pool

request = contextvars.ContextVar("request")
tenant = contextvars.ContextVar("tenant", default="nobody")
CARRIED = (request, tenant)


def look(_=None):
    return request.get("none"), tenant.get()


def look_and_change(value):
    found = look()
    request.set(value)
    tenant.set(value)
    return found


def look_by_names(*, number):
    return (*look(), number)


def within(func, *args, **values):
    """Call it in a context of its own, with these variables set."""

    def run():
        for name, value in values.items():
            globals()[name].set(value)
        return func(*args)

    return contextvars.Context().run(run)


CALLS = {
    "apply": lambda pool: pool.apply(look),
    "keywords": lambda pool: pool.apply(look_by_names, (), {"number": 1})[:2],
    "submit": lambda pool: pool.submit(look).result(DEADLINE),
    "view": lambda pool: pool.options(retries=1).apply_async(look).get(DEADLINE),
    "map": lambda pool: pool.map(look, range(20))[-1],
    "starmap": lambda pool: pool.starmap_async(look, [(n,) for n in range(20)], 1).get(DEADLINE)[
        -1
    ],
    "imap": lambda pool: list(pool.imap(look, iter(range(200))))[-1],
    "imap_unordered": lambda pool: list(pool.imap_unordered(look, range(20), 3))[-1],
    "each_async": lambda pool: pool.each_async(look, [1]).get(DEADLINE)[0].value,
    "executor": lambda pool: next(pool.executor().map(look, range(3))),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_carries_what_is_set_where_it_is_made(make_pool, call):
    pool = make_pool(2, context_vars=CARRIED)
    assert within(CALLS[call], pool, request="r1", tenant="t1") == ("r1", "t1")
    assert within(CALLS[call], pool, tenant="t2") == ("none", "t2")
    assert within(CALLS[call], pool) == ("none", "nobody")


def test_nothing_of_it_is_left_for_the_next_task(make_pool, context):
    pool = make_pool(1, context=context, context_vars=CARRIED)
    assert within(pool.apply, look_and_change, ("x",), request="r1") == ("r1", "nobody")
    assert within(pool.apply, look, tenant="t") == ("none", "t")
    assert within(pool.apply, look) == ("none", "nobody")


def test_only_those_that_were_named(make_pool):
    pool = make_pool(1, context_vars=[tenant])
    assert within(pool.apply, look, request="r", tenant="t") == ("none", "t")
    pool = make_pool(1)
    assert within(pool.apply, look, request="r", tenant="t") == ("none", "nobody")


def test_what_cannot_be_pickled_fails_its_call(make_pool):
    pool = make_pool(1, context_vars=CARRIED)
    with pytest.raises(TypeError, match="cannot pickle"):
        within(pool.apply, look, request=threading.Lock())
    assert within(pool.apply, look, request=[1]) == ([1], "nobody")


def test_a_soft_limit_is_raised_in_it(make_pool):
    pool = make_pool(1, context_vars=CARRIED)
    with pytest.raises(Pool.SoftTimeLimitExceeded):
        within(lambda: pool.apply(time.sleep, (NEVER,), soft_timeout=0.1), request=1)
    assert within(pool.apply, look, request=1) == (1, "nobody")


def test_what_is_no_variable_is_refused():
    with pytest.raises(TypeError, match=r"must be contextvars\.ContextVar objects, not 'request'"):
        Pool(1, context_vars=["request"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="is no global of a module"):
        Pool(1, context_vars=[contextvars.ContextVar("local")])


OTEL = """
import json, sys
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prefork import Pool

tracer = trace.get_tracer("test")

def start():
    global spans
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace._TRACER_PROVIDER = None
    trace._TRACER_PROVIDER_SET_ONCE = type(trace._TRACER_PROVIDER_SET_ONCE)()
    trace.set_tracer_provider(provider)

def task(number):
    with trace.get_tracer("test").start_as_current_span(f"task {number}"):
        pass
    (span,) = spans.get_finished_spans()
    spans.clear()
    parent = span.parent and span.parent.span_id
    return span.name, span.context.trace_id, parent, baggage.get_baggage("user")

if __name__ == "__main__":
    start()
    with trace.get_tracer("test").start_as_current_span("the making of the pool"):
        pool = Pool(2, start, context=sys.argv[1])
    with trace.get_tracer("test").start_as_current_span("request") as span:
        token = context.attach(baggage.set_baggage("user", "me"))
        found = [pool.apply(task, (0,)), *pool.imap(task, iter([1, 2])), *pool.map(task, [3, 4])]
        context.detach(token)
    mine = span.get_span_context()
    for number, (name, trace_id, parent, user) in enumerate(found):
        assert name == f"task {number}" and user == "me", (name, user)
        assert (trace_id, parent) == (mine.trace_id, mine.span_id)
    name, trace_id, parent, user = pool.apply(task, (5,))
    assert parent is None and user is None and trace_id != mine.trace_id
    pool.terminate()
    print("one trace")
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_opentelemetry_sees_one_trace(tmp_path, method):
    pytest.importorskip("opentelemetry.sdk")
    program = tmp_path / "traced.py"
    program.write_text(OTEL)
    run = subprocess.run(
        [sys.executable, program, method], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "one trace\n", "")


def test_nothing_is_imported_without_it():
    code = """
import sys
from prefork import Pool
with Pool(1) as pool:
    pool.apply(abs, (1,))
print([name for name in sys.modules if "_observe" in name or "opentelemetry" in name])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "[]\n", run.stderr
