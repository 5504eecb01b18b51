"""An async iterable as the input of `imap`: a task of the event loop reads it, as there is room.

It does in a loop what `TaskHandler` does in a thread: what the input raises ends the results, after
those of the items before; and when nobody takes results any more, the input is closed. Imported
when somebody hands in such an input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from prefork._system import event_loops
from prefork._system.running_loop import asyncio_loop

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Dispatcher
    from prefork._policy.job import Job
    from prefork._results.imap import Items

__all__ = ["AsyncInput", "Handed"]


class Handed:
    """The items that were read and are not in a job yet: what the maker of jobs iterates over."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Any) -> None:
        self._items.append(item)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._items:
            raise StopIteration
        return self._items.popleft()


class AsyncInput:
    """Reads one input; an `InputReader` of the pool.

    Args:
        source: the input.
        handed: where its items are left for `jobs`.
        jobs: makes a job of each `items.chunksize` of them, and one of the rest.
        items: where the results go; it tells whether there is room for more.
        dispatcher: takes the jobs.

    Raises:
        RuntimeError: no event loop of asyncio runs in this thread.
    """

    def __init__(
        self,
        source: AsyncIterable[Any],
        handed: Handed,
        jobs: Generator[Job, None, None],
        items: Items,
        dispatcher: Dispatcher,
    ) -> None:
        if (loop := asyncio_loop()) is None:
            raise RuntimeError(
                "an async iterable is read by asyncio's event loop: hand it in where one runs"
            )
        self._source = source
        self._handed = handed
        self._jobs = jobs
        self._items = items
        self._dispatcher = dispatcher
        self._inbox = event_loops.here()
        self._is_stopped = False
        self._has_all_room = False
        self._has_ended = False
        items.read_by(loop)
        dispatcher.begin_input(self)
        items.room.listen(self._told)
        self._task = loop.create_task(self._read())

    # ---- in the loop

    async def _read(self) -> None:
        error: BaseException | None = None
        try:
            iterator = aiter(self._source)
            try:
                await self._read_all(iterator)
            except GeneratorExit:  # the loop has gone, and nothing can be awaited
                raise
            except BaseException:
                await _close(iterator)
                raise
            await _close(iterator)
        except Exception as exc:
            error = exc
        except BaseException as exc:  # cancelled by us, as it is over; or by another, or it ends
            error = None if self._is_over() else _left_off(exc)
            raise
        finally:
            self._end(error)

    async def _read_all(self, iterator: AsyncIterator[Any]) -> None:
        items, handed = self._items, self._handed
        while True:
            await event_loops.Until(items.room, self._can_go_on)
            if self._is_over():
                return
            try:
                handed.add(await anext(iterator))
            except StopAsyncIteration:
                break
            except Exception:
                if handed:  # they came before it
                    self._submit()
                raise
            if len(handed) == items.chunksize:
                self._submit()
        if handed:
            self._submit()

    def _submit(self) -> None:
        self._dispatcher.submit_fed(next(self._jobs))

    def _can_go_on(self) -> bool:
        return self._is_over() or self._has_all_room or self._items.has_room()

    def _is_over(self) -> bool:
        return self._is_stopped or self._items.cancelled

    def _look(self) -> None:
        """The input may keep us waiting, which nobody is interested in any more."""
        if self._is_over():
            self._task.cancel()

    # ---- in any thread

    def _told(self) -> None:
        """There may be room, or it is over."""
        if not self._inbox.put(self._look):
            self._end(None if self._is_over() else _left_off(None))

    def _end(self, error: BaseException | None) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._items.room.listen_no_more(self._told)
        try:
            self._jobs.close()
            self._items.end(error)
            self._items.read_by(None)
        finally:
            self._dispatcher.end_input(self)

    # ---- what the pool calls

    def handle_event(self) -> None:
        """The task looks by itself, when it is told that there is room."""

    def abort(self, reason: Exception) -> None:
        """End the results with this error, even while the input keeps us waiting."""
        self._items.end(reason)
        self._is_stopped = True
        self._items.room.notify_all()

    def read_on(self) -> None:
        """Do not wait for room any more: nobody will make any before the input's end."""
        self._has_all_room = True
        self._items.room.notify_all()

    def is_needed(self) -> bool:
        return not self._items.cancelled


async def _close(iterator: AsyncIterator[Any]) -> None:
    """An asynchronous generator is ended here, and not when it is found to be garbage."""
    aclose: Callable[[], Any] | None = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


def _left_off(how: BaseException | None) -> RuntimeError:
    error = RuntimeError(
        "the input was not read to its end: the event loop that read it has ended, or its task was "
        "cancelled"
    )
    error.__cause__ = how
    return error
