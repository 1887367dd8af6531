"""Plans, pieces and resumption, with methods and trainings that count how often they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undiffuse.reproduce import CLAIMS, reproduce
from undiffuse.reproduce import run as run_module
from undiffuse.reproduce.methods import arithmetic
from undiffuse.reproduce.run import Run, choose, execute, pieces, plan
from undiffuse.util.errors import ConfigError


def test_all_arithmetic_claims_are_reproduced_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("prior_term", "variance_bounds", "decoder_floor", "posthoc_average"):
        method = getattr(arithmetic, name)
        monkeypatch.setattr(
            arithmetic, name, lambda *args, method=method, **settings: calls.append(1) or method(*args, **settings)
        )
    for _ in range(2):
        found = reproduce(tier="arithmetic", out=tmp_path)
        assert {verdict.claim.id: verdict.verdict for verdict in found} == dict.fromkeys(
            ("C06", "C13", "C14", "C77"), "reproduced"
        )
    assert len(calls) == 4
    assert not list((tmp_path / "records").glob(".*"))


def test_a_changed_recipe_is_measured_again(tmp_path: Path) -> None:
    reproduce(["C06"], out=tmp_path)
    path = tmp_path / "records" / "C06-arithmetic.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "recipe": "0" * 16}))
    assert reproduce(["C06"], out=tmp_path)[0].verdict == "reproduced"
    assert json.loads(path.read_text())["recipe"] == record["recipe"]


def test_a_run_that_stops_resumes_at_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second seed fails once; the first is not measured again."""
    seeds: list[int] = []

    def method(run: Any, seed: int, **settings: Any) -> dict[str, Any]:
        seeds.append(seed)
        if seeds == [1, 2]:
            raise KeyboardInterrupt
        return {"effects": {"one step": 0.001, "long steps": 0.2}, "numbers": {}}

    from undiffuse.reproduce.methods import oracle_chains

    monkeypatch.setattr(oracle_chains, "gaussian_reverse", method)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["C69"], out=tmp_path)
    assert reproduce(["C69"], out=tmp_path)[0].verdict == "reproduced"
    assert seeds == [1, 2, 2, 3]


def test_another_judge_of_the_same_name_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, about = Run(tmp_path), {"seed": 1, "judge": "fashion"}
    assert [run.measured("fd", about, lambda value=value: value) for value in (1.0, 2.0)] == [1.0, 1.0]
    monkeypatch.setattr(run_module, "judge_digest", lambda name: "0" * 12)
    assert run.measured("fd", about, lambda: 3.0) == 3.0


def test_an_arm_that_several_claims_need_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def train(name: str, scale: Any, seed: int, folder: Path, data: str, device: str) -> dict[str, Any]:
        folder.mkdir(parents=True)
        (folder / "arm.json").write_text("{}")
        trained.append((name, seed))
        return {}

    monkeypatch.setattr(run_module, "train_arm", train)
    run, chosen = Run(tmp_path), choose(["C41", "C44"], "cpu")
    jobs = plan(run, chosen)
    arms = [(job.name, job.seed) for job in jobs if job.kind == "train"]
    assert len(arms) == len(set(arms)) == 9  # base, plain-resampling, added
    execute(run, [job for job in jobs if job.kind == "train"])
    assert sorted(trained) == sorted(arms)
    assert all(job.done for job in plan(run, chosen) if job.kind == "train")


def test_the_gpu_tier_is_cut_into_pieces_of_ten_minutes(tmp_path: Path) -> None:
    jobs = plan(Run(tmp_path), choose((), "gpu"))
    cut = pieces(jobs)
    assert [job for piece in cut for job in piece] == jobs
    assert all(sum(job.minutes for job in piece) <= 10 for piece in cut)
    assert len(cut) > 5


@pytest.mark.parametrize(
    ("claims", "tier", "text"),
    [
        (["C99"], None, "no claim 'C99'"),
        (["C02"], None, "cannot be tested here"),
        (["C06"], "gpu", "has no test of the tier gpu; it has arithmetic"),
        ((), "huge", "must be one of arithmetic, oracle, cpu, gpu"),
    ],
)
def test_what_cannot_be_run_is_refused(claims: Any, tier: str | None, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        choose(claims, tier)


def test_every_method_of_a_recipe_can_be_called() -> None:
    """The settings of each recipe are parameters of its method."""
    import importlib
    import inspect

    for claim in CLAIMS:
        for recipe in claim.recipes:
            module, _, name = recipe.method.partition(":")
            method = getattr(importlib.import_module(f"undiffuse.reproduce.methods.{module}"), name)
            extra = {"scale": recipe.scale} if recipe.scale else {}
            inspect.signature(method).bind(None, 1, **recipe.settings, **extra)


def test_a_temperature_scales_the_noise_of_a_step() -> None:
    import torch

    from undiffuse.noise_levels import named_schedule
    from undiffuse.prediction import FixedVariance
    from undiffuse.reproduce.methods.shipped import Cooled

    step, like = named_schedule("linear", 100).transition(50), torch.zeros(1, 1, 2, 2)
    plain, cooled = FixedVariance("fixed_large"), Cooled(FixedVariance("fixed_large"), 0.9)
    assert torch.allclose(cooled.variance(step, like), 0.81 * plain.variance(step, like))
    assert torch.allclose(cooled.log_variance(step, like).exp(), 0.81 * plain.log_variance(step, like).exp())
