"""Memory of sampling: estimates against what is measured, 16-bit weights, batches that fit, and the plan."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.cli_runs import call, one_thread, write_classifier, write_model
from undiffuse import kernels
from undiffuse.config import SamplerConfig
from undiffuse.kernels import convolution
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.nets.memory import Footprint, activation_bytes, store_weights_
from undiffuse.noise import NoiseSource
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines import memory as budget
from undiffuse.pipelines import run as producing
from undiffuse.pipelines.source import Frames, SampleSource
from undiffuse.sampling import Step
from undiffuse.training import seeded

ADM: dict[str, Any] = {"num_head_channels": 32, "resblock_updown": True, "use_scale_shift_norm": True}
NETS = {
    "adm": UNetConfig(
        image_size=32, model_channels=32, out_channels=6, channel_mult=(1, 2, 4), attention_resolutions=(2, 4),
        num_classes=10, **ADM,
    ),
    "deep": UNetConfig(
        image_size=(32, 64), model_channels=32, channel_mult=(1, 1, 2, 2), attention_resolutions=(4, 8), **ADM
    ),
    "improved": UNetConfig(
        image_size=32, model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=3, attention_resolutions=(2, 4),
        num_heads=4,
    ),
    "ddpm": DDPMConfig(model_channels=32),
    "classifier": ClassifierConfig(
        image_size=32, model_channels=32, out_channels=10, channel_mult=(1, 2, 4), attention_resolutions=(2, 4), **ADM
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    with one_thread():
        yield {
            "model": write_model(folder / "model.safetensors"),
            "classifier": write_classifier(folder / "classifier.safetensors"),
        }


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, the weights left out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        self.seen: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage.data_ptr()
                if key not in self.seen and key not in self.weights:
                    self.seen[key] = storage.nbytes()
                    self.most = max(self.most, sum(self.seen.values()))
                    weakref.finalize(storage, self.seen.pop, key, None)
        return out


def answer(net: Any, x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The network's output at x, for classes 0, under autocast to `dtype`."""
    told = {"y": torch.zeros(len(x), dtype=torch.int64)} if "y" in getattr(net, "conditions", ()) else {}
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return net(x, torch.full((len(x),), 7.0), **told)


def ready(name: str) -> Any:
    """A network with random weights, for use only."""
    with seeded(0):
        net = NETS[name].build()
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def image(name: str, batch: int) -> torch.Tensor:
    with seeded(1):
        return torch.randn(batch, 3, *NETS[name].size).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", list(NETS))
