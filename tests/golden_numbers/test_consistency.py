"""OpenAI's consistency models: network, denoisers, samplers, losses and gradients, against the original's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from support.golden_files import NETWORKS, Golden, constructor_arguments, draw_weights, for_each
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.distillation import consistency_loss, heun_teacher, karras_level, straight_teacher
from undiffuse.grids import Grid
from undiffuse.nets import UNetConfig
from undiffuse.noise_levels import Level
from undiffuse.objectives import Objective, ObjectiveConfig
from undiffuse.sampling import sample
from undiffuse.solvers import DDPM, DPM2, EDM, Consistency, Solver

WEIGHTINGS = {"karras": "edm", "snr": "eps", "snr+1": "v", "truncated-snr": "truncated-snr", "uniform": "x0"}
"""The original's names of weightings of the squared error of x0, and ours."""


class Listed:
    """Noise that was drawn beforehand: number i of the list is the i-th step's."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return self.noise.shape[1]

    def normal(self, shape: Any, step: int, purpose: str, device: Any) -> torch.Tensor:
        return self.noise[step]


def network(golden: Golden, seed: str) -> torch.nn.Module:
    """The golden file's network with weights drawn from one of its seeds."""
    meta = golden.meta
    arguments = constructor_arguments(meta["kwargs"], golden.take("x_start").shape[2:])
    # The order of q, k and v is the new one, although no flag says so.
    config = UNetConfig(**{**arguments, "use_new_attention_order": True})
    net, drawn = config.build().eval(), draw_weights(meta["state_dict"], meta[seed])
    # Its attention has 1x1 convolutions of images, where guided-diffusion has them of sequences.
    net.load_state_dict({name: drawn[name].reshape(value.shape) for name, value in net.state_dict().items()})
    assert net.state_dict().keys() == drawn.keys()
    return net.requires_grad_(False)


def process(meta: dict[str, Any], target: str) -> ProcessConfig:
    names = ("sigma_min", "sigma_max", "sigma_data")
    return ProcessConfig(
        preconditioning="edm",
        target=target,
        variance="fixed_small",
        time_factor=250.0,
        **{name: meta[name] for name in names},
    )


def ve(sigma: torch.Tensor) -> Level:
    sigma = sigma.double()
    return Level(torch.ones_like(sigma), sigma)


def condition(golden: Golden) -> dict[str, torch.Tensor] | None:
    return {"y": golden.take("y")} if "y" in golden else None


@for_each("consistency")
def test_golden_consistency_networks_and_denoisers(path: Path) -> None:
    golden = Golden(path)
    meta, cond = golden.meta, condition(golden)
    net = network(golden, "seed")
    sigma, x0, noise, x_t = (golden.take(name) for name in ("sigmas", "x_start", "noise", "x_t"))
    golden.compare("x_t", x0 + sigma.reshape(-1, 1, 1, 1) * noise[0], 1e-6)
    scaled = x_t / (sigma**2 + meta["sigma_data"] ** 2).sqrt().reshape(-1, 1, 1, 1)
    golden.compare("network_output", net(scaled, 250 * sigma.log(), **(cond or {})), NETWORKS)
    for name, target in (("edm", "edm"), ("consistency", "consistency")):
        denoiser = ChainDenoiser(net, process(meta, target), "none")
        golden.compare(f"{name}.denoised", denoiser(x_t, ve(sigma), cond).x0, NETWORKS)
    # At sigma_min the boundary condition holds whatever the network says.
    consistent = ChainDenoiser(net, process(meta, "consistency"), "none")
    found = consistent(x_t, ve(torch.full_like(sigma, meta["sigma_min"])), cond).x0
    torch.testing.assert_close(found, x_t, rtol=1e-5, atol=1e-5)
    objective = ChainDenoiser(net, process(meta, "edm"), "none")
    for theirs, ours in WEIGHTINGS.items():
        terms = Objective(objective, ObjectiveConfig(weighting=ours))
        position = objective.preconditioning.position(ve(sigma))
        golden.compare(f"edm.loss.{theirs}", terms(x0, position, noise[0], cond)["loss"], NETWORKS)
    assert not golden.failures, golden.failures


