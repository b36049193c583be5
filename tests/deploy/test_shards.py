"""A folder job without Ray: its plan, its shards, going on, and the codes against numpy.

tests/deploy_ray adds the cluster.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.ray import shards
from deploy.ray.plan import JOB_FILE, SUFFIXES, Job, PlanError, index_path, missing, pictures_under, plan
from deploy.ray.shards import Shard, ShardEncoder, read_index
from service import codec
from service.bundle import load_bundle
from service.codec.codec_model import CodecModel
from service.inference.windows import WHOLE
from service.pictures.images import Picture, to_picture
from service.settings import Settings
from tests.tiny_bundle import Weights, oracle_codes, write_tiny_bundle
from training.data.folder import FORMATS
from vqserve.files import PICTURE_SUFFIXES

Pixels = NDArray[np.uint8]


def write_pictures(folder: Path, count: int, shape: tuple[int, ...] = (28, 28)) -> dict[str, Pixels]:
    """`count` random pictures in sub-folders, by their relative path."""
    random = np.random.default_rng(0)
    pictures = {}
    for number in range(count):
        name = f"{number % 3}/{number:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / name)
        pictures[name] = pixels.reshape(*shape[:2], -1)
    return pictures


def codes_by_name(bundle: Path, out: Path, shards: list[Shard]) -> dict[str, NDArray[np.int64]]:
    """What a reader finds: each picture's codes, decoded from the containers; a picture twice is an error."""
    model = CodecModel.of(load_bundle(bundle).manifest, None)
    found: dict[str, NDArray[np.int64]] = {}
    for shard in shards:
        for container in shard.containers:
            decoded = codec.decode(model, (out / "shards" / container.file).read_bytes())
            assert decoded.size == container.size
            for name, codes in zip(container.pictures, decoded.codes, strict=True):
                assert name not in found
                found[name] = codes
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Weights]:
    return tmp_path / "bundle", write_tiny_bundle(tmp_path / "bundle")


def a_job(source: Path, fit: str = "exact", pictures_per_shard: int = 4) -> Job:
    given = {
        "source": str(source),
        "model": "tiny",
        "version": "v",
        "fit": fit,
        "pictures_per_shard": pictures_per_shard,
    }
    return Job.model_validate(given | {"max_pixels": 1 << 20})


def of_bundle(job: Job, bundle: Path) -> Job:
    return job.model_copy(update={"version": load_bundle(bundle).manifest.version})


def encode_all(bundle: Path, job: Job, out: Path) -> list[Shard]:
    (out / "shards").mkdir(exist_ok=True)
    encoder, job = ShardEncoder(bundle, Settings(threads=1, device="cpu")), of_bundle(job, bundle)
    return [encoder.encode(job, out, shard) for shard in missing(job, out)]


