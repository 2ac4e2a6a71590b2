"""Ports on this machine for servers that are told where to listen."""

from __future__ import annotations

import secrets
import socket

LOWEST, HIGHEST = 20_000, 29_999
"""Below those that Linux gives to connections (from 32768) and Kubernetes to services (from 30000).

A port of the former may be an end of somebody's connection between now and the start of the server.
"""


def free_port() -> int:
    """A port of the loopback interface that nobody listens at."""
    while True:
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
        with socket.socket() as probe:
            # connections that a former server has closed hinder no server
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
