"""Latents: images encoded by DDIM inversion, their file, and the ways back to images.

The file is safetensors: "latents" float32 [N, C, H, W], "labels" int64 [N] of a class-conditional model; the key
"undiffuse.latents" of its header holds a JSON object with the pipeline's record and notes and the images' names. While
a job runs, finished batches lie in PATH.parts/, so that the same job resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from undiffuse import sampling
from undiffuse.checkpoints import weights_hash
from undiffuse.data import ImageDataset
from undiffuse.distributed import Job, join
from undiffuse.kernels import Plan, planned
from undiffuse.noise import NoiseSource
from undiffuse.pictures import save_png
from undiffuse.pictures.units import check_format, default_format
from undiffuse.pipelines import grids
from undiffuse.pipelines.classes import class_names, class_numbers
from undiffuse.pipelines.inputs import Images, finite, labels_of, model_images, open_images
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.pipelines.run import recorded_kernels
from undiffuse.pipelines.samples import Samples
from undiffuse.pixels import from_pixels, to_uint8
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file
from undiffuse.util.launch import Launch
from undiffuse.util.limits import check_header
from undiffuse.util.progress import NoProgress, Progress
from undiffuse.util.records import check_record, read_json
from undiffuse.util.store import Parts, Store
from undiffuse.util.text import count_of

__all__ = [
    "Latents", "LatentsWriter", "decode", "decode_into", "encode", "latents_path", "pipeline_of", "read",
    "read_about", "reconstruction_errors",
]  # fmt: skip

KEY = "undiffuse.latents"
SUFFIX = ".safetensors"
PARTS = ".parts"  # behind the file's name: the folder of finished batches while a job runs
GRID = "grid.png"


@dataclass(frozen=True)
class Latents:
    """Encoded images.

    Attributes:
        latents: float32 [N, C, H, W].
        labels: The classes under which they were encoded, int64 [N]; None without classes.
        about: How they were made: "record" and "notes" of the pipeline, the images' "names", and "label_names".
        where: What messages call them, their file.
    """

    latents: Tensor
    labels: Tensor | None
    about: dict[str, Any]
    where: str = "the latents"

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def digest(self) -> str:
        """sha256 of latents and labels: their identity."""
        tensors = {"latents": self.latents} | ({} if self.labels is None else {"labels": self.labels})
        return weights_hash(tensors)

    def save(self, path: str | Path) -> None:
        """Writes the file; it appears whole or not at all."""
        tensors = {"latents": self.latents} | ({} if self.labels is None else {"labels": self.labels})
        with atomic_file(path, overwrite=True) as out:
            out.write(save(tensors, metadata={KEY: json.dumps(self.about)}))


def encode(
    pipeline: Pipeline,
    images: Images,
    *,
    classes: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    batch: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
    **inputs: Any,
) -> Latents:
    """Encodes images into latents by DDIM inversion; the same job with the same `out` resumes.

    With `out`, processes that torchrun or srun started share the images.

    Args:
        pipeline: A pipeline with the solver "ddim" and eta 0.
        images: What `open_images` takes.
        classes: The class of all images, or one for each; by default what `labels_of` finds.
        out: A file for the latents; a name without a suffix gets .safetensors. None keeps them in memory.
        overwrite: Whether to replace latents of another job.
        batch: Images at once; by default what fits into memory.
        progress: Whether to show a progress bar.
        report: Receives a line on how many images were encoded now.
        **inputs: Other arguments of `open_images`.

    Raises:
        ConfigError: The classes are unknown ("classes"), or `out` has another suffix ("out").
        ValueError: `out` holds latents of another job, or the pipeline is not deterministic DDIM.
    """
    check_deterministic(pipeline)
    chosen = class_numbers(pipeline.model, classes, default=None)
    dataset = open_images(images, pipeline.model, **{"labels": "auto" if chosen is None else "none", **inputs})
    labels = labels_of(dataset, pipeline.model, chosen)
    about = {
        "record": {"command": "encode", **pipeline.record},
        "notes": {name: value for name, value in pipeline.notes.items() if name != "device"},
        "data": dataset.source.fingerprint,
        "prepared": {"fit": dataset.config.fit, "size": list(dataset.shape)},
        "names": [dataset.source.name(i) for i in range(len(dataset))],
        "labels": labels,
        "label_names": class_names(pipeline),
    }
    with join() if out is not None else nullcontext(Job(Launch())) as job, ExitStack() as stack:
        if out is not None:
            stack.enter_context(job.only_user(f"{latents_path(out)}{PARTS}", "encoding"))
        writer = None if out is None else job.main_first(lambda main: LatentsWriter(out, about, overwrite and main))
        todo = list(range(len(dataset))) if writer is None else writer.missing(len(dataset))
        size, made = pipeline.batch_size(batch), []
        with Progress("encoding", len(todo), "images") if progress else NoProgress() as bar:
            for indices, shared in job.shared(todo, size, bar):
                x0 = model_images(dataset, indices, pipeline.device)
                cond = pipeline.condition(None if labels is None else [labels[i] for i in indices])
                latents = finite(sampling.encode(pipeline.denoiser, pipeline.path, x0, cond=cond), indices)
                if writer is None:
                    made.append(latents)
                else:
                    writer.write(indices, latents)
                shared.advance(len(indices))
        if report is not None and job.is_main:
            kept = f" ({len(dataset) - len(todo):,} already existed)" if len(todo) < len(dataset) else ""
            report(f"{count_of(len(todo), 'image')} encoded{kept}")
        if writer is not None:
            return job.main_first(lambda main: writer.finish(len(dataset), labels) if main else read(writer.place))
    return Latents(torch.cat(made), None if labels is None else torch.tensor(labels), check_record(about))


def decode(
    pipeline: Pipeline,
    encoded: Latents | str | Path,
    *,
    classes: Any = None,
    batch: int | None = None,
    indices: Sequence[int] | None = None,
    progress: bool | NoProgress = True,
) -> Samples:
    """Decodes latents into images, under their own classes or others.

    Args:
        pipeline: The pipeline that encoded them, see `pipeline_of`.
        encoded: Latents, or their file.
        classes: One class for all images, or one for each; by default their own.
        batch: Images at once; by default what fits into memory.
        indices: The latents to decode; by default all.
        progress: Whether to show a progress bar, or a bar that is there already.

    Raises:
        ConfigError: The classes do not fit the latents or the model ("classes").
        ValueError: The latents are those of images of another shape, or their labels are not the model's classes.
    """
    stored = encoded if isinstance(encoded, Latents) else read(encoded)
    labels = _decoding_labels(stored, pipeline, classes)
    todo = list(range(len(stored))) if indices is None else list(indices)
    size, made = pipeline.batch_size(batch), []
    own = progress if isinstance(progress, NoProgress) else None
    shown = own or (Progress("decoding", len(todo), "images") if progress else NoProgress())
    with shown as bar, planned(outermost=True) as kernels:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            chosen = None if labels is None else [labels[i] for i in part]
            x_T = stored.latents[part].to(pipeline.device)
            x = pipeline.from_noise(NoiseSource(0, part), chosen, x_T=x_T, progress=bar)
            made.append(x.float().cpu())
    # No noise is drawn on the way; the seed is part of file names only.
    run = {**pipeline.record, "command": "decode", "seed": 0, "latents": stored.digest}
    chosen = None if labels is None else [labels[i] for i in todo]
    notes = {**pipeline.notes, **kernels.note()}
    about = (chosen, class_names(pipeline), todo, run, notes, pipeline.text())
    return Samples.of(torch.cat(made), pipeline.model.value_range, *about)


def decode_into(
    folder: str | Path,
    pipeline: Pipeline,
    encoded: Latents | str | Path,
    *,
    classes: Any = None,
    format: Any = None,
    overwrite: bool = False,
    batch: int | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[Path, int]:
    """Decodes latents into a folder of images with a grid; the same job again makes only what is missing.

    Processes that torchrun or srun started share the images.

    Args:
        folder: Where the images go.
        pipeline: See `decode`.
        encoded: See `decode`.
        classes: See `decode`.
        batch: See `decode`.
        progress: See `decode`.
        format: As in `pipelines.run.SamplingRun`.
        overwrite: Whether to remove images of another job.
        notes: What records of the images also say.

    Returns:
        The folder or npz file, and the number of images that were missing.
    """
    stored = encoded if isinstance(encoded, Latents) else read(encoded)
    labels, run = _decoding_labels(stored, pipeline, classes), _decoding_run(pipeline, stored, classes)
    about, place = {**pipeline.notes, **(notes or {})}, Path(folder)
    names = class_names(pipeline)
    format = default_format(pipeline.shape[0]) if format is None else format
    check_format(format, pipeline.shape[0])
    with join() as job, job.only_user(place, "decoding"):
        writer = job.main_first(lambda main: grids.open_writer(
            place, format, overwrite and main, (GRID,), run=run, notes=about, label_names=names,
            value_range=pipeline.model.value_range,
        ))  # fmt: skip
        todo, size = writer.missing(len(stored)), pipeline.batch_size(batch)
        kernels = Plan(recorded=job.broadcast_json(recorded_kernels(writer)))
        with Progress("decoding", len(todo), "images") if progress else NoProgress() as bar, planned(kernels):
            for indices, shared in job.shared(todo, size, bar):
                made = decode(pipeline, stored, classes=labels, indices=indices, batch=size, progress=shared)
                writer.notes = {**about, **kernels.note()}
                writer.write(made.indices, made.values if writer.in_units else made.images, made.labels)

        def finish() -> list[Any]:
            result, shown = writer.finish(len(stored)), grids.grid_count(len(stored), None)
            title = count_of(len(stored), "decoded image") + (f", the first {shown}" if shown < len(stored) else "")
            grid = grids.class_grid(grids.first_images(place, 0, shown), None, names, title, pipeline.text())
            save_png(place / GRID, grid, {**run, **about, **kernels.note()}, overwrite=True)
            return [str(result), len(todo)]

        result, count = job.finish(finish)
        return Path(result), count


def reconstruction_errors(
    pipeline: Pipeline, stored: Latents, images: ImageDataset, *, batch: int | None = None, progress: bool = True
) -> Tensor:
    """Decodes latents under their own classes and compares with the images that were encoded.

    Returns:
        The root mean square error of each image in 8-bit levels, float64 [N].
    """
    decoded = decode(pipeline, stored, batch=batch, progress=progress)
    errors = []
    for i, image in enumerate(decoded.images):
        before = to_uint8(from_pixels(images.plain(i).image[None]))[0]
        errors.append((torch.from_numpy(image).double() - before.double()).square().mean().sqrt())
    return torch.stack(errors)


def pipeline_of(stored: Latents, *, model: str | None = None, device: str = "auto") -> Pipeline:
    """Loads the pipeline that encoded latents.

    Args:
        stored: The latents.
        model: Where the model is now, if not where the record says.
        device: See `Pipeline.load`.
    """
    if model is not None and not model.strip():
        raise ConfigError("model", "is empty: give a model file, a run folder or a name, or leave it out")
    record = {**stored.about["record"], **stored.about["notes"]}
    return Pipeline.from_record(record, device=device, where=f"the record in {stored.where}", model=model)


def check_deterministic(pipeline: Pipeline) -> None:
    """Raises ConfigError ("solver") unless a pipeline samples by DDIM without noise, which alone can be inverted."""
    if pipeline.config.solver != "ddim" or pipeline.config.eta:
        raise ConfigError("solver", f"latents need ddim with eta 0; got {pipeline.text()}")


def latents_path(path: str | Path) -> Path:
    """Completes the name of a file of latents: without a suffix it gets .safetensors.

    Raises:
        ConfigError: It has another suffix ("out").
    """
    file = Path(path)
    if file.suffix not in ("", SUFFIX):
        raise ConfigError("out", f"latents are kept in a {SUFFIX} file; got {file.name}")
    return file if file.suffix else file.with_name(file.name + SUFFIX)


def read_about(path: str | Path) -> dict[str, Any]:
    """Reads how the latents in a file were made.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_header(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    if text is None:
        raise ValueError(f"{path} has no latents of `undiffuse encode`; to describe it: undiffuse inspect {path}")
    where = f"the header of {path}"
    about = read_json(text, where)
    for name in ("record", "notes"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"{where} does not describe the latents: {name!r} is missing or not a JSON object")
    return about


def read(path: str | Path) -> Latents:
    """Reads a file of latents.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else or damaged; the message names it.
    """
    about = read_about(path)
    try:
        tensors = load_file(str(path))
    except Exception as error:  # SafetensorError, OSError; for types that this torch lacks also others
        raise ValueError(f"{path} is damaged ({error})") from error
    latents, labels = tensors.get("latents"), tensors.get("labels")
    if latents is None:
        raise ValueError(f"{path} lacks the tensor latents; it has {', '.join(sorted(tensors)) or 'none'}")
    if not latents.is_floating_point() or latents.ndim != 4 or 0 in latents.shape:
        raise ValueError(
            f"{path}: latents must be floating-point numbers [N, C, H, W] of at least one image, got {latents.dtype} "
            f"{list(latents.shape)}"
        )
    if labels is not None:
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if not whole or labels.shape != latents.shape[:1]:
            raise ValueError(
                f"{path}: labels must be one whole number for each of the {len(latents)} images, got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        labels = labels.long()
    return Latents(latents.float(), labels, about, str(path))


class LatentsWriter(Store):
    """Collects batches of one job and packs them into one file.

    Args:
        path: The file, see `latents_path`.
        about: How the latents are made, see `Latents`; a job resumes only with the same.
        overwrite: Whether to remove latents of another job.

    Raises:
        ConfigError: `path` has another suffix ("out").
        ValueError: `path` or its parts belong to another job.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], overwrite: bool = False) -> None:
        super().__init__(latents_path(path), about, "latents")
        self.parts = Parts(self.place.with_name(self.place.name + PARTS))
        if overwrite:
            self.place.unlink(missing_ok=True)
            self.parts.clear()
        self.finished = self.place.exists()
        if self.finished:
            self.check(read_about(self.place))
        elif any(self.parts.folder.glob("*" + SUFFIX)):
            raise ValueError(
                f"{self.parts.folder} contains parts of an earlier version, which cannot be resumed: delete that folder"
            )
        elif (self.parts.folder / "about.json").exists():
            self.claim(self.parts.folder / "about.json")

    def done(self) -> Any:
        """See `Store.done`."""
        return range(len(self.settings["names"])) if self.finished else self.parts.found()

    def write(self, indices: Sequence[int], latents: Tensor) -> None:
        """Puts one batch [B, C, H, W], the images of the given numbers, on disk."""
        self.claim(self.parts.folder / "about.json")
        self.parts.write(torch.tensor(indices).numpy(), latents=latents.detach().float().cpu().numpy())

    def finish(self, count: int, labels: Sequence[int] | None) -> Latents:
        """Packs all batches into the file and removes them.

        Raises:
            ValueError: Some are missing, or they differ in shape.
        """
        if self.finished:
            return read(self.place)
        self.require(count)
        rows = [torch.from_numpy(row["latents"]) for row in self.parts.rows(range(count))]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{self.parts.folder} contains latents of several shapes: delete it and start again")
        made = Latents(torch.stack(rows), None if labels is None else torch.tensor(labels), self.settings)
        made.save(self.place)
        shutil.rmtree(self.parts.folder, ignore_errors=True)
        return made


def _decoding_run(pipeline: Pipeline, stored: Latents, classes: Any) -> dict[str, Any]:
    """Everything that decides decoded images. No noise is drawn; the seed is part of file names only."""
    given = class_numbers(pipeline.model, classes, default=None)
    return {**pipeline.record, "command": "decode", "seed": 0, "latents": stored.digest, "classes": given}


def _decoding_labels(stored: Latents, pipeline: Pipeline, classes: Any) -> list[int] | None:
    """The class under which each image is decoded; checks that the latents are those of such a model."""
    if stored.latents.shape[1:] != pipeline.shape:
        sizes = ["x".join(map(str, shape)) for shape in (stored.latents.shape[1:], pipeline.shape)]
        raise ValueError(f"{stored.where} holds latents of {sizes[0]}, but the model makes images of {sizes[1]}")
    given = class_numbers(pipeline.model, classes, default=None)
    if given is not None:
        if len(given) not in (1, len(stored)):
            expected = f"expected one class, or one for each of the {len(stored)} images"
            raise ConfigError("classes", f"{expected}; got {len(given)}")
        return given * len(stored) if len(given) == 1 else given
    labels = None if stored.labels is None else [int(k) for k in stored.labels]
    number = pipeline.model.num_classes
    if number is None:
        if labels is not None:
            raise ValueError(f"{stored.where} has labels, but the model has no classes")
    elif labels is None:
        raise ConfigError("classes", f"missing; the model is class-conditional, but {stored.where} has no labels")
    elif min(labels) < 0 or max(labels) >= number:
        raise ValueError(
            f"{stored.where} has labels {min(labels)} to {max(labels)}, but the model has classes 0 to {number - 1}"
        )
    return labels
