"""What onnxruntime is asked for on a GPU, and the GPU's code paths run on the CPU: the same answers, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from service.bundle import load_bundle
from service.inference.encoder import EncoderThenQuantizer
from service.inference.sessions import CPU, CUDA, TENSORRT, DeviceError, SessionMaker, gpu_providers, session_maker
from service.prior.draws import Codes
from service.prior.sampling import RowSampler
from service.settings import Precision, Settings
from tests.service.conftest import Generating
from tests.service.prior.test_sampling import GRID, drawn, random_draws
from training.models.prior import GATE_LIMIT, STREAM_LIMIT

EXACT = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kNextPowerOfTwo",
    "use_tf32": "0",
    "enable_cuda_graph": "0",
}
COARSE: dict[str, Any] = {"encoder_precision": "tf32", "decoder_precision": "fp16"}


def test_cuda_is_exact_by_default() -> None:
    assert gpu_providers(Settings(), "float32", cuda_graph=False) == [(CUDA, EXACT)]


@pytest.mark.parametrize(
    ("settings", "precision", "cuda_graph", "changed"),
    [
        ({"cuda_convolution_search": "EXHAUSTIVE"}, "float32", False, {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        ({"cuda_arena_growth": "kSameAsRequested"}, "float32", False, {"arena_extend_strategy": "kSameAsRequested"}),
        ({"cuda_memory_limit_mib": 3}, "float32", False, {"gpu_mem_limit": "3145728"}),
        ({}, "tf32", False, {"use_tf32": "1"}),
        ({}, "float32", True, {"enable_cuda_graph": "1"}),
    ],
)
def test_each_setting_becomes_one_option(
    settings: dict[str, Any], precision: Precision, cuda_graph: bool, changed: dict[str, str]
) -> None:
    assert gpu_providers(Settings(**settings), precision, cuda_graph=cuda_graph) == [(CUDA, EXACT | changed)]


def test_tensorrt_stands_before_cuda_and_never_gets_an_exact_graph() -> None:
    settings = Settings(tensorrt=True, tensorrt_cache="/engines", **COARSE)
    assert gpu_providers(settings, "float32", cuda_graph=False) == [(CUDA, EXACT)]
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/engines"}
    coarse = (CUDA, EXACT | {"use_tf32": "1"})
    assert gpu_providers(settings, "tf32", cuda_graph=False) == [(TENSORRT, {"trt_fp16_enable": "0"} | cache), coarse]
    assert gpu_providers(settings, "fp16", cuda_graph=False) == [(TENSORRT, {"trt_fp16_enable": "1"} | cache), coarse]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoder_precision": "fp16"}, "fp16 needs TensorRT"),
        ({"decoder_precision": "fp16"}, "fp16 needs TensorRT"),
        ({"tensorrt": True}, "TensorRT cannot be kept from using TF32: set VQSERVE_ENCODER_PRECISION"),
    ],
)
def test_precisions_that_cannot_be_had_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        Settings(**settings)
    assert raised.value.errors()[0]["loc"] == ("tensorrt",)


def test_tf32_cannot_hold_what_the_prior_multiplies() -> None:
    """TF32 keeps 11 significant bits. The streams fit; of the products of two gates, 1 to 64 each, some do not."""

    def fits(number: int) -> bool:
        return number % (1 << max(0, number.bit_length() - 11)) == 0

    assert all(fits(number) for number in range(1, STREAM_LIMIT + 1))
    products = {one * other for one in range(1, GATE_LIMIT + 1) for other in range(1, GATE_LIMIT + 1)}
    assert not all(fits(product) for product in products)


Opened = dict[str, list[tuple[str, dict[str, str]]]]  # graph file -> providers that were asked for


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """CUDA that is the CPU in disguise: what is asked for is recorded, device memory is main memory."""
    opened: Opened = {}

    class Disguised(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, graph: bytes, options: Any, providers: Any, enable_fallback: int) -> None:
            if providers[0][0] != CPU:  # service.inference.label_check looks at one graph on the CPU
                opened[options.logid] = providers
            super().__init__(graph, options, providers=[CPU], enable_fallback=enable_fallback)
            self._claimed = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return getattr(self, "_claimed", [CPU])

    monkeypatch.setattr(ort, "InferenceSession", Disguised)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(SessionMaker, "device", "cpu")
    return opened


def test_only_encoder_and_decoder_are_ever_less_than_exact(
    pretended_cuda: Opened,
    make_generator: Callable[..., TestClient],
    generator: TestClient,
    digit: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole service on the GPU's paths: padded batches, two sessions to encode, caches that stay; same answers."""
    client = make_generator(
        device="cuda",
        tensorrt=True,
        cuda_graphs=True,
        max_batch=4,
        max_generate_batch=4,
        **COARSE,
    )
    batches = list[int]()
    engine = client.app.state.service.models.get("digits").engine  # type: ignore[attr-defined]
    run = engine._encoder.run

    def noted(names: Any, inputs: dict[str, Any]) -> Any:
        batches.append(len(inputs["images"]))
        return run(names, inputs)

    monkeypatch.setattr(engine._encoder, "run", noted)
    assert pretended_cuda.keys() >= {"encoder.onnx", "quantizer.onnx", "decoder.onnx", "prior.onnx", "prior_row.onnx"}
    assert "encoder_quantizer.onnx" not in pretended_cuda
    for graph, providers in pretended_cuda.items():
        names, (_, options) = [name for name, _ in providers], providers[-1]
        coarse = graph in ("encoder.onnx", "decoder.onnx")
        assert names == ([TENSORRT, CUDA] if coarse else [CUDA]), graph
        assert options["use_tf32"] == str(int(coarse)), graph
        assert options["enable_cuda_graph"] == str(int(graph.startswith("prior_row"))), graph
    asked = {"json": {"seed": 4, "n": 5, "top_k": 9}, "headers": {"accept": "application/json"}}
    encoded, drawn_there = (one.post("/encode", files={"img": digit}).json()["codes"] for one in (client, generator))
    assert encoded == drawn_there
    three = {"files": [("img", digit)] * 3}
    together, alone = (one.post("/encode", **three).json() for one in (client, generator))
    assert together == alone and len(together["items"]) == 3
    assert batches == [1, 4], "three are padded to a size for which the GPU is warm"
    assert client.post("/generate", **asked).json() == generator.post("/generate", **asked).json()


