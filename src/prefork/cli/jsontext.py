"""Values as JSON text, in UTF-8 and on one line; a value that is not JSON is told what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from prefork._describe import type_name

__all__ = ["NotJSONError", "digest", "from_json", "to_json"]


class NotJSONError(Exception):
    """A value cannot be written as JSON; the message says why, and what to do about it."""


def to_json(value: object) -> bytes:
    """The value as JSON text; what JSON does not know (NaN, sets, your classes) is an error.

    Raises:
        NotJSONError: the value, or something in it, is not JSON.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_refuse)
    except NotJSONError:
        raise
    except ValueError as exc:
        hint = "" if "Circular" in str(exc) else "; return None in place of NaN and Infinity"
        raise NotJSONError(f"the result is not JSON: {exc}{hint}") from None
    except (TypeError, RecursionError) as exc:
        raise NotJSONError(f"the result is not JSON: {exc}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair: a file name that is not UTF-8. The escape brings it back.
        return json.dumps(value, allow_nan=False).encode()


def _refuse(value: object) -> object:
    raise NotJSONError(
        f"the result is not JSON: it holds a value of type {type_name(value)}; {_advice(value)}"
    )


def _advice(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "return dataclasses.asdict(...) of it"
    if hasattr(value, "tolist"):
        return "return its .tolist()"
    if isinstance(value, (bytes, bytearray)):
        return "return its .decode() or .hex()"
    if isinstance(value, (set, frozenset)):
        return "return sorted(...) or list(...) of it"
    if hasattr(value, "__next__"):
        return "return list(...) of it"
    return "return str(...) of it, or dicts, lists, strings, numbers, booleans and None"


def from_json(text: bytes | str) -> Any:
    """The value of a JSON text; stricter than `json.loads`: no NaN.

    Raises:
        ValueError: it is not JSON; the message says where.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def digest(value: object) -> bytes:
    """A short fingerprint, equal for values that are equal as JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
