"""How long a function took, in the log."""

import asyncio
import inspect
import logging

import pytest

from mm_core import track_performance

pytestmark = pytest.mark.unit


@pytest.fixture
def records(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r for r in caplog.records if r.getMessage() == "Function performance"]


@track_performance
def add(a: int, b: int, *, secret: str = "") -> int:
    """Adds."""
    return a + b


@track_performance
async def add_later(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def test_a_call_is_logged_without_values(records, caplog):
    """Name, time, outcome and the shape of the call are told; values never are."""
    assert add(1, 2, secret="top-secret-value") == 3
    (record,) = records()
    assert (record.function, record.outcome) == ("add", "ok")
    assert (record.args_count, record.kwargs_keys) == (2, ["secret"])
    assert record.duration >= 0
    assert "top-secret-value" not in str(vars(record))


def test_an_async_function_is_timed_while_it_runs(records):
    """A coroutine function stays one, and is logged when it is done, not when it is made."""
    coroutine = add_later(1, b=2)
    assert inspect.iscoroutinefunction(add_later)
    assert records() == []
    assert asyncio.run(coroutine) == 3
    assert records()[0].kwargs_keys == ["b"]


def test_errors_are_logged_and_raised(records):
    """The error goes on to the caller; the log says that there was one."""

    @track_performance
    def fail() -> None:
        raise KeyError("x")

    @track_performance
    async def fail_later() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(KeyError):
        asyncio.run(fail_later())
    assert [r.outcome for r in records()] == ["error", "error"]


def test_being_cancelled_is_no_error(records):
    """A cancelled task is logged as cancelled."""

    @track_performance
    async def wait() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert records()[0].outcome == "cancelled"


def test_the_function_still_looks_like_itself():
    """Name, docstring and signature are those of the function."""
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert list(inspect.signature(add).parameters) == ["a", "b", "secret"]
