"""A folder job whose disk fails, is gone, or had its power cut: what is not known of a picture is not written down."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from deploy.ray.plan import PlanError, index_path, missing, plan, write_whole
from deploy.ray.shards import ShardEncoder, read_index
from service.settings import Settings
from tests.deploy.test_shards import a_job, encode_all, of_bundle, write_pictures
from tests.power_cut import on_the_disk
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("left", ["an empty source", "no source", "no folder", "a closed folder"])
def test_pictures_whose_folder_is_gone_are_not_refused(
    left: str, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was no longer mounted was so many refused pictures, with status 0 and for good."""
    source, out, access = tmp_path / "in", tmp_path / "out", os.access
    write_pictures(source, 4)
    job = plan(a_job(source), out)
    with monkeypatch.context() as patched:
        source.rename(tmp_path / "elsewhere")
        if left == "an empty source":
            source.mkdir()
        elif left == "no folder":
            (source / "1").mkdir(parents=True)
        elif left == "a closed folder":  # root may look into every folder
            (source / "0").mkdir(parents=True)
            patched.setattr("os.access", lambda path, mode: path != source / "0" and access(path, mode))
        with pytest.raises(FileNotFoundError, match=str(source)):
            encode_all(bundle, job, out)
    assert missing(job, out) == [0]
    shutil.rmtree(source, ignore_errors=True)
    (tmp_path / "elsewhere").rename(source)
    assert [shard.encoded for shard in encode_all(bundle, job, out)] == [4]


def test_a_link_that_leads_nowhere_is_a_refused_picture(tmp_path: Path, bundle: Path) -> None:
    """One that leads to itself ended the job, again and again."""
    write_pictures(tmp_path / "in", 1)
    for name, target in (("loop", "loop.png"), ("within", "0/0000.png/x"), ("long", "a" * 300), ("gone", "nothing")):
        (tmp_path / f"in/{name}.png").symlink_to(target)
    job = plan(a_job(tmp_path / "in", pictures_per_shard=8), tmp_path / "out")
    (shard,) = encode_all(bundle, job, tmp_path / "out")
    assert sorted(item.picture for item in shard.refused) == ["gone.png", "long.png", "loop.png", "within.png"]
    assert shard.encoded == 1


def test_a_job_keeps_to_the_version_that_it_began_with(tmp_path: Path, bundle: Path) -> None:
    """An encoder that opened a bundle that had been replaced meanwhile went on, and nothing could decode all shards."""
    write_pictures(tmp_path / "in", 8)
    out = tmp_path / "out"
    job = of_bundle(plan(a_job(tmp_path / "in"), out), bundle)
    (out / "shards").mkdir()
    ShardEncoder(bundle, Settings(threads=1, device="cpu")).encode(job, out, 0)
    write_tiny_bundle(bundle, seed=1)
    later = ShardEncoder(bundle, Settings(threads=1, device="cpu"))
    with pytest.raises(PlanError, match=rf"^{bundle} is version \w+ now, .* began with {job.version[:12]}: bring"):
        later.encode(job, out, 1)
    assert missing(job, out) == [1]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, whole names stood over empty files."""
    done = on_the_disk(monkeypatch)
    write_whole(tmp_path / "a.json", b"whole")
    content, name = done
    partial = name.removesuffix(" -> a.json")
    assert partial != name and content == f"{partial}: whole"


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept the last room of a full disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", b"whole")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [b"", b"\0" * 40, b'{"shard": 1'])
def test_a_shard_whose_index_is_damaged_is_done_again(damaged: bytes, tmp_path: Path, bundle: Path) -> None:
    """It passed for finished, and could not be read at the end."""
    write_pictures(tmp_path / "in", 10)
    out = tmp_path / "out"
    job = plan(a_job(tmp_path / "in"), out)
    encode_all(bundle, job, out)
    index_path(out, 1).write_bytes(damaged)
    assert [shard.shard for shard in encode_all(bundle, job, out)] == [1]
    assert read_index(out, 1).encoded == 4
