"""Ports of this machine that nobody else can get while they are ours.

A port is reserved by binding to it without listening. With SO_REUSEADDR on both sides a node may
listen there as well, and nobody else is given it: neither a bind to port 0 nor an outgoing
connection takes a port that somebody is bound to. While no node listens, a dial is refused at once,
as it is where a process has died.
"""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


class Port:
    """One reserved port, until it is released."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((HOST, 0))
        self.number: int = self._sock.getsockname()[1]

    def release(self) -> None:
        """Give the port back to the machine."""
        self._sock.close()
