"""Writes golden/containers.json. Run it only for a new format version: `python -m tests.service.codec.make_golden`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny_prior import draw_codes, tiny_model
from service.codec import encode
from service.codec.container import Mode

GOLDEN = Path(__file__).parent / "golden" / "containers.json"

CASES: list[dict[str, Any]] = [
    {"pictures": 1, "size": [12, 16], "mode": "RAW"},
    {"pictures": 1, "size": [12, 16], "mode": "TABLE"},
    {"pictures": 1, "size": [12, 16], "mode": "PRIOR"},
    {"pictures": 1, "size": [12, 16], "mode": "LABELLED"},
    {"pictures": 64, "size": [12, 16], "mode": "RAW"},
    {"pictures": 64, "size": [12, 16], "mode": "TABLE"},
    {"pictures": 64, "size": [12, 16], "mode": "PRIOR"},
    {"pictures": 300, "size": [12, 16], "mode": "LABELLED"},
    {"pictures": 2, "size": [1, 1], "mode": "TABLE", "named": True},
    {"pictures": 2, "size": [41, 35], "mode": "RAW"},
    {"pictures": 2, "size": [41, 35], "mode": "PRIOR"},
    {"pictures": 1, "size": [200, 130], "mode": "PRIOR", "named": True},
    {"pictures": 1, "size": [41, 35], "mode": "RAW", "indexed": True},
    {"pictures": 1, "size": [41, 35], "mode": "TABLE", "indexed": True},
    {"pictures": 2, "size": [41, 35], "mode": "PRIOR", "indexed": True, "named": True},
]


def main() -> None:
    model = tiny_model()
    golden = []
    for seed, case in enumerate(CASES):
        height, width = case["size"]
        codes = draw_codes(model, (case["pictures"], *model.grid_of((height, width))), seed)
        options = {"indexed": case.get("indexed", False), "named": case.get("named", False)}
        labels = np.arange(case["pictures"]) % 4 if case["mode"] == "LABELLED" else None
        data = encode(model, codes, size=(height, width), labels=labels, modes=[Mode[case["mode"]]], **options)
        flat = "".join(f"{code:x}" for code in codes.reshape(-1).tolist())  # K = 12: a digit a code
        golden.append(
            {
                **case,
                **options,
                "labels": None if labels is None else labels.tolist(),
                "codes": flat,
                "bytes": data.hex(),
            }
        )
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
