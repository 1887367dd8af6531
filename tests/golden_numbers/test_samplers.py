"""Importance sampling of timesteps by the loss's second moment, against the original's weights."""

from __future__ import annotations

import re
from pathlib import Path

from support.golden_files import FLOAT64, Golden, for_each
from undiffuse.timesteps import LossSecondMoment


@for_each("loss_second_moment")
def test_golden_loss_second_moment(path: Path) -> None:
    """Sampling weights after the numbers of updates in the file (unnormalised ones before all histories are full)."""
    golden = Golden(path)
    meta = golden.meta
    steps = meta["num_timesteps"]
    sampler = LossSecondMoment(steps, history=meta["history_per_term"], uniform=meta["uniform_prob"])
    timesteps, losses = golden.take("timesteps").numpy(), golden.take("losses").numpy()
    for done, (t, loss) in enumerate(zip(timesteps, losses, strict=True), start=1):
        sampler.update(t, loss)
        if (key := f"weights_after_{done}") in golden:
            weights = golden.take(key)
            probabilities = sampler.probabilities()
            golden.compare(key, probabilities * weights.sum().item(), FLOAT64)
            # A restored sampler goes on as the saved one would have.
            restored = LossSecondMoment(steps, history=meta["history_per_term"], uniform=meta["uniform_prob"])
            restored.load_state_dict(sampler.state_dict())
            assert (restored.probabilities() == probabilities).all()
            sampler = restored
    assert any(re.fullmatch(r"weights_after_\d+", key) for key in golden.used)
    golden.finish()
