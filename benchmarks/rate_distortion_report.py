"""The section of docs/benchmarks.md about rate against distortion, from the JSON document of the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import table

PEERS = ("JPEG", "WEBP", "AVIF", "JXL")
Rows = Sequence[Mapping[str, Any]]


def page(name: str, result: Mapping[str, Any]) -> str:
    """`name` is that of the pictures: mnist or photos."""
    parts = [
        f"## Rate against distortion: {name}",
        f"`{result['command']}` on {result['machine']}. Bytes count every header; every row of every codec stands in "
        f"`docs/results/rate_distortion_{name}.json`. A cell of a peer is what it reaches at the same bits per pixel, "
        "interpolated between its settings, or - where it has no such rate. Bold: ours is ahead. `raw` is a fixed "
        "number of bits a code, `shortest` what `/encode` answers, mostly the prior's, `effort` the same with "
        "`?effort=`. PSNR is the mean of the pictures' PSNRs, as codecs are compared; the PSNR in a manifest is that "
        "of the mean MSE.",
    ]
    for section, pictures in dict.fromkeys((row["section"], row["pictures"]) for row in result["rows"]):
        parts.append(f"### {section.capitalize()}: {pictures:,} pictures")
        parts += _section(section, result)
        parts.append(f"![PSNR by bits per pixel](results/{plot_name(name, section)})")
    return "\n\n".join(parts)


def plot_name(name: str, section: str) -> str:
    return f"rate_distortion_{name}_{section.replace(' ', '_')}.svg"


def _section(section: str, result: Mapping[str, Any]) -> list[str]:
    rows = [row for row in result["rows"] if row["section"] == section]
    compared = [one for one in result["comparisons"] if one["section"] == section]
    ours = [row for row in rows if row["codec"].startswith("vqserve")]
    lossless = [row for row in rows if row["psnr_db"] is None]
    return [
        table(
            ("ours", "bytes", "bits/pixel", "MSE", "PSNR", "MS-SSIM", "encode ms", "decode ms", *PEERS),
            [(*_own(row), *(_peer(row, peer, compared) for peer in PEERS)) for row in ours],
        ),
        *_bd_rates(compared),
        *([f"Lossless: {', '.join(_lossless(row) for row in lossless)}."] if lossless else []),
    ]


def _own(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['codec'].removeprefix('vqserve ')}, {row['setting']}",
        f"{row['bytes_per_picture']:,.2f}" if row["bytes_per_picture"] < 100 else f"{row['bytes_per_picture']:,.0f}",
        f"{row['bits_per_pixel']:.4f}",
        f"{row['mse']:.5f}",
        f"{row['psnr_db']:.2f}",
        _similarity(row["ms_ssim"]),
        f"{row['encode_ms']:.1f}",
        f"{row['decode_ms']:.1f}",
    )


def _peer(row: Mapping[str, Any], peer: str, compared: Rows) -> str:
    """PSNR and MS-SSIM of a peer at this rate."""
    for one in compared:
        if (one["codec"], one.get("setting"), one["peer"]) == (row["codec"], row["setting"], peer):
            if one["peer_psnr_db"] is None:
                return "-"
            cells = [_ahead(f"{one['peer_psnr_db']:.2f}", row["psnr_db"] > one["peer_psnr_db"])]
            if one["peer_ms_ssim"] is not None and row["ms_ssim"] is not None:
                cells.append(_ahead(_similarity(one["peer_ms_ssim"]), row["ms_ssim"] > one["peer_ms_ssim"]))
            return " / ".join(cells)
    raise ValueError(f"{row['codec']}, {row['setting']} was not compared with {peer}")


def _ahead(text: str, ahead: bool) -> str:
    return f"**{text}**" if ahead else text


def _similarity(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bd_rates(compared: Rows) -> list[str]:
    measured = [one for one in compared if "bd_rate_percent" in one]
    found = [
        f"{one['codec']} against {one['peer']} {one['bd_rate_percent']:+.1f} % "
        f"({one['low_db']:.1f} to {one['high_db']:.1f} dB)"
        for one in measured
    ]
    head = "BD-rate (negative: fewer bytes at equal PSNR), where the curves share at least 1 dB"
    return [f"{head}: {', '.join(found)}."] if found else []


def _lossless(row: Mapping[str, Any]) -> str:
    return f"{row['codec']} {row['setting']} {row['bytes_per_picture']:,.1f} bytes"
