"""How a million images start and how fast they are read: in folders, and in a hundred shards.

    python benchmarks/scale.py --write docs/benchmarks-scale   # 15 minutes; 100 MB of disk
    python benchmarks/scale.py --images 100000 --kinds folders # fewer images, one kind
    python benchmarks/scale.py --quick                         # does everything run? Measures nothing

Linux. Images are PNG files of 32x32 pixels (0.7 KB); folders hold hard links to a thousand different ones, and the
shards of a kind are hard links to one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common.measuring import commit, described, environment, keep, kilobytes, surroundings
from PIL import Image

SEEDS, SHARDS, SIZE, BATCH = 1000, 100, 32, 64
SECONDS = 4.0  # for which batches are read
LATER = 3
WORKERS = (0, 1, 2)
TITLES = {"folders": "1,000 folders", "webdataset": "100 WebDataset shards", "npz": "100 npz files"}
INTRODUCTION = """# Scale

Written by `python benchmarks/scale.py --write docs/benchmarks-scale` from docs/benchmarks-scale.json. Images of 32x32
pixels, {images:,} of each kind. A *first start* makes the index in the cache folder, a *later start* uses it; both are
the time of `open_data` with the check that training makes, without the import of PyTorch ({imports:.1f} s). *To the
first update* is the time from the start of Python to the end of the first update of a tiny network, import included. In
brackets is the time of the processor, which is what an idle machine with one core would need.
"""


def seeds() -> list[bytes]:
    """Different PNG files of about 0.7 KB."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(SEEDS):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).quantize(16).convert("RGB").save(file, "PNG")
        out.append(file.getvalue())
    return out


