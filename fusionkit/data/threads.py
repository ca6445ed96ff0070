"""Threads that read: several side by side, one ahead of who needs the result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
LOOK_SECONDS = 0.5
"""How often one who waits for a batch looks at what is being read."""
LEAVE_SECONDS = 5.0
"""How long one who needs no further batch waits for the thread that makes one."""


def map_in_threads(call: Callable[[ItemT], ResultT], items: Sequence[ItemT], workers: int) -> list[ResultT]:
    """Returns what a function gives for each item, in order; of several errors, that of the first item.

    Threads suffice: decoding and resizing let go of the interpreter lock. They are daemons and of this call
    only: the threads of an executor would keep a program that is interrupted from ending while one hangs.
    """
    if workers < 1:
        return [call(item) for item in items]
    todo = enumerate(items)
    taking = threading.Lock()
    results: dict[int, ResultT] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        _leave_cores()
        while not errors:
            with taking:
                index, item = next(todo, (-1, None))
            if index < 0:
                return
            try:
                results[index] = call(cast(ItemT, item))
            except BaseException as error:
                errors[index] = error

    _run_threads(work, min(workers, len(items)))
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(items))]


def _run_threads(work: Callable[[], None], n_threads: int) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_Entry = tuple[Any, BaseException | None]
_END: Any = object()


def prefetch(
    items: Iterable[ItemT], depth: int = 2, look: Callable[[], None] = lambda: None
) -> Iterator[ItemT]:
    """Yields the items in order while a thread makes the next ones; its exceptions come through.

    Args:
        items: What the thread goes through.
        depth: How many it makes ahead.
        look: Is called now and then while the next one is waited for.
    """
    waiting: queue.Queue[_Entry] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, stop), daemon=True)
    thread.start()
    try:
        while (entry := _take(waiting, look))[0] is not _END:
            yield entry[0]
        if entry[1] is not None:
            raise entry[1]
    finally:
        stop.set()
        # one that hangs is left behind, so that an interrupted program ends
        thread.join(timeout=LEAVE_SECONDS)


def _take(waiting: queue.Queue[_Entry], look: Callable[[], None]) -> _Entry:
    while True:
        try:
            return waiting.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            look()


def _fill(items: Iterable[Any], waiting: queue.Queue[_Entry], stop: threading.Event) -> None:
    error = None
    try:
        _leave_cores()
        for item in items:
            if not _put((item, None), waiting, stop):
                return
    except BaseException as raised:
        error = raised
    _put((_END, error), waiting, stop)


def _leave_cores() -> None:
    """Keeps torch to one core in a thread that reads: a team of its own would stop those that compute."""
    torch.set_num_threads(1)  # of this thread, and of those that start later; not of those that run


def _put(entry: _Entry, waiting: queue.Queue[_Entry], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            waiting.put(entry, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
