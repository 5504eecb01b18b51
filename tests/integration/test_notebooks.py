"""In a real Jupyter kernel: what is typed into cells, interrupts, the kernel's end."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from helpers import DEADLINE, METHODS, eventually, has_ended

pytest.importorskip("cloudpickle")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "notebooks.md"
pytestmark = pytest.mark.filterwarnings("default")  # jupyter's own


class Notebook:
    """A kernel, and the cells that were run in it."""

    def __init__(self) -> None:
        self.book = nbformat.v4.new_notebook()
        self.client = nbclient.NotebookClient(
            self.book, timeout=DEADLINE, kernel_name="python3", allow_errors=True
        )

    async def run(self, source: str) -> str:
        """Run a cell; its value as text, or the name of the exception."""
        cell = nbformat.v4.new_code_cell(source)
        self.book.cells.append(cell)
        await self.client.async_execute_cell(cell, len(self.book.cells) - 1)
        text = ""
        for output in cell.outputs:
            if output["output_type"] == "error":
                text = output["ename"]
            elif output["output_type"] == "execute_result":
                text = output["data"]["text/plain"]
        return text

    async def value(self, source: str) -> Any:
        return ast.literal_eval(await self.run(source))


def in_notebook(use: Callable[[Notebook], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        notebook = Notebook()
        async with notebook.client.async_setup_kernel():
            await use(notebook)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(main())


PIDS = "[worker.pid for worker in pool.statistics().workers]"
STAY = """
import signal
def stay(path):
    open(path, "w").close()
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_cells_of_the_page_do_what_it_says(method):
    cells = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(cells) == 4

    async def use(notebook: Notebook) -> None:
        for cell in cells:
            (expected,) = re.findall(r"# (.*)\n\Z", cell)
            assert await notebook.run(cell.replace("Pool(2)", f"Pool(2, context={method!r})")) == (
                expected
            )

    in_notebook(use)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_goes_on_when_the_kernel_is_interrupted(method, tmp_path):
    async def use(notebook: Notebook) -> None:
        await notebook.run(f"from prefork import Pool; pool = Pool(1, context={method!r})" + STAY)
        for attempt in range(2):
            path = tmp_path / f"started-{attempt}"
            running = asyncio.ensure_future(notebook.run(f"pool.map(stay, [{str(path)!r}] * 3)"))
            while not path.exists():
                await asyncio.sleep(0.005)
            await notebook.client.km.interrupt_kernel()
            assert await running == "KeyboardInterrupt"
            assert await notebook.value("pool.map(lambda x: x + 1, range(3))") == [1, 2, 3]
        ends = "while pool.statistics().running: time.sleep(0.001)"
        await notebook.run(f"import time\n{ends}")  # or the cell does not end
        assert await notebook.value("pool.statistics().queued") == 0

    in_notebook(use)


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_workers_end_with_the_kernel(end, tmp_path):
    async def use(notebook: Notebook) -> None:
        await notebook.run("from prefork import Pool; pool = Pool(2)" + STAY)
        path = str(tmp_path / "started")
        await notebook.run(f"handle = pool.apply_async(stay, ({path!r},))")
        pids = await notebook.value(PIDS)
        assert len(pids) == 2
        manager = notebook.client.km
        if end == "kill":
            os.kill(manager.provisioner.pid, signal.SIGKILL)
        else:
            await manager.restart_kernel()
        eventually(lambda: all(map(has_ended, pids)), "the workers end")

    in_notebook(use)