def test_the_estimate_is_what_lives_at_once(name: str, dtype: torch.dtype | None) -> None:
    net, batch, guide = ready(name), 2, name == "classifier"
    if dtype is not None:
        store_weights_(net, dtype)
    x = image(name, batch).requires_grad_(guide)
    plain = kernels.using("conv3x3=torch,conv3x3_grad=torch")  # what ours needs for itself is `Footprint.kernel`
    with plain, kernels.planned(kernels.Plan()), Live(net) as live, torch.set_grad_enabled(guide):
        out = answer(net, x, dtype)
        if guide:
            torch.autograd.grad(torch.log_softmax(out, -1)[:, 0].sum(), x)
    estimate = activation_bytes(NETS[name], element=4 if dtype is None else 2, gradient=guide)
    assert 0.95 < estimate * batch / live.most < (1.4 if guide else 1.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_convolutions_kernel_needs_is_in_the_footprint(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # each works in a third of a megabyte of its own
    conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype).requires_grad_(False)
    x = torch.zeros(1, 256, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with Live(conv) as live:
        y = convolution.conv_3x3(x, conv.weight, conv.bias)
    assert live.most - y.untyped_storage().nbytes() < 1.25 * Footprint.of(conv).kernel


def test_the_estimate_follows_the_size_of_the_image() -> None:
    net = NETS["adm"]
    assert activation_bytes(net, (64, 64)) == 4 * activation_bytes(net)
    for fused, share in ((True, 0.8), (False, 0.9)):
        assert activation_bytes(net, element=2, fused=fused) < share * activation_bytes(net, fused=fused)


@pytest.mark.parametrize("name", list(NETS))
def test_weights_stored_in_16_bits_change_nothing_under_autocast(name: str) -> None:
    net, x = ready(name), image(name, 2)
    before, full = answer(net, x, torch.bfloat16), Footprint.of(net).weights
    store_weights_(net, torch.bfloat16)
    after = answer(net, x, torch.bfloat16)
    assert after.dtype == torch.float32
    assert torch.equal(before, after)
    assert Footprint.of(net).weights < 0.72 * full
    kinds = {type(m): p.dtype for m in net.modules() for p in m.parameters(recurse=False)}
    assert kinds[nn.Linear] == torch.float32


@pytest.mark.parametrize("name", ["model", "classifier"])
def test_half_precision_samples(name: str, files: dict[str, Path]) -> None:
    guided = {"classifier": str(files["classifier"]), "guidance": 2.0} if name == "classifier" else {}
    settings = SamplerConfig(model=str(files["model"]), steps="4", solver="ddim").replace(**guided)
    exact = Pipeline.load(settings, "cpu")
    half = Pipeline.load(replace(settings, precision="bf16"), "cpu")
    assert half.record == {**exact.record, "precision": "bf16"}  # the identity is that of the file's weights
    for one, other in zip(half.footprints, exact.footprints, strict=True):
        assert one.weights < other.weights
    assert half.bytes_per_image < exact.bytes_per_image
    images = [s.from_noise(NoiseSource(0, [0, 1, 2]), [0, 1, 2]) for s in (exact, half)]
    difference = (images[0] - images[1]).abs()
    assert 0 < difference.mean() < 0.03


def test_fp16_is_for_gpus(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "--model", files["model"], "--precision", "fp16", "--device", "cpu", "--out", tmp_path / "out")
    assert call(*words) == 2
    assert "fp16 requires a GPU; on a CPU use bf16" in capsys.readouterr().err


def test_batches_follow_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 40_000
    monkeypatch.setattr(budget, "free_bytes", lambda device: free)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert budget.images_at_once(1_000, cpu) == 20
    assert budget.images_at_once(1_000, gpu) == 32
    assert budget.images_at_once(50_000, gpu) == 1
    assert budget.images_at_once(1, gpu) == 64
    free = 10**12
    assert budget.images_at_once(2**28, cpu) == 4  # a CPU gains nothing from more
    assert budget.images_at_once(2**32, gpu) == 64
    monkeypatch.setattr(budget, "free_bytes", lambda device: None)
    assert budget.images_at_once(2**28, torch.device("mps")) == 4


def test_free_memory_is_known_here() -> None:
    free = budget.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_what_does_not_fit_is_made_in_halves(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    from_noise = Pipeline.from_noise

    def short(self: Pipeline, noise: Any, *args: Any, **keywords: Any) -> torch.Tensor:
        sizes.append(len(noise))
        x = from_noise(self, noise, *args, **keywords)  # and only then: what was seen on the way must be forgotten
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

    words = ("sample", "--model", files["model"], "--count", 7, "--steps", 3, "--device", "cpu", "--animation", "gif")
    assert call(*words, "--out", tmp_path / "a", "--batch", 7) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "from_noise", short)
        assert call(*words, "--out", tmp_path / "b", "--batch", 7) == 0
    assert sizes == [7, 4, 2, 2, 2, 1]
    a, b = (read_samples(tmp_path / name).images.astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 1


def test_frames_of_a_batch_that_did_not_fit_are_forgotten(files: dict[str, Path]) -> None:
    def short(step: Step, batch: int) -> None:
        if batch > 2 and step.index == 1:
            raise MemoryError

    sampler = Pipeline.load(SamplerConfig(model=str(files["model"]), steps="3"), "cpu")
    whole, halves = Frames(4, 3), Frames(4, 3)
    SampleSource(sampler, 0, [0]).make([0, 1, 2, 3], frames=whole)
    SampleSource(sampler, 0, [0]).make([0, 1, 2, 3], frames=halves, watch=short)
    for one, other in zip(whole.pictures(), halves.pictures(), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_no_image_fits(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")

    def wrong(*args: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    job = SampleSource(Pipeline.load(SamplerConfig(model=str(files["model"]), steps="3"), "cpu"), 0, [0])
    monkeypatch.setattr(SampleSource, "_make", never)
    with pytest.raises(MemoryError, match="not even one image at a time fits into memory: precision=bf16 needs"):
        job.make([0, 1])
    monkeypatch.setattr(SampleSource, "_make", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        job.make([0, 1])


def test_the_plan_is_told_first(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda device: 12_300_000_000)
    monkeypatch.setattr(producing, "_LONG", 0.0)
    words = ("sample", "--model", files["model"], "--count", 3, "--batch", 2, "--steps", 4, "--device", "cpu")
    assert call(*words, "--classifier", files["classifier"], "--out", tmp_path) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line]
    assert told[0].startswith("  plan    ")
    plan = " ".join(line.strip() for line in told[:2])
    assert "parameters" in plan
    assert "weights; batch 2, about " in plan
    assert "of 12.3 GB free; 4 steps" in plan
    times = [line for line in told if line.startswith("  time    ")]
    assert len(times) == 1
    assert "s per step (measured on the first)" in times[0]
    assert times[0].endswith("for 3 images")
    assert max(map(len, told[:3])) <= 100
    assert call(*words, "--classifier", files["classifier"], "--out", tmp_path) == 0
    assert "  plan " not in capsys.readouterr().out  # there is nothing to make
    assert read_record(next(tmp_path.glob("*_seed*.png")))["precision"] == "fp32"


def test_the_expected_time() -> None:
    told = producing.expected_time(3.1, 250, 1, 4)
    assert told == "  time    3.1 s per step (measured on the first), 12m55s per image, about 51m40s for 4 images"
    told = producing.expected_time(3.1, 250, 4, 4)
    assert told is not None
    assert "3m14s per image, about 12m55s for 4 images" in told
    assert producing.expected_time(0.001, 50, 4, 20) is None
