"""Ratios are formed between the best settings of two families, at one number of connections."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import Contestant, contestants, multipart, pinned
from benchmarks.peers import rotated
from benchmarks.peers_report import best_of_families, goals, page, summary
from benchmarks.wrk import Request, parse
from service.wire.multipart import pictures_of_form

ASK = Request("/encode", b"")


def point(per_s: float, **more: object) -> dict[str, Any]:
    return {
        "requests_per_s": per_s,
        "p50_ms": 2.0,
        "p99_ms": 3.0,
        "cpu_s_per_1000": 0.2,
        "pss_mb": 9,
        "errors": 0,
        **more,
    }


def test_the_best_setting_of_a_family_is_chosen_at_each_load() -> None:
    wanted = [Contestant("mosec", "mosec", ASK), Contestant("mosec batched", "mosec", ASK)]
    measured = {"mosec": {1: point(100), 64: point(300)}, "mosec batched": {1: point(50), 64: point(500)}}
    best = best_of_families(wanted, measured)
    assert {c: p["requests_per_s"] for c, p in best["mosec"].items()} == {1: 100, 64: 500}
    assert {c: p["name"] for c, p in best["mosec"].items()} == {1: "mosec", 64: "mosec batched"}


def test_goals_compare_within_one_load() -> None:
    names = ("vqserve form", "vqserve raw", "FastAPI, form", "mosec", "LitServe")
    shown = {"vqserve form": "the form", "vqserve raw": "vqserve, raw"}
    best = {
        name: {c: point(per_s, name=shown.get(name, name)) for c in (1, 16, 64)}
        for name, per_s in zip(names, (1300, 900, 1000, 900, 400), strict=True)
    }
    batch = {"alone_per_s": 100.0, "http_per_s_at_1": 40.0, "http_per_s_at_4": 71.0}
    found = {one["figure"]: one for one in goals(best, {"vqserve, raw": {64: point(900)}}, batch)}
    assert found["requests/s at 64 connections: the form / FastAPI, form"]["value"] == 1.3
    assert found["requests/s at 1 connections: vqserve, raw / mosec"]["met"]
    assert not found["requests/s at 16 connections: vqserve, raw / LitServe"]["met"]
    assert found["requests/s at 16 connections: vqserve, raw / BentoML"]["value"] is None
    assert found["p99 / p50 at 64 connections: vqserve, raw"]["value"] == 1.5
    assert found["p99 / p50 at 64 connections: vqserve, raw, 2 workers"]["value"] is None
    assert found["npy of 64 over HTTP / session.run alone"]["value"] == 0.71


def test_rates_are_averaged_latencies_are_medians_errors_add_up() -> None:
    found = summary([point(100, p99_ms=1, errors=1), point(200, p99_ms=9, errors=2), point(300, p99_ms=2)])
    assert (found["requests_per_s"], found["p99_ms"], found["errors"]) == (200, 2, 3)
    assert found["rounds_per_s"] == [100, 200, 300]


def test_every_server_goes_first_in_some_round() -> None:
    order = [Contestant(name, name, ASK) for name in "abcd"]
    firsts = {rotated(order, number, 4)[0].name for number in range(4)}
    assert firsts == set("abcd")
    assert sorted(one.name for one in rotated(order, 3, 4)) == list("abcd")


def test_the_form_is_one_that_the_service_reads() -> None:
    body, headers = multipart(b"\x89PNG picture")
    assert pictures_of_form(body, headers["Content-Type"], 1) == [b"\x89PNG picture"]


def test_servers_have_names_of_their_own_and_pinned_requirements() -> None:
    found = contestants(b"")
    assert len({one.name for one in found}) == len(found)
    assert all("==" in requirement for one in found for requirement in pinned(one.requirements))


def test_the_page_names_what_is_absent() -> None:
    result = {
        "command": "python -m benchmarks.peers",
        "machine": {"cpu": "x", "cpus": 2, "python": "3.11", "onnxruntime": "1", "load_average_1min": 0},
        "bundle": "mnist",
        "picture_bytes": 250,
        "seconds": 6,
        "rounds": 2,
        "servers": {"vqserve, raw": {c: point(1234) for c in (1, 16, 64)}},
        "batch": {"alone_per_s": 100.0, "http_per_s_at_1": 40.0, "http_per_s_at_4": 71.0},
        "absent": {"BentoML": "not installed: no such version\nand more"},
        "goals": [],
    }
    text = page(result)
    assert "| vqserve, raw | 1,234 (2, 3) 0.20 |" in text
    assert "- BentoML: not installed: no such version" in text
    assert "and more" not in text


def test_what_wrk_prints() -> None:
    output = 'Running 1s test\n\n{"requests": 500, "microseconds": 2000000, "p50_us": 1500, "p99_us": 2500, '
    output += '"status_errors": 1, "socket_errors": 2}\n'
    closed = parse(output)
    assert (closed.per_second, closed.p50_ms, closed.p99_ms, closed.errors) == (250, 1.5, 2.5, 3)
