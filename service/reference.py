"""The reference parts of the docs, written from the code: `python -m service.reference` rewrites them in docs/.

In: the settings, the metrics, the endpoints and the problem types. Out: Markdown tables between the marks
`<!-- generated: NAME -->` and `<!-- end -->`. A test compares what is in docs/ with what comes out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from service.app import ENDPOINTS
from service.errors import PROBLEMS, problem_type
from service.metrics import Metrics
from service.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
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


def routes() -> str:
    rows = [
        (f"`{one.method} {one.path}`", one.summary, ", ".join(f"`{name}`" for name in one.query) or "none")
        for one in ENDPOINTS
    ]
    return table(("route", "does", "query"), rows)


def problems() -> str:
    by_status = sorted(PROBLEMS, key=lambda problem: (problem.status, problem.slug))
    rows = [(str(problem.status), f"`{problem_type(problem.slug)}`", problem.title) for problem in by_status]
    return table(("status", "type", "meaning"), rows)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "buckets": buckets,
    "routes": routes,
    "problems": problems,
}


def rewritten(text: str) -> str:
    """The same text with every generated block made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", text)


def main() -> None:
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        if (new := rewritten(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote {path}")


if __name__ == "__main__":
    main()
