"""The likelihood of a data set: bound, flow or both for every image, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from undiffuse.config import SamplerConfig
from undiffuse.data import BrokenImageError, ImageDataset
from undiffuse.denoiser import ChainDenoiser
from undiffuse.distributed import Job, join
from undiffuse.likelihood.bound import Bound, bits_per_dim
from undiffuse.likelihood.flow import FlowBits, FlowConfig, flow_bits_per_dim
from undiffuse.likelihood.report import TERMS, LikelihoodReport, per_step, summarize
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import DiscreteSchedule
from undiffuse.pictures import Panel, PlottingUnavailable, draw_plot, save_png
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.classes import class_numbers
from undiffuse.pipelines.inputs import Images, labels_of, model_images, open_images
from undiffuse.runtime_specs import DEFAULT
from undiffuse.util.errors import ConfigError
from undiffuse.util.launch import Launch
from undiffuse.util.progress import NoProgress, Progress
from undiffuse.util.store import RowStore

__all__ = ["DEFAULT_TERMS", "METHODS", "measure"]

METHODS = ("bound", "flow", "both")
DEFAULT_TERMS = 50
REPORT, CURVE, PARTIAL = "bits.json", "bits.png", "bits.partial.jsonl"


def measure(
    model: Pipeline | str | Path,
    data: Images,
    *,
    method: str = "bound",
    count: int | None = 256,
    terms: int | None = DEFAULT_TERMS,
    steps: str | None = None,
    decoder: str = "exact",
    clip: str | None = None,
    flow: FlowConfig | None = None,
    classes: Any = None,
    labels: str = "auto",
    fit: str | None = None,
    on_broken: str = "refuse",
    seed: int = 0,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    runtime: str = DEFAULT,
    weights: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> LikelihoodReport:
    """Measures the likelihood of images in bits per dimension.

    Example:
        report = measure("fashion-mnist-32", "fashion-mnist:test", count=500, out="nll")
        print(report.bits_per_dim, report.stderr)

    Args:
        model: A model file, run folder or name; or a `Pipeline`, whose guidance is ignored (guidance does not change
            the model). For the flow it must have been loaded with gradient=True.
        data: What `open_images` takes; images that the model was not trained on. Of a model with a value range its 256
            levels are measured, from the low to the high end.
        method: "bound" (variational bound, term by term), "flow" (probability flow), or "both" on the same images.
        count: Images, evenly spaced over the data; None measures all.
        terms: Noise levels evaluated for each image: K give an unbiased estimate of the bound; None evaluates all.
        steps: Measure the bound of a sub-chain, as `DiscreteSchedule.respaced` takes it; by default of the whole chain.
        decoder: Probability of 8-bit pixels: "exact", or "tanh", the original's approximation.
        clip: Whether the denoised image is clipped: "static", "dynamic" or "none"; by default "static", and "none" for
            the flow with uniform dequantization, which puts pixels beyond -1 and 1.
        flow: How the flow is measured; its `decoder` is replaced by `decoder`.
        classes: The class of all images, or one for each; by default what `labels_of` finds.
        labels: See `open_images`.
        fit: See `open_images`.
        on_broken: See `open_images`; unreadable images that are skipped are listed in the report.
        seed: Random seed. What is drawn for an image depends on the seed and the image's number only.
        batch: Images at once; by default what fits into memory.
        device: See `Pipeline.from_pretrained`; of a `Pipeline` its own.
        precision: See `Pipeline.from_pretrained`; of a `Pipeline` its own.
        runtime: See `Pipeline.from_pretrained`; of a `Pipeline` its own.
        weights: See `Pipeline.from_pretrained`; of a `Pipeline` its own.
        out: A folder for bits.json, bits.png and the rows measured so far, so that the same call resumes, and that
            processes which torchrun or srun started share the images.
        overwrite: Whether to replace another measurement in `out`.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: A setting is not possible, or the classes of the images are unknown.
        ValueError: No image could be read, or `out` holds another measurement.
    """
    if method not in METHODS:
        raise ConfigError("method", f"{method!r} is unknown; expected one of {', '.join(METHODS)}")
    bound = method != "flow"
    if flow is not None and method == "bound":
        raise ConfigError("method", "settings of the flow have no effect on the bound; choose flow or both")
    if steps is not None and not bound:
        raise ConfigError("steps", "a sub-chain is for the bound; the flow has no steps to choose: leave it out")
    config = None if method == "bound" else FlowConfig(**{**_settings(flow or FlowConfig()), "decoder": decoder})
    if isinstance(model, Pipeline):
        pipeline = model
    else:
        chosen = SamplerConfig(
            model=str(model),
            weights=weights,
            solver="ddim",
            precision=precision,
            runtime=runtime,
            clip=clip or "static",
        )
        pipeline = Pipeline.load(chosen, device, gradient=config is not None, keep_weights=False)
    denoiser = _unguided(pipeline)
    flow_clip = clip or ("none" if config is not None and config.dequantise == "uniform" else "static")
    chain = denoiser.chain if steps is None else denoiser.chain.respaced(steps)
    given = class_numbers(pipeline.model, classes, default=None)
    whole = open_images(data, pipeline.model, labels=labels if given is None else "none", fit=fit, on_broken=on_broken)
    dataset = open_images(whole, pipeline.model, count=count)
    targets = labels_of(dataset, pipeline.model, given)
    some = None if terms is None or terms >= chain.steps else terms

    skipped = ("solver", "steps", "eta", "classifier", "guidance", "guidance_at", *(() if bound else ("clip",)))
    about: dict[str, Any] = {
        "command": "nll",
        **{name: value for name, value in pipeline.record.items() if name not in skipped},
        **({"steps": chain.indices.tolist() if steps is not None else "all"} if bound else {}),
        **({"terms": some if some is not None else "all"} if bound else {}),
        "decoder": decoder,
        **({} if config is None else _flow_record(method, flow_clip, config)),
        "seed": seed,
        "data": dataset.source.fingerprint,
        **({} if fit is None else {"fit": fit}),
        "classes": given,
    }
    size, followed = pipeline.batch_size(batch), denoiser.clipping(flow_clip)

    def row_of(indices: list[int]) -> dict[str, Any]:
        kept, broken = _readable(dataset, indices)
        row: dict[str, Any] = {"images": indices, "broken": broken}
        if kept:
            x0, noise = model_images(dataset, kept, pipeline.device), NoiseSource(seed, kept)
            if pipeline.model.value_range is not None:
                x0 = ((x0 + 1) * 127.5).round() / 127.5 - 1  # 256 levels, of which the probability is
            cond = pipeline.condition(None if targets is None else [targets[i] for i in kept])
            if bound:
                row |= _bound_row(bits_per_dim(denoiser, chain, x0, noise, cond=cond, decoder=decoder, terms=some))
            if config is not None:
                row["flow"] = _flow_row(flow_bits_per_dim(followed, x0, noise, cond=cond, config=config))
        return row

    rows: list[dict[str, Any]] = []
    with join() if out is not None else nullcontext(Job(Launch())) as job, ExitStack() as stack:
        store = None
        if out is not None:
            stack.enter_context(job.only_user(out, "measuring"))
            file, results = Path(out) / PARTIAL, [Path(out) / REPORT, Path(out) / CURVE]
            store = job.main_first(
                lambda main: RowStore(file, about, "measurements", results, overwrite and main, process=job.rank)
            )
        todo = list(range(len(dataset))) if store is None else store.missing(len(dataset))
        with Progress("measuring", len(todo), "images") if progress else NoProgress() as bar:
            for indices, shared in job.shared(todo, size, bar):
                rows.append(row_of(indices)) if store is None else store.write(row_of(indices))
                shared.advance(len(indices))
        if store is not None:
            job.main_first(lambda main: store.merge() if main else store.read())
            rows = store.rows
        report = _report(rows, chain, denoiser.chain, bound, config, whole, {**about, **pipeline.notes}, dataset)
        if store is not None and job.is_main:
            report.save(store.place / REPORT)
            _save_curve(report, store.place / CURVE, about)
        job.barrier()
    return report


def _report(
    rows: list[dict[str, Any]],
    chain: DiscreteSchedule,
    trained: DiscreteSchedule,
    bound: bool,
    flow: FlowConfig | None,
    whole: ImageDataset,
    settings: dict[str, Any],
    dataset: ImageDataset,
) -> LikelihoodReport:
    result = summarize(rows, trained, bound, flow)
    result["images"] = sum(len(row["images"]) - len(row["broken"]) for row in rows)
    result["not_readable"] = [item for row in rows for item in row["broken"]]
    result["not_readable"] += [f"{item.name} ({item.reason})" for item in whole.source.excluded]
    result["images_in_data"] = len(whole)
    result["settings"] = {**settings, "data_source": dataset.source.where}
    steps = per_step(rows, chain.indices.tolist()) if bound else None
    return LikelihoodReport(result, rows, steps, (chain.steps, chain.parent_steps), dataset.shape, flow)


def _save_curve(report: LikelihoodReport, path: Path, about: dict[str, Any]) -> None:
    """Draws the bound by step; nothing without the bound."""
    if report.per_step is not None:
        panel = Panel(
            lines=report.curve(),
            title=f"{path.resolve().parent.name}: the bound by step, {report.bits_per_dim:.3f} bits per dimension",
            x_label=f"step (0 is the cleanest of {report.steps[1]:,})",
            y_label="mean of one step's term",
            log_y=True,
        )
        try:
            curve = draw_plot(panel)
        except PlottingUnavailable as error:
            warnings.warn(f"{path} is not drawn: {error}", stacklevel=3)
        else:
            save_png(path, curve, {**about, "total": report.bits_per_dim}, overwrite=True)


def _unguided(pipeline: Pipeline) -> ChainDenoiser:
    """The model's own denoiser, within all guidance."""
    denoiser: Any = pipeline.denoiser
    while not isinstance(denoiser, ChainDenoiser):
        denoiser = denoiser.denoiser
    return denoiser


