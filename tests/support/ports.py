"""Ports for tests."""

from __future__ import annotations

import socket


def free_port(most: int = 65_535) -> int:
    """A port up to `most` on which nothing listens."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port <= most:
            return port
