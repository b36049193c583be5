"""The playground: a page at `/` for people, made of the static files in service/playground/.

In: nothing but the folder. Out: one route a file. The page needs no build step and asks no other host for anything;
the Content-Security-Policy that it is sent with makes the browser enforce both.
"""

from __future__ import annotations

from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse

from service.errors import UnknownRoute

FOLDER = Path(__file__).parents[1] / "playground"
PAGE = "index.html"
FILES = (
    "api.js",
    "arrivals.js",
    "codes.js",
    "colours.js",
    "curl.js",
    "dom.js",
    "generate.js",
    "loading.js",
    "main.js",
    "numbers.js",
    "pad.js",
    "picture.js",
    "pixels.js",
    "png.js",
    "png_worker.js",
    "style.css",
    "textures.js",
    "workbench.js",
)
# The page holds no secret, and where keys are asked for it is the place to type one in.
PATHS = frozenset({"/", *(f"/playground/{name}" for name in FILES)})

_HEADERS = {
    "Cache-Control": "no-cache",  # asked again each time, so that page and scripts are of one version
    "Accept-Ranges": "none",
}
_PAGE_HEADERS = {
    **_HEADERS,
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def routes() -> list[Route]:
    return [Route("/", page, name="playground"), Route("/playground/{name}", file, name="playground_file")]


async def page(request: Request) -> Response:
    return _whole(request, PAGE, _PAGE_HEADERS)


async def file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise UnknownRoute(f"The playground has no file {name[:40]!r}; open / for its page.")
    return _whole(request, name, _HEADERS)


def _whole(request: Request, name: str, headers: dict[str, str]) -> Response:
    """304 where the browser has this version of the file (RFC 9110, section 13.1.2).

    The version is that of what is in it: an image may give all files one time, and two versions may have one size. It
    is sent in one piece: between head and body the request would be inside until its client reads, and nobody needs a
    key to ask.
    """
    content = (FOLDER / name).read_bytes()  # some kilobytes: `Range` may be ignored (RFC 9110, section 14.2)
    kind, _ = guess_type(name)
    response = Response(content, headers={**headers, "ETag": f'"{sha256(content).hexdigest()}"'}, media_type=kind)
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return NotModifiedResponse(response.headers) if known & {response.headers["etag"], "*"} else response
