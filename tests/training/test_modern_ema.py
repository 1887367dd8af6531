"""Power-function averages, and averages of any width made from snapshots of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support.cli_runs import call
from support.training_runs import assert_same_run, run, tiny_config
from tests.training.test_resume import interrupted
from undiffuse import checkpoints
from undiffuse.ema import PowerEMA, exponent_of, power_combination, power_overlap
from undiffuse.models import load_diffusion
from undiffuse.training.posthoc import reconstruct, remove_after, snapshots

WIDTHS = {"posthoc_widths": (0.05, 0.1), "posthoc_every": 8}


@pytest.mark.parametrize(
    ("width", "gamma"), [(0.05, 16.972199), (0.10, 6.937204), (0.15, 3.557869), (0.20, 1.826214), (0.25, 0.719824)]
)
def test_exponents_of_the_paper(width: float, gamma: float) -> None:
    assert exponent_of(width) == pytest.approx(gamma, abs=2e-6)
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = (exponent_of(width) + 1) * tau ** exponent_of(width)
    mean = (p * tau).mean()
    assert ((p * (tau - mean) ** 2).mean()) ** 0.5 == pytest.approx(width, rel=1e-5)


@pytest.mark.parametrize("width", [0.0, 0.3, float("nan")])
def test_widths_that_no_power_has(width: float) -> None:
    with pytest.raises(ValueError, match=r"0\.2887"):
        exponent_of(width)


def test_power_averages_have_their_profile() -> None:
    """After t updates the weights of update tau are tau^gamma's share; nothing is left of the initial weights."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1e6)
    averages = PowerEMA(net, (0.05, 0.2))
    steps = 50
    shares: dict[str, np.ndarray] = {}
    for name in averages.names:
        p = np.zeros(steps)
        for n in range(steps):
            p *= averages.decay_at(name, n)
            p[n] = 1 - averages.decay_at(name, n)
        shares[name] = p
        assert p.sum() == pytest.approx(1)
        tau = np.arange(1, steps + 1)
        gamma = averages.exponents[name]
        share = (tau / steps) ** (gamma + 1) - ((tau - 1) / steps) ** (gamma + 1)
        np.testing.assert_allclose(p, share, atol=1e-12)
    values = np.random.default_rng(0).normal(size=steps)
    for n, value in enumerate(values):
        net.weight.data.fill_(value)
        averages.update(n)
    for name in averages.names:
        assert float(averages.weights(name)["weight"].item()) == pytest.approx(shares[name] @ values, abs=1e-6)
    assert set(averages.tensors()) == {"posthoc.0.05.weight", "posthoc.0.2.weight"}


def test_overlaps_are_integrals() -> None:
    tau = (np.arange(400_000) + 0.5) / 400_000 * 12
    for t_a, g_a, t_b, g_b in (
        (10.0, 3.0, 10.0, 3.0),
        (4.0, 17.0, 12.0, 6.9),
        (12.0, 6.9, 4.0, 17.0),
        (9.0, 0.0, 5.0, 2.0),
    ):
        p_a = np.where(tau <= t_a, (g_a + 1) * tau**g_a / t_a ** (g_a + 1), 0)
        p_b = np.where(tau <= t_b, (g_b + 1) * tau**g_b / t_b ** (g_b + 1), 0)
        assert power_overlap(t_a, g_a, t_b, g_b) == pytest.approx((p_a * p_b).mean() * 12, rel=1e-4)


@pytest.mark.parametrize(("width", "left"), [(0.05, 1e-6), (0.07, 4e-3), (0.12, 4e-3), (0.15, 8e-3), (0.2, 2e-2)])
def test_a_reconstruction_is_the_average_tracked(width: float, left: float) -> None:
    """White-noise weights, for which the profile's error is the weights' relative error; twenty snapshots of two."""
    gamma, steps, every = exponent_of(width), 2000, 100
    values = np.random.default_rng(1).normal(size=(400, steps))
    edges = np.arange(steps + 1)

    def average(t: int, g: float) -> np.ndarray:
        share = np.diff((np.minimum(edges, t) / t) ** (g + 1))
        return values @ share

    stored = [(t, exponent_of(w)) for w in (0.05, 0.1) for t in range(every, steps + 1, every)]
    factors, error = power_combination(stored, steps, gamma)
    assert factors.sum() == pytest.approx(1, abs=1e-9)
    assert error < left
    made = sum(factor * average(t, g) for factor, (t, g) in zip(factors, stored, strict=True))
    tracked = average(steps, gamma)
    measured = float(np.sqrt(((made - tracked) ** 2).mean() / (tracked**2).mean()))
    assert measured == pytest.approx(error, rel=0.25, abs=1e-6), "the error is what the theory says"
    # one snapshot missing in the middle is worse: the sum really uses them
    fewer, worse = power_combination([s for s in stored if s[0] != steps], steps, gamma)
    assert worse > 5 * error
    assert len(fewer) == len(stored) - 2


