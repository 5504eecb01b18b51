"""With threads, a message goes back to the broker from the thread that uses the connection.

Newer celery acknowledges and rejects a message in the thread that the pool calls back in.
Acknowledging is no more than a mark. Rejecting sends the message again, in the middle of what
celery's own thread does on the same connection: an SQL session breaks, and the message is stuck
until the worker ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from kombu.message import Message

__all__ = ["Rejections"]


class Rejections(bootsteps.Step):  # type: ignore[misc]
    """Has celery's consumer do them in its own loop, a moment later."""

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._consumer = consumer
        self._at_once = getattr(consumer, "call_soon_ack", consumer.call_soon)
        consumer.call_soon_ack = self._call

    def _call(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        later = getattr(call, "__name__", None) == Message.reject_log_error.__name__
        soon = self._consumer.call_soon if later else self._at_once
        return soon(call, *args, **kwargs)
