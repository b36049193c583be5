"""What a client is made with. In: a URL, an API key, seconds. Out: what httpx takes, or VqserveError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import getproxies

import httpx

from vqserve.problems import VqserveError, without_userinfo
from vqserve.retries import Retries

TIMEOUT_S = 60.0
LONGEST_S = 86400.0  # a socket takes no number of seconds, however large
LARGEST_PORT = 65535
# Calls of one client. Streams take one place less, since a stream waits for the calls in its own loop: were every place
# a stream's, none of these calls would find one.
MOST_AT_ONCE = 100
KEPT_ALIVE = 20  # connections without a call
# The asyncio client counts its calls itself: a pool of httpx that is full gives a free place to a call that has been
# cancelled meanwhile, and never takes it back.
UNCOUNTED = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_ALIVE)
OF_ONE_PROCESS = "a client does not go to another process: make one there, as in the initializer of a pool"
# The service compresses nothing, and a page of another server may be small only until it is read.
UNCOMPRESSED = {"Accept-Encoding": "identity"}
VARIABLES = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"


def base_url(url: str) -> str:
    """`url` without its user and password, which httpx would log with each request: those are `login`.

    Raises VqserveError where it is none of a service or cannot be read, or where no name is like its host.
    """
    shown = without_userinfo(url)
    if "://" not in url:
        raise VqserveError(f"{shown!r} is no URL: write http://{shown or 'localhost:8000'}")
    try:
        _ = httpx.URL(shown).host  # which decodes `xn--`
    except (httpx.InvalidURL, UnicodeError) as error:
        raise VqserveError(f"{shown!r} is no URL: {error}") from error
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):  # left out of the traceback: its words quote the password
        raise VqserveError(f"the URL of {shown!r} has signs in its user or password that need escaping") from None
    with_query = b"?" in parts.raw_path  # also an empty one, which would end the path of each request
    if parts.scheme not in ("http", "https") or not parts.host or with_query or parts.fragment:
        raise VqserveError(f"{shown!r} is no URL of a service: write it as http://localhost:8000 or https://host/path")
    if parts.port is not None and not 0 < parts.port <= LARGEST_PORT:  # of a larger one a socket takes the last 16 bits
        raise VqserveError(f"{shown!r} is no URL: its port is not in 1..{LARGEST_PORT}")
    try:
        parts.raw_host.decode("ascii").encode("idna")  # as the resolver does, whose error is no error of httpx
    except UnicodeError as error:
        fault = "its host has an empty part, or one of more than 63 characters"
        raise VqserveError(f"{shown!r} is no URL: {fault}") from error
    return str(parts.copy_with(userinfo=b"")) if parts.userinfo else url


def proxies_set() -> str:
    """For messages on a service that does not answer, or not as one, since it may be a proxy that does not: the
    settings that httpx reads, without passwords, or nothing. It does not tell whom it asks, and reads NO_PROXY in its
    own way."""
    found = getproxies()
    if not any(found.get(kind) for kind in ("http", "https", "all")):
        return ""
    kinds = [kind for kind in ("http", "https", "all", "no") if found.get(kind)]
    return f" (with {', '.join(f'{kind.upper()}_PROXY={without_userinfo(found[kind])}' for kind in kinds)})"


def login(url: str) -> httpx.BasicAuth | None:
    """The user and the password in a URL that `base_url` takes."""
    parts = httpx.URL(url)
    return httpx.BasicAuth(parts.username, parts.password) if parts.userinfo else None


def key_header(key: str | None, beside: httpx.BasicAuth | None = None) -> dict[str, str]:
    """Where a proxy's login is in `Authorization`, the service takes its key from another header.

    Raises VqserveError for a key that no header can carry, and TypeError for what is no text. An empty one is none, as
    in `VQSERVE_KEY=`.
    """
    if key is not None and not isinstance(key, str):
        raise TypeError(f"pass an API key as text, not {type(key).__name__}")  # and not what it is, which is secret
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise VqserveError("an API key is printable ASCII, letters, digits and signs, without a space at its ends")
    return {"Authorization": f"Bearer {key}"} if beside is None else {"X-API-Key": key}


def timeout(timeout_s: float) -> httpx.Timeout:
    """Of a connection and of each read and write, so an answer that comes bit by bit may take longer in all. The wait
    of a call beyond `MOST_AT_ONCE` has no end: of many calls at once the last ones wait for the first, and no service
    is to blame for it. Raises ValueError for what is no time to wait."""
    if not 0 < timeout_s <= LONGEST_S:
        raise ValueError(f"timeout_s is {timeout_s}: pass seconds above 0 and at most {LONGEST_S:g}")
    return httpx.Timeout(timeout_s, pool=None)


def require_retries(retries: Retries) -> Retries:
    """As they are. Raises TypeError for something else from untyped code, which would fail with the first attempt."""
    if not isinstance(retries, Retries):
        raise TypeError(f"retries are {retries!r:.60}: pass retries=Retries(attempts=...)")
    return retries


@contextmanager
def from_environment() -> Iterator[None]:
    """Around the making of a client of httpx, which reads the proxies and certificates that the environment names.

    Raises VqserveError where it cannot use them, without httpx's words: those quote the password of a proxy.
    """
    try:
        yield
    except ImportError:
        fix = "pip install 'httpx[socks]', or unset it"
        raise VqserveError(f"one of the variables {VARIABLES} names a SOCKS proxy: {fix}") from None
    except (httpx.InvalidURL, OSError, ValueError):
        fix = "a proxy is as http://host:3128, a certificate a file, NO_PROXY a list of hosts"
        ipv6 = "an IPv6 address in it without brackets and /length"
        raise VqserveError(f"one of the variables {VARIABLES} cannot be used: {fix}, {ipv6}") from None
