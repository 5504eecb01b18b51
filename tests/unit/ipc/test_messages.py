"""What travels: everything that a task returns or raises arrives, or says why it cannot."""

from __future__ import annotations

import copyreg
import pickle
from multiprocessing import pool as std_pool

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import MaybeEncodingError, errors
from prefork._describe import function_name, trim_notes
from prefork._ipc.outcome import PickledError, decode, encode_failure, encode_result
from prefork._ipc.pickling import OUT_OF_BAND, dumps, load, pack, unpack
from prefork._ipc.wire import Kind


def arrive(kind: int, pickled: bytes, buffers=()):
    return decode(kind, [pickled, *map(bytearray, buffers)] if buffers else pickled)


def error_of(kind: int, pickled: bytes, buffers=()):
    ok, error = arrive(kind, pickled, buffers)
    assert not ok
    return error


def failed(exc: BaseException):
    try:
        raise exc
    except BaseException as raised:
        fields = encode_failure(raised)
    return error_of(Kind.FAILED, dumps(fields))


class NoPickle:
    def __reduce__(self):
        raise TypeError("I stay here")


class NoRepr(NoPickle):
    def __repr__(self):
        raise RuntimeError("no repr either")


class NoUnpickle:
    def __reduce__(self):
        return (int, ("not a number",))


class NeedsTwo(Exception):
    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.parametrize("value", [None, 0, b"", "text", [1, {"a": (2,)}], bytes(OUT_OF_BAND * 2)])
def test_a_result_arrives(value):
    assert arrive(*encode_result(value)) == (True, value)


def test_an_exception_arrives_with_its_traceback_as_the_cause():
    exc = KeyError("key")
    exc.add_note("a note")
    arrived = failed(exc)
    assert type(arrived) is KeyError
    assert arrived.args == ("key",)
    assert arrived.__notes__ == ["a note"]
    assert isinstance(arrived.__cause__, errors.RemoteTraceback)
    assert "in failed" in str(arrived.__cause__)


@pytest.mark.parametrize("cls", [NoPickle, NoRepr])
def test_a_result_that_does_not_pickle_is_named(cls):
    error = error_of(*encode_result(cls()))
    assert isinstance(error, MaybeEncodingError)
    assert isinstance(error, std_pool.MaybeEncodingError)  # type: ignore[attr-defined]
    assert cls.__name__ in str(error)
    assert "I stay here" in str(error)


def test_an_exception_that_does_not_pickle_is_named():
    class Local(Exception):
        pass

    arrived = failed(Local("lost"))
    assert isinstance(arrived, MaybeEncodingError)
    assert "Local('lost')" in str(arrived)


def with_cause(exc):
    """As tblib has exceptions pickled: all that they come from goes along."""
    return rebuild, (exc.__reduce__(), exc.__cause__, exc.__context__)


def rebuild(reduced, cause, context):
    make, args = reduced
    error = make(*args)
    error.__cause__, error.__context__ = cause, context
    return error


def test_reducers_of_others_for_all_exceptions_do_no_harm(monkeypatch):
    class Local(Exception):
        pass

    monkeypatch.setitem(copyreg.dispatch_table, MaybeEncodingError, with_cause)
    assert isinstance(failed(Local("lost")), MaybeEncodingError)
    assert isinstance(error_of(*encode_result(NoPickle())), MaybeEncodingError)
    monkeypatch.setitem(copyreg.dispatch_table, KeyError, with_cause)
    error = KeyError("its cause cannot be pickled")
    error.__cause__ = Local()
    assert repr(failed(error)) == repr(error)


def test_an_exception_that_does_not_unpickle_is_named_with_its_traceback(monkeypatch):
    monkeypatch.delitem(copyreg.dispatch_table, NeedsTwo, raising=False)  # of a library's
    arrived = failed(NeedsTwo(1, 2))
    assert isinstance(arrived, errors.MaybeDecodingError)
    assert arrived.type_name.endswith("NeedsTwo")
    assert "missing 1 required positional argument" in str(arrived)
    assert "in failed" in str(arrived)


