"""`undiffuse ema`: an average of any width of a run's weights, as a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.cli.training_options import naming_options
from undiffuse.models import save_model
from undiffuse.pipelines.grids import quoted
from undiffuse.training.posthoc import posthoc_model

_ROUGH = 0.05  # share of the profile that snapshots cannot make, from which on a note is printed


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists already: choose another name, or replace it with --overwrite")
    with naming_options(run_dir="RUN"):
        model = posthoc_model(args.run, args.width, args.at)
    save_model(out, model)
    about = model.manifest["posthoc"]
    say(
        fields([
            ("model", out),
            ("average", f"relative width {args.width:g}, after {about['images']:,} images "
                        f"({about['updates']:,} updates)"),
            ("made from", f"{about['snapshots']} snapshots, which leave {100 * about['profile_error']:.2g} % of its "
                          "profile"),
        ])
    )  # fmt: skip
    if about["profile_error"] > _ROUGH:
        say(
            "  That is rough. Widths near those of the snapshots are more accurate, and so are runs with more "
            "snapshots (train.posthoc_every)."
        )
    if model.manifest.get("kind") == "diffusion":
        say(f"Sample from it:\n  undiffuse sample {quoted(out.as_posix())} --out samples-{quoted(out.stem)}")
    return 0
