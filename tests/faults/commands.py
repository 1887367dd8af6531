"""Every command that writes, as a few seconds of work in a folder: its words, and what of its results must be equal."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support import export_models
from support.cli_runs import write_classifier, write_images, write_model
from support.evaluation_sets import images, save_npz
from undiffuse import checkpoints
from undiffuse.models import save_model
from undiffuse.nets import UNetConfig
from undiffuse.pictures import read_record

TINY = (
    "--size", 8, "--batch", 4, "--precision", "fp32", "--device", "cpu", "--set", "net.model_channels=8",
    "--set", "net.channel_mult=1,2", "--set", "net.num_res_blocks=1", "--set", "net.num_head_channels=8",
    "--set", "process.steps=20",
)  # fmt: skip
SMALL = (*TINY, "--set", "train.preview_steps=2", "--set", "train.preview_count=3", "--set", "train.save_every=8")
FAST = ("--model", "model.safetensors", "--steps", 4, "--device", "cpu", "--batch", 2)
JUDGE = ("--extractor", "judge.safetensors", "--device", "cpu")


@dataclass(frozen=True)
class Command:
    """A command with everything it needs.

    Attributes:
        name: What tests call it.
        begin: The words of the command line without those that name the output.
        out: The file or folder it writes.
        resumes: Whether the same words again continue; else what is there must be removed or `again` added.
        again: Words that are added to repeat the command where its results are there already.
        shared: Whether several processes share its work.
    """

    name: str
    begin: tuple[Any, ...]
    out: str = "out"
    resumes: bool = True
    again: tuple[str, ...] = ()
    shared: bool = False

    @property
    def words(self) -> tuple[Any, ...]:
        """The command line; it runs in a folder made by `prepare`."""
        source = self.begin[:2] if self.begin[0] == "convert" else ()
        return (*source, self.out, *self.begin[2:]) if source else (*self.begin, "--out", self.out)


_RUN = ("photos", *SMALL, "--images", 24, "--ema", "0.9")
_OFTEN = ("--batch", 4, "--images", 16, "--device", "cpu", "--set", "train.save_every=8")
_CLASSIFIER = (
    "--for", "model.safetensors", "--validation", "none", "--set", "net.model_channels=8", "--set",
    "net.num_res_blocks=1", "--set", "net.channel_mult=1,2", "--set", "net.num_head_channels=8",
)  # fmt: skip
_STUDENT = ("--calls", 2, "--method", "consistency-distillation", "--set", "train.preview_steps=2", "--set",
            "train.preview_count=3")  # fmt: skip
_SWEPT = ("--classifier", "judge.safetensors", *JUDGE, "--scales", "0,1", "--count", 6, "--steps", 2)
_AGAIN = ("--overwrite",)
COMMANDS = {
    command.name: command
    for command in (
        Command("train", ("train", *_RUN), shared=True),
        Command("train-classifier", ("train-classifier", "photos", *_OFTEN, *_CLASSIFIER)),
        Command("distill", ("distill", "model.safetensors", "photos", *_OFTEN, *_STUDENT)),
        Command("rerun", ("rerun", "run")),
        Command("sample", ("sample", *FAST, "--count", 6), shared=True),
        Command("sample npz", ("sample", *FAST, "--count", 6, "--format", "npz")),
        Command("sample gif", ("sample", *FAST, "--count", 3, "--animation", "gif")),
        Command("encode", ("encode", "photos", *FAST, "--count", 4), "out.safetensors", shared=True),
        Command("decode", ("decode", "latents.safetensors", "--device", "cpu", "--batch", 2)),
        Command("interpolate", ("interpolate", "--seeds", "1,2", "--frames", 3, *FAST, "--class", "left"),
                "out", False, _AGAIN),
        Command("inpaint", ("inpaint", "photos", *FAST, "--hole", "0,4,8,4", "--method", "projection"), shared=True),
        Command("restore", ("restore", "photos", *FAST, "--upscale", 2, "--degrade", "--method", "projection")),
        Command("vary", ("vary", "photos", *FAST)),
        Command("translate", ("translate", "photos", *FAST, "--to", "top")),
        Command("nll", ("nll", "photos", "--model", "model.safetensors", "--terms", 2, "--count", 6, "--batch", 2,
                "--device", "cpu"), shared=True),
        Command("evaluate", ("evaluate", "a.npz", "b.npz", *JUDGE), "out.json", False, _AGAIN),
        Command("evaluate model", ("evaluate", "model.safetensors", "b.npz", *JUDGE, "--steps", 2, "--count", 12),
                "out.json", False, _AGAIN, shared=True),
        Command("reference", ("reference", "a.npz", *JUDGE), "out.safetensors", False, _AGAIN),
        Command("sweep", ("sweep", "b.npz", "--model", "model.safetensors", *_SWEPT)),
        Command("tune-steps", ("tune-steps", "--model", "model.safetensors", "--steps", 3, "--solver", "ddim",
                "--device", "cpu", "--count", 4), "out.json", False, _AGAIN),
        Command("convert zip", ("convert", "photos"), "out.zip", False),
        Command("convert folder", ("convert", "photos", "--to", "folder"), "out", False),
        Command("convert tar", ("convert", "photos", "--to", "webdataset"), "out", False),
        Command("convert parquet", ("convert", "photos"), "out.parquet", False),
        Command("ema", ("ema", "run", "--width", 0.1), "out.safetensors", False, _AGAIN),
        Command("export", ("export", "model.safetensors", "--to", "safetensors"), "out.safetensors", False, _AGAIN),
        Command("export openai", ("export", "wide.safetensors", "--to", "openai"), "out.pt", False, _AGAIN),
        Command("report", ("report", "run"), "out.html", False, _AGAIN),
    )
}  # fmt: skip
"""All of them."""


def prepare(folder: Path) -> Path:
    """Makes the inputs of all commands: a model, a classifier, pictures, sets to evaluate, a run, latents."""
    folder.mkdir(parents=True)
    write_model(folder / "model.safetensors")
    write_classifier(folder / "judge.safetensors")
    save_model(folder / "wide.safetensors", export_models.model(UNetConfig(**export_models.SMALL)))
    write_images(folder / "photos", each=2)
    save_npz(folder / "a.npz", images(40, 1, channels=1), arr_1=np.arange(40) % 3)
    save_npz(folder / "b.npz", images(50, 2, channels=1), arr_1=np.arange(50) % 3)
    return folder


EARLIER: dict[str, tuple[Any, ...]] = {
    "run": ("train", "photos", *SMALL, "--images", 16, "--set", "train.posthoc_every=4", "--set",
            "train.posthoc_widths=0.05,0.1", "--out", "run"),
    "latents.safetensors": ("encode", "photos", *FAST, "--count", 4, "--out", "latents.safetensors"),
}  # fmt: skip
"""Commands that make what others need, by their results; they run where `prepare` has been."""


def copy(inputs: Path, place: Path) -> Path:
    """A folder of its own for a command, with the inputs."""
    shutil.copytree(inputs, place)
    return place


_TIMES = {
    "seconds", "seconds_left", "images_per_second", "time", "started", "date", "duration", "saved", "created", "save",
    "at", "cache", "host", "pid", "environment", "made", "kernels",
}  # fmt: skip


def _timeless(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part, root) for key, part in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_timeless(part, root) for part in value]
    return value.replace(root, "ROOT") if isinstance(value, str) else value


def results(place: Path, command: Command) -> dict[str, str]:
    """The results of a command by path, as hashes of what must not depend on what happened on the way.

    Times are left out, and so are locks, the list of starts and the notes of a run (which tell of a repetition).
    """
    out = place / command.out
    beside = [file for file in sorted(place.glob(f"{out.name}*")) if file.is_file()]
    files = [*beside, *(file for file in sorted(out.rglob("*")) if file.is_file() and out.is_dir())]
    skipped = {".lock", "sessions.jsonl", "loss_curve.png"}
    return {file.relative_to(place).as_posix(): _digest(file, str(place)) for file in files if file.name not in skipped}


def _digest(file: Path, root: str) -> str:
    content: Any
    if file.suffix == ".png":
        record = {}
        with suppress(ValueError, OSError, SyntaxError):
            record = read_record(file)
        with Image.open(file) as picture:
            content = [hashlib.sha256(np.asarray(picture).tobytes()).hexdigest(), _timeless(record, root)]
    elif file.suffix == ".safetensors":
        try:
            tensors, manifest = checkpoints.read(file)
            content = [{name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in sorted(tensors.items())},
                       _timeless({k: v for k, v in manifest.items() if "sha256" not in k}, root)]  # fmt: skip
        except checkpoints.CheckpointError:
            content = file.read_bytes().hex()
    elif file.suffix == ".npz":
        with zipfile.ZipFile(file) as archive:
            content = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    elif file.suffix == ".json":
        content = _timeless(json.loads(file.read_bytes()), root)
    elif file.suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [line for line in lines if line.get("kind", "train") in ("train", "preview", "validation", "evaluation")]
        content = _timeless([{k: v for k, v in line.items() if k != "crc32"} for line in kept], root)
    elif file.suffix in (".html", ".zip", ".pt"):
        content = "whole"  # times within; `Command.check` opens them
        _open(file)
    else:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _open(file: Path) -> None:
    """Raises an error if a file is not whole."""
    if file.suffix == ".html":
        assert file.read_text("utf-8").rstrip().endswith("</html>")
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
    else:
        raise AssertionError(f"{file} is no zip file")