def test_every_picture_is_in_one_list(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", 10)
    (tmp_path / "in/notes.txt").write_text("not a picture")
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    lists = [json.loads((tmp_path / f"out/plan/{shard:06d}.json").read_bytes()) for shard in range(job.shards)]
    assert [len(names) for names in lists] == [4, 4, 2]
    assert sorted(name for names in lists for name in names) == sorted(pictures)
    assert (job.pictures, job.shards) == (10, 3)


def test_codes_are_those_of_the_oracle(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    path, weights = bundle
    pictures = write_pictures(tmp_path / "in", 10)
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    found = codes_by_name(path, tmp_path / "out", encode_all(path, job, tmp_path / "out"))
    assert found.keys() == pictures.keys()
    for name, pixels in pictures.items():
        np.testing.assert_array_equal(found[name], oracle_codes(pixels[None], weights)[0])


def test_sizes_go_to_containers_of_their_own(tmp_path: Path) -> None:
    """Padded to a multiple for the model, but a reader gets the real size back."""
    weights = write_tiny_bundle(tmp_path / "bundle", any_size=True)
    write_pictures(tmp_path / "in", 3, (13, 18, 3))
    write_pictures(tmp_path / "in/large", 2, (20, 24, 3))
    job = plan(a_job(tmp_path / "in", fit="pad", pictures_per_shard=16), tmp_path / "out")
    (shard,) = encode_all(tmp_path / "bundle", job, tmp_path / "out")
    assert [(c.size, len(c.pictures)) for c in shard.containers] == [((13, 18), 3), ((20, 24), 2)]
    found = codes_by_name(tmp_path / "bundle", tmp_path / "out", [shard])
    pixels = np.asarray(Image.open(tmp_path / "in/large/0/0000.png"))[None]
    np.testing.assert_array_equal(found["large/0/0000.png"], oracle_codes(pixels, weights)[0])
    assert found["0/0000.png"].shape == (4, 5)


class Runs:
    """A session that notes the shape of what it is given."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: None, given: dict[str, Pixels]) -> Any:
        self.shapes.append(given["images"].shape)
        return self.session.run(names, given)


def encode_noting(bundle: Path, source: Path, out: Path) -> tuple[Shard, list[tuple[int, ...]]]:
    """The only shard of a job, and what went through the encoder."""
    job = plan(a_job(source, pictures_per_shard=4096), out)
    (out / "shards").mkdir()
    encoder = ShardEncoder(bundle, Settings(threads=1, device="cpu"))
    encoder._session = runs = Runs(encoder._session)
    return encoder.encode(of_bundle(job, bundle), out, 0), runs.shapes


def test_small_pictures_run_64_together(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    write_pictures(tmp_path / "in", 150)
    shard, shapes = encode_noting(bundle[0], tmp_path / "in", tmp_path / "out")
    assert [shape[0] for shape in shapes] == [64, 64, 22]
    assert len(shard.containers) == 1


def test_a_large_picture_runs_in_windows(tmp_path: Path) -> None:
    """It used to go through the encoder as a whole, with as many of its size as there were, which took all memory."""
    weights = write_tiny_bundle(tmp_path / "bundle", any_size=True)
    pictures = write_pictures(tmp_path / "in", 3, (400, 360, 3))
    shard, shapes = encode_noting(tmp_path / "bundle", tmp_path / "in", tmp_path / "out")
    assert max(max(shape[1:3]) for shape in shapes) <= WHOLE * 4  # pixels a code
    found = codes_by_name(tmp_path / "bundle", tmp_path / "out", [shard])
    assert found.keys() == pictures.keys()
    for name, pixels in pictures.items():
        np.testing.assert_array_equal(found[name], oracle_codes(pixels[None], weights)[0])


def test_pixels_are_held_for_a_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures of a shard used to be open at once: 37 GB for 1,024 photographs of 12 million pixels."""
    weights = write_tiny_bundle(tmp_path / "bundle", any_size=True)
    pictures = write_pictures(tmp_path / "in", 12, (40, 40, 3)) | {
        f"more/{name}": pixels for name, pixels in write_pictures(tmp_path / "in/more", 12, (48, 40, 3)).items()
    }
    alive: list[weakref.ref[Pixels]] = []
    most = 0

    def noted(*arguments: Any) -> Picture:
        nonlocal most
        picture = to_picture(*arguments)
        alive.append(weakref.ref(picture.pixels))
        most = max(most, sum(pixels() is not None for pixels in alive))
        return picture

    monkeypatch.setattr(shards, "to_picture", noted)
    monkeypatch.setattr(shards, "GROUP_PIXELS", 3 * 48 * 40)
    shard, shapes = encode_noting(tmp_path / "bundle", tmp_path / "in", tmp_path / "out")
    assert most <= 8  # a group of at most 4 small ones, and the one before it
    assert max(shape[0] for shape in shapes) <= 4
    assert [(one.size, len(one.pictures)) for one in shard.containers] == [((40, 40), 12), ((48, 40), 12)]
    assert list(shard.containers[0].pictures) == sorted(pictures)[:12]
    found = codes_by_name(tmp_path / "bundle", tmp_path / "out", [shard])
    for name, pixels in pictures.items():
        np.testing.assert_array_equal(found[name], oracle_codes(pixels[None], weights)[0])


def test_a_container_has_no_more_codes_than_its_readers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of one size used to share one container, whatever their number, that no reader accepted."""
    monkeypatch.setattr(shards, "CONTAINER_CODES", 250)
    write_tiny_bundle(tmp_path / "bundle", any_size=True)
    write_pictures(tmp_path / "in", 5, (40, 40, 3))
    write_pictures(tmp_path / "in/large", 1, (80, 80, 3))
    shard, _ = encode_noting(tmp_path / "bundle", tmp_path / "in", tmp_path / "out")
    assert [len(container.pictures) for container in shard.containers] == [2, 2, 1, 1]  # of 100 codes, and 400
    assert shard.encoded == len(codes_by_name(tmp_path / "bundle", tmp_path / "out", [shard])) == 6


def test_a_broken_picture_is_named_and_the_rest_encoded(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in/0/0000.png").write_bytes(b"not a picture")
    Image.new("L", (5, 5)).save(tmp_path / "in/1/0001.png")
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    (shard,) = encode_all(bundle[0], job, tmp_path / "out")
    assert [(item.picture, item.reason[:18]) for item in shard.refused] == [
        ("0/0000.png", "Send a PNG, JPEG, "),
        ("1/0001.png", "The model takes 28"),
    ]
    assert shard.encoded == 2


def test_a_pipe_is_refused_and_a_picture_by_the_limit_of_its_job(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    """The one was waited for without end; the other's limit was the setting of whoever encoded the shard."""
    write_pictures(tmp_path / "in", 2)
    (tmp_path / "in/0/0000.png").unlink()
    os.mkfifo(tmp_path / "in/0/0000.png")
    job = plan(a_job(tmp_path / "in").model_copy(update={"max_pixels": 783}), tmp_path / "out")
    (shard,) = encode_all(bundle[0], job, tmp_path / "out")
    assert sorted(item.reason[:21] for item in shard.refused) == ["28x28 is more than 78", "It is no file."]


def test_a_picture_that_fit_makes_too_large_is_refused(tmp_path: Path) -> None:
    """Its container was written, and no service decoded it."""
    write_tiny_bundle(tmp_path / "bundle", any_size=True)
    write_pictures(tmp_path / "in", 1, (15, 15, 3))
    write_pictures(tmp_path / "in/small", 1, (12, 15, 3))
    job = a_job(tmp_path / "in", fit="resize").model_copy(update={"max_pixels": 15 * 16})
    (shard,) = encode_all(tmp_path / "bundle", plan(job, tmp_path / "out"), tmp_path / "out")
    assert [item.reason[:21] for item in shard.refused] == ["15x15 becomes 16x16 w"] and shard.encoded == 1


def test_a_disk_that_fails_refuses_no_picture(
    tmp_path: Path, bundle: tuple[Path, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a disk on the network was gone, all pictures were written down as refused, for good."""
    write_pictures(tmp_path / "in", 2)
    job, read = plan(a_job(tmp_path / "in"), tmp_path / "out"), Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.suffix == ".png":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="Stale"):
            encode_all(bundle[0], job, tmp_path / "out")
    assert missing(job, tmp_path / "out") == list(range(job.shards))
    (tmp_path / "in/0/0000.png").unlink()
    shards = encode_all(bundle[0], job, tmp_path / "out")
    assert [item.picture for shard in shards for item in shard.refused] == ["0/0000.png"]


def test_a_finished_shard_is_not_done_again(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    write_pictures(tmp_path / "in", 10)
    out = tmp_path / "out"
    job = plan(a_job(tmp_path / "in"), out)
    encode_all(bundle[0], job, out)
    index_path(out, 1).unlink()
    first = index_path(out, 0).stat().st_mtime_ns
    assert [shard.shard for shard in encode_all(bundle[0], plan(a_job(tmp_path / "in"), out), out)] == [1]
    assert index_path(out, 0).stat().st_mtime_ns == first


def test_encoding_a_shard_twice_writes_the_same_bytes(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    """Ray may run a shard again after a death; the second run must replace the first and not add to it."""
    write_pictures(tmp_path / "in", 4)
    out = tmp_path / "out"
    job = plan(a_job(tmp_path / "in"), out)
    encode_all(bundle[0], job, out)
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    index_path(out, 0).unlink()
    encode_all(bundle[0], job, out)
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == before


def test_new_pictures_do_not_move_those_of_a_job(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 4)
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    Image.new("L", (28, 28)).save(tmp_path / "in/0/before-all-others.png")
    assert plan(a_job(tmp_path / "in"), tmp_path / "out") == job


def test_an_unfinished_plan_is_made_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 4)
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / JOB_FILE).unlink()
    assert plan(a_job(tmp_path / "in"), tmp_path / "out") == job


def test_a_job_goes_on_with_the_limit_of_pixels_that_it_began_with(tmp_path: Path) -> None:
    """It was refused as another job."""
    write_pictures(tmp_path / "in", 4)
    job = a_job(tmp_path / "in")
    begun = plan(job, tmp_path / "out")
    assert plan(job.model_copy(update={"max_pixels": 9}), tmp_path / "out") == begun
    assert begun.max_pixels == job.max_pixels > 9


def test_a_job_of_a_version_that_wrote_no_limit_goes_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 4)
    job = a_job(tmp_path / "in")
    begun = plan(job, tmp_path / "out")
    earlier = json.loads((tmp_path / "out" / JOB_FILE).read_bytes())
    del earlier["max_pixels"]
    (tmp_path / "out" / JOB_FILE).write_text(json.dumps(earlier))
    assert plan(job, tmp_path / "out") == begun


@pytest.mark.parametrize("change", [{"version": "w"}, {"fit": "pad"}, {"pictures_per_shard": 5}, {"source": "other"}])
def test_another_job_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_pictures(tmp_path / "in", 4)
    job = a_job(tmp_path / "in")
    plan(job, tmp_path / "out")
    with pytest.raises(PlanError, match="use another folder"):
        plan(job.model_copy(update=change), tmp_path / "out")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(PlanError, match="holds no picture"):
        plan(a_job(tmp_path / "in"), tmp_path / "out")


def test_pictures_are_found_by_suffix_whatever_its_case(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.jpeg", "c.webp", "d.gif", "e.json", "f.JPE", "g.jfif"):
        (tmp_path / name).touch()
    assert list(pictures_under(tmp_path)) == ["a.PNG", "b.jpeg", "c.webp", "f.JPE", "g.jfif"]
    assert SUFFIXES == set(PICTURE_SUFFIXES) == set(FORMATS)  # of the command, and of training


def test_what_is_hidden_is_no_picture(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".thumbnails/a.png", "b/c.png", "b/.d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(pictures_under(tmp_path)) == ["a.png", "b/c.png"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures were missing from the lists, and a job keeps to its first lists."""
    write_pictures(tmp_path / "in", 6)
    scan = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("/1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", scandir)  # root may read everything
    with pytest.raises(PlanError, match="in/1 cannot be read: Permission denied"):
        plan(a_job(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(PlanError, match="nowhere cannot be read: No such file"):
        plan(a_job(tmp_path / "nowhere"), tmp_path / "out2")


def test_a_plan_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOB_FILE).write_text('{"a": 1}')
    with pytest.raises(PlanError, match=r"job\.json is not of a job .* use another folder"):
        plan(a_job(tmp_path), tmp_path / "out")


def test_a_name_that_is_not_utf_8_has_escapes_in_the_index(tmp_path: Path, bundle: tuple[Path, Weights]) -> None:
    """The index could not be written, again and again."""
    write_pictures(tmp_path / "in", 1)
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"broken\xe9.png")]
    (tmp_path / "in/0/0000.png").rename(tmp_path / "in" / names[0])
    (tmp_path / "in" / names[1]).write_bytes(b"nothing")
    job = plan(a_job(tmp_path / "in"), tmp_path / "out")
    (shard,) = encode_all(bundle[0], job, tmp_path / "out")
    assert [container.pictures for container in shard.containers] == [("caf\\udce9.png",)]
    assert [refused.picture for refused in shard.refused] == ["broken\\udce9.png"]
    assert read_index(tmp_path / "out", 0) == shard


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The job's `main`, with a Ray that only can be begun."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **_: None, cluster_resources=dict))
    main: Callable[[list[str]], int] = runpy.run_module("deploy.ray.encode_folder")["main"]
    return lambda *words: main([str(word) for word in words])


def test_mistakes_of_the_caller_are_one_line(
    tmp_path: Path,
    bundle: tuple[Path, Weights],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each was a traceback."""
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    assert command(tmp_path / "in", tmp_path / "file", "--bundle", bundle[0]) == 2
    assert "Not a directory" in capsys.readouterr().err
    unreadable = tmp_path / os.fsdecode(b"caf\xe9")
    assert command(unreadable, tmp_path / "out", "--bundle", bundle[0]) == 2
    assert capsys.readouterr().err.endswith("caf\\udce9 is not UTF-8, as the plan is: give the folder another name\n")
    monkeypatch.setenv("VQSERVE_THREADS", "many")
    monkeypatch.setenv("VQSERVE_MAX_PIXELS", "many")
    with pytest.raises(SystemExit, match="VQSERVE_MAX_PIXELS: Input should be a valid integer"):
        command(tmp_path / "in", tmp_path / "out", "--bundle", bundle[0])


def test_without_ray_the_job_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(SystemExit, match=r"pip install '\.\[service,cpu,ray\]'"):
        runpy.run_module("deploy.ray.encode_folder", run_name="__main__")
