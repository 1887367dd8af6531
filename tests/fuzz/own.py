"""Doors of the library's own files and settings: checkpoints, records, runs, latents, stores, options."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fuzz.damage import damaged, odd, odd_json
from undiffuse import checkpoints

Made = tuple[bytes, Callable[[], Any]]


def png(record: Any = None) -> bytes:
    """A picture of eight by eight pixels, with a record."""
    info, file = PngInfo(), io.BytesIO()
    if record is not None:
        info.add_text("undiffuse", record if isinstance(record, str) else json.dumps(record))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


class Silent(AssertionError):
    """Damage went unnoticed: the input was accepted, and what it gave is not what the honest one gives."""


class OwnFiles:
    """Doors that read what this library wrote."""

    folder: Path
    written: Any = hashlib.blake2b()
    """Takes in every file of an input, so that equal inputs are known."""

    def prepare_own(self) -> None:
        from undiffuse.denoiser import ProcessConfig
        from undiffuse.models import load_model
        from undiffuse.nets import UNetConfig

        config = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,), num_res_blocks=1,
            attention_resolutions=(),
        )  # fmt: skip
        tensors = {f"net.{name}": value for name, value in config.build().state_dict().items()}
        process = asdict(ProcessConfig(schedule="cosine", steps=10, variance="fixed_small"))
        self.manifest = {
            "kind": "diffusion", "net": asdict(config), "process": process, "labels": None, "ema": [],
            "train": {"batch": 4}, "progress": {"images": 5}, "data": {"size": [8, 8, 1], "config": {"fit": "pad"}},
        }  # fmt: skip
        path = self.folder / "model.safetensors"
        self.manifest = json.loads(json.dumps(checkpoints.write(path, tensors, self.manifest)))
        self.checkpoint, model = path.read_bytes(), load_model(path)
        self.honest = (model.digest, model.process, model.spec)
        self.latents = self._latents()

    def file(self, name: str, data: bytes) -> Path:
        """Writes an input."""
        self.written.update(name.encode() + data)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def _with_header(self, change: Callable[[dict[str, Any]], Any], data: bytes | None = None) -> bytes:
        """A safetensors file with another header of the right length."""
        data = self.checkpoint if data is None else data
        length = struct.unpack("<Q", data[:8])[0]
        text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    def _load(self, path: Path) -> None:
        from undiffuse.models import load_model

        model = load_model(path)
        if (model.digest, model.process, model.spec) != self.honest:
            raise Silent("a damaged checkpoint was loaded as another model")

    def on_checkpoint(self, rng: random.Random) -> Made:
        data = damaged(rng, self.checkpoint)
        if rng.random() < 0.5:
            data = self._with_header(lambda header: odd(rng, header))
        path = self.file("checkpoint.safetensors", data)
        return data, lambda: self._load(path)

    def on_manifest(self, rng: random.Random) -> Made:
        from undiffuse.models import load_model

        manifest = {key: value for key, value in self.manifest.items() if key != checkpoints.MANIFEST_HASH}
        for _ in range(rng.randint(1, 3)):
            manifest = odd(rng, manifest) if isinstance(manifest, dict) else manifest

        def change(header: dict[str, Any]) -> dict[str, Any]:
            return {**header, "__metadata__": {"undiffuse": json.dumps(manifest)}}

        data = self._with_header(change)
        path = self.file("manifest.safetensors", data)
        return data, lambda: load_model(path)

    def _latents(self) -> bytes:
        from undiffuse.pipelines.latents import Latents

        about = {
            "record": {"command": "encode", "model": "0" * 64, "solver": "ddim", "steps": 10}, "notes": {"a": 1},
            "data": "0" * 64, "prepared": {"fit": "pad", "size": [8, 8, 1]}, "names": ["a", "b"], "labels": [0, 1],
            "label_names": ["x", "y"],
        }  # fmt: skip
        path = self.folder / "latents.safetensors"
        Latents(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), about).save(path)
        return path.read_bytes()

    def on_latents(self, rng: random.Random) -> Made:
        from undiffuse.pipelines.latents import KEY, read

        def change(header: dict[str, Any]) -> Any:
            if rng.random() < 0.3:
                return odd(rng, header)
            return {**header, "__metadata__": {KEY: odd_json(rng, json.loads(header["__metadata__"][KEY])).decode(
                "utf-8", "replace")}}  # fmt: skip

        data = self._with_header(change, self.latents) if rng.random() < 0.7 else damaged(rng, self.latents)
        path = self.file("latents.safetensors", data)
        return data, lambda: read(path)

    def on_record(self, rng: random.Random) -> Made:
        from undiffuse.config import SamplerConfig
        from undiffuse.pictures import read_record

        record: Any = {
            "command": "sample", "index": 0, "seed": 1, "solver": "ddim", "eta": 0.0, "steps": "10", "grid": "chain",
            "model": "0" * 64, "weights": "net", "classifier": None, "cfg": 2.0, "clip": "static", "precision": "fp32",
            "model_file": "a.safetensors", "clip_after_guidance": False, "guidance": 0.0, "guidance_at": "x_t",
        }  # fmt: skip
        data = png(odd_json(rng, record, 0).decode())
        data = damaged(rng, data) if rng.random() < 0.2 else data
        path = self.file("a.png", data)
        return data, lambda: SamplerConfig.from_record(read_record(path), model="m", where="the record")

    def on_run(self, rng: random.Random) -> Made:
        from undiffuse.training.events import read_events
        from undiffuse.training.provenance import read_sessions
        from undiffuse.training.request import read_request

        request: Any = {
            "request": {"data": "x", "kind": "diffusion", "size": [8, 8], "images": 100, "batch": 4, "seed": 0,
                        "overrides": {"train.lr": 0.1}, "log": ["wandb"], "evaluation": {"every": 3}},
            "data_on_disk": True,
        }  # fmt: skip
        event = {"kind": "train", "images": 8, "steps": 2, "loss": 0.5, "by_quartile": {"mse": [0.1, None]}}
        session = {"time": "2026-01-01", "command": ["undiffuse", "train"], "versions": {"torch": "2"}, "hardware": {}}
        data = odd_json(rng, request, 0.3)
        folder = self.file("run/run.json", data).parent
        self.file("run/metrics.jsonl", b"\n".join([odd_json(rng, event), json.dumps(event).encode()]))
        self.file("run/sessions.jsonl", b"\n".join([odd_json(rng, session), json.dumps(session).encode()]))

        def call() -> None:
            list(read_events(folder / "metrics.jsonl"))
            read_sessions(folder)
            read_request(folder)

        return data, call

    def on_report(self, rng: random.Random) -> Made:
        """A run folder, an evaluation or samples as an HTML report."""
        from undiffuse.reports import write_report

        event = {"kind": "train", "images": 8, "steps": 2, "loss": 0.5, "mse": 0.2, "total_images": 80,
                 "lr": 0.1, "images_per_second": 3.0, "seconds": 1.0, "seconds_left": 2.0,
                 "grad_norm": 1.0, "skipped": 0}  # fmt: skip
        folder = self.folder / "reported"
        lines = [odd_json(rng, {**event, "images": 8 * k}, 0.05) for k in range(1, 4)]
        data = self.file("reported/metrics.jsonl", b"\n".join(lines)).read_bytes()
        self.file("reported/config.json", odd_json(rng, {"kind": "diffusion", "train": {"batch": 4, "images": 80}}))
        if rng.random() < 0.3:
            data = odd_json(rng, {"metrics": {"FID": {"value": 1.0, "stderr": 0.1}}, "images": {"where": "a"},
                                  "reference": {"where": "b"}, "settings": {"seed": 0}})  # fmt: skip
            place = self.file("evaluation.json", data)
            return data, lambda: write_report([place], self.folder / "report.html", overwrite=True)
        return data, lambda: write_report([folder], self.folder / "report.html", overwrite=True)

    def on_samples(self, rng: random.Random) -> Made:
        """A half-finished folder of samples that a run would resume."""
        from undiffuse.pictures import SampleWriter

        settings: Any = {"command": "sample", "seed": 0, "model": "0" * 64, "solver": "ddim", "classes": None}
        data = odd_json(rng, settings) if rng.random() < 0.5 else json.dumps(settings).encode()
        folder = self.file("samples/run.json", data).parent
        names = ["seed0-000000.png", "seed0-000001.png", "000-x_seed0-000002.png", "seed0-99999999999999999999.png"]
        for name in rng.sample(names, 2):
            self.file(f"samples/{name}", damaged(rng, png({"index": 0})))
        part, kind = io.BytesIO(), rng.choice(["png", "npz"])
        np.savez(part, indices=np.array([3, 4]), images=np.zeros((2, 8, 8, 1), np.uint8))
        (folder / "parts").mkdir(exist_ok=True)
        self.file("samples/parts/part-000000003-00000000.npz", damaged(rng, part.getvalue()))

        def call() -> None:
            SampleWriter(folder, kind, run=settings).missing(6)

        return data, call

    def on_rows(self, rng: random.Random) -> Made:
        """The rows of a likelihood's measurement that another call would resume."""
        from undiffuse.util.store import RowStore

        settings = {"command": "nll", "seed": 0}
        row = {"images": [0, 1], "broken": [], "total": [3.0, 4.0]}
        lines = [json.dumps(settings).encode(), json.dumps(row).encode(), odd_json(rng, {**row, "images": [2, 3]})]
        data = b"\n".join(lines)
        path = self.file("rows.jsonl", data)

        def call() -> None:
            RowStore(path, settings, "measurements").missing(6)

        return data, call

    def on_frontier(self, rng: random.Random) -> Made:
        from undiffuse.frontiers import Frontier

        text = Path(checkpoints.__file__).with_name("assets") / "fashion-mnist-32.frontier.json"
        data = odd_json(rng, json.loads(text.read_bytes()), 0.4)
        path = self.file("frontier.json", data)
        return data, lambda: Frontier.load(path)

    def on_options(self, rng: random.Random) -> Made:
        from undiffuse.config import GuidanceConfig, SamplerConfig
        from undiffuse.solvers.registry import read_options

        honest = {
            "steps": "ddim50", "grid": "karras:rho=7", "solver": "dpmpp", "solver_options": "order=2",
            "clip": "dynamic:0.995", "precision": "fp32", "eta": 0.5, "interval": "sigma:0.2,1.6",
            "cfg": 2.0, "scale": 1.0, "every": 1,
        }  # fmt: skip
        name = rng.choice(list(honest))
        value = odd(rng, honest[name])
        guided = name in ("interval", "cfg", "scale", "every")

        def call() -> None:
            if name == "solver_options":
                read_options("dpmpp", value)
            elif guided:
                GuidanceConfig(**{name: value})
            else:
                SamplerConfig(model="m", **{name: value})

        return json.dumps({name: value}).encode(), call

    def on_settings(self, rng: random.Random) -> Made:
        """Settings of a training, as --set gives them, and what they are checked by."""
        from undiffuse.recipes import RECIPES
        from undiffuse.recipes.overrides import apply

        recipe = RECIPES[rng.choice(list(RECIPES))]()
        sections = {part: getattr(recipe, part, None) for part in ("net", "process", "objective", "train", "data")}
        name = rng.choice(["train.lr", "train.batch", "net.model_channels", "process.schedule", "data.flip", "train.x",
                           "train.ema_decays", "net.channel_mult", "objective.weighting", "data.size"])  # fmt: skip
        value = odd(rng, rng.choice(["1,2,3", 0.5, 4, "cosine", [1, 2], "0.9,0.99", True, "edm"]))
        return json.dumps({name: value}).encode(), lambda: apply(sections, {name: value})

    def on_words(self, rng: random.Random) -> Made:
        """The values of options on the command line."""
        from undiffuse.cli import values

        kinds = [name for name, value in vars(values).items() if callable(value) and not name.startswith("_")
                 and getattr(value, "__module__", "") == values.__name__ and isinstance(value, type(odd))]  # fmt: skip
        kind = rng.choice(kinds)
        text = rng.choice(["1,2,3", "3h50m", "20M", "8x8", "0.5", "a=b", "train.lr=3", "numbers:age", "0..255", "1-2"])
        word = odd(rng, text)
        word = word if isinstance(word, str) else str(word)
        return f"{kind} {word}".encode("utf-8", "replace"), lambda: getattr(values, kind)(word)

    def on_path(self, rng: random.Random) -> Made:
        from undiffuse.grids import grid
        from undiffuse.noise_levels import DiscreteSchedule
        from undiffuse.schedules import linear_betas

        steps = odd(rng, rng.choice(["50", "ddim25", "10,10", "40", 20]))
        spec = rng.choice(["chain", "karras:rho=7", "logsnr:from=-8,to=9", "quadratic", "at:-8,-4"])
        spec = odd(rng, spec) if rng.random() < 0.5 else spec
        chain = DiscreteSchedule(linear_betas(100))
        return json.dumps([steps, spec]).encode(), lambda: grid(chain, steps, spec)
