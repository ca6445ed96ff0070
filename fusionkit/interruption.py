"""Ctrl-C and SIGTERM: what can be saved within seconds is saved first; Ctrl-C twice stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE_SECONDS = 5
"""How long an epoch may go on, to be saved whole, once a stop is asked for; schedulers kill after 10."""


AGAIN_SECONDS = 1.0
STDERR = 2


@dataclass
class _Request:
    """Whether and when a stop is asked for, whether it is held back, and who listens."""

    is_made: bool = False
    is_postponed: bool = False
    seconds: float = 0.0
    listener: FrameType | None = None


_request = _Request()


@contextmanager
def listening() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM a KeyboardInterrupt inside, at once or after what `postponed` holds back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    heard = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, _receive) for number in heard}
    before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    _request.listener = sys._getframe(2)  # beyond this function and contextlib's
    try:
        yield
    finally:
        is_asked()  # silences the alarm
        _request.is_made, _request.listener = False, None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed() -> Iterator[None]:
    """Holds a stop back inside, for some seconds: look at `is_asked` wherever one can save and stop."""
    _request.is_postponed = True
    try:
        yield
    finally:
        if _request.is_made:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _request.is_postponed = False
    if _request.is_made:
        raise KeyboardInterrupt


def is_asked() -> bool:
    """Says whether a stop is asked for; from then on there is no hurry to answer it."""
    if _request.is_made:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _request.is_made


def _receive(number: int, frame: FrameType | None) -> None:
    if _request.is_made:
        if number == signal.SIGINT:  # schedulers may send SIGTERM again and again
            _stop_at_once()
        return
    _request.is_made, _request.seconds = True, time.monotonic()
    first = GRACE_SECONDS if _request.is_postponed else AGAIN_SECONDS
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, first, AGAIN_SECONDS)
    if not _request.is_postponed:
        if not _is_importing(frame):
            raise KeyboardInterrupt
        return
    _say(f"interrupted: saves this epoch ({GRACE_SECONDS} seconds at most); Ctrl-C stops at once.")


def _ring(number: int, frame: FrameType | None) -> None:
    """Interrupts, and again where that was swallowed (imports and callbacks do), but not what cleans up."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    if error is None and not _is_importing(frame):
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Says whether an import is under way, as long as there is time: torch's own crashes the process."""
    if time.monotonic() - _request.seconds > GRACE_SECONDS:
        return False
    while frame is not None and frame is not _request.listener:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _stop_at_once() -> None:
    """Ends the process as a crash does, since what it waits for may never come; the store endures that."""
    _say("interrupted: stopped at once; what was computed before is kept.")
    os._exit(130)


def _say(text: str) -> None:
    # not print: it may be what the signal has interrupted. Terminals: over the progress bar, cursor shown
    before, after = ("\r\x1b[K", "\n\x1b[?25h") if os.isatty(STDERR) else ("", "")
    os.write(STDERR, f"{before}{text}\n{after}".encode())
