"""The GPU check with the CPU on both sides: it passes, and a device that computes anything wrongly fails it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from export import device_parity, gpu_check
from export.device_parity import Inputs, Row, Side, compare, draw_codes, draw_inputs, draws_of, in_buckets
from export.gpu_check import call_of, check, main
from service.bundle import Bundle, BundleError, load_bundle
from service.bundle.fields import GraphName
from service.inference.sessions import CPU, DeviceError, SessionMaker
from service.settings import Settings
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

SLOTS = 4
SETTINGS = Settings(max_batch=4, max_generate_batch=SLOTS)
PICTURES = 10


@dataclass(frozen=True)
class Broken(SessionMaker):
    """A device that computes one graph with the weights of another bundle."""

    other: Path = Path()
    graph: str = ""

    def open(self, path: Path, *arguments: Any, **options: Any) -> ort.InferenceSession:
        return super().open(self.other / path.name if path.stem == self.graph else path, *arguments, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gpu_check")
    for seed, name in enumerate(("right", "wrong")):
        write_tiny_bundle(folder / name, name, seed=seed, prior=tiny_prior(seed=seed))
    return folder / "right", folder / "wrong"


@pytest.fixture(scope="module")
def bundle(folders: tuple[Path, Path]) -> Bundle:
    return load_bundle(folders[0])


@pytest.fixture(scope="module")
def trusted(bundle: Bundle) -> Side:
    return Side.of(bundle, SETTINGS, SessionMaker(CPU, 1), SLOTS)


@pytest.fixture(scope="module")
def inputs(trusted: Side) -> Inputs:
    return draw_inputs(trusted, PICTURES)


def test_a_device_that_computes_the_same_passes(bundle: Bundle, trusted: Side, inputs: Inputs) -> None:
    rows = compare(trusted, Side.of(bundle, SETTINGS, SessionMaker(CPU, 1), SLOTS), inputs)
    codes, logits = PICTURES * 49, PICTURES * 49 * 16
    assert rows == [
        Row("codes", codes, 0, 0.0, True),
        Row("pixels", PICTURES * 28 * 28, 0, 0, True),
        Row("distances", logits, 0, 0.0, True),
        Row("logits of the prior", logits, 0, 0.0, True),
        Row("sampled codes, unfiltered, all at once", codes, 0, 0.0, True),
        Row("sampled codes, unfiltered, joining two a row", codes, 0, 0.0, True),
        Row("sampled codes, filtered, all at once", codes, 0, 0.0, True),
        Row("sampled codes, filtered, joining two a row", codes, 0, 0.0, True),
        Row("containers, bytes", 3, 0, 0.0, True),
        Row("containers, read by the other side", 6, 0, 0.0, True),
    ]


@pytest.mark.parametrize(
    ("graph", "failing"),
    [
        ("encoder_quantizer", {"codes"}),
        ("decoder", {"pixels"}),
        ("encoder", {"distances"}),
        ("distances", {"distances"}),
        ("prior", {"logits of the prior", "containers, bytes", "containers, read by the other side"}),
        (
            "prior_row_unfiltered",
            {f"sampled codes, unfiltered, {company}" for company in ("all at once", "joining two a row")},
        ),
        ("prior_row", {f"sampled codes, filtered, {company}" for company in ("all at once", "joining two a row")}),
        ("prior_context", {"containers, read by the other side"}),
        ("prior_pixel", {"containers, read by the other side"}),
    ],
)
def test_each_graph_that_computes_something_else_is_found(
    folders: tuple[Path, Path], bundle: Bundle, trusted: Side, inputs: Inputs, graph: GraphName, failing: set[str]
) -> None:
    device = Side.of(bundle, SETTINGS, Broken(CPU, 1, None, folders[1], graph), SLOTS)
    assert {row.what for row in compare(trusted, device, inputs) if not row.passed} == failing


class Altered:
    """An encoder or a decoder some of whose outputs a test changes."""

    def __init__(self, session: Any, change: Any) -> None:
        self._session, self._change = session, change

    def run(self, names: None, feeds: Any) -> Any:
        return [self._change(feeds, self._session.run(names, feeds)[0])]


@pytest.mark.parametrize(("levels", "passed"), [(1, True), (2, False)])
def test_pixels_may_be_one_level_apart(trusted: Side, inputs: Inputs, levels: int, passed: bool) -> None:
    def moved(_: Any, pixels: Any) -> Any:
        corner = int(pixels[0, 0, 0, 0])
        pixels[0, 0, 0, 0] = corner + levels if corner < 128 else corner - levels
        return pixels

    row = device_parity._pixels(trusted, replace(trusted, decoder=Altered(trusted.decoder, moved)), inputs.codes)
    assert (row.largest, row.passed) == (levels, passed)
    assert 0 < row.different <= PICTURES


def test_one_code_in_ten_thousand_may_be_the_other_of_two_near_ones(
    trusted: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tie is real: the second nearest vector of one position, under a tolerance that its distance just meets."""
    pictures = np.random.default_rng(0).integers(0, 256, (205, 28, 28, 1), np.uint8)  # 10,045 codes
    order = np.argsort(distances(trusted.bundle, pictures[:1])[0, 0, 0])

    def second_nearest(positions: int) -> Side:
        def swap(feeds: Any, codes: Any) -> Any:
            if (feeds["images"][0] == pictures[0]).all():
                codes[0, 0, 0] = order[1]
                codes[0, 1, : positions - 1] = (codes[0, 1, : positions - 1] + 1) % 16
            return codes

        return replace(trusted, encoder=Altered(trusted.encoder, swap))

    row = device_parity._codes(trusted, second_nearest(1), pictures)
    assert (row.compared, row.different, row.passed) == (10_045, 1, False)  # random weights: no near tie
    monkeypatch.setattr(device_parity, "NEAR_TIE_OF_SPAN", row.largest)
    assert device_parity._codes(trusted, second_nearest(1), pictures).passed
    monkeypatch.setattr(device_parity, "NEAR_TIE_OF_SPAN", row.largest * 0.999)
    assert not device_parity._codes(trusted, second_nearest(1), pictures).passed
    monkeypatch.setattr(device_parity, "NEAR_TIE_OF_SPAN", 1.0)
    assert not device_parity._codes(trusted, second_nearest(2), pictures).passed