def test_a_run_keeps_snapshots_and_resumes_with_them(tmp_path: Path) -> None:
    run(tmp_path / "whole", **WIDTHS)
    interrupted(tmp_path / "parts", 5, **WIDTHS)  # checkpoint at 12 images, snapshots at 8 and 16
    stale = tmp_path / "parts" / "posthoc" / "0000000016-0.05.safetensors"
    assert stale.is_file()
    stale.write_bytes(b"of another way the run might have gone")
    run(tmp_path / "parts", **WIDTHS)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    names = [[(s.path.name, s.updates) for s in snapshots(tmp_path / part)] for part in ("whole", "parts")]
    assert names[0] == names[1]
    assert names[0] == [(f"{8 * k:010d}-{w}.safetensors", 2 * k) for k in (1, 2, 3, 4) for w in ("0.05", "0.1")]
    for one, other in zip(snapshots(tmp_path / "whole"), snapshots(tmp_path / "parts"), strict=True):
        assert checkpoints.read_manifest(one.path)["sha256"] == checkpoints.read_manifest(other.path)["sha256"]

    # A width that was tracked comes back as it was, and one that was not as a run that tracked it has it.
    last = checkpoints.read(checkpoints.checkpoints(tmp_path / "whole")[-1], "posthoc")[0]
    again = reconstruct(tmp_path / "whole", 0.1)
    for name, tensor in again.weights.items():
        torch.testing.assert_close(tensor, last[f"posthoc.0.1.{name}"], rtol=0, atol=1e-6)
    run(tmp_path / "other", posthoc_widths=(0.08,), posthoc_every=32)
    tracked = checkpoints.read(checkpoints.checkpoints(tmp_path / "other")[-1], "posthoc")[0]
    made = reconstruct(tmp_path / "whole", 0.08)
    near = {w: reconstruct(tmp_path / "whole", w).weights for w in (0.05, 0.1)}
    off, best = 0.0, 0.0
    for name, tensor in made.weights.items():
        off += float(((tensor - tracked[f"posthoc.0.08.{name}"]) ** 2).sum())
        best += min(float(((near[w][name] - tracked[f"posthoc.0.08.{name}"]) ** 2).sum()) for w in near)
    assert off < 0.1 * best, "nearer to the truth than any average that was kept"

    earlier = reconstruct(tmp_path / "whole", 0.1, at=16)
    assert earlier.about["updates"] == 4
    assert earlier.about["snapshots"] == 4
    with pytest.raises(ValueError, match="averages can be made at 8, 16, 24, 32"):
        reconstruct(tmp_path / "whole", 0.1, at=20)

    # ... and on the command line, as a model.
    out = tmp_path / "average.safetensors"
    assert call("ema", tmp_path / "whole", "--width", 0.08, "--out", out) == 0
    model = load_diffusion(out)
    assert model.weights == "power 0.08"
    assert model.manifest["posthoc"]["images"] == 32
    state = model.net.state_dict()
    assert all(torch.equal(state[name].contiguous(), tensor) for name, tensor in made.weights.items())
    before = out.read_bytes()
    assert call("ema", tmp_path / "whole", "--width", 0.1, "--out", out) != 0, "nothing is overwritten unasked"
    assert out.read_bytes() == before
    assert call("ema", tmp_path / "whole", "--width", 0.5, "--out", tmp_path / "wide.safetensors") != 0
    assert not (tmp_path / "wide.safetensors").exists()
    assert call("sample", out, "--count", 1, "--steps", 2, "--out", tmp_path / "samples") == 0


def test_snapshots_past_a_moment_are_removed(tmp_path: Path) -> None:
    """A run that goes on from 20 images writes those of 30 again, and not those of 20."""
    (tmp_path / "posthoc").mkdir()
    for name in ("0000000010-0.05", "0000000020-0.05", "0000000020-0.1", "0000000030-0.05", "notes"):
        (tmp_path / "posthoc" / f"{name}.safetensors").touch()
    remove_after(tmp_path, 20)
    left = sorted(path.name.removesuffix(".safetensors") for path in (tmp_path / "posthoc").iterdir())
    assert left == ["0000000010-0.05", "0000000020-0.05", "0000000020-0.1", "notes"]


def test_snapshots_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.posthoc_widths"):
        reconstruct(tmp_path, 0.1)
    run(tmp_path, images=8)
    (tmp_path / "posthoc").mkdir()
    model = checkpoints.checkpoints(tmp_path)[-1]
    (tmp_path / "posthoc" / "0000000008-0.1.safetensors").write_bytes(model.read_bytes())
    with pytest.raises(ValueError, match="is not a snapshot of an average"):
        reconstruct(tmp_path, 0.1)


def test_settings_that_need_each_other() -> None:
    with pytest.raises(ValueError, match="need both posthoc_widths"):
        tiny_config(posthoc_widths=(0.1,))
    with pytest.raises(ValueError, match="need both posthoc_widths"):
        tiny_config(posthoc_every=100)
    with pytest.raises(ValueError, match=r"0\.2887"):
        tiny_config(posthoc_widths=(0.4,), posthoc_every=100)
    with pytest.raises(ValueError, match="must be distinct"):
        PowerEMA(nn.Linear(1, 1), (0.1, 0.10))
