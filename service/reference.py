"""The reference parts of the docs, written from the code: `python -m service.reference` rewrites them.

In: the settings, the metrics, the alert rules, the endpoints, the problem types, and the shipped manifests. Out:
docs/openapi.json, and Markdown tables in README.md and docs/ between the marks `<!-- generated: NAME -->` and
`<!-- end -->`. A test compares what is there with what comes out here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from service.app import ENDPOINTS, create_app
from service.bundle import Bundle, load_bundle
from service.bundle.fields import GUIDANCE_STEPS, LARGEST_GUIDANCE
from service.codec.container import MOST_PICTURES
from service.codec.range_coder import TOTAL_LIMIT
from service.errors import PROBLEMS, problem_type
from service.http.head_bounds import LARGEST_HEAD, MOST_HEADERS, MOST_UNBEGUN
from service.inference.windows import WHOLE
from service.pictures.images import FORMATS, LARGEST_SIDE, LARGEST_WEBP_SIDE
from service.prior.draws import SEED_LIMIT
from service.prior.effort import LARGEST_EFFORT
from service.routes.generation_request import COLDEST, HOTTEST, GenerateRequest
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.traffic import WINDOW_CODES
from service.wire.schemas import MOST_FIELDS, MOST_LISTS, MOST_VALUES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHIPPED = tuple(ROOT / "models" / name for name in ("mnist", "photos", "photos-f8"))
OPENAPI = DOCS / "openapi.json"
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
_ADVICE = ("summary", "action")  # annotations of an alert
_UNITS = {"humanize": "N", "humanizePercentage": "N %", "humanizeDuration": "N s"}  # of the numbers in them
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings() -> str:
    return _settings_table("")


def limits() -> str:
    """The settings that bound what one request or all of them together may cost."""
    return _settings_table("max_")


def fixed() -> str:
    """Limits that no setting moves: a format or the arithmetic has them, or nobody who is well needs more."""
    rows = [
        ("Picture formats", ", ".join(str(name) for name in FORMATS)),
        ("Side of a picture that is sent", f"{LARGEST_SIDE:,} pixels, as in a JPEG"),
        ("Side of a WebP answer", f"{LARGEST_WEBP_SIDE:,} pixels; a PNG may be longer"),
        ("Pictures in one container", f"{MOST_PICTURES:,}, all of one size"),
        (
            "URL and headers of a request",
            f"{LARGEST_HEAD >> 10} KiB, and {MOST_HEADERS} headers; above it 431, and the connection ends",
        ),
        (
            "Heads that have not come whole, and heads and bodies of requests before their turn",
            f"{MOST_UNBEGUN >> 20} MiB of a process; above it the largest heads get 431, and connections of others end",
        ),
        (
            "JSON of one body",
            f"{MOST_FIELDS} fields, {MOST_LISTS:,} lists, {MOST_VALUES:,} values; more goes as npy or bytes",
        ),
        ("JSON of one `/generate`", "as many fields, and two values for each code of a new picture"),
        ("`temperature`", f"{COLDEST:g} to {HOTTEST:g}"),
        ("`guidance`", f"1 to {LARGEST_GUIDANCE}, in steps of 1/{GUIDANCE_STEPS}, with a label"),
        ("`effort`", f"0 to {LARGEST_EFFORT:g}"),
        ("`seed`", f"below {SEED_LIMIT:,}, the integers that every JSON parser keeps"),
        ("Sum of the frequencies of all codes", f"below {TOTAL_LIMIT:,}"),
        ("Codes a side that run whole", f"{WHOLE}; a larger picture runs in overlapping windows, with the same result"),
        (
            "Codes that the traffic metrics look at",
            f"about the last {WINDOW_CODES:,} of each process; older ones count half, a quarter, and so on",
        ),
    ]
    return table(("what", "limit"), rows)


def _settings_table(prefix: str) -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        if not name.startswith(prefix):
            continue
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        shown = f"`{default}`" if default else "empty"
        rows.append((f"`VQSERVE_{name.upper()}`", shown, str(field.description)))
    return table(("variable", "default", "what it does"), rows)


def metrics() -> str:
    rows = [
        (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels) or "none", one.text)
        for one in Metrics().declared
    ]
    return table(("metric", "type", "labels", "meaning"), rows)


def buckets() -> str:
    lines = [
        f"- `{one.name}`: {', '.join(f'{bound:.4g}' for bound in one.buckets)}"
        for one in Metrics().declared
        if one.buckets
    ]
    return "\n".join(lines) + "\n"


def alerts() -> str:
    """The rules that Prometheus gets, with what an alert fills in as N and MODEL."""
    import yaml  # in the development environment only, as whoever runs this file; the service reads no YAML

    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rows = [
        (f"`{rule['alert']}`", rule["labels"]["severity"], *(_shown(rule["annotations"][name]) for name in _ADVICE))
        for group in groups
        for rule in group["rules"]
    ]
    return table(("alert", "severity", "means", "do"), rows)


def _shown(template: str) -> str:
    """`{{ $value | humanizePercentage }} of the requests` -> `N % of the requests`."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda match: match[1].upper(), template)
    return re.sub(r"{{ \$value \| (\w+) }}", lambda match: _UNITS[match[1]], text)


