"""Values as JSON text, in UTF-8 and on one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

from prefork._describe import short_repr, type_name

__all__ = ["NotJSONError", "digest", "from_json", "to_json"]


class NotJSONError(Exception):
    """A value cannot be written as JSON; the message says why, and what to do about it."""


def to_json(value: object) -> bytes:
    """The value as JSON text. What JSON does not know is written as `_as_json` says.

    Raises:
        NotJSONError: the value, or something in it, cannot be written.
    """
    try:
        text = _encode(value)
    except NotJSONError as exc:
        raise NotJSONError(f"{exc}; it is {short_repr(value)}") from None
    except ValueError as exc:
        hint = "" if "Circular" in str(exc) else "; return None in place of NaN and Infinity"
        raise NotJSONError(
            f"the result is not JSON: {exc}{hint}; it is {short_repr(value)}"
        ) from None
    except (TypeError, RecursionError) as exc:
        raise NotJSONError(f"the result is not JSON: {exc}; it is {short_repr(value)}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair: a file name that is not UTF-8. The escape brings it back.
        return json.dumps(value, allow_nan=False, default=_as_json).encode()


def _as_json(value: Any) -> object:
    """What stands for a value that JSON has no form for:

    a dataclass, a pydantic model         an object
    a set                                 a list, in order if its members have one
    an array, or a scalar, of NumPy's     (nested) lists, or a number
    date, time, datetime                  as in ISO 8601
    timedelta                             its seconds
    an enumeration's member               its value
    bytes                                 {"base64": "…"}
    Path, UUID, Decimal                   a string
    """
    import base64  # all these only where there is such a value
    import datetime
    import decimal
    import enum
    import os
    import uuid

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (os.PathLike, uuid.UUID, decimal.Decimal)):
        return str(value)
    for method in ("tolist", "model_dump"):  # NumPy's, pydantic's
        if callable(convert := getattr(value, method, None)) and not isinstance(value, type):
            return convert()
    raise NotJSONError(
        f"the result is not JSON: it holds a value of type {type_name(value)}; {_advice(value)}"
    )


def _advice(value: object) -> str:
    if hasattr(value, "__next__"):
        return "return list(...) of it"
    return "return str(...) of it, or dicts, lists, strings, numbers, booleans and None"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_json).encode


def from_json(text: bytes | str) -> Any:
    """The value of a JSON text; stricter than `json.loads`: no NaN, and no number that is infinite.

    Raises:
        ValueError: it is not JSON; the message says where.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):  # it could not be written again
        raise ValueError(f"{digits} is too large a number")
    return number


def digest(value: object) -> bytes:
    """A short fingerprint, equal for values that are equal as JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
