"""Whether everything is right on a GPU: against the original's numbers, against the CPU, against itself.

Prints a line of JSON for each check, with its error and what is allowed. Uses the golden files and helpers of tests/.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common.measuring import ROOT
from torch import Tensor

from undiffuse import kernels
from undiffuse.arithmetic import exact_float32
from undiffuse.checkpoints import checkpoints, read
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.kernels.gpu import norm_status
from undiffuse.kernels.norm_act import norm_act, norm_act_pure
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.nets.runner import prepare_for_inference
from undiffuse.noise import NoiseSource
from undiffuse.pixels import to_uint8
from undiffuse.sampling import encode, generate
from undiffuse.solvers import DDIM, DDPM

sys.path.insert(0, str(ROOT / "tests"))

Report = Callable[[dict[str, Any]], None]
Found = Iterator[tuple[str, float, float]]  # of each check: what, its error, what is allowed
GOLDEN = 2e-4  # of the largest magnitude, as in the tests
PROCESS = ProcessConfig(schedule="linear", steps=1000, target="eps", variance="learned_range")
PRECISIONS = {"bf16": 3e-2, "fp16": 5e-3}  # root mean square errors allowed, relative


def main(device: torch.device, until: float, report: Report) -> None:
    """Runs all checks; one that raises an error is reported and does not stop the others."""
    dry = device.type == "cpu"
    for check in (norms, networks, trajectories, graphs, batches, guidance, precisions, resumed):
        if time.monotonic() > until:
            report({"check": check.__name__, "skipped": "no time was left"})
            continue
        began = time.monotonic()
        try:
            with exact_float32(device):
                for what, error, allowed in check(device, dry):
                    ok = error <= allowed  # False if it is not a number
                    report({"check": check.__name__, "what": what, "error": error, "allowed": allowed, "ok": ok})
            report({"check": check.__name__, "seconds": time.monotonic() - began})
        except Exception as error:  # whatever it is, the other checks are of use
            text = f"{type(error).__name__}: {str(error).strip()}"[:500]
            report({"check": check.__name__, "what": "an error was raised", "ok": False, "message": text})


def norms(device: torch.device, dry: bool) -> Found:
    """The fused norm and its gradients against PyTorch's operations in float64."""
    if not dry:
        status = norm_status(device)
        yield f"norms by {status.active} ({status.reason})", float(status.active != "triton"), 0.0
    shapes = [(2, 64, 8, 8, 32), (3, 96, 17, 20, 32)]
    shapes += (
        []
        if dry
        else [
            (2, 192, 16, 16, 32),
            (1, 320, 64, 64, 32),
            (4, 1024, 8, 8, 32),
            (2, 256, 256, 256, 32),
            (2, 1536, 32, 32, 32),
        ]
    )
    near = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
    for dtype in (torch.float32, torch.bfloat16) if dry else near:
        worst = 0.0
        for b, c, height, width, groups in shapes:
            generator = torch.Generator(device).manual_seed(0)

            def draw(*size: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(size, generator=generator, device=device)

            x = (2 * draw(b, c, height, width) + 3 * draw(1, c, 1, 1)).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            both, weight, bias = (part.requires_grad_() for part in (draw(b, 2 * c), draw(c), draw(c)))
            scale, shift = both.chunk(2, dim=1)
            grad = draw(b, c, height, width).to(dtype)
            found = norm_act(x, groups, weight, bias, 1e-5, scale=scale, shift=shift)
            exact = norm_act_pure(x.double(), groups, weight, bias, 1e-5, scale.double(), shift.double(), True)
            wanted = [x, weight, bias, both]
            pairs = zip(
                [found, *torch.autograd.grad(found, wanted, grad)],
                [exact, *torch.autograd.grad(exact, wanted, grad.double())],
                strict=True,
            )
            worst = max([worst, *(_apart(one, other) for one, other in pairs)])
        yield f"{dtype}, forward and backward", worst, near[dtype]


def networks(device: torch.device, dry: bool) -> Found:
    """The original's networks and the gradients of its classifiers."""
    from golden_numbers.test_networks import build
    from support.golden_files import Golden, of_kind

    for path in of_kind("unet", "superres")[: 1 if dry else None]:
        golden = Golden(path)
        given = {name: golden.take(name).to(device) for name in ("y", "low_res") if name in golden}
        runner = prepare_for_inference(build(golden, "plain"), "fp32", device)
        expected = golden.take("output")
        with torch.no_grad():
            for _ in range(3):  # as usual, recorded, replayed
                out = runner(golden.take("x").to(device), golden.take("t").to(device).float(), **given)
        yield path.stem, _largest(out, expected), GOLDEN
    for path in of_kind("classifier")[: 1 if dry else None]:
        golden = Golden(path)
        net = build(golden, "plain").to(device)
        x = golden.take("x").to(device).requires_grad_()
        scores = net(x, golden.take("t").to(device))
        chosen = scores.log_softmax(-1).gather(1, golden.take("y").to(device)[:, None]).sum()
        yield path.stem, _largest(scores, golden.take("output")), GOLDEN
        (gradient,) = torch.autograd.grad(chosen, x)
        yield f"{path.stem}, gradient", _largest(gradient, golden.take("grad_log_prob")), GOLDEN


def trajectories(device: torch.device, dry: bool) -> Found:
    """The original's trajectories, guided ones among them."""
    from golden_numbers.test_trajectories import Setup
    from support.golden_files import Golden, constructor_arguments, load_weights, of_kind

    for path in of_kind("trajectories"):
        golden = Golden(path)
        setup, meta = Setup(golden), golden.meta
        network = prepare_for_inference(setup.net, "fp32", device)
        cond = None if setup.cond is None else {name: value.to(device) for name, value in setup.cond.items()}
        plain, free = ChainDenoiser(network, setup.process), ChainDenoiser(network, setup.process, clip="none")
        rescaled = ChainDenoiser(network, replace(setup.process, rescale_timesteps=True))
        runs: dict[str, tuple[Any, Any, str]] = {
            "ancestral": (plain, DDPM(), "ancestral"),
            "ancestral_noclip": (free, DDPM(), "ancestral"),
            "ancestral_rescaled_timesteps": (rescaled, DDPM(), "ancestral"),
            "ddim": (plain, DDIM(), "ddim"),
            "ddim_eta": (plain, DDIM(meta.get("eta", 0.0)), "ddim"),
        }
        if "classifier_kwargs" in meta:
            size = tuple(golden.take("x_T").shape[2:])
            judge = ClassifierConfig(**constructor_arguments(meta["classifier_kwargs"], size)).build()
            load_weights(judge, meta["classifier_state_dict"], meta["seed"])
            classifier = LevelClassifier(prepare_for_inference(judge, "fp32", device, gradient=True), setup.process)
            guided = ClassifierGuidance(plain, classifier, meta["classifier_scale"])
            runs |= {
                "ancestral_guided": (guided, DDPM(), "ancestral"),
                "ddim_guided": (guided, DDIM(), "ddim"),
            }
        for key, (denoiser, solver, chain) in runs.items():
            if key in golden and not (dry and "ddim" not in key):
                labels = None if setup.y is None else {"y": setup.y.to(device)}
                given = labels if isinstance(denoiser, ClassifierGuidance) else cond
                x = golden.take("x_T")
                made = generate(
                    denoiser, setup.chain(chain), solver, setup.noise, x.shape[1:], cond=given, x_T=x, device=device
                )
                yield f"{path.stem}, {key}", _largest(made, golden.take(key)), GOLDEN
        if "ddim_encoded" in golden:
            start = golden.take("encode_input").to(device)
            made = encode(free, setup.chain("ddim"), start, cond=cond, to_noise=True)
            yield f"{path.stem}, ddim_encoded", _largest(made, golden.take("ddim_encoded")), GOLDEN


def graphs(device: torch.device, dry: bool) -> Found:
    """Recorded calls against the same calls made one by one: equal, if convolutions take the same algorithms."""
    for precision in ("fp32", "bf16") if dry else ("fp32", "bf16", "fp16"):
        runner, (x, t, y) = prepare_for_inference(_network(dry), precision, device), _inputs(device, 4)
        with torch.no_grad():
            with kernels.using("graphs=off"):
                expected = [runner(x + k, t, y=y) for k in range(2)]
            runner(x, t, y=y)
            found = [runner(x + k, t, y=y) for k in range(2)]
        if not dry:
            assert runner._graphs is not None
            recorded = not runner._graphs.reason and bool(runner._graphs._recorded)
            yield f"{precision}, recorded ({runner._graphs.reason or 'no trouble'})", float(not recorded), 0.0
        worst = max(_largest(a, b) for a, b in zip(found, expected, strict=True))
        yield f"{precision}, difference", worst, 1e-5 if precision == "fp32" else 1e-2


def batches(device: torch.device, dry: bool) -> Found:
    """Images made alone and together, in float32; of 8-bit pixels the share that differs."""
    denoiser = ChainDenoiser(prepare_for_inference(_network(dry), "fp32", device), PROCESS)
    chain, y = PROCESS.chain().respaced("ddim2" if dry else "ddim25"), torch.arange(8, device=device) % 4

    def make(numbers: list[int]) -> Tensor:
        noise = NoiseSource(0, numbers)
        return generate(denoiser, chain, DDIM(), noise, (3, 32, 32), cond={"y": y[numbers]}, device=device)

    together = make(list(range(8)))
    apart = torch.cat([make([0]), make([1, 2, 3]), make([4, 5, 6, 7])])
    yield "largest difference", float((together - apart).abs().max()), 2e-3
    yield "8-bit pixels that differ", float((to_uint8(together) != to_uint8(apart)).float().mean()), 2e-3


def guidance(device: torch.device, dry: bool) -> Found:
    """A guided trajectory against the CPU's, in float32."""
    made = []
    for place in (torch.device("cpu"), device):
        classifier = LevelClassifier(prepare_for_inference(_classifier(dry), "fp32", place, gradient=True), PROCESS)
        denoiser = ChainDenoiser(prepare_for_inference(_network(dry), "fp32", place), PROCESS)
        chain, y = PROCESS.chain().respaced("ddim2" if dry else "ddim10"), torch.arange(4, device=place)
        guided = ClassifierGuidance(denoiser, classifier, 2.0)
        noise = NoiseSource(0, range(4))
        x = noise.normal((3, 32, 32), purpose="x_T").to(place)
        made.append(generate(guided, chain, DDIM(), noise, (3, 32, 32), cond={"y": y}, x_T=x, device=place).cpu())
    yield "guided images against the CPU's", _apart(made[1], made[0]), 1e-3


def precisions(device: torch.device, dry: bool) -> Found:
    """Outputs in 16 bits against the CPU in float32."""
    x, t, y = _inputs(torch.device("cpu"), 4)
    with torch.no_grad():
        exact = prepare_for_inference(_network(dry), "fp32", "cpu")(x, t, y=y)
        single = prepare_for_inference(_network(dry), "fp32", device)(x.to(device), t.to(device), y=y.to(device))
        yield "fp32", _apart(single.cpu(), exact), 1e-5
        for precision, allowed in PRECISIONS.items():
            if dry and precision == "fp16":
                continue
            out = prepare_for_inference(_network(dry), precision, device)(x.to(device), t.to(device), y=y.to(device))
            yield precision, _apart(out.cpu(), exact), allowed


def resumed(device: torch.device, dry: bool) -> Found:
    """A training run in one piece and one that was stopped and resumed: the largest difference of any tensor."""
    from support.training_runs import run, tiny_task

    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        name = str(device)
        run(whole, tiny_task(), images=32, device=name)
        run(parts, tiny_task(), images=16, device=name)
        run(parts, tiny_task(seed=5), images=32, device=name)
        (one, _), (other, _) = (read(checkpoints(path)[-1]) for path in (whole, parts))
    worst, equal = 0.0, True
    for key, tensor in one.items():
        equal = equal and torch.equal(tensor, other[key])
        if tensor.is_floating_point() and tensor.numel():
            scale = max(float(tensor.abs().max()), 1e-6)
            worst = max(worst, float((tensor.double() - other[key].double()).abs().max()) / scale)
    yield f"largest difference ({'equal to the last bit' if equal else 'not equal to the last bit'})", worst, 1e-3


def _network(dry: bool) -> torch.nn.Module:
    """Without zeros, so that every layer counts."""
    width, mult = (32, (1, 2)) if dry else (64, (1, 2, 2))
    config = UNetConfig(
        image_size=32, in_channels=3, out_channels=6, model_channels=width, channel_mult=mult, num_res_blocks=1,
        attention_resolutions=(2, 4), num_head_channels=width, use_scale_shift_norm=True, resblock_updown=True,
        num_classes=4,
    )  # fmt: skip
    return _filled(config.build())


def _classifier(dry: bool) -> torch.nn.Module:
    config = ClassifierConfig(
        image_size=32, in_channels=3, out_channels=4, model_channels=32, channel_mult=(1,) if dry else (1, 2),
        num_res_blocks=1, attention_resolutions=(2,), num_head_channels=32, pool="attention",
    )  # fmt: skip
    return _filled(config.build())


def _filled(net: torch.nn.Module) -> torch.nn.Module:
    from unets.models import drawn

    net.load_state_dict(drawn(net.state_dict()))
    return net


def _inputs(device: torch.device, size: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0, 999, size)
    return x.to(device), t.to(device), (torch.arange(size) % 4).to(device)


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest magnitude."""
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).abs().max() / expected.abs().max())


def _apart(found: Tensor, expected: Tensor) -> float:
    """Root mean square difference, relative."""
    expected = expected.detach().double()
    difference = found.detach().to(expected.device).double() - expected
    return float(difference.norm() / expected.norm().clamp(min=1e-30))
