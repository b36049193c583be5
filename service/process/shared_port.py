"""One port for several workers, each of which listens on a socket of its own (SO_REUSEPORT).

In: an address. Out: bound sockets for uvicorn's supervisor, one for each address that a name has; the copy that it
sends to a worker is another socket on the same port, and the kernel deals new connections to those that listen. Of one
common socket the worker that wakes first takes all connections that wait: of 64 opened at once it got up to 64, and
while they were kept alive the other worker had nothing to do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, SupportsIndex

Address = tuple[Any, ...]  # as `bind` takes it: host and port, of IPv6 also flow and scope


def addresses_of(host: str, port: int) -> list[tuple[int, Address]]:
    """Family and address of all that a single worker would listen on: `localhost` may be 127.0.0.1 and ::1. Those of a
    family that the system does not have are left out, where there are others. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys((int(family), address) for family, *_, address in found))
    return [one for one in addresses if _is_there(one[0])] or addresses


def _is_there(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


class SharedPort(socket.socket):
    """Pickled, it becomes a new socket with the same address. The original only keeps the port: it never listens."""

    _claim: socket.socket

    @classmethod
    def kept_on_all(cls, host: str, port: int) -> list[socket.socket]:
        """One for each of `addresses_of`. Port 0 is any free one, the same for all. Raises as `kept` does."""
        shared = list[socket.socket]()
        for family, (name, _, *rest) in addresses_of(host, port):
            shared.append(cls.kept(family, (name, port, *rest)))
            port = shared[0].getsockname()[1]
        return shared

    @classmethod
    def kept(cls, family: int, address: Address) -> SharedPort:
        """As `bound`, for one service: a second would get some of the connections. On Linux only.

        Raises OSError also where another service keeps the port. The kernel reports no conflict before somebody
        listens. So each service also binds an abstract Unix socket that is named after the address: it can be bound
        once, and is free again when the process ends. Copies bind none.
        """
        shared = cls.bound(family, address)
        shared._claim = socket.socket(socket.AF_UNIX)
        try:
            shared._claim.bind("\0vqserve listens on {} port {}".format(*shared.getsockname()[:2]))
        except OSError:
            shared._claim.close()
            shared.close()
            raise
        return shared

    @classmethod
    def bound(cls, family: int, address: Address) -> SharedPort:
        """Raises OSError where the address cannot be bound. Port 0 is any free one."""
        shared = cls(family, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as a single worker listens: `::` is of IPv6 only
            shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        shared.bind(address)
        return shared

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., SharedPort], tuple[int, Address]]:
        return SharedPort.bound, (int(self.family), self.getsockname())
