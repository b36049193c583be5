"""One port for several workers, each of which listens on a socket of its own (SO_REUSEPORT).

In: an address. Out: a bound socket for uvicorn's supervisor; the copy that it sends to a worker is another socket on
the same port, and the kernel deals new connections to those that listen. Of one common socket the worker that wakes
first takes all connections that wait: of 64 opened at once it got up to 64, and while they were kept alive the other
worker had nothing to do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import SupportsIndex


class SharedPort(socket.socket):
    """Pickled, it becomes a new socket with the same address. The original only keeps the port: it never listens."""

    _claim: socket.socket

    @classmethod
    def kept(cls, host: str, port: int) -> SharedPort:
        """As `bound`, for one service: a second would get some of the connections. On Linux only.

        Raises OSError also where another service keeps the port. The kernel reports no conflict before somebody
        listens. So each service also binds an abstract Unix socket that is named after the address: it can be bound
        once, and is free again when the process ends. Copies bind none.
        """
        shared = cls.bound(host, port)
        shared._claim = socket.socket(socket.AF_UNIX)
        try:
            shared._claim.bind("\0vqserve listens on {} port {}".format(*shared.getsockname()[:2]))
        except OSError:
            shared._claim.close()
            shared.close()
            raise
        return shared

    @classmethod
    def bound(cls, host: str, port: int) -> SharedPort:
        """Raises OSError where the address cannot be bound. Port 0 is any free one."""
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        shared = cls(family, kind)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as a single worker listens: `::` is of IPv6 only
            shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        shared.bind(address)
        return shared

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[[str, int], SharedPort], tuple[str, int]]:
        host, port = self.getsockname()[:2]
        return SharedPort.bound, (host, port)
