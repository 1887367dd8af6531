"""A structure-aware fuzzer: honest files and values, damaged with knowledge of their forms, given to every door.

A door may refuse its input with a ValueError or an OSError. Anything else, ten seconds of work, or a gigabyte of memory
counts as a failure. By hand, which also keeps the failing inputs:

    python -m support.fuzzing --seconds 300 --seed 1 --keep FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undiffuse import checkpoints

ODD_NUMBERS = [0, 1, -1, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1]
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 10**30, "", "\0", "x" * 3000, "\x1b[2J", "\ud800",
    "nan", [], {}, [[]], [None], {"a": {}}, [1, "a"], "../../x", "1e999", "0x10", "½", 0.1, -(2**63),
]  # fmt: skip
LIMIT_SECONDS, LIMIT_BYTES = 10.0, 10**9


class Hang(BaseException):
    """An input took longer than it may."""


@dataclass
class Report:
    """What came of a run: inputs and refusals by door, and failures as (door, error, input)."""

    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, bytes]] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0

    def text(self) -> str:
        lines = [f"{name:12} {count:7,} inputs, {self.refused[name]:7,} refused" for name, count in self.tried.items()]
        kinds = Counter(f"{door}: {error.strip().splitlines()[-1][:100]}" for door, error, _ in self.failures)
        lines.append(f"{self.tried.total():,} inputs, {len(self.failures)} failures, slowest {self.slowest:.2f} s, "
                     f"{self.grown / 1e6:.0f} MB more memory")  # fmt: skip
        return "\n".join([*lines, *(f"{count} x {kind}" for kind, count in kinds.most_common())])


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four flips, odd numbers, cuts, repeats or moves."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            number = (rng.choice(ODD_NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, rng.choice(["little", "big"]))  # type: ignore[arg-type]
            out[at : at + size] = number
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        else:
            other = rng.randrange(len(out))
            out[at : at + 8] = out[other : other + 8]
    return bytes(out)


def odd(rng: random.Random, value: Any) -> Any:
    """A JSON value with one part, somewhere, replaced, renamed, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if kind < 0.2:
            return {**value, key + "x": value[key]}
        return {**value, key: odd(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], odd(rng, value[at]), *value[at + rng.randint(0, 1) :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice(ODD_NUMBERS) * rng.choice([1, -1])
    if isinstance(value, str) and rng.random() < 0.5:
        return "".join(rng.choice([c, c, c, "", ":", ",", "-", "9", "\0", "é"]) for c in value)
    return rng.choice(ODD_VALUES)


def png(record: Any = None) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    if record is not None:
        info.add_text("undiffuse", record if isinstance(record, str) else json.dumps(record))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


class Doors:
    """The doors, with the honest inputs that are damaged. Each makes an input and a call from a random generator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model()
        self.table = b"file,label,more\n" + b"".join(f"a{k}.png,{k % 3},{k / 3}\n".encode() for k in range(6))
        self.names = [name.removeprefix("on_") for name in dir(self) if name.startswith("on_")]

    def make(self, name: str, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        """An input of a door, and the call that gives it to the door."""
        data, call = getattr(self, f"on_{name}")(rng)
        return data, call

    def _model(self) -> None:
        from dataclasses import asdict

        from undiffuse.denoiser import ProcessConfig
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
        self.checkpoint = path.read_bytes()

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def _with_header(self, change: Callable[[dict[str, Any]], Any]) -> bytes:
        """The checkpoint with another header of the right length."""
        length = struct.unpack("<Q", self.checkpoint[:8])[0]
        header = change(json.loads(self.checkpoint[8 : 8 + length]))
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + self.checkpoint[8 + length :]

    def on_checkpoint(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.models import load_model

        data = damaged(rng, self.checkpoint)
        if rng.random() < 0.5:
            data = self._with_header(lambda header: odd(rng, header))
        path = self._file("checkpoint.safetensors", data)
        return data, lambda: load_model(path)

    def on_manifest(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.models import load_model

        manifest = {key: value for key, value in self.manifest.items() if key != checkpoints.MANIFEST_HASH}
        for _ in range(rng.randint(1, 3)):
            manifest = odd(rng, manifest) if isinstance(manifest, dict) else manifest

        def change(header: dict[str, Any]) -> dict[str, Any]:
            return {**header, "__metadata__": {"undiffuse": json.dumps(manifest)}}

        data = self._with_header(change)
        path = self._file("manifest.safetensors", data)
        return data, lambda: load_model(path)

    def _npy(self, rng: random.Random) -> bytes:
        file = io.BytesIO()
        kind = rng.choice([np.uint8, np.float32, np.int64, np.bool_])
        shape = rng.choice([(4, 8, 8, 3), (4, 8, 8), (4,), (4, 3, 8, 8), (4, 192), (0,), (4, 8, 8, 1)])
        np.save(file, np.zeros(shape, kind))
        data = file.getvalue()
        if rng.random() < 0.4:
            header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, %d, 8, %d), }" % (
                rng.choice(ODD_NUMBERS), rng.choice([0, 8, 2**31]), rng.choice([1, 3, 2**20]),
            )  # fmt: skip
            header += b" " * (-(len(header) + 11) % 64) + b"\n"
            data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(rng.choice([0, 64, 768]))
        return damaged(rng, data) if rng.random() < 0.5 else data

    def on_npz(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.evaluation.summary import npz_statistics
        from undiffuse.pictures.npz import load_npz

        usual = ["arr_0", "arr_1", "x_train", "y_train", "images", "labels", "label_names", "mu", "sigma"]
        names = rng.sample(usual, 2)
        data = self._zip(rng, {f"{name}.npy": self._npy(rng) for name in names})
        path = self._file("a.npz", data)
        door = rng.choice([self._pixels, load_npz, npz_statistics, self._inspected])
        return data, lambda: door(path)

    def _pixels(self, path: Path) -> None:
        """Opens data and looks at the first pictures, as a training would."""
        from undiffuse.data import open_data

        source = open_data(path)
        for i in range(min(len(source), 3)):
            source.image(i)

    def _inspected(self, path: Path) -> None:
        from undiffuse.cli import main as command

        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            if command(["inspect", str(path)]):
                raise ValueError(told.getvalue())

    def _zip(self, rng: random.Random, members: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w", packing) as archive:
            warnings.simplefilter("ignore")
            for name, data in members.items():
                archive.writestr(name, data)
                if rng.random() < 0.1:
                    archive.writestr(name, data)
        return damaged(rng, file.getvalue()) if rng.random() < 0.7 else file.getvalue()

    def _members(self, rng: random.Random) -> dict[str, bytes]:
        ending = rng.choice(["png", "bmp", "jpg", "PNG"])
        members = {f"{rng.choice('ab')}/a{k}.{ending}": png() for k in range(4)}
        if rng.random() < 0.5:
            members = {name: damaged(rng, data) for name, data in members.items()}
        if rng.random() < 0.5:
            tables, paths = (
                ["labels.csv", "metadata.jsonl", "dataset.json"],
                ["train/x.png", "../x.png", "/x", "é\0.png"],
            )
            name = rng.choice(tables + paths)
            members[name] = self._table(rng, name)
        return members

    def on_zip(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        data = self._zip(rng, self._members(rng))
        path = self._file("a.zip", data)
        return data, lambda: rng.choice([self._pixels, self._inspected])(path)

    def on_tar(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        file = io.BytesIO()
        form = rng.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for k, content in enumerate(self._members(rng).values()):
                for ending, part in (("png", content), ("cls", str(k % 2).encode()), ("json", b'{"label": 1}')):
                    info = tarfile.TarInfo(f"{k:03d}.{ending}")
                    info.size = len(part)
                    archive.addfile(info, io.BytesIO(part))
        data = damaged(rng, file.getvalue()) if rng.random() < 0.8 else file.getvalue()
        path = self._file("a.tar", data)
        return data, lambda: self._pixels(path)

    def _table(self, rng: random.Random, name: str) -> bytes:
        if name.endswith("json"):
            return json.dumps(odd(rng, {"labels": [[f"a/a{k}.png", k] for k in range(4)]})).encode("utf-8", "replace")
        if name.endswith("jsonl"):
            lines = (odd(rng, {"file_name": f"a/a{k}.png", "label": k % 2}) for k in range(4))
            return "\n".join(map(json.dumps, lines)).encode("utf-8", "replace")
        return damaged(rng, self.table)

    def on_table(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.data.labelling import interpret
        from undiffuse.data.tables import TableSpec, read_table

        name = rng.choice(["x.csv", "x.tsv", "x.txt", "x.jsonl", "x.json"])
        data = self._table(rng, name)
        data = damaged(rng, data) if rng.random() < 0.3 else data
        names = [f"a{k}.png" for k in range(6)]
        spec = TableSpec(name, rng.choice([None, "file"]), rng.choice([(), ("label",), ("label", "more")]))
        return data, lambda: interpret(read_table(data, name), names, spec, lambda *_: None, set())

    def on_record(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.config import SamplerConfig
        from undiffuse.pictures import read_record

        record: Any = {
            "command": "sample", "index": 0, "seed": 1, "solver": "ddim", "eta": 0.0, "steps": "10", "grid": "chain",
            "model": "0" * 64, "weights": "net", "classifier": None, "cfg": 2.0, "clip": "static", "precision": "fp32",
            "model_file": "a.safetensors", "clip_after_guidance": False, "guidance": 0.0, "guidance_at": "x_t",
        }  # fmt: skip
        for _ in range(rng.randint(1, 3)):
            record = odd(rng, record)
        data = png(json.dumps(record).encode("utf-8", "replace").decode())
        data = damaged(rng, data) if rng.random() < 0.2 else data
        path = self._file("a.png", data)

        def call() -> None:
            SamplerConfig.from_record(read_record(path), model="m", where="the record")

        return data, call

    def on_config(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.training.request import read_request

        request: Any = {
            "request": {"data": "x", "kind": "diffusion", "size": [8, 8], "images": 100, "batch": 4, "seed": 0,
                        "overrides": {"train.lr": 0.1}, "log": ["wandb"], "evaluation": {"every": 3}},
            "data_on_disk": True,
        }  # fmt: skip
        data = json.dumps(odd(rng, request)).encode()
        data = damaged(rng, data) if rng.random() < 0.3 else data
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_bytes(data)
        return data, lambda: read_request(folder).reading

    def on_options(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
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

    def on_path(self, rng: random.Random) -> tuple[bytes, Callable[[], Any]]:
        from undiffuse.grids import grid
        from undiffuse.noise_levels import DiscreteSchedule
        from undiffuse.schedules import linear_betas

        steps = odd(rng, rng.choice(["50", "ddim25", "10,10", "40", 20]))
        spec = rng.choice(["chain", "karras:rho=7", "logsnr:from=-8,to=9", "quadratic", "at:-8,-4"])
        spec = odd(rng, spec) if rng.random() < 0.5 else spec
        chain = DiscreteSchedule(linear_betas(100))
        return json.dumps([steps, spec]).encode(), lambda: grid(chain, steps, spec)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises Hang inside the block after ten seconds of computing, or two minutes on the clock of a busy machine."""

    def stop(*_: Any) -> None:
        raise Hang(f"more than {LIMIT_SECONDS:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, LIMIT_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, 120.0))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def memory() -> int:
    """The most bytes this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(folder: Path, seconds: float, seed: int = 0, only: tuple[str, ...] = ()) -> Report:
    """Gives damaged inputs to all doors in turn until the time is over."""
    doors, report, end = Doors(folder), Report(), time.monotonic() + seconds
    names, number = only or tuple(doors.names), 0
    for name in names:  # what imports and warms up is no input's fault
        with contextlib.suppress(ValueError, OSError), contextlib.redirect_stdout(io.StringIO()):
            doors.make(name, random.Random(0))[1]()
    start = memory()
    while time.monotonic() < end:
        for name in names:
            rng = random.Random(f"{seed}/{number}/{name}")
            number += 1
            data, call = doors.make(name, rng)
            began, error = time.process_time(), ""
            try:
                with watched(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")
                    call()
            except (ValueError, OSError):
                report.refused[name] += 1
            except (Exception, Hang):
                error = traceback.format_exc()
            report.tried[name] += 1
            report.slowest = max(report.slowest, time.process_time() - began)
            if memory() - start > LIMIT_BYTES:
                error, start = error or "more than 1 GB of memory", memory()
            if error:
                report.failures.append((name, error, data))
            report.grown = max(report.grown, memory() - start)
    return report


def main() -> None:
    """The fuzzer by hand."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), args.seconds, args.seed, tuple(args.only))
    print(report.text())
    seen = set()
    for door, error, data in report.failures:
        if args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{door}-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data)
        kind = (door, *[line for line in error.splitlines() if "undiffuse/" in line][-1:], error.splitlines()[-1][:60])
        if kind not in seen:
            seen.add(kind)
            print(f"\n{door}\n" + "\n".join(error.splitlines()[-9:]))
    raise SystemExit(bool(report.failures))


if __name__ == "__main__":
    main()
