"""Every command that makes pictures records its kernels and uses those of earlier ones; processes share one choice."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.cli_runs import call, write_images, write_model
from undiffuse.config import SamplerConfig
from undiffuse.editing import inpaint, vary
from undiffuse.kernels import Plan, autotune, choice
from undiffuse.kernels.convolution import has_winograd
from undiffuse.nets import UNetConfig, describe
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline, interpolation, latents
from undiffuse.training.kernels import shared_plan

CHOSEN = {"batch": 3, "torch": ["conv3x3 fp32 64-64 8x8"]}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What plans are given from records, where every plan's note is `CHOSEN`."""
    found: list[Any] = []
    original = Plan.__init__

    def noted(self: Plan, batch: int | None = None, recorded: Any = None) -> None:
        found.append(recorded)
        original(self, batch, recorded)

    monkeypatch.setattr(Plan, "__init__", noted)
    monkeypatch.setattr(Plan, "note", lambda self: {"kernels": CHOSEN})
    return found


@pytest.fixture
def model(tmp_path: Path) -> SamplerConfig:
    return SamplerConfig(model=str(write_model(tmp_path / "model.safetensors")), steps="2")


def test_edits(model: SamplerConfig, tmp_path: Path, seen: list[Any]) -> None:
    images, out = write_images(tmp_path / "images", each=1), tmp_path / "out"
    mask = torch.zeros(8, 8, dtype=torch.bool).numpy()
    mask[2:5, 2:5] = True
    words: dict[str, Any] = {"model": model, "method": "pigdm", "out": out, "progress": False}
    made = inpaint(images, mask, **words)
    files = [out / name for name in made.names]
    assert all(read_record(file)["kernels"] == CHOSEN for file in (*files, out / "grid.png"))
    assert CHOSEN not in seen
    files[1].unlink()
    inpaint(images, mask, **words)
    assert CHOSEN in seen and read_record(files[1])["kernels"] == CHOSEN
    varied = vary(images, model=model, out=tmp_path / "varied", progress=False)
    assert read_record(tmp_path / "varied" / varied.names[0])["kernels"] == CHOSEN


def test_decoded_and_interpolated_images(model: SamplerConfig, tmp_path: Path, seen: list[Any]) -> None:
    images, out = write_images(tmp_path / "images", each=1), tmp_path / "out"
    pipeline = Pipeline.load(model.replace(solver="ddim"), "cpu")
    stored = latents.encode(pipeline, images, progress=False)
    assert latents.decode(pipeline, stored, progress=False).notes["kernels"] == CHOSEN
    latents.decode_into(out, pipeline, stored, progress=False)
    files = sorted(file for file in out.iterdir() if file.suffix == ".png")
    assert len(files) == 4 and all(read_record(file)["kernels"] == CHOSEN for file in files)
    next(file for file in files if file.name != "grid.png").unlink()
    latents.decode_into(out, pipeline, stored, progress=False)
    assert CHOSEN in seen
    found = interpolation.interpolate(pipeline, seeds=[1, 2], classes="left", frames=2, progress=False)
    assert found.record["kernels"] == CHOSEN


class Ranks:
    """Two processes in one: what the main one sends, the other one gets."""

    world_size, device = 2, torch.device("cpu")

    def __init__(self, is_main: bool, sent: list[Any]) -> None:
        self.is_main, self.sent = is_main, sent

    def broadcast_json(self, value: Any) -> Any:
        if self.is_main:
            self.sent.append(value)
        return self.sent[0]


def test_the_main_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = UNetConfig(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, num_classes=3,
        attention_resolutions=(), dropout=0.5,
    )  # fmt: skip
    net, sent = config.build(), list[Any]()
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "timed")
    before = torch.get_rng_state()

    def plan(who: str) -> Plan:
        """The main process wants our kernel forward and PyTorch's backward, the other one the opposite."""
        ours = "conv3x3" if who == "main" else "conv3x3_grad"
        monkeypatch.setattr(autotune, "_decide", lambda key, batch, ways, *more: ways[0 if key[0] == ours else -1])
        ranks: Any = Ranks(who == "main", sent)
        return shared_plan(ranks, net, describe(net), "fp32", 4, None)

    main, other = plan("main"), plan("other")
    assert main.record() == other.record() == sent[0] and sent[0]["batch"] == 4
    forward, backward = ((name, "fp32", 32, 32, 8, 8) for name in ("conv3x3", "conv3x3_grad"))
    if has_winograd(32, 32, torch.float32):
        ways = choice.OPERATIONS["conv3x3"]
        assert other.choose(forward, 4, ways, lambda *given: lambda: None) == "winograd"
        assert other.choose(backward, 4, ways, lambda *given: lambda: None) == "torch"
    else:
        assert sent[0]["torch"] == ["conv3x3 fp32 32-32 8x8"]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_alone_nothing_is_run_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    net = UNetConfig(image_size=8, in_channels=1, model_channels=32, channel_mult=(1,)).build()
    ranks: Any = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    monkeypatch.setattr("undiffuse.training.kernels._pass", lambda *given: pytest.fail("run"))
    assert shared_plan(ranks, net, describe(net), "fp32", 2, CHOSEN).record()["torch"] == CHOSEN["torch"]


def test_the_option_of_the_command_line(
    model: SamplerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("UNDIFFUSE_KERNELS", raising=False)
    used: list[str] = []
    original = Pipeline.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Pipeline, "load", classmethod(lambda cls, *a, **k: used.append(choice.text()) or original(cls, *a, **k))
    )
    words = (
        "sample",
        "--model",
        str(model.model),
        "--steps",
        2,
        "--count",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    )
    assert call(*words, "--kernels", "pure,conv3x3=torch") == 0 and used == ["pure,conv3x3=torch"]
    assert choice.text() == "" and "UNDIFFUSE_KERNELS" not in os.environ
    assert call(*words, "--kernels", "fast") == 2
    assert "--kernels is 'fast'; expected one of auto, pure, compiled" in capsys.readouterr().err
