"""What a client is made with. In: a URL, an API key, seconds. Out: what httpx takes, or VqserveError."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from vqserve.problems import VqserveError

TIMEOUT_S = 60.0
VARIABLES = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"


def base_url(url: str) -> str:
    """Raises VqserveError where `url` has no scheme or cannot be read, or where no name is like its host."""
    shown = without_userinfo(url)
    if "://" not in url:
        raise VqserveError(f"{shown!r} is no URL: write http://{shown}")
    try:
        httpx.URL(shown)
    except httpx.InvalidURL as error:
        raise VqserveError(f"{shown!r} is no URL: {error}") from error
    try:
        host = httpx.URL(url).raw_host.decode("ascii")
    except httpx.InvalidURL:  # left out of the traceback: its words quote the password
        raise VqserveError(f"the URL of {shown!r} has signs in its user or password that need escaping") from None
    try:
        host.encode("idna")  # as the resolver does, whose error is no error of httpx
    except UnicodeError as error:
        fault = "its host has an empty part, or one of more than 63 characters"
        raise VqserveError(f"{shown!r} is no URL: {fault}") from error
    return url


def without_userinfo(url: str) -> str:
    """For messages. All up to the last @ goes, since the `/` of a password that was not escaped ends no user."""
    return re.sub(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)?.*@", r"\1", url, flags=re.DOTALL)


def key_header(key: str | None) -> dict[str, str]:
    """Raises VqserveError for a key that no header can carry. An empty one is none, as in `VQSERVE_KEY=`."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise VqserveError("an API key is printable ASCII: letters, digits and signs")
    return {"Authorization": f"Bearer {key}"}


def timeout(timeout_s: float) -> httpx.Timeout:
    """Of a connection and of each read and write. The wait for a free connection has no end: of many calls at once
    the last ones wait for the first, and no service is to blame for it."""
    return httpx.Timeout(timeout_s, pool=None)


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
        fix = "a proxy is as http://host:3128, a certificate a file"
        raise VqserveError(f"one of the variables {VARIABLES} cannot be used: {fix}") from None
