"""The network, refused where a command only looks."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from fusionkit.network import refused_network


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_connections_are_refused_inside_and_made_outside(port):
    with refused_network() as refusal:
        assert not refusal.was_asked
        with pytest.raises(OSError, match="this command fetches nothing") as error:
            socket.create_connection(("127.0.0.1", port))
        assert error.value.errno == errno.ENETUNREACH
        assert refusal.was_asked
    socket.create_connection(("127.0.0.1", port)).close()
    with refused_network() as refusal:
        assert not refusal.was_asked


def test_names_are_not_looked_up():
    with refused_network() as refusal, pytest.raises(OSError, match="this command fetches nothing"):
        socket.getaddrinfo("localhost", 80)
    assert refusal.was_asked


def test_it_ends_also_with_an_error(port):
    with pytest.raises(ZeroDivisionError), refused_network():
        raise ZeroDivisionError
    socket.create_connection(("127.0.0.1", port)).close()


def test_what_is_said_meanwhile_is_shown_unless_somebody_asked(port, capsys):
    with refused_network():
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"
    with refused_network():
        print("fetching ...", file=sys.stderr)
        print("to some file")
        with pytest.raises(OSError, match="fetches nothing"):
            socket.create_connection(("127.0.0.1", port))
    assert capsys.readouterr() == ("", "")
