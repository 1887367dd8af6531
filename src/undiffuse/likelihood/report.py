"""A likelihood measured over a data set: means over images with their errors, terms by step, the report's file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.likelihood.bound import mean_and_error
from undiffuse.likelihood.flow import FlowConfig, flow_ends
from undiffuse.noise_levels import DiscreteSchedule
from undiffuse.util.files import atomic_file
from undiffuse.util.notebook import card

__all__ = ["TERMS", "LikelihoodReport", "certain_pixel", "grouped", "per_step", "summarize_bound", "summarize_flow"]

TERMS = ("vb", "mse", "xstart_mse")


@dataclass(frozen=True)
class LikelihoodReport:
    """Bits per dimension of a data set, upper bounds on -log2 P(image) / D.

    Attributes:
        summary: What `bits.json` holds: "bits_per_dim" with its "standard_error" over images (of the bound, or of the
            flow if only that was measured); of the bound "rate", "prior", "decoder"; under "flow" the flow's numbers;
            of both the mean difference "bound_minus_flow" with "error_of_difference"; "images", "images_in_data",
            "not_readable" and "settings".
        rows: The measurements, one entry for each batch.
        per_step: Mean terms of the bound at each step ("step", "images", "vb" in bits per dimension, "mse" of the
            noise, "xstart_mse" of the image), None where nothing was measured; None without the bound.
        steps: Steps of the chain that the bound is of, and of the trained chain.
        shape: (height, width, channels) of the images as they were measured.
        flow: How the flow was measured; None without it.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)
    per_step: dict[str, list[Any]] | None = field(repr=False)
    steps: tuple[int, int]
    shape: tuple[int, int, int]
    flow: FlowConfig | None

    @property
    def bits_per_dim(self) -> float:
        """The mean over all images."""
        return float(self.summary["bits_per_dim"])

    @property
    def stderr(self) -> float | None:
        """The standard error over images; None for a single image."""
        error: float | None = self.summary["standard_error"]
        return error

    def to_json(self) -> str:
        """Returns the report as JSON: the summary, and "per_step" on one line."""
        head = json.dumps(self.summary, indent=1, allow_nan=False)[:-2]  # without its closing brace
        tail = "" if self.per_step is None else f',\n "per_step": {json.dumps(self.per_step, allow_nan=False)}'
        return f"{head}{tail}\n}}\n"

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file, whole or not at all."""
        with atomic_file(path, overwrite=True) as file:
            file.write(self.to_json().encode())

    def curve(self) -> dict[str, list[tuple[float, float]]]:
        """Returns the bound by step as points (step, mean of its term), grouped as in `grouped`."""
        if self.per_step is None:
            return {}
        data = self.per_step
        names = {"vb": "bits per dimension", "mse": "squared error of the noise"}
        wanted = int(self.summary["images"])
        return {title: grouped(data["step"], data["images"], data[name], wanted) for name, title in names.items()}

    def lines(self) -> list[tuple[str, str]]:
        """Returns the numbers as pairs of a name and a text, for people."""
        result, flow = self.summary, self.summary.get("flow")
        bound = "rate" in result
        rows: list[tuple[str, str]] = []
        if bound and flow is not None:
            rows.append(("difference", number_text(result, "bound_minus_flow", "error_of_difference")))
        else:
            rows.append(("total", number_text(result)))
        if bound:
            rows += [
                ("rate", f"{result['rate']:.4f} (cost of the noise levels; {result['prior']:.2g} of it is the prior)"),
                ("decoder", f"{result['decoder']:.4f} (the last step, to 8-bit pixels)"),
            ]
        return rows + (_flow_lines(flow, result) if flow is not None else [])

    def comparison(self) -> str:
        """Explains in a line or two how bound and flow relate; "" unless both were measured."""
        if self.flow is None or "rate" not in self.summary:
            return ""
        if self.flow.dequantise == "noise" and self.steps[0] != self.steps[1]:
            return (
                "Both bound -log2 P of 8-bit pixels: the bound's is the sub-chain's, the flow has the whole chain's "
                "levels, and its first level and decoder."
            )
        if self.flow.dequantise == "noise":
            return (
                "Both bound -log2 P of 8-bit pixels with the same first noise level and decoder; they differ by what "
                "the other levels cost, as the chain's Gaussian steps and as the flow."
            )
        s = self.summary["flow"]["cleanest_level"]
        return (
            "Both bound -log2 P of 8-bit pixels, of different models: the bound's is the chain with its decoder, the "
            f"flow's a density at its cleanest level (sigma / alpha = {s:.3g}) with uniform dequantization, where a "
            f"pixel known exactly costs {certain_pixel(s):.2f} bits. With dequantization by noise both have the same "
            "decoder."
        )

    def _repr_html_(self) -> str:
        """The measurement for notebooks."""
        values = {name: v for name, v in self.summary.items() if isinstance(v, (int, float, str))}
        facts = [(k.replace("_", " "), f"{v:.6g}" if isinstance(v, float) else v) for k, v in values.items()]
        return card(f"{number_text(self.summary)} bits/dim", facts)

    def __repr__(self) -> str:
        return f"LikelihoodReport({number_text(self.summary)} bits/dim, {self.summary['images']:,} images)"


def number_text(of: Mapping[str, Any], name: str = "bits_per_dim", error: str = "standard_error") -> str:
    """Formats a number with its error: "2.4310 +/- 0.0570"."""
    return f"{of[name]:.4f}" if of[error] is None else f"{of[name]:.4f} +/- {of[error]:.4f}"


def summarize_bound(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages the bound over images, which are independent, as are the levels drawn for them.

    Args:
        rows: Batches with "total", "prior" and "l0" in bits per dimension, [B] each.

    Returns:
        "bits_per_dim", "standard_error", "rate", "prior", "decoder", "decoder_error".
    """

    def over_images(name: str) -> tuple[float, float | None]:
        return _mean(torch.tensor([x for row in rows for x in row[name]], dtype=torch.float64))

    total, error = over_images("total")
    decoder, decoder_error = over_images("l0")
    return {
        "bits_per_dim": total,
        "standard_error": error,
        "rate": total - decoder,
        "prior": over_images("prior")[0],
        "decoder": decoder,
        "decoder_error": decoder_error,
    }


