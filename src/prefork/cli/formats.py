"""Other files than JSON Lines: CSV, Parquet, and what is compressed.

A run writes records, which survive whatever happens to it. Such a file is made from them when it
has come to its end, as a whole. An object becomes several columns, `result.x` and so on.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["Form", "form_of", "problem_with"]

ROWS = 10_000  # at once, in Parquet
_WHOLE = range(-(1 << 63), 1 << 63)


class Form(NamedTuple):
    """One of the endings.

    Attributes:
        write: makes such a file of a file of records.
        needs: the package without which it cannot, or "".
    """

    write: Callable[[str, str], None]
    needs: str = ""

    def is_possible(self) -> bool:
        try:
            return not self.needs or importlib.util.find_spec(self.needs) is not None
        except ValueError:  # somebody has put nothing in its place
            return False

    def make(self, records: str, path: str) -> None:
        """As a whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        new = f"{path}.new"
        try:
            self.write(records, new)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            raise


def problem_with(path: str) -> str | None:
    """Why no such file can be made: a package is missing, or its ending, such as `.csv.gz`,
    promises what it would not hold; None: it can."""
    form = form_of(path)
    if form is None and path.lower().endswith(_PROMISES):
        return (
            f"{path} would hold JSON Lines, whatever it is called: besides these there are .csv, "
            ".parquet and .jsonl.gz"
        )
    if form is not None and not form.is_possible():
        return f"{path} needs {form.needs}: pip install 'prefork[parquet]'"
    return None


def form_of(path: str) -> Form | None:
    """By its ending; None: the records themselves."""
    return next((form for ending, form in _FORMS.items() if path.endswith(ending)), None)


def _write_gz(records: str, path: str) -> None:
    with open(records, "rb") as source, gzip.open(path, "wb", 6) as target:
        shutil.copyfileobj(source, target)


def _write_csv(records: str, path: str) -> None:
    names = {name: None for row in _rows(records) for name in row}
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in _rows(records):
            writer.writerow(_text(row.get(name)) for name in names)


def _write_parquet(records: str, path: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds: dict[str, set[type]] = {}
    for row in _rows(records):
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    types = {
        float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string(),
    }  # fmt: skip
    columns = {name: _common(found - {type(None)}) for name, found in kinds.items()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        rows = _rows(records)
        while some := list(itertools.islice(rows, ROWS)):
            arrays = [
                pa.array([_as(kind, row.get(name)) for row in some], types[kind])
                for name, kind in columns.items()
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


_PROMISES = (".csv", ".parquet", ".gz", ".bz2", ".xz", ".zst", ".zip")
_FORMS = {
    ".jsonl.gz": Form(_write_gz),
    ".csv": Form(_write_csv),
    ".parquet": Form(_write_parquet, "pyarrow"),
}


def _rows(records: str) -> Iterator[dict[str, Any]]:
    with open(records, "rb") as file:
        for line in file:
            yield dict(_flat(json.loads(line), ""))


def _flat(fields: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> Any:
    """For what is in no column of numbers."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _kind(value: Any) -> type:
    if type(value) is int and value not in _WHOLE:
        return str
    return type(value)


def _common(kinds: set[type]) -> type:
    """Of a column; what is mixed, or a list, becomes JSON text."""
    if kinds == {int, float}:
        return float
    return kinds.pop() if len(kinds) == 1 and kinds <= {int, float, bool} else str


def _as(kind: type, value: Any) -> Any:
    if kind is not str:
        return value
    text = _text(value)
    return text if text is None else text.encode("utf-8", "backslashreplace").decode()