def make_folders(root: Path, images: int) -> None:
    files = []
    (root / "seeds").mkdir(parents=True)
    for i, data in enumerate(seeds()):
        files.append(root / "seeds" / f"{i:04d}.png")
        files[-1].write_bytes(data)
    classes = min(1000, images // 10)
    for c in range(classes):
        folder = root / "data" / f"class-{c:03d}"
        folder.mkdir(parents=True)
        for i in range(images // classes):
            os.link(files[(7 * i + c) % SEEDS], folder / f"{i:06d}.png")


def make_webdataset(root: Path, images: int) -> None:
    (root / "data").mkdir(parents=True)
    first, data = root / "data" / "set-000000.tar", seeds()
    with tarfile.open(first, "w") as archive:
        for i in range(images // SHARDS):
            for ending, content in (("png", data[i % SEEDS]), ("cls", str(i % 10).encode())):
                info = tarfile.TarInfo(f"{i:06d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for k in range(1, SHARDS):
        os.link(first, root / "data" / f"set-{k:06d}.tar")


def make_npz(root: Path, images: int) -> None:
    (root / "data").mkdir(parents=True)
    each = images // SHARDS
    pixels = np.random.default_rng(0).integers(0, 256, (each, SIZE, SIZE, 3), dtype=np.uint8)
    first = root / "data" / "part000.npz"
    np.savez(first, images=pixels, labels=np.arange(each) % 10)
    for k in range(1, SHARDS):
        os.link(first, root / "data" / f"part{k:03d}.npz")


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "folders": make_folders, "webdataset": make_webdataset, "npz": make_npz,
}  # fmt: skip


def start(path: str, read: bool) -> dict[str, Any]:
    """In a process of its own: opens the data, and with `read` draws batches."""
    began = time.perf_counter()
    from undiffuse.data import DataConfig, ImageDataset, batches

    imported, cpu = time.perf_counter(), time.process_time()
    source = DataConfig(path=path, size=SIZE).open()
    assert source.fingerprint
    found: dict[str, Any] = {
        "import": imported - began, "seconds": time.perf_counter() - imported, "cpu": time.process_time() - cpu,
        "images": len(source), "memory": kilobytes("RssAnon"),
    }  # fmt: skip
    if read:
        data = ImageDataset(source, DataConfig(path=path, size=SIZE))
        for workers in WORKERS:
            stream = batches(data, 0, BATCH, workers=workers)
            next(stream)
            count, from_, used = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - from_ < SECONDS:
                count += len(next(stream))
            found[f"workers {workers}"] = count / (time.perf_counter() - from_)
            found[f"cpu workers {workers}"] = count / (time.process_time() - used)
            stream.close()  # type: ignore[attr-defined]
    found["anonymous"], found["peak"] = kilobytes("RssAnon"), kilobytes("VmHWM")
    return found


def training_speed() -> dict[str, float]:
    """Images per second of training the shipped model of Fashion-MNIST, and per second of the processor."""
    from undiffuse import train

    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (512, 28, 28, 1), dtype=np.uint8)
        speeds = []

        def listen(event: Any) -> None:
            if event.kind == "train":
                speeds.append((event.images, time.perf_counter(), time.process_time()))

        train(
            images, labels=np.arange(512) % 10, recipe="fashion-mnist-32", batch=BATCH, images=8 * BATCH, out=folder,
            callbacks=[listen], progress=False, **{"train.log_every": BATCH, "train.preview_every": None},
        )  # fmt: skip
        (first, a, c), (last, b, d) = speeds[1], speeds[-1]
        return {"images_per_second": (last - first) / (b - a), "per_cpu_second": (last - first) / (d - c)}


def first_update(path: str, out: str) -> dict[str, float]:
    """Seconds from the start to the end of the first update of a tiny network, and of the processor."""
    began = time.perf_counter()
    from undiffuse import train

    class Done(Exception):
        pass

    class Watch:
        def __call__(self, event: Any) -> None:
            pass

        def update(self, *_: Any) -> None:
            found.update(seconds=time.perf_counter() - began, cpu=time.process_time())
            raise Done

    found: dict[str, float] = {}
    net = {f"net.{name}": value for name, value in
           (("model_channels", 16), ("num_res_blocks", 1), ("num_head_channels", 16))}  # fmt: skip
    with contextlib.suppress(Done):
        train(path, batch=4, images=8, out=out, callbacks=[Watch()], progress=False, **net)
    return {**found, "peak": kilobytes("VmHWM")}


def in_process(*words: str, cache: Path, workers: int = 1) -> dict[str, Any]:
    env = {**environment(workers), "UNDIFFUSE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(kind: str, images: int, place: Path) -> dict[str, Any]:
    """Everything about one kind of data."""
    root, cache = place / kind, place / f"cache-{kind}"
    began = time.perf_counter()
    MAKERS[kind](root, images)
    print(f"{kind}: {images:,} images made in {time.perf_counter() - began:.0f} s", flush=True)
    data = str(root / "data")
    time.sleep(2.5)  # what changed a moment ago is not kept in the cache
    found: dict[str, Any] = {"first": in_process("--start", data, cache=cache)}
    print(kind, "first", found["first"], flush=True)
    found["later"] = [in_process("--start", data, cache=cache) for _ in range(LATER)]
    print(kind, "later", found["later"], flush=True)
    found["read"] = in_process("--start", data, "--read", cache=cache, workers=1)
    print(kind, "read", found["read"], flush=True)
    found["update"] = [
        in_process("--first-update", data, "--out", str(root / f"run{k}"), cache=cache) for k in range(LATER)
    ]
    print(kind, "first update", found["update"], flush=True)
    shutil.rmtree(root)
    found["cache"] = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    shutil.rmtree(cache)
    return found


def page(known: dict[str, Any]) -> str:
    """The documentation's page."""
    kinds = [kind for kind in TITLES if kind in known["kinds"]]
    first = known["kinds"][kinds[0]]
    lines = [
        INTRODUCTION.format(images=known["images"], imports=first["later"][0]["import"]),
        f"Measured on {known['surroundings']} Commit {known['commit']}. {known['remark']}\n",
        "| | " + " | ".join(TITLES[kind] for kind in kinds) + " |",
        "|---|" + "---|" * len(kinds),
    ]

    def row(what: str, value: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {what} | " + " | ".join(value(known["kinds"][kind]) for kind in kinds) + " |")

    def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
        return min(runs, key=lambda run: run["seconds"])

    def both(run: dict[str, Any]) -> str:
        return f"{run['seconds']:.1f} s ({run['cpu']:.1f})"

    row("first start", lambda k: both(k["first"]))
    row("later start", lambda k: both(best(k["later"])))
    row("to the first update of a new run, the first time", lambda k: both(k["update"][0]))
    row("to the first update, later", lambda k: both(best(k["update"])))
    row("index on disk, MB", lambda k: f"{k['cache'] / 1e6:.0f}")
    row(
        "memory of a later start beyond the import, MB",
        lambda k: f"{max(0, k['later'][0]['memory'] - known['bare']) / 1024:.0f}",
    )
    row("peak of the first start, MB, PyTorch's included", lambda k: f"{k['first']['peak'] / 1024:.0f}")
    row("peak of a later start", lambda k: f"{k['later'][0]['peak'] / 1024:.0f}")
    row("peak after reading batches", lambda k: f"{k['read']['peak'] / 1024:.0f}")
    for workers in WORKERS:
        row(
            f"images/s, {workers} workers (per second of the processor)",
            lambda k, w=workers: f"{k['read'][f'workers {w}']:,.0f} ({k['read'][f'cpu workers {w}']:,.0f})",
        )
    speed = known["training"]
    lines.append(
        f"\nTraining the shipped 32x32 model takes {speed['images_per_second']:,.0f} images/s on the same machine "
        f"({speed['per_cpu_second']:,.0f} per second of the processor).\n"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="images of each kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--place", metavar="DIR", help="a folder for the data (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="20,000 images, one kind")
    parser.add_argument("--write", metavar="PATH", help="write PATH.json and PATH.md")
    parser.add_argument("--remark", default="", help="a sentence for the page")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--first-update", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start, args.read)))
        return
    if args.first_update:
        print(json.dumps(first_update(args.first_update, args.out)))
        return
    if args.speed:
        print(json.dumps(training_speed()))
        return
    if args.bare:
        from undiffuse import data

        assert data.DataConfig
        print(json.dumps({"memory": kilobytes("RssAnon")}))
        return
    images, kinds = (20_000, args.kinds[:1]) if args.quick else (args.images, args.kinds)
    with tempfile.TemporaryDirectory(dir=args.place) as folder:
        found = {kind: measure(kind, images, Path(folder)) for kind in kinds}
        result = {
            "images": images,
            "training": in_process("--speed", cache=Path(folder) / "cache", workers=1),
            "bare": in_process("--bare", cache=Path(folder) / "cache")["memory"],
            "kinds": found,
            "surroundings": described(surroundings(1, ("torch", "numpy", "pillow"))),
            "commit": commit(),
            "remark": args.remark,
        }
    if args.write:
        known = Path(args.write).with_suffix(".json")
        if known.exists():
            result["kinds"] = {**json.loads(known.read_text())["kinds"], **result["kinds"]}
        keep(Path(args.write), result, page)
    else:
        print(page(result))


if __name__ == "__main__":
    main()
