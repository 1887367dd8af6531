"""`undiffuse ema`: the average of any width of a run that kept snapshots, as a model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.models import load_model, save_model
from undiffuse.pipelines.grids import quoted
from undiffuse.training.posthoc import reconstruct, weights_name

ROUGH = 0.05  # of a profile that snapshots cannot make, from which on a note is due


def run(args: argparse.Namespace) -> int:
    """The command."""
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists already: choose another name, or replace it with --overwrite")
    found = reconstruct(args.run, args.width, args.at)
    model = load_model(found.base)
    model.net.load_state_dict(found.weights)
    manifest = {**model.manifest, "posthoc": found.about}
    save_model(out, replace(model, manifest=manifest, weights=weights_name(args.width)))
    about = found.about
    rows: list[tuple[str, object]] = [
        ("model", out),
        ("average", f"relative width {args.width:g}, after {about['images']:,} images ({about['updates']:,} updates)"),
        (
            "made from",
            f"{about['snapshots']} snapshots, which leave {100 * about['profile_error']:.2g} % of its profile",
        ),
    ]
    say(fields(rows))
    if about["profile_error"] > ROUGH:
        say(
            "  That is rough: widths near those of the snapshots come out better, and so do runs with more snapshots "
            "(train.posthoc_every)."
        )
    if model.manifest.get("kind") == "diffusion":
        say(f"Sample from it:\n  undiffuse sample {quoted(out.as_posix())} --out samples-{quoted(out.stem)}")
    return 0