@for_each("consistency")
def test_golden_consistency_samplers(path: Path) -> None:
    """Every sampler of the original, with and without clipping; the finished image is always clamped."""
    golden = Golden(path)
    meta, cond = golden.meta, condition(golden)
    net, x_T, noise = network(golden, "seed"), golden.take("x_T"), golden.take("noise")
    steps = meta["steps"]
    levels = karras_level(torch.arange(steps), steps, meta["sigma_min"], meta["sigma_max"], meta["rho"]).sigma
    golden.compare("karras_sigmas", torch.cat([levels, torch.zeros(1, dtype=torch.float64)]), 1e-6)
    churn = {f"s_{end}": meta["churn"][f"s_t{end}"] for end in ("min", "max")}
    churn |= {"churn": meta["churn"]["s_churn"], "s_noise": meta["churn"]["s_noise"]}
    every = list(range(steps))
    runs: dict[str, tuple[str, Solver, list[int]]] = {
        "edm.heun": ("edm", EDM(order=2), every),
        "edm.heun_churn": ("edm", EDM(order=2, **churn), every),
        "edm.euler": ("edm", EDM(order=1), every),
        "edm.dpm": ("edm", DPM2(last="midpoint"), every),
        "edm.ancestral": ("edm", DDPM(), every),
        "consistency.onestep": ("consistency", Consistency(s_min=meta["sigma_min"]), [0]),
        "consistency.multistep": ("consistency", Consistency(s_min=meta["sigma_min"]), meta["multistep_ts"][:-1]),
    }
    for name, (target, solver, kept) in runs.items():
        chosen = levels[kept].numpy()
        norm = (1 + chosen**2) ** 0.5
        grid = Grid([*(1 / norm), 1.0], [*(chosen / norm), 0.0])
        for suffix, clip in (("", "static"), ("_noclip", "none")):
            denoiser = ChainDenoiser(net, process(meta, target), clip)
            start = x_T / math.sqrt(1 + chosen[0] ** 2)
            *_, last = sample(denoiser, grid, solver, Listed(noise), x_T.shape[1:], cond=cond, x_T=start)
            golden.compare(name + suffix, last.x.clamp(-1, 1), NETWORKS)
    assert not golden.failures, golden.failures


@for_each("consistency")
def test_golden_consistency_losses_and_gradients(path: Path) -> None:
    golden = Golden(path)
    meta, cond = golden.meta, condition(golden)
    student, target, teacher = (network(golden, seed) for seed in ("seed", "target_seed", "teacher_seed"))
    x0, noise, index = golden.take("x_start"), golden.take("noise")[1], golden.take("indices")
    ends = meta["steps"], meta["sigma_min"], meta["sigma_max"], meta["rho"]
    source, cleaner = karras_level(index, *ends), karras_level(index + 1, *ends)
    student.requires_grad_(True)
    weight = [p for name, p in student.named_parameters() if name == "out.2.weight"][0]
    denoisers = [ChainDenoiser(net, process(meta, "consistency"), "none") for net in (student, target)]
    movers = {
        "distillation": heun_teacher(ChainDenoiser(teacher, process(meta, "edm"), "none"), cond),
        "training": straight_teacher(x0),
    }
    for kind, mover in movers.items():
        for distance in ("l1", "l2"):
            loss = consistency_loss(
                denoisers[0], denoisers[1], mover, x0, noise, source, cleaner, cond=cond, distance=distance
            )
            name = f"consistency.{kind}.{distance}"
            golden.compare(name, loss, NETWORKS)
            golden.compare(f"{name}.grad_out", torch.autograd.grad(loss.mean(), weight)[0], NETWORKS)
    assert not golden.failures, golden.failures


def test_unknown_distances_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of l1, l2, pseudo-huber"):
        consistency_loss(*[None] * 3, torch.zeros(1), torch.zeros(1), *[None] * 2, distance="l3")  # type: ignore[arg-type]


@for_each("consistency")
def test_every_tensor_of_the_golden_file_is_known(path: Path) -> None:
    """What a new file holds beyond these names would go unchecked."""
    samplers = ("heun", "heun_churn", "euler", "dpm", "ancestral")
    known = {"x_T", "x_start", "x_t", "noise", "sigmas", "y", "indices", "karras_sigmas", "network_output"}
    known |= {f"edm.{name}{suffix}" for name in samplers for suffix in ("", "_noclip")}
    known |= {f"consistency.{name}{suffix}" for name in ("onestep", "multistep") for suffix in ("", "_noclip")}
    known |= {f"edm.loss.{name}" for name in WEIGHTINGS} | {"edm.denoised", "consistency.denoised"}
    losses = [f"consistency.{kind}.{distance}" for kind in ("distillation", "training") for distance in ("l1", "l2")]
    known |= {f"{loss}{suffix}" for loss in losses for suffix in ("", ".grad_out")}
    assert set(Golden(path).names()) <= known
