"""`undiffuse inspect`: describes a file, folder or name."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse import checkpoints
from undiffuse.adapters import diffusers_config, foreign, hub, published
from undiffuse.cli.console import fields, say, shorten, table
from undiffuse.cli.inspect_data import describe_data
from undiffuse.cli.inspect_evaluation import describe_evaluation, describe_reference
from undiffuse.cli.inspect_model import describe_foreign, describe_model, describe_run
from undiffuse.data import IMAGE_SUFFIXES, NAMED_SETS, open_npz
from undiffuse.data.decoding import read_header
from undiffuse.data.formats import find_format
from undiffuse.data.labels import join_names
from undiffuse.data.opening import WEIGHT_SUFFIXES, split_part
from undiffuse.evaluation.summary import is_reference
from undiffuse.models import SHIPPED, resolve, split_reference
from undiffuse.pictures import read_record
from undiffuse.pictures.stored import sample_files
from undiffuse.pipelines.grids import quoted
from undiffuse.pipelines.latents import KEY, read_about
from undiffuse.sharded_checkpoints import is_sharded_folder
from undiffuse.util.errors import reading
from undiffuse.util.limits import check_header, npz_headers
from undiffuse.util.store import BROKEN_NPZ
from undiffuse.util.text import count_of

PICTURES = (*IMAGE_SUFFIXES, ".apng")
RUN, BITS, BITS_PARTIAL = "run.json", "bits.json", "bits.partial.jsonl"
MOST_RUNS = 40


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    say(describe(args))
    return 0


def describe(args: argparse.Namespace) -> str:
    """Returns the description of `args.what` as text.

    Raises:
        FileNotFoundError: There is no such file, folder or name.
        ValueError: It is damaged, or of an unknown kind.
    """
    what = args.what
    if what is None:
        return environment()
    path = Path(what).expanduser()
    if str(what).partition(":")[0] in NAMED_SETS and not os.path.exists(path):
        return describe_data(args)
    if what in SHIPPED and not os.path.exists(path):
        return describe_model(resolve(what), str(what), as_json=args.json)
    if hub.is_reference(str(what)):
        return describe_model(resolve(what), str(what), as_json=args.json)
    if what in published.ENTRIES and not os.path.exists(path):
        from undiffuse.cli.models import details, record

        entry = published.get(what)
        return json.dumps(record(entry), indent=2) if args.json else details(entry)
    file, like = split_reference(what)
    if like is not None:
        return describe_foreign(file, like, as_json=args.json)
    if not os.path.exists(path) and _is_data(what):
        return describe_data(args)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"there is no file or folder {what}; known names are the data {', '.join(NAMED_SETS)}, the models "
            f"{', '.join(SHIPPED)}, and those listed by `undiffuse models`"
        )
    if is_sharded_folder(path):
        return describe_model(path, what, as_json=args.json)
    if path.is_dir():
        return _folder(args, path)
    suffix = path.suffix.lower()
    if suffix in (".bin", ".npz", *PICTURES) and _holds_images(path):
        return describe_data(args)
    if suffix == ".safetensors":
        return _safetensors(args, path)
    if suffix in PICTURES:
        return _picture(args, path)
    if path.name in (RUN, BITS):
        return _output_file(args, path)
    if suffix == ".json":
        return describe_evaluation(path, args.json)
    if suffix == ".npz":
        return _npz(args, path)
    if suffix in WEIGHT_SUFFIXES:
        return describe_foreign(str(path), as_json=args.json)
    return describe_data(args)


def _is_data(what: str) -> bool:
    """Returns whether this names shards or a split of data: x-{000..009}.tar, https://..., DATA:test."""
    try:
        split_part(what)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _holds_images(path: Path) -> bool:
    """Returns whether a file holds several images to train on. A picture does if it has several frames."""
    found = find_format(path)
    if found is None or found.module == "pickles":
        return False
    if found.module == "files" and path.suffix.lower() in WEIGHT_SUFFIXES:  # a zip of PyTorch's weights, not of images
        return False
    if found.module == "frames":
        return not _is_ours(path)
    if found.module != "npz":
        return True
    try:
        return len(open_npz(path, labels=False)) > 0
    except ValueError as error:
        return "layout=" in str(error)  # images whose order of axes is not known


