"""The network, refused where a command only looks: what could be fetched is for a run to fetch."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


@dataclass
class Refusal:
    """Whether the network is refused now, and whether anybody asked for it meanwhile."""

    is_on: bool = False
    was_asked: bool = False


_refusal = Refusal()
_hooks: list[Any] = []


@contextmanager
def refused_network() -> Iterator[Refusal]:
    """Refuses every connection that Python code begins inside, as if the machine were offline.

    An OSError, so that a library which has a copy falls back on it. Python tells of connections through its
    audit events, whoever makes them: no plugin needs to know. What a library prints meanwhile,
    such as that it is fetching something, is shown only if nobody asked.
    """
    if not _hooks:
        sys.addaudithook(_refuse)  # it stays for as long as the process lives
        _hooks.append(_refuse)
    _refusal.is_on, _refusal.was_asked = True, False
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield _refusal
    finally:
        _refusal.is_on = False
        if not _refusal.was_asked:
            sys.stderr.write(said.getvalue())


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _refusal.is_on and event in _EVENTS:
        _refusal.was_asked = True
        raise OSError(errno.ENETUNREACH, "this command fetches nothing")