def distances(bundle: Bundle, pictures: Any) -> Any:
    """What the quantizer's ArgMin sees, (B,h,w,K)."""
    latents = ort.InferenceSession(bundle.graph_path("encoder"), providers=[CPU]).run(None, {"images": pictures})[0]
    session = ort.InferenceSession(device_parity._with_distances(bundle), providers=[CPU])
    codes, found = session.run(None, {"latents": latents})
    assert (found.argmin(-1) == codes).all()
    return found


@pytest.mark.parametrize(("number", "largest"), [(np.nan, 0.0), (np.inf, 0.0), (1e6, 1e6)])
def test_a_distance_that_is_no_number_does_not_pass(
    trusted: Side, inputs: Inputs, number: float, largest: float
) -> None:
    """NaN is not above any tolerance."""

    class Altered:
        def latents(self, images: Any) -> Any:
            return trusted_graphs.latents(images)

        def distances(self, latents: Any) -> Any:
            found = trusted_graphs.distances(latents)
            found[0, 0, 0, 0] = number
            return found

    trusted_graphs = trusted.codec.latents
    assert trusted_graphs is not None
    row = device_parity._distances(trusted_graphs, Altered(), inputs.pictures[:1])
    assert (row.different, row.passed) == (1, False)
    assert np.isfinite(row.largest) and (row.largest > 1) == (largest > 1)


def test_a_bundle_that_changes_before_it_is_opened_is_not_compared(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "tiny")
    bundle = load_bundle(tmp_path)
    write_tiny_bundle(tmp_path, "tiny", seed=1)
    with pytest.raises(BundleError, match="changed while the bundle was opened"):
        Side.of(bundle, SETTINGS, SessionMaker(CPU, 1), SLOTS)


def test_parts_are_of_every_size_that_batches_are_padded_to() -> None:
    parts = list(in_buckets(np.arange(20), 6))
    assert [len(part) for part in parts] == [1, 2, 4, 6, 1, 2, 4]
    assert (np.concatenate(parts) == np.arange(20)).all()


