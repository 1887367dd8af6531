"""The diffusion process against the original's numbers: 3 mean types x 4 variance types x 4 losses.

The network's outputs are given tensors, so all of this is closed formulas in float32. The README's tolerance for them
is 1e-6 of a tensor's largest magnitude (8 units in its last place). It is applied to every image of a batch by itself,
whose magnitudes differ by orders, to what follows from one or two products. Losses are means over an image of
squares and exponentials, whose argument's rounding grows in the exponential: they are allowed 1e-5 of the image's own
loss. A KL term is a sum like lv2 - lv1 - 1 + exp(lv1 - lv2) of numbers up to about 10 that cancel where the
distributions agree, down to 1e-6 and less, so its rounding is absolute: 1e-6 more is allowed (times the factor the
loss applies to it).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.golden_files import Golden, for_each
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.likelihood import prior_bits
from undiffuse.noise_levels import Transition, diffuse, expand
from undiffuse.objectives import Objective, ObjectiveConfig, bound_term

FORMULA = 1e-6
LOSS = 1e-5

MEANS = {"EPSILON": "eps", "START_X": "x0", "PREVIOUS_X": "previous_mean"}
VARIANCES = {
    "FIXED_SMALL": "fixed_small",
    "FIXED_LARGE": "fixed_large",
    "LEARNED": "learned",
    "LEARNED_RANGE": "learned_range",
}
# The original's losses as ours; its "MSE" losses train a learned variance by the bound, which makes them hybrid.
LOSSES = {
    "MSE": ("simple", False),
    "RESCALED_MSE": ("simple", True),
    "KL": ("vlb", False),
    "RESCALED_KL": ("vlb", True),
}


def compare_images(golden: Golden, key: str, value: torch.Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Compare image by image: |difference| <= tolerance * own scale + floor; values may broadcast."""
    expected = golden.take(key)
    value = value.broadcast_to(expected.shape)
    for i, (got, wanted) in enumerate(zip(value.double(), expected.double(), strict=True)):
        scale = wanted.abs().max().item()
        error = (got - wanted).abs().max().item()
        if not error <= tolerance * scale + floor:
            golden.fail(f"{key}[{i}]: differs by {error:.3g}, allowed {tolerance:.1g} of {scale:.3g}")


def process_of(golden: Golden, mean: str, variance: str) -> ProcessConfig:
    meta = golden.meta
    return ProcessConfig(
        schedule=meta["schedule"],
        steps=meta["timesteps"],
        target=MEANS[mean],
        variance=VARIANCES[variance],
        rescale_timesteps=meta["rescale_timesteps"],
    )


def check_forward(golden: Golden, chain_transition: Transition) -> None:
    """q(x_t | x_0), the posterior q(x_{t-1} | x_t, x_0) and the prior term."""
    chain = process_of(golden, "EPSILON", "FIXED_SMALL").chain()
    x0, noise, t = (golden.take(key) for key in ("x_start", "noise", "t"))
    x_t = diffuse(x0, chain_transition.source, noise)
    compare_images(golden, "x_t", x_t, FORMULA)
    x_t = golden.take("x_t")
    mean = expand(chain_transition.coef_x0, x0) * x0 + expand(chain_transition.coef_xt, x0) * x_t
    compare_images(golden, "posterior_mean", mean, FORMULA)
    wide = (-1, 1, 1, 1)
    compare_images(golden, "posterior_variance", torch.from_numpy(chain.posterior_variance[t]).reshape(wide), FORMULA)
    compare_images(golden, "posterior_log_variance", chain_transition.log_posterior_variance.reshape(wide), FORMULA)
    compare_images(golden, "prior_bpd", prior_bits(x0, chain), LOSS)


def check_combination(golden: Golden, mean: str, variance: str) -> None:
    """p(x_{t-1} | x_t) with and without clipping, the bound's term, and every loss of one mean and variance type."""
    name = f"{mean}.{variance}"
    process = process_of(golden, mean, variance)
    x0, noise, t, x_t = (golden.take(key) for key in ("x_start", "noise", "t", "x_t"))
    output = golden.take(f"model_output.{name}")
    transition = process.chain().transition(t)
    for clip, mode in ((0, "none"), (1, "static")):
        denoiser = ChainDenoiser(lambda x, t: output, process, clip=mode)
        prediction = denoiser(x_t, transition.source)
        compare_images(golden, f"{name}.clip{clip}.pred_xstart", prediction.x0, FORMULA)
        compare_images(golden, f"{name}.clip{clip}.mean", prediction.mean(transition), FORMULA)
        compare_images(golden, f"{name}.clip{clip}.variance", prediction.step_variance(transition), FORMULA)
        compare_images(golden, f"{name}.clip{clip}.log_variance", prediction.log_variance(transition), FORMULA)
        if clip:  # the bound is evaluated with clipping
            compare_images(golden, f"{name}.vb_bpd", bound_term(prediction, x0, transition, "tanh"), LOSS, FORMULA)
    for original, (loss, rescale) in LOSSES.items():
        if loss == "simple" and process.learns_variance:
            loss = "hybrid"
        objective = Objective(denoiser, ObjectiveConfig(loss=loss, rescale=rescale, decoder="tanh"))
        terms = objective(x0, t, noise)
        # The factor of the bound: T in the bound itself, lambda T = T / 1000 in the hybrid loss. The original reports
        # the latter's "vb" with its factor.
        factor = process.steps / (1 if loss == "vlb" else 1000) if rescale else 1.0
        floor = 0.0 if loss == "simple" else factor * FORMULA
        compare_images(golden, f"{name}.{original}.loss", terms["loss"], LOSS, floor)
        if (key := f"{name}.{original}.mse") in golden:
            compare_images(golden, key, terms["mse"], LOSS)
        if (key := f"{name}.{original}.vb") in golden:
            compare_images(golden, key, factor * terms["vb"], LOSS, floor)


@for_each("gaussian_process")
def test_golden_process(path: Path) -> None:
    golden = Golden(path)
    check_forward(golden, process_of(golden, "EPSILON", "FIXED_SMALL").chain().transition(golden.take("t")))
    combinations = [key.split(".")[1:] for key in golden.names() if key.startswith("model_output.")]
    assert combinations
    for mean, variance in combinations:
        check_combination(golden, mean, variance)
    golden.finish()


@for_each("gaussian_process")
@pytest.mark.parametrize("change", ["target", "variance", "steps"])
def test_wrong_process_is_noticed(path: Path, change: str) -> None:
    """The comparison can fail: each number is tied to its mean type, its variance type and its chain."""
    golden = Golden(path)
    if change == "steps":
        golden.meta["timesteps"] += 1
    name = {
        "target": ("START_X", "LEARNED_RANGE"),
        "variance": ("EPSILON", "FIXED_SMALL"),
        "steps": ("EPSILON", "LEARNED_RANGE"),
    }[change]
    if f"model_output.{'.'.join(name)}" not in golden:
        pytest.skip("this combination is not in the file")
    if change == "target":
        for key in [k for k in golden.names() if k.startswith("EPSILON.LEARNED_RANGE")]:
            golden._tensors[key.replace("EPSILON", "START_X")] = golden._tensors[key]
    elif change == "variance":
        for key in [k for k in golden.names() if k.startswith("EPSILON.FIXED_LARGE")]:
            golden._tensors[key.replace("LARGE", "SMALL")] = golden._tensors[key]
    check_combination(golden, *name)
    assert golden.failures
