"""`undiffuse ema`: computes an EMA of any width from a run's snapshots."""

from __future__ import annotations

import argparse
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.cli.training_options import naming_options
from undiffuse.models import save_model
from undiffuse.pipelines.grids import quoted
from undiffuse.training.posthoc import posthoc_model
from undiffuse.util.text import count_of

_ROUGH = 0.05  # a note is printed if the snapshots miss more than this share of the EMA's profile


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} already exists: choose another name, or add --overwrite")
    with naming_options(run_dir="RUN"):
        model = posthoc_model(args.run, args.width, args.at)
    save_model(out, model)
    about = model.manifest["posthoc"]
    say(
        fields([
            ("model", out),
            ("EMA", f"relative width {args.width:g}, after {about['images']:,} images "
                        f"({about['updates']:,} updates)"),
            ("made from", f"{count_of(about['snapshots'], 'snapshot')}, with an error of "
                          f"{100 * about['profile_error']:.2g} % of the profile"),
        ])
    )  # fmt: skip
    if about["profile_error"] > _ROUGH:
        say(
            "  This is a rough approximation. For a better one, choose a width closer to those of the snapshots, or "
            "train with more snapshots (--set train.posthoc_every=IMAGES)."
        )
    if model.manifest.get("kind") == "diffusion":
        say(f"To sample:\n  undiffuse sample {quoted(out.as_posix())} --out samples-{quoted(out.stem)}")
    return 0