@pytest.mark.parametrize("graphs", [True, False])
def test_cuda_graphs_belong_to_the_thread_that_draws(
    pretended_cuda: Opened, make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """onnxruntime keeps them a thread, and while it captures one, CUDA fails the calls of other threads."""
    threads, run = set[str](), RowSampler._run

    def noted(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return run(*arguments)

    monkeypatch.setattr(RowSampler, "_run", noted)
    client = make_generator(device="cuda", cuda_graphs=graphs)
    client.post("/generate", json={"n": 2})
    assert threads == {"sampler_0"}  # each model's only one
    answer = client.post("/models/digits/reload")
    assert answer.status_code == (422 if graphs else 200)
    assert ("VQSERVE_CUDA_GRAPHS" in answer.text) is graphs


def test_a_tensorrt_that_is_not_there_fails_at_start(
    pretended_cuda: Opened, monkeypatch: pytest.MonkeyPatch, generating: Generating
) -> None:
    graph, settings = generating.folders[0] / "decoder.onnx", Settings(device="cuda", tensorrt=True, **COARSE)
    assert session_maker(settings, graph).provider == CUDA
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: [CUDA, CPU])
    with pytest.raises(DeviceError, match=r"decoder\.onnx runs on CUDA.* instead of Tensorrt.*VQSERVE_TENSORRT=false"):
        session_maker(settings, graph)


def test_tf32_forced_from_outside_is_refused(
    pretended_cuda: Opened, monkeypatch: pytest.MonkeyPatch, generating: Generating
) -> None:
    graph = generating.folders[0] / "decoder.onnx"
    assert session_maker(Settings(device="cuda"), graph).provider == CUDA
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(DeviceError, match="NVIDIA_TF32_OVERRIDE=1 forces TF32"):
        session_maker(Settings(device="cuda"), graph)


class Resident(SessionMaker):
    """Keeps the sampler's caches on a "device" that is the CPU."""

    resident = True


def test_caches_that_stay_on_the_device_draw_the_same_codes(generating: Generating) -> None:
    bundle, draws = load_bundle(generating.folders[0]), random_draws(8)
    expected = drawn(RowSampler(bundle, SessionMaker(CPU, 1), 8, 8), draws)
    sampler = RowSampler(bundle, Resident(CPU, 1), 8, 8)
    assert (drawn(sampler, draws) == expected).all()
    assert (drawn(sampler, draws[::-1]) == expected[::-1]).all()  # the places are used again


def test_samples_come_and_go_while_caches_stay_on_the_device(generating: Generating) -> None:
    """Batches change at random or stay for some rows, and every place that falls free is used again at once."""
    bundle, draws = load_bundle(generating.folders[0]), random_draws(40)
    host = RowSampler(bundle, SessionMaker(CPU, 1), 4, 6)
    expected = [drawn(host, [draw])[0] for draw in draws]
    sampler, random = RowSampler(bundle, Resident(CPU, 1), 4, 6), np.random.default_rng(0)
    waiting, under_way = list(range(len(draws))), dict[int, int]()  # draw -> place
    rows: list[list[Codes]] = [[] for _ in draws]
    while waiting or under_way:
        while waiting and sampler.free_places:
            one = waiting.pop(0)
            under_way[one] = sampler.open(draws[one])
        chosen = random.permutation(list(under_way))[:4].tolist()
        for _ in range(random.integers(1, 4)):
            for one, row in zip(chosen, sampler.advance([under_way[one] for one in chosen]), strict=True):
                rows[one].append(row)
            for one in [one for one in chosen if len(rows[one]) == GRID[0]]:
                sampler.close(under_way.pop(one))
                chosen.remove(one)
            if not chosen:
                break
    assert (np.array(rows) == np.array(expected)).all()


def test_latents_that_stay_on_the_device_give_the_codes_of_the_fused_graph(generating: Generating) -> None:
    bundle, maker = load_bundle(generating.folders[0]), SessionMaker(CPU, 1)
    fused, encoder, quantizer = (
        maker.open(bundle.folder / f"{name}.onnx") for name in ("encoder_quantizer", "encoder", "quantizer")
    )
    split = EncoderThenQuantizer(encoder, quantizer, maker.device)
    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1), np.uint8)
        assert (split.run(None, {"images": images})[0] == fused.run(None, {"images": images})[0]).all()
