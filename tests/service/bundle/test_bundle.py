"""A manifest that contradicts itself is refused when it is read, with the field's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bundle import BundleError, load_bundle
from service.bundle.fields import LARGEST_TRAINED_SIDE, MOST_CACHED, MOST_CHANNELS, MOST_CODES_A_SIDE
from service.bundle.manifest_checks import _cache_faults
from tests.service.bundle_edits import Change, edited, labels, more_codes, put, tensor, together

SHIPPED = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("code_histogram", 3, value=-1), "code_histogram has the entry -1"),
        (put("code_histogram", value=[1] * 15), "code_histogram has 15 entries, not 16"),
        (
            put("codebook_colours", value=["#000000"] * 15 + ["#00000g"]),
            "codebook_colours.15 is '#00000g', not #rrggbb",
        ),
        (put("codebook_colours", value=["#000000\n"] + ["#000000"] * 15), "codebook_colours.0 is .*, not #rrggbb"),
        (put("labels", value=["a", "b", "a"]), "labels.2 is 'a', as is labels.0"),
        (put("labels", value=["a", " ", "b"]), "labels.1 is empty"),
        (put("quality", "mse", value=-0.1), "quality.mse: Input should be greater than or equal to 0"),
        (put("quality", "pictures", value=-1), "quality.pictures: Input should be greater than or equal to 0"),
        (
            put("quality", "bits_per_code", value=-1.0),
            "quality.bits_per_code: Input should be greater than or equal to 0",
        ),
        (put("parity", "codes_different", value=-1), "parity.codes_different: Input should be greater than or equal"),
        (put("parity", "sampled_codes_compared", value=-1), "parity.sampled_codes_compared: Input should be greater"),
        (put("graphs", "decoder", "opset", value=0), "graphs.decoder.opset: Input should be greater than 0"),
        (put("picture", "height", value=10**9), "picture.height: Input should be less than or equal to 4096"),
        (put("picture", "width", value=4097), "picture.width: Input should be less than or equal to 4096"),
        (put("codes", "height", value=1025), "codes.height: Input should be less than or equal to 1024"),
        (put("codes", "width", value=10**18), "codes.width: Input should be less than or equal to 1024"),
        (put("codes", "dimension", value=10**9), "codes.dimension: Input should be less than or equal to 65536"),
        (
            put("prior", "context_channels", value=10**9),
            "prior.context_channels: Input should be less than or equal to",
        ),
        (
            put("prior", "cache_shape", value=[3, 7, 10**9]),
            r"prior.cache_shape is \(3, 7, 1000000000\), a sample has at",
        ),
        (put("prior", "pixel_cache_shape", value=[10**9, 2, 8]), r"prior.pixel_cache_shape is \(1000000000, 2, 8\), a"),
        (put("format_version", value=True), "format_version is True, this service reads 1"),
        (put("format_version", value=1.0), "format_version is 1.0, this service reads 1"),
        (put("picture", "height", value=28.0), "picture.height: Input should be a valid integer"),
        (put("quality", "mse", value=float("nan")), "quality.mse: Input should be a finite number"),
        (put("quality", "bits_per_code", value=float("inf")), "quality.bits_per_code: Input should be a finite number"),
        (put("provenance", "config", value={"a": [float("nan")]}), "provenance.config: .* not JSON compliant"),
        (put("provenance", "config", value={"a": float("inf")}), "provenance.config: .* not JSON compliant"),
        (put("quality", "pictures", value=1 << 53), "quality.pictures: Input should be less than 9007199254740992"),
        (put("parity", "pictures", value=10**30), "parity.pictures: Input should be less than"),
        (put("code_histogram", value=[1 << 49] * 16), r"code_histogram has a sum of 2\*\*53 or more"),
        (
            put("prior", "frequency_table", value=[1 << 27, 1]),  # of 16 codes: a sum of 2**31
            r"codebook_size \* frequency_table\[0\] must be below 2\*\*31",
        ),
        (put("labels", value=["half of a character: \ud800"] * 3), "Invalid JSON"),
        (put("codebook_colours", value=["#000000"] * 9), "codebook_colours has 9 entries, not 16"),
        (put("prior", "cache_shape", value=[3, 7, 0]), "prior.cache_shape.2: Input should be greater than 0"),
        (put("prior", "cache_shape", value=[3, 7, 8]), r"caches .*, but prior.cache_shape is \(3, 7, 8"),
        (put("prior", "pixel_cache_shape", value=[1, 2, 8]), r"left .*, but prior.pixel_cache_shape is \(1, 2, 8\)"),
        (put("prior", "context_channels", value=16), r"context .*, but prior.context_channels is 16"),
        (more_codes, "but codes.codebook_size is 20"),
        (put("codes", "dimension", value=9), r"encoder.outputs: latents .*, but codes.dimension is 9"),
        (put("picture", "channels", value=3), r"encoder.inputs: images .*\(B, 28, 28, 1\), but picture.channels is 3"),
        (
            together(put("picture", "height", value=56), put("codes", "height", value=14)),
            "images .*, but picture.height is 56",
        ),
        (
            together(put("picture", "width", value=56), put("codes", "width", value=14)),
            "images .*, but picture.width is 56",
        ),
        (put("picture", "any_size", value=True), "images .*, but picture.any_size is true"),
        (tensor("encoder", "images", shape=["B", 99, 99, 1]), "images .*, but picture.height is 28"),
        (tensor("decoder", "images", shape=[1, 28, 28, 1]), r"images .*, but a batch may have any size"),
        (tensor("decoder", "codes", dtype="int32"), "decoder.inputs: codes is int32, the format has int64"),
        (tensor("decoder", "codes", shape=["B", 7]), "decoder.inputs: codes has 2 axes, the format has 3"),
        (tensor("decoder", "codes", name="numbers"), "decoder.inputs are numbers, the format has codes"),
        (tensor("prior", "logits", shape=["B", 7, 7, 16]), "prior.outputs: logits .*, but a grid may have any size"),
        (tensor("prior_row", "uniforms", shape=["B", 6]), "prior_row.inputs: uniforms .*, but codes.width is 7"),
        (tensor("prior_row_guided", "caches", shape=["B", 2, 7, 8]), "caches .* guidance doubles its first axis"),
        (tensor("prior_diagonal", "uniforms", shape=["B", "w"]), "prior_diagonal.inputs: uniforms .* is fixed"),
        (tensor("prior_diagonal", "known_mask", shape=["B", 99]), r"uniforms has the shape .*, known_mask \(B, 99\)"),
        (tensor("prior_diagonal", "next_caches", shape=["B", 1, 2, 8]), r"caches has .*, next_caches \(B, 1, 2, 8\)"),
        (tensor("prior_diagonal", "row_exists", shape=["B", 99]), "99 bands of .* do not hold codes.width, 7"),
        (
            together(
                *(
                    tensor("prior_diagonal", name, shape=["B", 10**9])
                    for name in ("uniforms", "known_codes", "known_mask", "sampled_codes")
                )
            ),
            "bands of 1000000000 columns in all do not hold codes.width, 7",
        ),
        (
            together(
                *(tensor("prior_diagonal", name, shape=["B", 1, 10**9, 8]) for name in ("caches", "next_caches")),
            ),
            r"prior_diagonal: caches has the shape \(B, 1, 1000000000, 8\), a sample has at most",
        ),
        (lambda manifest: manifest["graphs"].pop("prior_diagonal"), "prior_diagonal_filtered without prior_diagonal"),
        (
            together(
                *(tensor("prior_diagonal_filtered", name, shape=["B", 1, 5, 8]) for name in ("caches", "next_caches")),
            ),
            r"prior_diagonal_filtered: caches has the shape \(B, 1, 5, 8\), that of prior_diagonal \(B, 1, \d+, 8\)",
        ),
        (labels(0), "graphs has prior_row_guided, but prior.label_count is 0"),
    ],
)
def test_a_field_that_contradicts_a_tensor_is_named(whole: Path, tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        load_bundle(edited(whole, tmp_path / "edited", change))


def test_outputs_have_an_order_and_inputs_have_none(whole: Path, tmp_path: Path) -> None:
    def turned(kind: str) -> Change:
        return lambda manifest: manifest["graphs"]["prior_context"][kind].reverse()

    load_bundle(edited(whole, tmp_path / "inputs", turned("inputs")))
    with pytest.raises(BundleError, match=r"prior_context.outputs are next_caches, context"):
        load_bundle(edited(whole, tmp_path / "outputs", turned("outputs")))


def test_the_axes_of_a_model_of_any_size_are_dynamic(any_size: Path, tmp_path: Path) -> None:
    load_bundle(any_size)
    fixed = tensor("decoder", "images", shape=["B", 16, 16, 3])
    with pytest.raises(BundleError, match=r"decoder.outputs: images .*, but picture.any_size is true"):
        load_bundle(edited(any_size, tmp_path / "edited", fixed))


def test_a_grid_of_any_size_is_as_large_as_its_bounds(any_size: Path, tmp_path: Path) -> None:
    """The service counted on memory for a picture of a billion rows, and ended with a MemoryError."""

    def rows(count: int) -> Change:
        return together(put("picture", "height", value=4 * count), put("codes", "height", value=count))

    load_bundle(edited(any_size, tmp_path / "largest", rows(1024)))
    with pytest.raises(BundleError, match=r"picture.height: Input should be less than or equal to 4096"):
        load_bundle(edited(any_size, tmp_path / "larger", rows(1025)))


def test_the_page_of_the_format_says_the_bounds() -> None:
    page = (SHIPPED.parent / "docs" / "bundle-format.md").read_text()
    for line in (
        f"H, W (at most {LARGEST_TRAINED_SIDE}) and C",
        f"training picture, at most {MOST_CODES_A_SIDE} |",
        f"K, at least 2, and D; both at most {MOST_CHANNELS} |",
        f"at most {MOST_CACHED:,} numbers each, and {MOST_CHANNELS} channels |",
    ):
        assert line in page


def test_caches_are_as_large_as_their_bound() -> None:
    class Prior:
        cache_shape, pixel_cache_shape = (4, 1024, 1024), (1, 1, 1)

    assert list(_cache_faults(Prior())) == []  # type: ignore[arg-type]
    Prior.cache_shape = (4, 1024, 1025)
    assert len(list(_cache_faults(Prior()))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mnist", "photos", "photos-f8"])
def test_what_is_shipped_is_consistent(name: str) -> None:
    load_bundle(SHIPPED / name)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format_version": ' + "1" * 5000 + "}", '{"name": "\ud800'])
def test_json_that_python_cannot_hold_is_no_bundle(tmp_path: Path, text: str) -> None:
    """RecursionError and ValueError came out of it."""
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx"])
def test_a_file_that_cannot_be_read_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    """The OSError ended the start with a traceback, and a reload with a bare 500."""
    folder = edited(whole, tmp_path / "edited", lambda manifest: None)
    (folder / name).unlink()
    (folder / name).symlink_to("/proc/self/mem")  # nobody may read its beginning, not even root
    with pytest.raises(BundleError, match=rf"edited/{name} cannot be read: Input/output error"):
        load_bundle(folder)


def test_a_folder_that_no_disk_can_have_is_no_bundle() -> None:
    with pytest.raises(BundleError, match=r"m/manifest\.json cannot be read: File name too long"):
        load_bundle("m" * 300)


def test_what_is_no_bundle_is_named(whole: Path, tmp_path: Path) -> None:
    """A run, a folder of bundles and a file of one got the advice to export into them."""
    run, bundles = tmp_path / "digits", tmp_path / "models"
    run.mkdir()
    for name in ("config.json", "progress.json"):
        (run / name).write_text("{}")
    with pytest.raises(BundleError, match=rf"^{run} is a training run, .*export {run} models/digits`"):
        load_bundle(run)
    first = edited(whole, bundles / "1", lambda manifest: None)
    with pytest.raises(BundleError, match=rf"^{bundles} is no bundle, but .*: give one or more of {first}$"):
        load_bundle(bundles)
    for number in range(2, 7):
        (bundles / f"{number}").mkdir()
        (bundles / f"{number}" / "manifest.json").touch()
    with pytest.raises(BundleError, match=rf" {bundles}/4, {bundles}/5, \.\.\.$"):
        load_bundle(bundles)
    with pytest.raises(BundleError, match=rf"is a file of a bundle: give its folder, {first}$"):
        load_bundle(first / "decoder.onnx")
    (run / "progress.json").unlink()
    with pytest.raises(BundleError, match=rf"^{run}/manifest.json does not exist: make a bundle"):
        load_bundle(run)


def test_a_bundle_that_is_looked_for_elsewhere_is_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that was started in another folder only had the advice to export."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=rf"RUN models/mine`; the folder of this process is {tmp_path}$"):
        load_bundle("models/mine")
    with pytest.raises(BundleError, match=rf"RUN {tmp_path}/mine`$"):
        load_bundle(tmp_path / "mine")


def test_all_files_come_from_where_a_link_led(whole: Path, tmp_path: Path) -> None:
    first, second = (edited(whole, tmp_path / name, lambda manifest: None) for name in ("first", "second"))
    link = tmp_path / "current"
    link.symlink_to("first")
    bundle = load_bundle(link)
    link.unlink()
    link.symlink_to("second")
    assert (bundle.folder, bundle.graph_path("decoder")) == (link, first / "decoder.onnx")
    assert load_bundle(bundle.folder).graph_path("decoder") == second / "decoder.onnx"
