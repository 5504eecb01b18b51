"""Values and errors as texts of one line."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import MaybeDecodingError, MaybeEncodingError, TimeLimitExceeded, WorkerLostError
from prefork.cluster.codecs import CODECS, read_error, write_error

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    value: int


class Unkind(Exception):
    __notes__ = 5  # type: ignore[assignment]

    @property
    def args(self):  # type: ignore[override]
        raise LookupError


def test_an_error_that_takes_no_attributes():
    found = read_error(write_error(Frozen(3)))
    assert isinstance(found, MaybeDecodingError)
    assert "Frozen" in str(found)


def test_an_error_keeps_its_file():
    with pytest.raises(FileNotFoundError) as raised:
        open("/there/is/none")  # noqa: SIM115
    found = read_error(write_error(raised.value))
    assert isinstance(found, FileNotFoundError)
    assert (found.filename, str(found)) == ("/there/is/none", str(raised.value))


def test_an_error_whose_own_code_fails():
    assert isinstance(read_error(write_error(Unkind())), Exception)


def test_an_error_of_any_size():
    text = write_error(ValueError("x" * 10_000_000), "y" * 10_000_000)
    assert len(text) < 300_000
    assert "(10000000 characters)" in str(read_error(text))


@given(st.lists(JSON))
def test_json(values):
    codec = CODECS["json"]
    texts = list(map(codec.write, values))
    assert all(text.isascii() and "\n" not in text and text[0] not in "?!" for text in texts)
    assert list(map(codec.read, texts)) == values == codec.read_all(texts)


@given(st.lists(st.tuples(JSON)))
def test_pickle(values):
    codec = CODECS["pickle"]
    texts = list(map(codec.write, values))
    assert all(text.isascii() and "\n" not in text and text[0] not in "?!" for text in texts)
    assert list(map(codec.read, texts)) == values == codec.read_all(texts)


def test_a_text_that_is_two_values():
    with pytest.raises(ValueError, match="more than one value"):
        CODECS["json"].read_all(["1,2"])


def again(error):
    return read_error(write_error(error))


def test_errors_come_back():
    error = again(ValueError("a", 3))
    assert type(error) is ValueError
    assert error.args == ("a", 3)
    lost = again(WorkerLostError(3, "f", 17, -9, "the stack", "a note"))
    assert (type(lost), lost.pid, lost.stack) == (WorkerLostError, 17, "the stack")
    late = again(TimeLimitExceeded(0.5, 3, "f", 17, "the stack"))
    assert str(late) == str(TimeLimitExceeded(0.5, 3, "f", 17, "the stack"))
    encoding = again(MaybeEncodingError(TypeError("no"), {1}))
    assert str(encoding) == str(MaybeEncodingError(TypeError("no"), {1}))


def test_notes_and_the_traceback_come_along():
    def raise_it():
        error = KeyError("k")
        error.add_note("a note")
        raise error

    with pytest.raises(KeyError) as caught:
        raise_it()
    error = again(caught.value)
    assert error.__notes__ == ["a note"]
    assert "in raise_it" in str(error.__cause__)


def test_arguments_that_json_has_not():
    (argument,) = again(ValueError({1})).args
    assert argument == "{1}"


class Awkward(Exception):
    def __init__(self, a, b):
        super().__init__("something else")


def test_what_cannot_be_made_again():
    error = again(Awkward(1, 2))
    assert type(error) is MaybeDecodingError
    assert "something else" in str(error)


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:print", "nowhere:Error", "os:path.join", "x"]
)
def test_names_that_are_no_exceptions_are_not_called(name):
    fields = {"class": name, "what": "w", "traceback": "", "notes": [], "args": ["touch x"]}
    assert type(read_error(json.dumps(fields))) is MaybeDecodingError


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"class": 1}', "null"])
def test_what_is_no_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        read_error(text)


def test_an_error_that_is_made_of_bytes():
    with pytest.raises(UnicodeDecodeError) as caught:
        b"a\xff\x80".decode()
    error = read_error(write_error(caught.value))
    assert type(error) is UnicodeDecodeError
    assert error.args == caught.value.args
    assert str(read_error(write_error(ValueError(b"\xff", 1)))) == "(b'\\xff', 1)"
    for at in ("[7]", "[-9]", '["x"]', "7", "[0]"):
        fields = f'{{"class":"builtins:ValueError","what":"","traceback":"","notes":[],"bytes":{at}'
        with pytest.raises(ValueError, match="no error that was written"):
            read_error(fields + ',"args":[5]}')
