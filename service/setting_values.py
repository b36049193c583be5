"""The settings that are more than a number or a word: keys, origins, an address. In: text of the environment. Out: what
it says, or whether it can be used."""

from __future__ import annotations

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

# As browsers send it, and it is compared letter by letter: a host in small letters, and no port that the scheme has.
_ORIGIN = re.compile(r"(?!http:.*:80$|https:.*:443$)[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")


def origins_of(text: str) -> list[str]:
    """Of `VQSERVE_CORS_ORIGINS`, without blanks."""
    return [origin.strip() for origin in text.split(",") if origin.strip()]


def is_origin(text: str) -> bool:
    return _ORIGIN.fullmatch(text) is not None


def is_address(url: str) -> bool:
    """http or https, with a host, a port that is a number if there is one, and an end to which a path can be added.
    A blank in it is taken by nobody, and `urlsplit` drops some of them."""
    try:
        parts = urlsplit(url)
        whole = parts.path.rstrip("/").endswith("/v1/traces") or parts.query or parts.fragment
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        return usable and not whole and not re.search(r"\s", url)
    except ValueError:  # of the port, or of the brackets of an IPv6 address
        return False


def are_installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) for module in modules)
    except ModuleNotFoundError:  # not even the parent package
        return False


def parse_api_keys(text: str) -> dict[str, bytes]:
    """`"alice:s3cret-key,bob:hunter2-key"` -> name to key. The message of an error shows no key."""
    keys: dict[str, bytes] = {}
    for position, pair in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        name, colon, key = (word.strip() for word in pair.partition(":"))  # a header's value comes without blanks too
        if not (name and colon and len(key) >= 8 and key.isprintable()) or name in keys:
            raise ValueError(
                f"entry {position} must be name:key, each name once, a key of at least 8 characters, a comma before "
                "another, also on a new line"
            )
        keys[name] = key.encode()
    return keys
