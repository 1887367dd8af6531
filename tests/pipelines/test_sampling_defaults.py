"""The solver and steps of a model where nothing is said."""

from __future__ import annotations

import pytest

from undiffuse.denoiser import ProcessConfig
from undiffuse.sampling_defaults import default_sampling, default_steps

LEARNED = ProcessConfig(schedule="cosine")
FIXED = ProcessConfig(schedule="cosine", variance="fixed_small")
FLOW = ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small")


@pytest.mark.parametrize(
    ("process", "count", "eta", "expected"),
    [
        (LEARNED, None, 0.0, ("ddpm", "100", "chain")),
        (FIXED, None, 0.0, ("ddim", "ddim50", "chain")),
        (LEARNED, None, 0.5, ("ddim", "ddim50", "chain")),
        (LEARNED, 20, 0.0, ("dpmpp-2m-sde", "20", "logsnr")),
        (FIXED, 20, 0.0, ("dpmpp-2m", "20", "logsnr")),
        (FLOW, None, 0.0, ("ddim", "50", "chain")),
        (ProcessConfig(schedule="cosine", steps=10), None, 0.0, ("ddpm", "10", "chain")),
        (ProcessConfig(schedule="cosine", steps=10), 20, 0.0, ("dpmpp-2m-sde", "10", "logsnr")),
    ],
)
def test_defaults(process: ProcessConfig, count: int | None, eta: float, expected: tuple[str, str, str]) -> None:
    assert default_sampling(process, count, eta) == expected


def test_steps_follow_the_grid() -> None:
    assert default_steps("dpmpp-2m", LEARNED, "at:-4,0,4") == "3"
    assert default_steps("ddim", LEARNED, "logsnr") == "50"
    assert default_steps("heun", ProcessConfig(schedule="cosine", steps=7)) == "7"
