"""Whole trajectories against the original: ancestral, DDIM, guided, encoded, and bits per dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.golden_files import NETWORKS, Golden, constructor_arguments, for_each, load_weights
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.likelihood import bits_per_dim
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.noise_levels import DiscreteSchedule
from undiffuse.sampling import encode, generate
from undiffuse.solvers import DDIM, DDPM


class GivenNoise:
    """The file's noise, noise[i] at the i-th step."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return self.noise.shape[1]

    def normal(self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: Any = "cpu") -> torch.Tensor:
        assert (purpose, tuple(shape)) == ("step", tuple(self.noise.shape[2:]))
        return self.noise[step].to(device)


class Setup:
    """Networks, chains and conditions of one trajectories file."""

    def __init__(self, golden: Golden) -> None:
        self.golden, meta = golden, golden.meta
        size = tuple(golden.take("x_T").shape[2:])
        net = UNetConfig(**constructor_arguments(meta["net_kwargs"], size))
        self.net = load_weights(net.build(), meta["net_state_dict"], meta["seed"])
        learned = net.out_channels == 2 * net.in_channels
        self.process = ProcessConfig(
            schedule=meta["schedule"],
            steps=meta["diffusion_steps"],
            target="x0" if meta.get("predict_xstart") else "eps",
            variance="learned_range" if learned else "fixed_small" if meta.get("sigma_small") else "fixed_large",
            rescale_timesteps=meta["rescale_timesteps"],
        )
        self.y = golden.take("y") if "y" in golden else None
        self.cond = None if self.y is None or net.num_classes is None else {"y": self.y}
        self.noise = GivenNoise(golden.take("noise"))

    def denoiser(self, clip: str = "static", rescale: bool | None = None) -> ChainDenoiser:
        process = self.process if rescale is None else replace(self.process, rescale_timesteps=rescale)
        return ChainDenoiser(self.net, process, clip=clip)

    def guided(self) -> ClassifierGuidance:
        meta = self.golden.meta
        size = tuple(self.golden.take("x_T").shape[2:])
        classifier = ClassifierConfig(**constructor_arguments(meta["classifier_kwargs"], size)).build()
        load_weights(classifier, meta["classifier_state_dict"], meta["seed"])
        return ClassifierGuidance(self.denoiser(), LevelClassifier(classifier, self.process), meta["classifier_scale"])

    def chain(self, solver: str) -> DiscreteSchedule:
        return self.process.chain().respaced(self.golden.meta["respacing"][solver])

    def run(self, denoiser: Any, solver: Any, chain: str) -> torch.Tensor:
        x = self.golden.take("x_T")
        cond = {"y": self.y} if isinstance(denoiser, ClassifierGuidance) else self.cond
        return generate(denoiser, self.chain(chain), solver, self.noise, x.shape[1:], cond=cond, x_T=x)


TRAJECTORIES: dict[str, Callable[[Setup], torch.Tensor]] = {
    "ancestral": lambda s: s.run(s.denoiser(), DDPM(), "ancestral"),
    "ancestral_noclip": lambda s: s.run(s.denoiser("none"), DDPM(), "ancestral"),
    "ancestral_guided": lambda s: s.run(s.guided(), DDPM(), "ancestral"),
    "ancestral_rescaled_timesteps": lambda s: s.run(s.denoiser(rescale=True), DDPM(), "ancestral"),
    "ddim": lambda s: s.run(s.denoiser(), DDIM(), "ddim"),
    "ddim_eta": lambda s: s.run(s.denoiser(), DDIM(s.golden.meta["eta"]), "ddim"),
    "ddim_guided": lambda s: s.run(s.guided(), DDIM(), "ddim"),
    # Encoded without clipping, which would make the path impossible to retrace.
    "ddim_encoded": lambda s: encode(
        s.denoiser("none"), s.chain("ddim"), s.golden.take("encode_input"), cond=s.cond, to_noise=True
    ),
}
BOUND_TERMS = ("vb", "mse", "xstart_mse")


@for_each("trajectories")
def test_golden_trajectories(path: Path) -> None:
    golden = Golden(path)
    setup = Setup(golden)
    for key, trajectory in TRAJECTORIES.items():
        if key in golden:
            golden.compare(key, trajectory(setup), NETWORKS)
    if "bpd_input" in golden:
        bound = bits_per_dim(
            setup.denoiser(),
            setup.chain("ancestral"),
            golden.take("bpd_input"),
            setup.noise,
            cond=setup.cond,
            decoder="tanh",
        )
        golden.compare("bpd.total_bpd", bound.total, NETWORKS)
        golden.compare("bpd.prior_bpd", bound.prior, NETWORKS)
        for term in BOUND_TERMS:  # the original lists the noisiest step first
            golden.compare(f"bpd.{term}", getattr(bound, term).flip(1), NETWORKS)
    golden.finish()


@for_each("trajectories")
@pytest.mark.parametrize("change", ["guidance scale", "eta", "schedule", "noise order", "clipping"])
def test_wrong_trajectories_are_noticed(path: Path, change: str) -> None:
    """The comparison can fail: each argument of the file moves the image by more than the tolerance."""
    golden = Golden(path)
    if change == "guidance scale":
        golden.meta["classifier_scale"] = -golden.meta["classifier_scale"] - 25
        key = "ancestral_guided"
    elif change == "eta":
        golden.meta["eta"] = 0.9 * golden.meta["eta"] or 0.1
        key = "ddim_eta"
    elif change == "schedule":
        golden.meta["schedule"] = {"cosine": "linear", "linear": "cosine"}[golden.meta["schedule"]]
        key = "ddim"
    elif change == "clipping":
        golden._tensors["ancestral_noclip"] = golden._tensors["ancestral"]
        key = "ancestral_noclip"
    else:
        golden._tensors["noise"] = golden._tensors["noise"].flip(0)
        key = "ancestral"
    if key not in golden or (change == "noise order" and len(golden.take("noise")) < 3):
        pytest.skip("the file cannot show this")
    golden.compare(key, TRAJECTORIES[key](Setup(golden)), NETWORKS)
    assert golden.failures
