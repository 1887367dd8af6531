"""Runs recipes: plans them, trains the arms they need, measures each seed once, and keeps records."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undiffuse.reproduce.arms import ARMS, SCALES, train_arm
from undiffuse.reproduce.claim import TIERS, Claim, Recipe
from undiffuse.reproduce.ledger import CLAIMS
from undiffuse.reproduce.store import Records
from undiffuse.util.errors import ConfigError

DATA = "fashion-mnist"
PIECE = 10.0  # minutes
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One thing to do: an arm to train, or a seed of a recipe to measure.

    Attributes:
        kind: "train" or "measure".
        name: The arm, or the claim's id.
        seed: The seed.
        minutes: Expected minutes.
        claim: The claim; of an arm the first claim that needs it.
        recipe: Its recipe.
        done: Whether it is done already.
    """

    kind: str
    name: str
    seed: int
    minutes: float
    claim: Claim
    recipe: Recipe
    done: bool


class Run:
    """What a method is given: the folder of the reproduction and what is kept there.

    Args:
        folder: Folder of the reproduction.
        device: "auto", "cpu" or "cuda".
        data: The training images; the test images are those of its part "test".
    """

    def __init__(self, folder: str | Path, device: str = "auto", data: str = DATA) -> None:
        self.records = Records(folder)
        self.folder = Path(folder)
        self.device = device
        self.data = data

    def measured(self, name: str, settings: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """Returns a measurement, made once; see `Records.measured`. Another judge of the same name measures anew."""
        if "judge" in settings:
            settings = {**settings, "judge": judge_digest(settings["judge"])}
        return self.records.measured(name, settings, measure)

    def arm_folder(self, arm: str, scale: str, seed: int) -> Path:
        """Returns the run folder of an arm."""
        return self.folder / "trained" / f"{arm}-{scale}-{seed}"

    def trained(self, arm: str, scale: str, seed: int) -> Path:
        """Trains an arm if it is not trained yet, and returns its run folder."""
        folder = self.arm_folder(arm, scale, seed)
        train_arm(arm, SCALES[scale], seed, folder, self.data, self.device)
        return folder


def choose(names: Sequence[str] = (), tier: str | None = None) -> list[tuple[Claim, Recipe]]:
    """Returns the recipes to run.

    Args:
        names: Ids of claims; none means all.
        tier: A tier; None means all but "gpu", or for named claims the first tier that they have.

    Raises:
        ConfigError: A claim or tier does not exist, or a named claim has no test there.
    """
    if tier is not None and tier not in TIERS:
        raise ConfigError("tier", f"must be one of {', '.join(TIERS)}; got {tier!r}")
    known = {claim.id: claim for claim in CLAIMS}
    chosen = []
    for name in names:
        claim = known.get(name.upper())
        if claim is None:
            raise ConfigError("claims", f"there is no claim {name!r}; they are C01 to {CLAIMS[-1].id}")
        if claim.untestable:
            raise ConfigError("claims", f"{claim.id} cannot be tested here: {claim.untestable}")
        recipe = claim.recipes[0] if tier is None else claim.recipe(tier)
        if recipe is None:
            tiers = ", ".join(recipe.tier for recipe in claim.recipes)
            raise ConfigError("tier", f"{claim.id} has no test of the tier {tier}; it has {tiers}")
        chosen.append((claim, recipe))
    if names:
        return chosen
    every = [(claim, recipe) for claim in CLAIMS for recipe in claim.recipes]
    return [(c, r) for c, r in every if (r.tier == tier if tier else r.tier != "gpu")]


def plan(run: Run, chosen: Iterable[tuple[Claim, Recipe]]) -> list[Job]:
    """Returns the jobs of recipes in the order in which they are run; an arm that several claims need comes once."""
    jobs: list[Job] = []
    pairs = list(chosen)
    missing: dict[tuple[str, str], set[int]] = {}
    needed = set()
    for claim, recipe in pairs:
        rows = run.records.record(claim.id, recipe.tier, recipe.digest)["seeds"]
        open_seeds = {seed for seed in recipe.seeds if str(seed) not in rows}
        missing[claim.id, recipe.tier] = open_seeds
        needed |= {(arm, recipe.scale, seed) for arm in recipe.arms for seed in open_seeds}
    seen = set()
    for claim, recipe in pairs:
        for seed in recipe.seeds:
            for arm in recipe.arms:
                key = (arm, recipe.scale, seed)
                if key not in seen:
                    seen.add(key)
                    done = key not in needed or (run.arm_folder(*key) / "arm.json").is_file()
                    minutes = SCALES[recipe.scale].minutes * (0.3 if ARMS[arm].kind == "classifier" else 1.0)
                    jobs.append(Job("train", arm, seed, minutes, claim, recipe, done))
            each = recipe.minutes / len(recipe.seeds)
            done = seed not in missing[claim.id, recipe.tier]
            jobs.append(Job("measure", claim.id, seed, each, claim, recipe, done))
    return jobs


def pieces(jobs: Sequence[Job], minutes: float = PIECE) -> list[list[Job]]:
    """Cuts jobs into pieces of a number of minutes, in order; a job that is longer is a piece of its own."""
    out: list[list[Job]] = []
    total = 0.0
    for job in jobs:
        if not out or total + job.minutes > minutes:
            out.append([])
            total = 0.0
        out[-1].append(job)
        total += job.minutes
    return out


def execute(run: Run, jobs: Sequence[Job], tell: Tell = lambda text: None) -> None:
    """Does the jobs that are not done.

    A seed whose result is there is not measured again, so a run that was stopped resumes. Only the tier "gpu" uses the
    run's device: the other tiers are measured on the CPU everywhere.

    Args:
        run: The run.
        jobs: The jobs.
        tell: Called with a line after each job.
    """
    on_cpu = Run(run.folder, "cpu", run.data)
    for job in jobs:
        if job.done:
            continue
        begin = time.process_time()
        here = run if job.recipe.tier == "gpu" else on_cpu
        if job.kind == "train":
            here.trained(job.name, job.recipe.scale, job.seed)
            tell(f"trained {job.name}, seed {job.seed}, in {time.process_time() - begin:.0f} s of processor time")
            continue
        module, _, name = job.recipe.method.partition(":")
        method = getattr(importlib.import_module(f"undiffuse.reproduce.methods.{module}"), name)
        extra = {"scale": job.recipe.scale} if job.recipe.scale else {}
        row = dict(method(here, job.seed, **job.recipe.settings, **extra))
        row["seconds"] = round(time.process_time() - begin, 2)
        if "judge" in job.recipe.settings:
            row["judge"] = judge_digest(job.recipe.settings["judge"])
        run.records.add(job.claim.id, job.recipe.tier, job.recipe.digest, job.seed, row)
        tell(f"{job.claim.id} ({job.recipe.tier}), seed {job.seed}: {_effects(row)}, {row['seconds']:.0f} s")


def judge_digest(name: str) -> str:
    """Returns the hash of the weights of the feature network that judges."""
    from undiffuse.reproduce.methods.judging import load_judge

    return str(load_judge(name).card.weights_sha256[:12])


def _effects(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row["effects"].items())
