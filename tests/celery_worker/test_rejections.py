"""With threads: what celery does with the connection, and in which thread, without a broker."""

from __future__ import annotations

import pytest
from kombu.message import Message

from prefork.celery import TaskPool
from prefork.celery.rejections import Rejections


class Consumer:
    """Celery's, as far as it concerns messages."""

    def __init__(self) -> None:
        self.done = []

    def call_soon(self, call, *args):
        self.done.append(("soon", call.__name__, *args))

    def call_soon_ack(self, call, *args):
        self.done.append(("at once", call.__name__, *args))


def test_only_rejections_wait_for_the_loop_of_celery():
    consumer, message = Consumer(), Message()
    Rejections(consumer)
    consumer.call_soon_ack(message.ack_log_error, 1)
    consumer.call_soon_ack(message.reject_log_error, 2)
    assert consumer.done == [("at once", "ack_log_error", 1), ("soon", "reject_log_error", 2)]


class App:
    def __init__(self) -> None:
        self.steps = {"consumer": set()}


@pytest.mark.parametrize(("threads", "steps"), [(True, {Rejections}), (False, set())])
def test_it_is_for_workers_without_an_event_loop(threads, steps):
    app = App()
    TaskPool(1, threads=threads, app=app)
    assert app.steps["consumer"] == steps
