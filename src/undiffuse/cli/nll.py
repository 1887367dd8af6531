"""`undiffuse nll`: measures the likelihood of images in bits per dimension, by the bound, the flow, or both."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from undiffuse.cli.console import fields, say, table
from undiffuse.likelihood import FlowConfig, LikelihoodReport, measure
from undiffuse.likelihood.measurement import CURVE, DEFAULT_TERMS, REPORT
from undiffuse.likelihood.report import number_text
from undiffuse.runtime_specs import DEFAULT
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import duration, join_names

FLOW = ("probes", "draws", "dequantise", "tol")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    given = {name: getattr(args, name) for name in FLOW if hasattr(args, name)}
    if args.method == "bound" and given:
        options = ", ".join(f"--{name}" for name in given)
        verb = "have" if len(given) > 1 else "has"
        raise ValueError(f"{options} {verb} no effect on the bound: add --method flow or --method both")
    if args.method == "flow" and hasattr(args, "terms"):
        raise ConfigError("terms", "has no effect on the flow; omit it or use --method both")
    terms = getattr(args, "terms", DEFAULT_TERMS)
    names = ["method", "count", "steps", "decoder", "classes", "labels", "fit", "on_broken", "seed", "batch"]
    names += ["device", "weights", "out", "overwrite"]
    report = measure(
        args.model,
        args.data,
        terms=terms,
        flow=FlowConfig(**given) if given else None,
        clip=getattr(args, "clip", None),
        precision=args.precision or "fp32",
        runtime=args.runtime or DEFAULT,
        **{name: getattr(args, name) for name in names},
    )
    say(_page(report, Path(args.out), terms, time.monotonic() - begin))
    return 0


def _page(report: LikelihoodReport, folder: Path, terms: int | None, seconds: float) -> str:
    result, (steps, _) = report.summary, report.steps
    bound, flow, broken = "rate" in result, result.get("flow"), result["not_readable"]
    every = "all steps" if terms is None or terms >= steps else f"{terms} of {steps:,} steps per image (unbiased)"
    thinned = result["images"] < result["images_in_data"]
    of = f" of {result['images_in_data']:,}, evenly spaced" if thinned else ""
    height, width, _ = report.shape
    rows: list[tuple[str, Any]] = [
        *report.lines(),
        ("images", f"{result['images']:,}{of}, from {result['settings']['data_source']}, each as {width}x{height}"),
        ("left out", f"{len(broken)}: {join_names(broken, 10)}" if broken else None),
        ("terms", every if bound else None),
        ("files", f"{folder / REPORT}, {folder / CURVE}" if bound else str(folder / REPORT)),
    ]
    text = f"Bits per dimension, an upper bound on the negative log-likelihood ({duration(seconds)}):\n"
    if bound and flow is not None:
        head = ("method", "bits/dim", "network calls per image")
        of_flow = ["flow", number_text(flow), f"{flow['nfe']:.0f}"]
        beside = [["bound", number_text(result), str(terms or steps)], of_flow]
        text += table(beside, head, right=(2,), indent=2) + "\n"
    text += fields(rows)
    if report.stderr is None:
        text += "\n  (no standard error for a single image)"
    return f"{text}\n{report.comparison()}".rstrip()
