"""Ports for servers of tests: free, and nobody's by chance before the server starts."""

from __future__ import annotations

import socket
from pathlib import Path

from draftyard_operator.testing import ports


def test_a_port_is_none_that_a_connection_is_given():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(ports.free_port() < first for _ in range(100))


def test_a_port_is_none_at_which_somebody_listens(monkeypatch):
    taken = ports.free_port()
    with socket.create_server(("127.0.0.1", taken)):
        other = ports.free_port()
        drawn = iter([taken - ports.LOWEST, other - ports.LOWEST])
        monkeypatch.setattr(ports.secrets, "randbelow", lambda _: next(drawn))
        assert ports.free_port() == other
