"""A folder job on two nodes, of which one is killed midway: no picture is lost or doubled, and the codes are right."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from deploy.ray.encode_folder import main
from deploy.ray.shards import read_index
from tests.deploy.test_shards import codes_by_name, write_pictures
from tests.deploy_ray.conftest import TwoNodes
from tests.tiny_bundle import oracle_codes, write_tiny_bundle

PICTURES, PER_SHARD = 4000, 10
PROGRESS = re.compile(r"shard (\d+): \d+ pictures on node (\w+)")


def test_nothing_is_lost_or_doubled_when_a_node_dies(
    tmp_path: Path, two_nodes: TwoNodes, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = write_tiny_bundle(tmp_path / "bundle")
    pictures = write_pictures(tmp_path / "in", PICTURES)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(tmp_path / "bundle")]
    printed = ""

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(main, [*words, "--pictures-per-shard", str(PER_SHARD)])
        begun = monotonic()
        workers: list[str] = []
        while len(set(workers)) < 2:  # until both nodes have delivered
            assert not job.done(), printed
            assert monotonic() - begun < 120, printed
            sleep(0.05)
            printed += capfd.readouterr().err
            workers = [node for _, node in PROGRESS.findall(printed)]
        two_nodes.kill(workers[-1])
        finished_before = len(list((tmp_path / "out/shards").glob("*.json")))
        assert job.result(timeout=300) == 0

    answer = capfd.readouterr()
    survivors = {node for _, node in PROGRESS.findall(answer.err)[-10:]}
    assert finished_before < PICTURES // PER_SHARD  # the node died midway
    assert survivors == {two_nodes.nodes[0].node_id}
    report = json.loads(answer.out.strip().splitlines()[-1])
    assert (report["encoded"], report["refused"], report["shards"]) == (PICTURES, 0, PICTURES // PER_SHARD)
    shards = [read_index(tmp_path / "out", number) for number in range(report["shards"])]
    found = codes_by_name(tmp_path / "bundle", tmp_path / "out", shards)  # fails on a picture that is there twice
    assert found.keys() == pictures.keys()
    pixels = np.stack(list(pictures.values()))
    np.testing.assert_array_equal(np.stack([found[name] for name in pictures]), oracle_codes(pixels, weights))
    assert not list((tmp_path / "out/shards").glob(".*"))


def test_the_same_command_goes_on(tmp_path: Path, two_nodes: TwoNodes, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    write_pictures(tmp_path / "in", 40)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(tmp_path / "bundle")]
    assert main([*words, "--pictures-per-shard", "10"]) == 0
    (tmp_path / "out/shards/000002.json").unlink()
    capfd.readouterr()
    assert main([*words, "--pictures-per-shard", "10"]) == 0
    answer = capfd.readouterr()
    assert [shard for shard, _ in PROGRESS.findall(answer.err)] == ["2"]
    assert json.loads(answer.out.strip().splitlines()[-1])["encoded"] == 40


def test_a_shard_that_fails_ends_no_other(
    tmp_path: Path, two_nodes: TwoNodes, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback of Ray's of 64 lines, and the shards that could be written were not begun."""
    write_tiny_bundle(tmp_path / "bundle")
    write_pictures(tmp_path / "in", 40)
    in_the_way = tmp_path / "out/shards/000001-0.vqc"
    in_the_way.mkdir(parents=True)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(tmp_path / "bundle")]
    assert main([*words, "--pictures-per-shard", "10"]) == 2
    answer = capfd.readouterr().err
    assert re.search(r"^shard 1: failed on node \w+: .*Is a directory: .*000001-0\.vqc", answer, re.MULTILINE)
    assert sorted(shard for shard, _ in PROGRESS.findall(answer)) == ["0", "2", "3"]
    assert answer.endswith("error: 1 shards are missing, the first is 1: run the same command again\n")
    assert "RayTaskError" not in answer
    in_the_way.rmdir()
    assert main([*words, "--pictures-per-shard", "10"]) == 0
