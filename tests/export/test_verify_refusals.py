"""Each check of the export refuses graphs that are broken in one place, and lets through what it says it does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from export.graphs.autoencoder_graphs import autoencoder_graphs, distances_graph, shapes_of
from export.graphs.onnx_builder import DTYPES
from export.graphs.prior_graphs import PriorGraphWriter
from export.sessions import Sessions, VerificationError
from export.verify import _compare_distances, _require_near_ties, to_torch, verify
from export.verify_prior import compare_logits, compare_pixel_by_pixel, compare_samplers
from service.bundle.fields import DIAGONAL_GRAPHS, GraphName, Parity
from tests.export.conftest import loud
from tests.export.edited_graphs import combined, deaf, one_entry, with_nodes
from tests.export.test_build import model_for
from training.models.autoencoders import VQVAE
from training.models.frequencies import frequency_table
from training.models.networks import Decoder, Encoder
from training.models.prior import PixelCNN
from training.models.quantizers import EMAQuantizer

Models = dict[GraphName, onnx.ModelProto]
K, LABELS, GRID = 24, 2, (2, 4)  # 24 codes of 3 numbers, as `model_for` has them
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 16, 1), dtype=np.uint8)
PICTURE_LABELS = np.array([0, 1, 2, 0, 1])
TABLE = frequency_table(K).numpy()
SAMPLERS: tuple[GraphName, ...] = ("prior_row", "prior_row_unfiltered", "prior_row_guided", *DIAGONAL_GRAPHS)
PIXELS_DISAGREE = "prior_context and prior_pixel disagree with the teacher-forced prior"


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return model_for(1, 4, fsq=False)


@pytest.fixture(scope="module")
def loud_prior() -> PixelCNN:
    """Everything that a graph is told changes what it says."""
    torch.manual_seed(0)
    return loud(PixelCNN(K, LABELS, channels=8, vertical_layers=1, horizontal_layers=2, head_channels=16), 0.5)


@pytest.fixture(scope="module")
def whole(vqvae: VQVAE, loud_prior: PixelCNN) -> Models:
    graphs = autoencoder_graphs(vqvae, shapes_of((1, 8, 16), 4, 3, any_size=False))
    return graphs | {"distances": distances_graph(vqvae)} | PriorGraphWriter(loud_prior).all(GRID[1], TABLE)


@pytest.fixture(scope="module")
def opened(whole: Models) -> Sessions:
    return Sessions.of(whole)


def with_broken(opened: Sessions, graph: GraphName, model: onnx.ModelProto) -> Sessions:
    """Opening them all takes longer than each comparison."""
    return Sessions({**opened.sessions, **Sessions.of({graph: model}).sessions})


def verified(vqvae: VQVAE, prior: PixelCNN | None, models: Models) -> Parity:
    return verify(vqvae, prior, models, TABLE, PICTURES, PICTURE_LABELS)


def autoencoder_alone(models: Models) -> Models:
    return {name: models[name] for name in ("encoder", "quantizer", "encoder_quantizer", "decoder", "distances")}


def test_whole_graphs_pass_and_are_counted(vqvae: VQVAE, loud_prior: PixelCNN, whole: Models) -> None:
    parity = verified(vqvae, loud_prior, whole)
    assert parity.largest_pixel_difference <= 1  # which a half may be, rounded
    assert parity == Parity(
        pictures=5,
        codes_compared=5 * 2 * 4,
        codes_different=0,
        largest_pixel_difference=parity.largest_pixel_difference,
        prior_logits_compared=5 * 2 * 4 * 24,
        sampled_codes_compared=6 * 16 * 2 * 4,  # rows with filters off, without, and with them; guided; two diagonals
    )


@pytest.mark.parametrize("graph", ["quantizer", "encoder_quantizer"])
def test_another_code_is_refused(vqvae: VQVAE, whole: Models, graph: GraphName) -> None:
    """The last bit of one code of each grid is flipped."""
    broken = combined(whole[graph], "codes", "BitwiseXor", one_entry(GRID, 1, np.int64))
    with pytest.raises(VerificationError, match=r"a code differs although its vector is [\d.]+% nearer"):
        verified(vqvae, None, autoencoder_alone(whole) | {graph: broken})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_latent_that_is_no_number_is_refused(vqvae: VQVAE, whole: Models, value: float) -> None:
    broken = combined(whole["encoder"], "latents", "Add", one_entry((*GRID, 3), value, np.float32))
    with pytest.raises(VerificationError, match="latents that are no numbers"):
        verified(vqvae, None, autoencoder_alone(whole) | {"encoder": broken})


def test_one_pixel_may_be_off_by_one_and_not_by_two(vqvae: VQVAE, whole: Models) -> None:
    def off_by(levels: int) -> Models:
        flipped = one_entry((8, 16, 1), levels, np.uint8)
        return autoencoder_alone(whole) | {"decoder": combined(whole["decoder"], "images", "BitwiseXor", flipped)}

    assert verified(vqvae, None, off_by(1)).largest_pixel_difference == 1
    with pytest.raises(VerificationError, match="decoded pixels differ by 2 of 255 levels"):
        verified(vqvae, None, off_by(2))


def test_one_distance_may_be_off_by_rounding_and_no_more(vqvae: VQVAE, opened: Sessions, whole: Models) -> None:
    """The bound is 1e-5 of the largest of all distances and squares; float32 itself errs by less than 0.1e-5."""
    latents = opened.run("encoder", images=PICTURES)[0].astype(np.float64)
    codebook = vqvae.quantizer.codebook.numpy().astype(np.float64)
    distances = ((latents[..., None, :] - codebook) ** 2).sum(-1)
    largest = max(distances.max(), (latents**2).sum(-1).max(), (codebook**2).sum(-1).max())

    def compare(error: float) -> None:
        one = one_entry((*GRID, K), error * largest, np.float32)
        off = combined(whole["distances"], "distances", "Add", one)
        _compare_distances(vqvae, with_broken(opened, "distances", off), PICTURES)

    for error in (0.8e-5, -0.8e-5):
        compare(error)
    for error in (1.2e-5, -1.2e-5):
        with pytest.raises(VerificationError, match=r"distances differ by 1\.[0-9]e-05 of the largest term"):
            compare(error)


def test_logits_that_are_off_by_one_unit_are_refused(vqvae: VQVAE, loud_prior: PixelCNN, whole: Models) -> None:
    broken = combined(whole["prior"], "logits", "Add", one_entry((*GRID, K), 1, np.int32))
    with pytest.raises(VerificationError, match="the prior's logits differ between ONNX and PyTorch"):
        verified(vqvae, loud_prior, whole | {"prior": broken})


@torch.no_grad()
@pytest.mark.parametrize("name", ["codes", "labels"])
def test_logits_of_other_codes_or_labels_are_refused(
    opened: Sessions, loud_prior: PixelCNN, whole: Models, name: str
) -> None:
    run, codes = with_broken(opened, "prior", deaf(whole["prior"], name, 0)), np.full((5, *GRID), 7)
    with pytest.raises(VerificationError, match="the prior's logits differ between ONNX and PyTorch"):
        compare_logits(loud_prior, run, codes, PICTURE_LABELS)


def test_a_logit_of_a_pixel_that_is_off_by_one_unit_is_refused(
    vqvae: VQVAE, loud_prior: PixelCNN, whole: Models
) -> None:
    one = np.eye(1, K, dtype=np.int32)[0]
    broken = combined(whole["prior_pixel"], "logits", "Add", one)
    with pytest.raises(VerificationError, match=PIXELS_DISAGREE):
        verified(vqvae, loud_prior, whole | {"prior_pixel": broken})


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ("prior_context", "codes_above"),
        ("prior_context", "labels"),
        ("prior_context", "caches"),
        ("prior_pixel", "context"),
        ("prior_pixel", "previous_codes"),
        ("prior_pixel", "left"),
    ],
)
def test_a_decoder_of_codes_that_does_not_hear_an_input_is_refused(
    opened: Sessions, whole: Models, graph: GraphName, name: str
) -> None:
    run = with_broken(opened, graph, deaf(whole[graph], name, 0))
    codes = np.random.default_rng(1).integers(0, K, (5, 3, 4))  # the second row above is in the caches
    with pytest.raises(VerificationError, match=PIXELS_DISAGREE):
        compare_pixel_by_pixel(run, codes, PICTURE_LABELS)


def inputs_of(graph: GraphName) -> Iterable[tuple[str, float]]:
    """The inputs of a sampler that a verified case sets, and what they are where nobody asks for anything."""
    yield from (("uniforms", 0), ("labels", LABELS), ("caches", 0), ("known_codes", 0), ("known_mask", False))
    yield "inverse_temperature", 1
    if graph in ("prior_row", "prior_row_guided", "prior_diagonal_filtered"):
        yield from (("top_k", K), ("top_p", 1))
    if graph == "prior_row_guided":
        yield "guidance", 1
    if graph in DIAGONAL_GRAPHS:
        yield "row_exists", 1


@pytest.mark.parametrize(
    ("graph", "name", "neutral"), [(graph, *given) for graph in SAMPLERS for given in inputs_of(graph)]
)
def test_a_sampler_that_does_not_hear_an_input_is_refused(
    opened: Sessions, loud_prior: PixelCNN, whole: Models, graph: GraphName, name: str, neutral: float
) -> None:
    run = with_broken(opened, graph, deaf(whole[graph], name, neutral))
    with pytest.raises(VerificationError, match=f"^{graph} draws other codes than the teacher-forced sampler"):
        compare_samplers(run, TABLE, GRID, loud_prior)


def test_a_sampler_that_is_wrong_only_where_nothing_is_known_is_refused(
    vqvae: VQVAE, loud_prior: PixelCNN, whole: Models
) -> None:
    nodes = (
        helper.make_node("Cast", ["known_mask"], ["mask_bits"], to=DTYPES["int64"]),
        helper.make_node("ReduceMax", ["mask_bits"], ["any_known"], keepdims=0),
        helper.make_node("Equal", ["any_known", "no"], ["none_known"]),
        helper.make_node("Cast", ["none_known"], ["flipped"], to=DTYPES["int64"]),
    )
    no = onnx.numpy_helper.from_array(np.array(0, np.int64), "no")
    broken = combined(with_nodes(whole["prior_row"], *nodes), "sampled_codes", "BitwiseXor", "flipped")
    broken.graph.initializer.append(no)
    with pytest.raises(VerificationError, match=r"^prior_row draws other codes"):
        verified(vqvae, loud_prior, whole | {"prior_row": broken})


# ---- two vectors that are nearly as near


def twins(dimension: int, second: float) -> VQVAE:
    """A codebook of (10, 10, ..) and the same times `second`, far from every latent."""
    torch.manual_seed(0)
    options = {"channels": 2, "residual_blocks": 0, "downsampling": 2}
    quantizer = EMAQuantizer(2, dimension)
    quantizer.codebook.copy_(torch.tensor([[10.0], [10 * second]]).expand(2, dimension))
    return VQVAE(Encoder(1, dimension, **options), quantizer, Decoder(1, dimension, **options)).eval()


def parity_of(height: int, width: int, flipped: dict[GraphName, Iterable[int]], pictures: int = 1) -> Parity:
    """Of pictures of height x width codes, where a graph takes the second twin at these positions of each.

    The first one is nearer for every latent, by about 1e-4 of the sum of both: a near tie, yet one that float32 never
    gets wrong.
    """
    vqvae = twins(3, 1 + 1e-4)
    noise = np.random.default_rng(0).integers(0, 256, (pictures, 2 * height, 2 * width, 1), dtype=np.uint8)
    assert not vqvae.encode(to_torch(noise)).any()
    models = autoencoder_graphs(vqvae, shapes_of((1, 2 * height, 2 * width), 2, 3, any_size=False))
    for name, positions in flipped.items():
        other = np.zeros((height, width), np.int64)
        other.flat[list(positions)] = 1
        models[name] = combined(models[name], "codes", "BitwiseXor", other)
    return verify(vqvae, None, models, TABLE, noise, np.zeros(pictures, np.int64))


def test_near_ties_are_counted_by_the_graph_that_has_more() -> None:
    """1 in 10,000 of 25,000 is 2.5."""
    parity = parity_of(125, 200, {"quantizer": [0, 24999], "encoder_quantizer": [7]})
    assert (parity.codes_compared, parity.codes_different) == (25000, 2)
    assert parity_of(125, 200, {"quantizer": [0], "encoder_quantizer": [7, 8]}).codes_different == 2
    assert parity_of(2, 4, {"quantizer": [3]}).codes_different == 1  # however few there are


def test_near_ties_are_counted_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.verify.pictures_a_batch", lambda model, height, width: 1)
    with pytest.raises(VerificationError, match="3 of 24 codes differ"):
        parity_of(2, 4, {"quantizer": [3]}, pictures=3)


@pytest.mark.parametrize("graph", ["quantizer", "encoder_quantizer"])
@pytest.mark.parametrize(("height", "width", "count"), [(125, 200, 3), (3, 4, 2)])
def test_too_many_near_ties_are_refused(graph: GraphName, height: int, width: int, count: int) -> None:
    with pytest.raises(VerificationError, match=f"{count} of {height * width} codes differ between ONNX and PyTorch"):
        parity_of(height, width, {graph: range(count)})


def test_a_near_tie_is_within_a_thousandth_of_both_distances() -> None:
    """A latent 0 and vectors at squared distances of 1 and 1.0018 are one, for the bound is 0.0020018; of 1 and 1.0022
    none."""
    vqvae, latents = twins(1, 1), np.zeros((2, 1), np.float32)
    for squared, near in ((1.0018, True), (1.0022, False)):
        vqvae.quantizer.codebook.copy_(torch.tensor([[1.0], [squared**0.5]]))
        for found, expected in (([1, 0], [0, 0]), ([0, 0], [0, 1])):
            if near:
                _require_near_ties(vqvae, latents, np.array(found), np.array(expected))
            else:
                with pytest.raises(VerificationError, match=r"its vector is 0\.1% nearer"):
                    _require_near_ties(vqvae, latents, np.array(found), np.array(expected))


def test_one_code_that_is_no_near_tie_is_refused_among_those_that_are() -> None:
    vqvae = twins(1, 1.5)
    latents = np.array([[12.5], [10]], np.float32)  # halfway, and on the first
    _require_near_ties(vqvae, latents[:1], np.array([1]), np.array([0]))
    with pytest.raises(VerificationError, match="its vector is 100"):
        _require_near_ties(vqvae, latents, np.array([1, 1]), np.array([0, 0]))