def summarize_flow(rows: Sequence[dict[str, Any]], chain: DiscreteSchedule, config: FlowConfig) -> dict[str, Any]:
    """Averages the flow's bits over images, with the error over images and the parts of it that chance adds.

    Args:
        rows: Batches with "values" [B, draws, probes], "decoder", "calls" and "forced" [B].
        chain: The model's chain, for its cleanest level.
        config: How they were measured.

    Returns:
        "bits_per_dim", "standard_error" over images; "probe_error" and "draw_error", what the probes and the draws of
        the dequantization add to it (the latter with the probes' part), None where there is only one of them;
        "decoder", "cleanest_level", "calls", "most_calls", "images_with_forced_steps".
    """
    values = np.concatenate([np.array(row["values"]) for row in rows])  # [N, draws, probes]
    images, draws, probes = values.shape
    total, error = _mean(torch.from_numpy(values.mean((1, 2))))
    nfe, forced, decoder = (np.concatenate([row[name] for row in rows]) for name in ("nfe", "forced", "decoder"))
    probe_error = draw_error = None
    if probes > 1:
        probe_error = math.sqrt(values.var(2, ddof=1).mean(1).sum() / (draws * probes)) / images
    if draws > 1:
        draw_error = math.sqrt(values.mean(2).var(1, ddof=1).sum() / draws) / images
    clean = flow_ends(chain)[0]
    return {
        "bits_per_dim": total,
        "standard_error": error,
        "probe_error": probe_error,
        "draw_error": draw_error,
        "decoder": float(decoder.mean()) if config.dequantise == "noise" else None,
        "cleanest_level": float(clean.sigma / clean.alpha),
        "nfe": float(nfe.mean()),
        "most_nfe": int(nfe.max()),
        "images_with_forced_steps": int((forced > 0).sum()),
    }