def _settings(config: FlowConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _flow_record(method: str, clip: str, config: FlowConfig) -> dict[str, Any]:
    """What of the flow's settings decides the numbers."""
    return {
        "method": method,
        "flow_clip": clip,
        "probes": "all" if config.probes is None else config.probes,
        "draws": config.draws,
        "dequantise": config.dequantise,
        "tol": config.tol,
    }


def _bound_row(bound: Bound) -> dict[str, Any]:
    """A batch as JSON: the totals of each image, the sums of each level. ValueError if they are not finite."""
    if not bool(torch.isfinite(bound.total).all()):
        raise ValueError(
            "the bound of an image is not finite: the network diverged. Check the weights, or measure in float32 if "
            "you used half precision"
        )
    row: dict[str, Any] = {"total": bound.total.tolist(), "prior": bound.prior.tolist(), "l0": bound.vb[:, 0].tolist()}
    row |= {name: torch.nansum(getattr(bound, name), 0).tolist() for name in TERMS}
    return row | {"measured": (~bound.vb.isnan()).sum(0).tolist()}


def _flow_row(flow: FlowBits) -> dict[str, Any]:
    """A batch as JSON."""
    return {name: getattr(flow, name).tolist() for name in ("values", "decoder", "nfe", "forced")}


def _readable(dataset: ImageDataset, indices: Sequence[int]) -> tuple[list[int], list[str]]:
    """Which images of a batch can be read, and what is wrong with the others if on_broken is "skip"; else an error."""
    kept, broken = [], []
    for i in indices:
        try:
            dataset.plain(i)
            kept.append(i)
        except BrokenImageError as error:
            if dataset.config.on_broken == "refuse":
                raise
            broken.append(f"{error.name} ({error.reason})")
    return kept, broken