def test_a_result_that_does_not_unpickle_is_named():
    error = error_of(*encode_result(NoUnpickle()))
    assert error.type_name == "int"
    assert isinstance(error.__cause__, ValueError)


def test_what_claims_to_be_an_exception_and_is_none_is_an_error():
    payload = dumps(tuple(PickledError(dumps("text"), "some.Error", "its traceback")))
    error = error_of(Kind.FAILED, payload)
    assert "unpickles to str" in str(error)


def test_foreign_bytes_fail_the_job_and_nothing_else():
    error_of(Kind.DONE, b"\xff\x00garbage")


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(exclude_categories=())),  # lone surrogates among them
)
OTHERS = st.one_of(st.binary(), st.lists(PLAIN), st.tuples(PLAIN), st.dictionaries(PLAIN, PLAIN))


@given(st.one_of(PLAIN, OTHERS, st.lists(PLAIN).map(tuple), st.lists(OTHERS).map(tuple)))
def test_values_arrive_as_they_were(value):
    packed, _ = pack(value)
    for arrived in (unpack(packed), unpack(memoryview(packed))):
        assert repr(arrived) == repr(value)  # where 1, True and 1.0 differ, and no number is nan
        assert type(arrived) is type(value)


def test_long_text_is_pickled():
    """Of marshal, it could not be longer than 2 GiB."""
    for value in ("x" * OUT_OF_BAND, (1, "x" * OUT_OF_BAND)):
        packed, buffers = pack(value)
        assert not buffers
        assert pickle.loads(packed) == value


class Text(str):
    pass


class Pair(tuple):
    pass


@pytest.mark.parametrize("value", [Text("a"), Pair((1, 2)), (1, Text("a"))], ids=repr)
def test_an_object_of_a_subclass_arrives_as_such(value):
    packed, _ = pack(value)
    arrived = unpack(packed)
    assert arrived == value
    assert type(arrived) is type(value)
    assert type(arrived[-1]) is type(value[-1])


def test_small_buffers_stay_in_the_pickle():
    small, large = bytes(OUT_OF_BAND - 1), bytes(OUT_OF_BAND)
    pickled, buffers = pack([pickle.PickleBuffer(small), pickle.PickleBuffer(large)])
    assert [view.nbytes for view in buffers] == [OUT_OF_BAND]
    assert load([pickled, *buffers]) == [small, large]


@pytest.mark.parametrize(
    "error",
    [
        errors.WorkerLostError(1, "m.f", 2, -9, "stack", "note"),
        errors.TimeLimitExceeded(1.5, 1, "m.f", 2, "stack"),
        MaybeEncodingError(TypeError("no"), object()),
        errors.MaybeDecodingError("m.T", "ValueError: x", "tb"),
        errors.PoolBrokenError("why"),
        errors.Terminated("why"),
        errors.SoftTimeLimitExceeded("why"),
        errors.RemoteTraceback("tb"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_lost_worker_says_how():
    text = str(errors.WorkerLostError(7, "m.f", 123, -11, "Fatal Python error", "note"))
    for part in ("job 7", "m.f", "123", "SIGSEGV", "Fatal Python error", "note"):
        assert part in text
    assert "exited with code 3" in str(errors.WorkerLostError(7, "m.f", 123, 3))
    assert "unknown status" in str(errors.WorkerLostError(7, "m.f", 123, None))


def test_functions_are_named_as_their_users_know_them():
    class Callable:
        def __call__(self): ...

        def method(self): ...

    import functools

    assert function_name(len) == "builtins.len"
    assert function_name(functools.partial(pickle.dumps)) == "_pickle.dumps"
    assert function_name(Callable().method).endswith("Callable.method")
    assert function_name(Callable()).endswith("Callable object")


@pytest.mark.parametrize("count", [0, 3, 9, 10, 50_000])
def test_notes_of_an_exception_are_kept_within_bounds(count):
    exc = ValueError()
    before = [f"note {i}" for i in range(count)]
    for note in before:
        exc.add_note(note)
    trim_notes(exc)
    notes = getattr(exc, "__notes__", [])
    if count < 10:
        assert notes == before
    else:
        assert notes == [*before[:4], f"... and {count - 8} notes more", *before[-4:]]