def summarize(
    rows: Sequence[dict[str, Any]], chain: DiscreteSchedule, bound: bool, flow: FlowConfig | None
) -> dict[str, Any]:
    """Averages all that was measured; of bound and flow together also their difference, image by image.

    Raises:
        ValueError: No image could be read.
    """
    full = [row for row in rows if len(row["images"]) > len(row["broken"])]
    if not full:
        raise ValueError("no image could be read")
    result = summarize_bound(full) if bound else {}
    if flow is None:
        return result
    of_flow = summarize_flow([row["flow"] for row in full], chain, flow)
    if not bound:
        return {"bits_per_dim": of_flow["bits_per_dim"], "standard_error": of_flow["standard_error"], "flow": of_flow}
    values = np.concatenate([np.array(row["flow"]["values"]).mean((1, 2)) for row in full])
    mean, error = _mean(torch.from_numpy(np.concatenate([row["total"] for row in full]) - values))
    return {**result, "flow": of_flow, "bound_minus_flow": mean, "error_of_difference": error}


def per_step(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> dict[str, list[Any]]:
    """Averages the terms of the bound at each step.

    Args:
        rows: Batches with the sums "vb", "mse", "xstart_mse" and the counts "measured", [K] each.
        steps: The numbers of the K steps in the trained chain.

    Returns:
        "step", "images" (how many were measured at each step) and the mean terms, None where there are none.
    """
    full = [row for row in rows if "total" in row]
    counts = np.sum([row["measured"] for row in full], axis=0)
    out: dict[str, list[Any]] = {"step": list(steps), "images": counts.tolist()}
    for name in TERMS:
        sums = np.sum([row[name] for row in full], axis=0)
        out[name] = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    return out


def grouped(
    steps: Sequence[int], counts: Sequence[int], means: Sequence[float | None], wanted: int
) -> list[tuple[float, float]]:
    """Joins neighbouring steps until each point rests on enough measurements to show more than chance.

    Args:
        steps: Numbers of the steps.
        counts: Measurements at each step.
        means: Their mean; None where there are none.
        wanted: Measurements behind a point.

    Returns:
        Points (step, mean).
    """
    points: list[tuple[float, float]] = []
    n, x, y = 0, 0.0, 0.0
    for step, count, mean in zip(steps, counts, means, strict=True):
        if mean is not None:
            n, x, y = n + count, x + count * step, y + count * mean
        if n >= wanted:
            points.append((x / n, y / n))
            n, x, y = 0, 0.0, 0.0
    return [*points, (x / n, y / n)] if n else points


def certain_pixel(s: float) -> float:
    """Returns the bits of a pixel that is known exactly, by a density with Gaussian noise s, dequantized uniformly."""
    width = 1 / 127.5
    return math.log2(math.sqrt(2 * math.pi) * s / width) + width**2 / 12 / (2 * s**2 * math.log(2))


def _flow_lines(flow: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [("probes", flow["probe_error"]), ("draws", flow["draw_error"])]
    chance = ", ".join(f"{name} {error:.4f}" for name, error in parts if error is not None)
    rows = [("of the error", f"{chance} bits by chance of the measurement")] if chance else []
    precision, forced = result["settings"]["precision"], flow["images_with_forced_steps"]
    if precision != "fp32":
        rows.append(("rounding", f"{precision} bends the flow, and its gradients do not see it: measure in fp32"))
    nfe = f"{flow['nfe']:.0f} network calls an image (most {flow['most_nfe']:,}), each with its gradients"
    rows.append(("flow", nfe))
    if forced:
        missed = f"{forced:,} of {result['images']:,} images had steps that missed the tolerance"
        rows.append(("rough", f"{missed}: use a larger tolerance, or fp32"))
    return rows


def _mean(values: torch.Tensor) -> tuple[float, float | None]:
    mean, error = mean_and_error(values)
    return mean, None if math.isnan(error) else error
