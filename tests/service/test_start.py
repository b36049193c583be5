"""Mistakes of whoever starts the service: `python -m service` says what to change, on one line."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import __main__ as start
from service.app import open_models
from service.metrics import Metrics
from service.sessions import DeviceError
from service.settings import Settings, misspelt
from tests.conftest import Tiny


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is served, and what `main` does to the environment and to logging stays in its test."""
    for name in ("VQSERVE_BUNDLES", "VQSERVE_PORT", "VQSERVE_HOST"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(start, "serve", lambda settings: None)
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)
    yield


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VQSERVE_DEVICE", "gpu", "VQSERVE_DEVICE: Input should be 'auto', 'cuda' or 'cpu'"),
        ("VQSERVE_API_KEYS", "secret", "VQSERVE_API_KEYS: entry 1 must be name:key"),
        ("VQSERVE_BUNDLES", "nowhere", "nowhere/manifest.json does not exist: make a bundle with"),
    ],
)
def test_a_bad_value_ends_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        start.main([])
    assert str(ended.value.code).startswith(said)


def test_a_damaged_bundle_ends_the_start_also_with_several_workers(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> None:
    """uvicorn ends with status 0 when every one of several workers fails: nobody would start it again."""
    bundle = shutil.copytree(tiny.grey, tmp_path / "bundle")
    (bundle / "decoder.onnx").write_bytes(b"cut off")
    monkeypatch.setenv("VQSERVE_WORKERS", "2")
    with pytest.raises(SystemExit, match=r"graph decoder: .* has sha256"):
        start.main(["--bundle", str(bundle)])


def test_a_name_that_is_nearly_a_settings_is_logged(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VQSERVE_PROT", "9000")
    start.main(["--bundle", str(tiny.grey)])
    assert "VQSERVE_PROT is no setting and changes nothing; the nearest name is VQSERVE_PORT" in caplog.messages


def test_names_of_others_are_not_misspelt() -> None:
    theirs = ("PATH", "VQSERVE_URL", "VQSERVE_KEY", "VQSERVE_SERVICE_HOST", "VQSERVE_PORT_8000_TCP_ADDR")
    ours = tuple(f"VQSERVE_{name.upper()}" for name in Settings.model_fields)
    assert misspelt((*theirs, *ours)) == {}


def test_what_the_device_lacks_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(settings: Settings, probe: Path) -> None:
        raise DeviceError("VQSERVE_DEVICE=cuda: there is none")

    monkeypatch.setattr("service.models.session_maker", refuse)
    with pytest.raises(DeviceError):
        open_models(Settings(bundles=(tiny.grey,)), Metrics())
    assert caplog.messages == ["cannot start: VQSERVE_DEVICE=cuda: there is none"]
