"""Networks made ready to be used: the same numbers, whatever the size, the batch and the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undiffuse import kernels
from undiffuse.arithmetic import computes_bfloat16
from undiffuse.guidance import ClassifierGuidance
from undiffuse.kernels.autotune import Plan, planned
from undiffuse.models import load_classifier, load_diffusion
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.nets.blocks import GroupNorm, ResBlock
from undiffuse.nets.packing import PackedConv2d, PackedNorm, can_pack, pack_
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM

CPU = torch.device("cpu")
TRUNK: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
}
NETS: dict[str, Any] = {
    "adm": UNetConfig(
        **TRUNK,
        out_channels=6,
        attention_resolutions=(2,),
        num_head_channels=32,
        num_classes=10,
        use_scale_shift_norm=True,
        resblock_updown=True,
    ),
    "improved": UNetConfig(**TRUNK, out_channels=6, attention_resolutions=(2,), num_heads=4),
    "upsampler": UNetConfig(**TRUNK, out_channels=3, super_resolution=True, use_scale_shift_norm=True),
    "ablation": UNetConfig(**TRUNK, out_channels=3, rescale_residual=True, resblock_updown=True, use_checkpoint=True),
    "ddpm": DDPMConfig(**{**TRUNK, "out_channels": 3}, attention_resolutions=(2,)),
}
CLASSIFIER = ClassifierConfig(
    **TRUNK,
    out_channels=10,
    attention_resolutions=(2,),
    num_head_channels=32,
    resblock_updown=True,
    use_checkpoint=True,
)
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack convolutions")


def built(config: Any) -> nn.Module:
    """A network with weights everywhere, none of them zero."""
    net = config.build().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return net


def inputs(name: str, batch: int = 3, size: int = 16) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=generator)
    t = torch.tensor([900.0, 300.5, 0.0, 999.0, 17.0])[:batch]
    more = {"adm": {"y": torch.arange(batch)}, "upsampler": {"low_res": torch.tanh(x[:, :, ::2, ::2])}}
    return (x, t), more.get(name, {})


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("name", list(NETS))
@torch.no_grad()
def test_a_ready_network_gives_the_same(name: str) -> None:
    net = built(NETS[name])
    given, cond = inputs(name)
    with kernels.using("pure"):
        exact = net(*given, **cond)
    forward = prepare_for_inference(net, "fp32", CPU)
    assert forward(*given, **cond).dtype == torch.float32
    assert apart(forward(*given, **cond), exact) < 3e-6
    assert forward.footprint.parameters == sum(p.numel() for p in net.parameters())
    half = prepare_for_inference(net, "bf16", CPU)
    autocast = NetworkRunner(net, "bf16", CPU)(*given, **cond)
    assert half(*given, **cond).dtype == torch.float32
    assert apart(half(*given, **cond), exact) < 1.3 * apart(autocast, exact) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_images_do_not_touch_each_other_and_calls_leave_no_trace(precision: str) -> None:
    forward = prepare_for_inference(built(NETS["adm"]), precision, CPU)
    (x, t), cond = inputs("adm", 5)
    together = forward(x, t, **cond)
    assert torch.equal(forward(x, t, **cond), together)  # to the bit
    near = 3e-6 if precision == "fp32" else 0.02
    for rows in ([2], [4, 0], [3, 3, 1]):
        alone = forward(x[rows], t[rows], y=cond["y"][rows])
        assert apart(alone, together[rows]) < near
    large, _ = inputs("adm", 2, 32)
    forward(*large, y=torch.tensor([1, 2]))
    assert torch.equal(forward(x, t, **cond), together)  # other sizes between, and back


@needs_packing
@torch.no_grad()
def test_what_is_packed() -> None:
    original = built(NETS["adm"])
    forward = prepare_for_inference(original, "fp32", CPU)
    net = forward.net
    assert any(isinstance(module, nn.Conv2d) for module in original.modules())
    assert not any(isinstance(module, (nn.Conv1d, nn.Conv2d)) for module in net.modules())
    asked = []
    together = next(m for m in net.modules() if isinstance(m, ResBlock)).emb_layers[1]._together
    weight = together.weight
    assert len(weight) == sum(2 * len(m.out_layers[0].weight) for m in net.modules() if isinstance(m, ResBlock))

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is nn.functional.linear and args[1] is weight:
                asked.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    given, cond = inputs("adm")
    with Counted():
        forward(*given, **cond)
    assert asked == [3]  # all projections of the embedding in one product


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs_", "outputs", "stride"), [(384, 384, 1), (3, 32, 1), (32, 2, 1), (64, 64, 2)])
def test_packed_convolutions_follow_the_size(inputs_: int, outputs: int, stride: int, dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN packs nothing in {dtype} on this CPU")
    conv = nn.Conv2d(inputs_, outputs, 3, stride=stride, padding=1)
    packed = PackedConv2d(conv, dtype)
    plain = conv.to(dtype).float()
    generator = torch.Generator().manual_seed(0)
    for batch, size in [(1, 8), (3, 16), (1, 4), (1, 8)]:
        x = torch.randn(batch, inputs_, size, size, generator=generator).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with kernels.using("conv3x3_packed=packed"):
            y = packed(x)
            base = torch.randn(y.shape, generator=generator).to(dtype)
            more = packed.onto(base, x)
        assert apart(y.float(), plain(x.float())) < (1e-6 if dtype == torch.float32 else 4e-3)
        assert apart(more.float(), base.float() + plain(x.float())) < (
            1e-6 if stride and dtype == torch.float32 else 6e-3
        )


def test_a_network_for_gradients_is_not_packed_and_keeps_nothing() -> None:
    original = built(CLASSIFIER)
    (x, t), _ = inputs("classifier")
    x.requires_grad_()
    (exact,) = torch.autograd.grad(original(x, t).log_softmax(-1)[:, 0].sum(), x)
    forward = prepare_for_inference(original, "fp32", CPU, gradient=True)
    net: Any = forward.net
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in original.parameters())
    calls = []
    net.middle_block[0].in_layers[2].register_forward_hook(lambda *_: calls.append(1))
    (ours,) = torch.autograd.grad(forward(x, t).log_softmax(-1)[:, 0].sum(), x)
    assert apart(ours, exact) < 1e-5
    assert len(calls) == 1  # nothing is computed twice, although it was trained with checkpoints


def test_where_convolutions_cannot_be_packed_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.nets.packing.can_pack", lambda dtype: False)
    net = built(NETS["adm"])
    names = [name for name, _ in net.named_modules()]
    pack_(net, torch.float32)
    assert [name for name, _ in net.named_modules()] == names
    with kernels.using("pure"), torch.no_grad():
        given, cond = inputs("adm")
        assert NetworkRunner(net, "fp32", CPU)(*given, **cond).isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_is_not_packed_and_keeps_its_results(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[dict[str, Any]] = []

    def compile_(net: nn.Module, **how: Any) -> Any:
        compiled.append(how)
        return net

    monkeypatch.setattr(torch, "compile", compile_)
    net = built(NETS["adm"])
    given, cond = inputs("adm")
    with torch.no_grad():
        plain = NetworkRunner(net, precision, CPU)(*given, **cond)
        forward = prepare_for_inference(net, precision, CPU, compiled=True)
        emulated = precision == "bf16" and not computes_bfloat16()  # by us, but not in a compiled network
        assert apart(forward(*given, **cond), plain) < (0.02 if emulated else 1e-6)
    assert compiled == [{"dynamic": False, "mode": None}]
    assert any(isinstance(module, nn.Conv2d) for module in net.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_ready_to_be_used_sample_the_same(precision: str) -> None:
    def images(precision: str | None) -> Tensor:
        model, judge = load_diffusion("fashion-mnist-32"), load_classifier("fashion-mnist-32-classifier")
        before = model.digest
        guided = ClassifierGuidance(
            model.denoiser(precision=precision), judge.level_classifier(precision=precision), 2.0
        )
        assert model.digest == before
        chain = guided.chain.respaced("ddim5")
        return generate(guided, chain, DDIM(), NoiseSource(0, range(3)), (1, 32, 32), cond={"y": torch.arange(3)})

    difference = (images(precision) - images(None)).abs()
    assert float(difference.max()) < 2e-4 if precision == "fp32" else 0 < float(difference.mean()) < 0.03


@torch.no_grad()
def test_a_packed_norm_computes_what_the_norm_does() -> None:
    """Also where the compiled kernel does not fit: other layouts, and while kernels are switched off."""
    norm = GroupNorm(32)
    norm.weight.copy_(torch.linspace(0.5, 2, 32)), norm.bias.copy_(torch.linspace(-1, 1, 32))
    packed = PackedNorm(norm)
    x = torch.randn(2, 32, 6, 5, generator=torch.Generator().manual_seed(0))
    scale, shift = x[:, :, 0, 0], x[:, :, 0, 1]
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.bfloat16()):
        for conditions in ((), (scale, shift)):
            assert torch.equal(packed(given, *conditions, act=True), norm(given, *conditions, act=True))
    with kernels.using("pure"):
        assert torch.equal(packed(x), norm(x))
    with kernels.using("auto"):
        norm.weight.zero_()  # the parameters in use are those of the norm, in float32 without a copy
        assert float((packed(x) - norm.bias[:, None, None]).abs().max()) == 0


@needs_packing
@torch.no_grad()
def test_a_packed_convolution_follows_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice is kept for inputs of one size, but neither for other plans nor for another setting of the kernels."""
    chosen: list[str] = []

    def implementation(*given: Any) -> str:
        chosen.append("torch")
        return "torch"

    monkeypatch.setattr("undiffuse.nets.packing.implementation", implementation)
    packed = PackedConv2d(nn.Conv2d(32, 32, 3, padding=1), torch.float32)
    x = torch.zeros(1, 32, 4, 4)
    plan, other = Plan(), Plan()
    for use, wanted in ((plan, 1), (plan, 1), (other, 2), (plan, 3), (plan, 3)):
        with planned(use):
            packed(x)
        assert len(chosen) == wanted
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "conv3x3_packed=packed")
    for wanted in (4, 4):
        with planned(plan):
            packed(x)
        assert len(chosen) == wanted
    packed(x), packed(x)  # outside of any run
    assert len(chosen) == 5
    with kernels.using("pure"):
        packed(x)
    assert len(chosen) == 6