def routes() -> str:
    rows = [
        (f"`{one.method} {one.path}`", one.summary, ", ".join(f"`{name}`" for name in one.query) or "none")
        for one in ENDPOINTS
    ]
    return table(("route", "does", "query"), rows)


def generate() -> str:
    rows = [
        (f"`{name}`", f"`{json.dumps(field.default)}`", str(field.description))
        for name, field in GenerateRequest.model_fields.items()
    ]
    return table(("field", "default", "meaning"), rows)


def problems() -> str:
    by_status = sorted(PROBLEMS, key=lambda problem: (problem.status, problem.slug))
    rows = [(str(problem.status), f"`{problem_type(problem.slug)}`", problem.title) for problem in by_status]
    return table(("status", "type", "meaning"), rows)


def quality() -> str:
    """One row a bundle that comes with the code, from its manifest: nothing that was measured is typed."""
    head = ("bundle", "pictures", "MSE on [0,1]", "PSNR", "perplexity", "bits per code", "bytes per picture", "size")
    return table(head, [_quality_row(load_bundle(folder)) for folder in SHIPPED])


def _quality_row(bundle: Bundle) -> tuple[str, ...]:
    manifest, measured = bundle.manifest, bundle.manifest.quality
    codes, bits = manifest.codes, measured.bits_per_code
    megabytes = sum(path.stat().st_size for path in bundle.folder.iterdir()) / 1e6
    return (
        f"`models/{bundle.folder.name}`",
        f"{measured.pictures:,} ({measured.split})",
        f"{measured.mse:.5f}",
        f"{measured.psnr_db:.2f} dB",
        f"{measured.perplexity:.0f} of {codes.codebook_size}",
        "no prior" if bits is None else f"{bits:.2f}",
        "no prior" if bits is None else f"{codes.height * codes.width * bits / 8:.1f}",
        f"{megabytes:.1f} MB",
    )


def openapi() -> str:
    return json.dumps(create_app(Settings()).openapi(), indent=1, ensure_ascii=False) + "\n"


BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "limits": limits,
    "fixed": fixed,
    "quality": quality,
    "metrics": metrics,
    "buckets": buckets,
    "alerts": alerts,
    "routes": routes,
    "generate": generate,
    "problems": problems,
}


def rewritten(text: str) -> str:
    """The same text with every generated block made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def main() -> None:
    expected = {path: rewritten(path.read_text(encoding="utf-8")) for path in pages()} | {OPENAPI: openapi()}
    for path, text in expected.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"rewrote {path}")


if __name__ == "__main__":
    main()