def test_samples_that_join_at_different_rows_are_the_same(trusted: Side, inputs: Inputs) -> None:
    draws = draws_of(trusted, inputs.labels, filtered=True)
    assert trusted.sampler is not None
    one_by_one = np.concatenate([draw_codes(trusted.sampler, [draw], 1) for draw in draws])
    assert (draw_codes(trusted.sampler, draws, 3) == one_by_one).all()


def test_the_document_has_a_timing_for_each_work_and_batch(bundle: Bundle) -> None:
    document = check(bundle, Settings(), SessionMaker(CPU, 1), pictures=4, seconds=0)
    assert json.loads(json.dumps(document)) == document
    assert document["passed"]
    assert document["bundle"] == {"name": "right", "version": bundle.manifest.version}
    assert document["versions"]["onnxruntime"] == ort.__version__
    assert document["settings"]["cuda_convolution_search"] == "HEURISTIC"
    works = [(row["work"], row["batch"]) for row in document["timings"]]
    assert works == [(work, batch) for work in ("encode", "decode", "generate") for batch in (1, 2, 4)]
    for row in document["timings"]:
        for side in ("device", "cpu"):
            assert row[f"{side}_pictures_per_s"] == pytest.approx(1e3 * row["batch"] / row[f"{side}_ms"], abs=0.1)


def test_what_is_timed_is_the_whole_work(trusted: Side, inputs: Inputs) -> None:
    encoded, decoded, drawn = (call_of(trusted, work, inputs, 2)() for work in ("encode", "decode", "generate"))
    assert np.shape(encoded) == (1, 2, 7, 7)
    assert np.shape(decoded) == (1, 2, 28, 28, 1)
    assert np.shape(drawn) == (2, 7, 7)


def test_a_bundle_without_a_prior_is_checked_too(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "silent", "silent")
    document = check(load_bundle(tmp_path / "silent"), SETTINGS, SessionMaker(CPU, 1), pictures=3, seconds=0)
    assert [row["what"] for row in document["parity"]] == ["codes", "pixels"]
    assert {row["work"] for row in document["timings"]} == {"encode", "decode"}


@pytest.mark.parametrize("wrong", [False, True])
def test_the_exit_status_tells_whether_all_rows_passed(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: bool
) -> None:
    broken = Broken(CPU, 1, None, folders[1], "prior_row" if wrong else "")
    monkeypatch.setattr(gpu_check, "session_maker", lambda settings, probe: broken)
    monkeypatch.setattr(gpu_check, "gpu", lambda: {"name": "no GPU"})
    monkeypatch.setattr(gpu_check, "pictures_for", lambda bundle: 2)
    monkeypatch.setattr(gpu_check, "SECONDS_A_TIMING", 0.0)
    assert main([str(folders[0])]) == int(wrong)
    document = json.loads(capsys.readouterr().out)
    assert document["device"] == {"name": "no GPU"}
    assert document["passed"] is not wrong


def test_a_machine_without_cuda_is_told_so(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folders[0])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "VQSERVE_DEVICE=cuda" in printed.err


def test_a_folder_that_is_no_bundle_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "manifest.json does not exist" in capsys.readouterr().err


class Cuda:
    """libcuda.so.1 of a machine whose first device, as CUDA_VISIBLE_DEVICES has it, is the second GPU."""

    def __init__(self, status: int) -> None:
        self._status = status

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, length: int, device: int) -> int:
        assert (length, device) == (len(name), 0)
        name.value = b"0000:3B:00.0"
        return self._status


def test_the_gpu_is_the_one_that_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi was asked for its own GPU 0."""
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(stdout="NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB, 9.0\n")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", answer)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Cuda(status=0))
    assert gpu_check.gpu() == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "580.95.05",
        "memory.total": "81559 MiB",
        "compute_cap": "9.0",
    }
    assert asked[0][:2] == ["/usr/bin/nvidia-smi", "--id=0000:3B:00.0"]
    monkeypatch.setattr("ctypes.CDLL", lambda name: Cuda(status=101))
    with pytest.raises(DeviceError, match="error 101"):
        gpu_check.gpu()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "nvidia-smi is not on the path" in gpu_check.gpu()["name"]
