"""Run jobs in processes of their own, in order, past jobs that fail or that take their process down. No torch."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

K = TypeVar("K")

Prepare = Callable[[], tuple[Any, ...]]  # makes the arguments, in this process


def map_in_order(
    function: Callable[..., Any], jobs: Iterable[tuple[K, Prepare | None]], num_workers: int = 1
) -> Iterator[tuple[K, Any]]:
    """Yield (key, `function(*prepare())` or the exception it raised) for every job, in order.

    Args:
        function: Of a module, since another process has to find it.
        jobs: Key and what makes the arguments; None in its place yields (key, None). Taken a few at a time.
        num_workers: Processes; with 1 everything runs in this one. A job whose process dies is tried once more, alone.

    Raises:
        ValueError: If `num_workers` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if num_workers == 1:
        for key, prepare in jobs:
            yield key, None if prepare is None else _outcome(function, prepare)
        return
    with _Pool(function, num_workers) as pool:
        waiting: deque[tuple[K, _Pending | Exception | None]] = deque()
        for key, prepare in jobs:
            waiting.append((key, _submit(pool, prepare)))
            if len(waiting) > 2 * num_workers:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())


class _Pending:
    def __init__(self, pool: "_Pool", arguments: tuple[Any, ...]) -> None:
        self._pool, self._arguments = pool, arguments
        self._generation, self._future = pool.submit(arguments)

    def outcome(self) -> Any:
        try:
            try:
                return self._future.result()
            except BrokenProcessPool:  # by this job or by one beside it
                return self._pool.run_alone(self._generation, self._arguments)
        except Exception as error:
            return error


class _Pool:
    """A pool that is built anew when a process dies."""

    def __init__(self, function: Callable[..., Any], num_workers: int) -> None:
        self._function, self._num_workers, self._generation = function, num_workers, 0
        self._executor = self._start()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: Any) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(self, arguments: tuple[Any, ...]) -> tuple[int, Future]:
        try:
            return self._generation, self._executor.submit(self._function, *arguments)
        except BrokenProcessPool:
            self._restart(self._generation)
            return self._generation, self._executor.submit(self._function, *arguments)

    def run_alone(self, generation: int, arguments: tuple[Any, ...]) -> Any:
        self._restart(generation)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            try:
                return executor.submit(self._function, *arguments).result()
            except BrokenProcessPool:
                raise RuntimeError("the process that did this died; a package that it called crashed") from None

    def _restart(self, generation: int) -> None:
        if generation == self._generation:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = self._start()
            self._generation += 1

    def _start(self) -> ProcessPoolExecutor:
        # Not "fork": this process may have threads, of torch or of a progress bar, whose locks would be copied.
        return ProcessPoolExecutor(self._num_workers, multiprocessing.get_context("spawn"))


def _submit(pool: _Pool, prepare: Prepare | None) -> "_Pending | Exception | None":
    if prepare is None:
        return None
    try:
        return _Pending(pool, prepare())
    except Exception as error:
        return error


def _finish(key: K, pending: "_Pending | Exception | None") -> tuple[K, Any]:
    return key, pending.outcome() if isinstance(pending, _Pending) else pending


def _outcome(function: Callable[..., Any], prepare: Prepare) -> Any:
    try:
        return function(*prepare())
    except Exception as error:
        return error