def _is_ours(path: Path) -> bool:
    try:
        read_record(path)
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def environment() -> str:
    """Returns versions, devices and shipped models as text."""
    import platform

    import PIL
    import safetensors
    import torch

    import undiffuse
    from undiffuse.kernels import status, timings
    from undiffuse.kernels.gpu import norm_status

    kernels, devices = status(), []
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        norm = norm_status(f"cuda:{k}")
        why = norm.reason if norm.active == "triton" else f"PyTorch's operations ({norm.reason})"
        devices.append(f"cuda:{k} {about.name}, {about.total_memory / 2**30:.0f} GiB; norms by {why}")
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices.append(f"cpu, {count_of(torch.get_num_threads(), 'thread')}")
    there = {True: "installed", False: "missing from this installation"}
    shipped = [f"{name} ({there[resolve(name).is_file()]})" for name in SHIPPED]
    rows: list[tuple[str, object]] = [
        ("undiffuse", f"{undiffuse.__version__}, in {Path(undiffuse.__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("others", f"numpy {np.__version__}, pillow {PIL.__version__}, safetensors {safetensors.__version__}"),
        ("devices", "\n".join(devices)),
        ("kernels", f"{kernels.active} ({kernels.reason})"),
        ("timings", timings().text()),
        ("shipped", "\n".join(shipped)),
    ]
    return fields(rows, indent=0)


def _folder(args: argparse.Namespace, path: Path) -> str:
    if _kind(path) == "run":
        return describe_run(path, as_json=args.json)
    if (path / RUN).is_file():
        settings = _json(path / RUN)
        if args.json:
            return json.dumps(settings, indent=2)
        pictures, kind = len(sample_files(path)), str(settings.get("format", "png")).removesuffix("16").upper()
        packed = [file.name for file in path.glob("samples_*.npz")]
        there = [count_of(pictures, f"{kind} file")] * bool(pictures) + packed
        return f"samples: {', '.join(there) or 'none yet'}\n{_record(settings)}"
    if (path / BITS).is_file():
        return _output_file(args, path / BITS)
    if (path / BITS_PARTIAL).is_file():
        return f"an unfinished measurement of `undiffuse nll`, in {path}; repeat the command to resume it"
    recorded = _recorded(path)
    if recorded:
        if args.json:
            return json.dumps(recorded, indent=2)
        commands = join_names(sorted({str(record.get("command", "?")) for record in recorded.values()}))
        return (
            f"pictures written by `undiffuse {commands}`, not images to train on: {join_names(recorded, 6)}\n"
            f"{_record(next(iter(recorded.values())))}"
        )
    if diffusers_config.find(path) is not None:
        return describe_foreign(str(path), as_json=args.json)
    outputs = _folders_of_ours(path)
    return _outputs(args, path, outputs) if outputs else describe_data(args)


def _folders_of_ours(path: Path) -> list[tuple[Path, str]]:
    """Returns the sub-folders with their kinds; an empty list if any is not ours, or if there are pictures too."""
    out = []
    for entry in path.iterdir():  # returns at the first other entry, because there may be very many
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            kind = _kind(entry)
            if not kind:
                return []
            out.append((entry, kind))
        elif entry.suffix.lower() in PICTURES:
            return []
    return sorted(out)


def _kind(folder: Path) -> str:
    """Returns the kind of a folder: "run", "samples", "likelihood", "pictures", or "" if it is not ours."""
    if (folder / checkpoints.FOLDER).is_dir() or (folder / "metrics.jsonl").is_file():
        return "run"
    if (folder / RUN).is_file():
        return "samples"
    if (folder / BITS).is_file() or (folder / BITS_PARTIAL).is_file():
        return "likelihood"
    return "pictures" if _recorded(folder) else ""


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the records of a folder's pictures by name; empty unless all of the first hundred carry one."""
    pictures = (file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    found = {}
    for file in islice(pictures, 100):
        try:
            found[file.name] = read_record(file)
        except (OSError, SyntaxError, ValueError):
            return {}
    return dict(sorted(found.items()))


def _outputs(args: argparse.Namespace, path: Path, outputs: list[tuple[Path, str]]) -> str:
    """Describes a folder of folders that undiffuse wrote, one per line."""
    if args.json:
        return json.dumps({entry.name: kind for entry, kind in outputs}, indent=2)
    rows = []
    for entry, kind in outputs[:MOST_RUNS]:
        newest = checkpoints.latest(entry) if kind == "run" else None
        state = "" if kind != "run" else "no checkpoint yet"
        state = count_of(checkpoints.images_of(newest), "image") if newest is not None else state
        rows.append([entry.name, kind, state])
    more = f"\n  ... and {len(outputs) - MOST_RUNS:,} more" if len(outputs) > MOST_RUNS else ""
    return (
        f"{count_of(len(outputs), 'folder')} written by undiffuse, in {path}\n{table(rows, indent=2)}{more}\n"
        f"To inspect one:\n  undiffuse inspect {quoted(str(outputs[0][0]))}"
    )


def _output_file(args: argparse.Namespace, path: Path) -> str:
    """Describes run.json of samples or bits.json of a likelihood."""
    content = _json(path)
    if args.json:
        return json.dumps(content, indent=2)
    if path.name == RUN:
        where = quoted(str(path.parent))
        return f"the settings of samples, by `undiffuse {content.get('command', 'sample')}`\n{_record(content)}\n" + (
            f"To inspect the samples:\n  undiffuse inspect {where}"
        )
    settings = content.get("settings")
    numbers = {name: value for name, value in content.items() if name not in ("settings", "per_step")}
    about = _record(settings) if isinstance(settings, dict) else ""
    return f"a likelihood, by `undiffuse nll`\n{_record(numbers)}\nmeasured with\n{about}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a file of undiffuse: it holds no settings")
    return content


def _safetensors(args: argparse.Namespace, path: Path) -> str:
    import safetensors

    check_header(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error
    if is_reference(path):
        return describe_reference(path, args.json)
    if "undiffuse" in header:
        return describe_model(path, str(path), as_json=args.json)
    if foreign.names_a_network(shapes):
        return describe_foreign(str(path), as_json=args.json)
    if KEY in header:
        about = read_about(path)
        if args.json:
            return json.dumps(about, indent=2)
        count, *shape = shapes["latents"]
        return (
            f"latents of {count_of(count, 'image')}, {'x'.join(map(str, shape))}, by `undiffuse encode`\n"
            f"{_record({**about['record'], **about['notes']})}\nTo decode:\n  undiffuse decode {quoted(str(path))}"
        )
    numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    first = [[name, "x".join(map(str, shape)) or "scalar"] for name, shape in list(shapes.items())[:8]]
    more = f"\n  ... and {len(shapes) - 8:,} more" if len(shapes) > 8 else ""
    return (
        f"a safetensors file of another program: {count_of(len(shapes), 'tensor')}, {count_of(numbers, 'number')}; its "
        f"header has no undiffuse manifest\n{table(first, indent=2)}{more}"
    )


def _picture(args: argparse.Namespace, path: Path) -> str:
    about: dict[str, Any]
    try:
        with reading(str(path)), Image.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            about = {"format": picture.format, "height": picture.height, "width": picture.width, "mode": picture.mode}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        try:
            with open(path, "rb") as file:  # TIFF files of several channels, and very large pictures
                info = read_header(file)
        except (OSError, SyntaxError, ValueError):
            raise ValueError(f"{path} is not a readable picture: {error}") from error
        frames, kind = info.pages, "TIFF" if path.suffix.lower() in (".tif", ".tiff") else path.suffix[1:].upper()
        about = {"format": kind, "height": info.height, "width": info.width, "mode": info.mode}
    what = f"{about['format']} picture, {about['height']}x{about['width']} {about['mode']} (height x width)"
    what += f", {frames} frames" if frames > 1 else ""
    try:
        record = read_record(path)
    except (OSError, SyntaxError, ValueError):
        if args.json:
            return json.dumps({**about, "record": None}, indent=2)
        return (
            f"{what}\nIt has no record of undiffuse. Saving a picture in another program removes the record.\n"
            f"To train on pictures, inspect their folder:\n  undiffuse inspect {quoted(str(path.parent))}"
        )
    if args.json:
        return json.dumps(record, indent=2)
    text = f"{what}, by undiffuse\n{_record(record)}"
    if record.get("command") == "sample" and "index" in record:
        text += f"\nTo make the same image again:\n  undiffuse sample --from-record {quoted(str(path))}"
    return text


def _record(record: Mapping[str, Any]) -> str:
    """Formats a record as lines, with short hashes and long values cut."""

    def shown(value: Any) -> str:
        text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
        hexadecimal = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
        return text[:16] + "..." if hexadecimal else shorten(text, 200)

    return fields([(name, shown(value)) for name, value in record.items()])


def _npz(args: argparse.Namespace, path: Path) -> str:
    try:
        arrays = npz_headers(path)
    except BROKEN_NPZ as error:
        raise ValueError(f"{path} is not a readable npz file ({error})") from error
    listed = [[name, str(dtype), "x".join(map(str, shape)) or "scalar"] for name, (dtype, shape) in arrays.items()]
    text = "an npz file without images to train on (for example arr_0, images or x_train); it holds\n"
    text += table(listed, indent=2)
    if {"mu", "sigma"} <= set(arrays):
        text += "\nmu and sigma are feature statistics, usable as a reference: undiffuse evaluate SAMPLES "
        text += quoted(str(path))
    return text
