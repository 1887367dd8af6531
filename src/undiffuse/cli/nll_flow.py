"""The part of `undiffuse nll` that measures by the probability flow: settings, rows of the record, numbers, words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from undiffuse.levels import Chain
from undiffuse.likelihood import FlowBits, FlowConfig, flow_ends, mean_and_error


def flow_config(args: argparse.Namespace) -> FlowConfig | None:
    """The settings from parsed options; None where only the bound is measured. ValueError for what does not fit."""
    given = {name: getattr(args, name) for name in ("probes", "draws", "dequantise", "tol") if hasattr(args, name)}
    if args.method == "bound":
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise ValueError(
                f"{names} would do nothing, because only the bound is measured: give --method flow or --method both, "
                "or leave it out"
            )
        return None
    if args.method == "flow" and args.steps is not None:
        raise ValueError(
            "--steps chooses a sub-chain for the bound, and the flow has no steps of its own to choose: leave it out, "
            "or give --method both"
        )
    if args.method == "flow" and hasattr(args, "terms"):
        raise ValueError("--terms are the bound's, and only the flow is measured: leave it out, or give --method both")
    return FlowConfig(decoder=args.decoder, **given)


def flow_clip(args: argparse.Namespace, config: FlowConfig | None) -> str:
    """How the flow's denoised image is clipped: as was asked; else as the bound's where the two share a decoder, and
    with uniform dequantisation, which puts pixels beyond -1 and 1, not at all.
    """
    uniform = config is not None and config.dequantise == "uniform"
    return str(getattr(args, "clip", "none" if uniform else "static"))


def settings_of(args: argparse.Namespace, config: FlowConfig) -> dict[str, Any]:
    """What of the settings decides the numbers, for the record."""
    return {
        "method": args.method,
        "flow_clip": flow_clip(args, config),
        "probes": "all" if config.probes is None else config.probes,
        "draws": config.draws,
        "dequantise": config.dequantise,
        "tol": config.tol,
    }


def row_of(flow: FlowBits) -> dict[str, Any]:
    """A batch as JSON."""
    return {name: getattr(flow, name).tolist() for name in ("values", "decoder", "calls", "forced")}


def summarise_flow(rows: Sequence[dict[str, Any]], chain: Chain, config: FlowConfig) -> dict[str, Any]:
    """Means over images and their errors.

    `standard_error` is over images, with all that chance adds to each. `probe_error` and `draw_error` tell how much of
    it the probes and the draws of the dequantisation add (the latter with the probes' part in it); None where there is
    only one of them and nothing tells.
    """
    values = np.concatenate([np.array(row["values"]) for row in rows])  # [N, draws, probes]
    images, draws, probes = values.shape
    total, error = mean_and_error(torch.from_numpy(values.mean((1, 2))))
    calls, forced, decoder = (np.concatenate([row[name] for row in rows]) for name in ("calls", "forced", "decoder"))
    probe_error = draw_error = None
    if probes > 1:
        probe_error = math.sqrt(values.var(2, ddof=1).mean(1).sum() / (draws * probes)) / images
    if draws > 1:
        draw_error = math.sqrt(values.mean(2).var(1, ddof=1).sum() / draws) / images
    clean = flow_ends(chain)[0]
    return {
        "bits_per_dim": total,
        "standard_error": None if math.isnan(error) else error,
        "probe_error": probe_error,
        "draw_error": draw_error,
        "decoder": float(decoder.mean()) if config.dequantise == "noise" else None,
        "cleanest_level": float(clean.sigma / clean.alpha),
        "calls": float(calls.mean()),
        "most_calls": int(calls.max()),
        "images_with_forced_steps": int((forced > 0).sum()),
    }


def flow_lines(flow: dict[str, Any], images: int, precision: str) -> list[tuple[str, object]]:
    """The numbers of the flow, for the page that is printed."""
    parts = [("probes", flow["probe_error"]), ("draws", flow["draw_error"])]
    told = ", ".join(f"{name} {error:.4f}" for name, error in parts if error is not None)
    forced = flow["images_with_forced_steps"]
    rounded = f"{precision} bends the flow, and its gradients do not see it: measure with --precision fp32"
    return [
        ("of the error", f"{told} bits by chance of the measurement" if told else None),
        ("rounding", rounded if precision != "fp32" else None),
        ("flow", f"{flow['calls']:.0f} network calls an image (most {flow['most_calls']:,}), each with its gradients"),
        (
            "rough",
            f"{forced:,} of {images:,} images had steps that missed the tolerance: give a larger --tol, or fp32"
            if forced
            else None,
        ),
    ]


def why_they_differ(flow: dict[str, Any], config: FlowConfig, strided: bool = False) -> str:
    """Bound and flow beside each other mean different things; which, in a line.

    `strided`: the bound's is a sub-chain.
    """
    if config.dequantise == "noise" and strided:
        return (
            "Both bound -log2 P of 8-bit pixels: the bound's is the sub-chain's, the flow has the whole chain's "
            "levels, and its first level and decoder."
        )
    if config.dequantise == "noise":
        return (
            "Both bound -log2 P of 8-bit pixels with the same first noise level and decoder; they differ by what the "
            "other levels cost, as the chain's Gaussian steps and as the flow."
        )
    s = flow["cleanest_level"]
    return (
        "Both bound -log2 P of 8-bit pixels, of different models: the bound's is the chain with its decoder, "
        f"the flow's a density at its cleanest level (sigma / alpha = {s:.3g}) with uniform dequantisation, "
        f"where a pixel known exactly costs {certain_pixel(s):.2f} bits. With --dequantise noise both have the same "
        "decoder."
    )


def certain_pixel(s: float) -> float:
    """Bits of a pixel that is known exactly, by a density with Gaussian noise s and uniform dequantisation."""
    width = 1 / 127.5
    return math.log2(math.sqrt(2 * math.pi) * s / width) + width**2 / 12 / (2 * s**2 * math.log(2))
