"""Networks prepared for inference: another object, while the model stays whole, saveable and trainable."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoiser import ProcessConfig
from undiffuse.ema import EMA
from undiffuse.models import DiffusionModel, load_classifier, load_diffusion, save_model
from undiffuse.nets import NetworkRunner, NetworkSpec, UNetConfig, prepare_for_inference
from undiffuse.nets.memory import Footprint, activation_bytes, bytes_per_image
from undiffuse.nets.packing import can_pack

CPU = torch.device("cpu")
SHIPPED = "fashion-mnist-32"
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack convolutions")


def given(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return x, torch.full((batch,), 500.0), torch.arange(batch)


def answer(network: Any) -> Tensor:
    x, t, y = given()
    with torch.no_grad():
        return network(x, t, y=y)


class Perceptron(nn.Module):
    """A network without convolutions, config and conditions."""

    def __init__(self, side: int = 8, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(side * side + 1, width), nn.Linear(width, side * side)
        self.register_buffer("offset", torch.full((1,), 0.5))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x.flatten(1), t[:, None] / 1000], dim=1)
        return self.last(torch.tanh(self.first(h) + self.offset)).view(x.shape)


def test_a_model_is_prepared_again_and_again_with_other_precisions() -> None:
    model = load_diffusion(SHIPPED)
    before, digest = answer(model.net), model.digest
    exact = model.denoiser(precision="fp32").network
    half = model.denoiser(precision="bf16").network
    again = model.denoiser(precision="fp32").network
    assert torch.equal(answer(exact), answer(again))
    assert torch.allclose(answer(exact), before, atol=1e-4)
    assert 0 < float((answer(half) - before).abs().mean()) < 0.03
    assert torch.equal(answer(model.net), before)
    assert model.digest == digest
    guide = load_classifier("fashion-mnist-32-classifier")
    assert guide.level_classifier(precision="bf16").network.net is not guide.net
    assert guide.level_classifier(precision="fp32").network.footprint.parameters == exact_count(guide.net)


def exact_count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
def test_a_model_is_saved_whole_after_it_was_used(precision: str | None, tmp_path: Path) -> None:
    model = load_diffusion(SHIPPED)
    save_model(tmp_path / "before.safetensors", model)
    answer(model.denoiser(precision=precision).network)
    save_model(tmp_path / "after.safetensors", model)
    assert (tmp_path / "before.safetensors").read_bytes() == (tmp_path / "after.safetensors").read_bytes()
    assert load_diffusion(tmp_path / "after.safetensors").digest == model.digest


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_trains_after_it_was_used_and_its_runner_follows(precision: str) -> None:
    model = load_diffusion(SHIPPED)
    runner = model.denoiser(precision=precision).network
    before, digest = answer(runner), model.digest
    net = model.net.train().requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, t, y = given()
    net(x, t, y).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    optimizer.step()
    assert net.training  # preparing and calling leave the mode of the original alone
    after = answer(runner)
    assert not torch.equal(after, before)
    assert torch.equal(after, answer(prepare_for_inference(net, precision, CPU)))  # nothing of the old weights is left
    assert model.digest != digest
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    net.load_state_dict(load_diffusion(SHIPPED).net.state_dict(), assign=True)  # other parameters in place of the old
    assert torch.equal(answer(runner), before)


def test_a_runner_outlives_its_model_and_keeps_none_of_its_memory() -> None:
    net = UNetConfig(image_size=8, model_channels=32, channel_mult=(1,), num_res_blocks=1).build().eval()
    runner = prepare_for_inference(net, "fp32", CPU)
    x, t = torch.ones(1, 3, 8, 8), torch.zeros(1)
    before = runner(x, t)
    weight = weakref.ref(net.input_blocks[0][0].weight)
    del net
    gc.collect()
    assert weight() is None
    assert torch.equal(runner(x, t), before)


@needs_packing
def test_packed_weights_are_the_only_copies() -> None:
    """What is not packed shares the memory of the model."""
    model = load_diffusion(SHIPPED)
    runner = model.denoiser(precision="fp32").network
    ours = {p.data_ptr() for p in model.net.parameters()}
    assert all(p.data_ptr() in ours for p in runner.net.parameters())
    assert {p.data_ptr() for p in NetworkRunner(model.net, "fp32", CPU).net.parameters()} == ours


def test_a_model_that_gave_up_its_weights_says_so(tmp_path: Path) -> None:
    model = load_diffusion(SHIPPED)
    expected = answer(model.denoiser(precision="fp32").network)
    digest = model.digest
    runner = model.denoiser(precision="fp32", consume=True).network
    assert torch.equal(answer(runner), expected)
    assert model.digest == digest
    with pytest.raises(ValueError, match=r"consume=True, so it cannot be saved: load it again"):
        save_model(tmp_path / "model.safetensors", model)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="given up"):
        model.denoiser(precision="bf16")
    assert torch.equal(answer(runner), expected)
    net = Perceptron()
    net.last.weight = nn.Parameter(net.last.weight.data)
    tied = nn.ModuleList([net, Perceptron()])
    tied[1].first = net.first
    prepare_for_inference(tied, "fp32", CPU, consume=True)
    assert tied[0].first.weight is tied[1].first.weight  # and tied parameters stay tied


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("gradient", [False, True])
def test_networks_without_convolutions_are_prepared(precision: str, gradient: bool) -> None:
    net = Perceptron()
    runner = prepare_for_inference(net, precision, CPU, gradient=gradient)
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    near = 1e-6 if precision == "fp32" else 0.05
    assert torch.allclose(runner(x, t), net(x, t), atol=near)
    assert runner(x, t).dtype == torch.float32
    assert runner.footprint == Footprint(exact_count(net), 4 * exact_count(net), 0)
    assert runner.net.first.weight.data_ptr() == net.first.weight.data_ptr()
    (slope,) = torch.autograd.grad(runner(x.requires_grad_(), t).sum(), x)
    assert slope.abs().sum() > 0
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_runners_and_models_can_be_copied() -> None:
    model = load_diffusion(SHIPPED)
    runner = model.denoiser(precision="fp32").network
    expected = answer(runner)
    other = copy.deepcopy(model)
    assert other.digest == model.digest
    with torch.no_grad():
        for parameter in other.net.parameters():
            parameter.zero_()
    assert torch.equal(answer(runner), expected)
    assert torch.equal(answer(copy.deepcopy(model.net).eval()), answer(model.net))
    assert torch.equal(answer(copy.deepcopy(runner.net)), answer(runner.net))


def test_other_peoples_layers_are_neither_packed_nor_rounded() -> None:
    """What a stranger does with a convolution beside calling it is not known."""

    class Circular(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            assert x.is_contiguous()  # and images keep their layout, for x.view
            return self._conv_forward(x, self.weight.softmax(1), self.bias).view(x.shape[0], -1).view(x.shape)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Circular(2, 2, 3, padding=1, padding_mode="circular")

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x)

    net, x = Net(), torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for precision, near in (("fp32", 0.0), ("bf16", 0.05)):
        runner = prepare_for_inference(net, precision, CPU)
        images = x.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(runner(images, torch.zeros(2)), net(x, torch.zeros(2)), atol=near)
        assert runner.net.conv.weight.dtype == torch.float32


def test_weights_that_changed_are_used_inside_a_callers_autocast() -> None:
    """Autocast keeps 16-bit copies of weights until its outermost context ends; an average would not be seen."""
    net = UNetConfig(image_size=8, in_channels=1, out_channels=1, model_channels=8, num_res_blocks=1).build()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    average = EMA(net, (0.5,))
    for parameter in net.parameters():
        parameter.data += 0.05
    runner, x, t = NetworkRunner(net, "bf16", CPU), torch.ones(1, 1, 8, 8), torch.zeros(1)

    def answers() -> list[Tensor]:
        out = [runner(x, t).detach()]
        with torch.no_grad(), average.applied("0.5"):
            return [*out, runner(x, t)]

    outside = answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = answers()
    assert not torch.equal(*outside)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_a_model_in_use_does_not_change_when_its_file_is_saved_again(tmp_path: Path) -> None:
    """Weights are pages of the file: a save in place would change those of a loaded model."""
    path = tmp_path / "model.safetensors"
    save_model(path, load_diffusion(SHIPPED))
    used, other = load_diffusion(path), load_diffusion(path)
    before = {name: tensor.clone() for name, tensor in used.net.state_dict().items()}
    other.net.load_state_dict({name: tensor + 1 for name, tensor in before.items()}, assign=True)
    save_model(path, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in used.net.state_dict().items())
    again = load_diffusion(path).net.state_dict()
    assert all(torch.equal(again[name], tensor + 1) for name, tensor in before.items())


def test_a_network_must_return_a_tensor() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return {"sample": x}

    with pytest.raises(TypeError, match="Net returned a dict, not a tensor: wrap it"):
        NetworkRunner(Net(), "fp32", CPU)(torch.zeros(1, 1, 2, 2), torch.zeros(1))


def test_the_memory_of_any_network_is_estimated() -> None:
    spec = NetworkSpec(size=(8, 8), in_channels=1)
    net = Perceptron(width=1000)
    found = bytes_per_image(net, spec=spec)
    assert found is not None
    assert 2 * 4000 <= found < 4 * 4000  # a layer's input and output, not its weights
    assert bytes_per_image(net, spec=spec, gradient=True) > found  # type: ignore[operator]
    assert all(p.device.type == "cpu" and p.requires_grad for p in net.parameters())
    own = UNetConfig(image_size=8, model_channels=32, channel_mult=(1,))
    assert bytes_per_image(own.build()) == activation_bytes(own)

    class Undecided(Perceptron):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) if float(x.mean()) > 0 else x

    assert bytes_per_image(Undecided(), spec=spec) is None


PEAK = """
import sys, torch
torch.set_num_threads(1)
from undiffuse.kernels import keep_memory
from undiffuse.models import load_diffusion
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
keep_memory()
before = peak()
model = load_diffusion(sys.argv[1])
runner = model.denoiser(precision=sys.argv[2]).network
x = torch.zeros(1, 3, 8, 8)
with torch.no_grad():
    runner(x, torch.zeros(1))
print((peak() - before) * 1024, sum(p.numel() for p in model.net.parameters()))
"""


@needs_packing
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(("precision", "copies"), [("fp32", 2.0), ("bf16", 1.5)])
def test_memory_does_not_double_where_the_model_stays_whole(precision: str, copies: float, tmp_path: Path) -> None:
    """One copy is the file's, which the system may drop and read again; the other is the packed one."""
    config = UNetConfig(
        image_size=8, model_channels=256, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=()
    )
    net = config.build()

    save_model(tmp_path / "m.safetensors", DiffusionModel(net, ProcessConfig(variance="fixed_large")))
    words = [sys.executable, "-c", PEAK, str(tmp_path / "m.safetensors"), precision]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    used, parameters = map(int, done.stdout.split())
    weights = 4 * parameters
    assert weights > 60e6
    assert used < copies * weights + 0.35 * weights + 20e6, used / weights
