"""Exports one call of a network as a graph that runs without this package: ONNX, or a program of `torch.export`.

The graph is the network alone, (x, t, y, low_res) -> output, for any batch size. Steps, solver, guidance and clipping
are up to the user. The JSON next to the file describes the output, the noise levels and a sampling step, so that
sampling needs nothing else.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.adapters import exporting, graph_steps
from undiffuse.adapters.exporting import Exported, Model
from undiffuse.nets.runner import is_own

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXTERNAL = 1_800_000_000  # with more bytes of weights, they go into a separate file: ONNX files are limited to 2 GiB
OUTPUT = "output"
_TRACED, _CHECKED = 2, 3  # images in the traced batch and in the check; they must differ

_CONDITIONS = {
    "tags": "labels of each image, 0 or 1; NaN: not given",
    "numbers": "normalised numbers, (v - mean) / std; NaN: not given",
    "cond_image": "condition pictures, -1 to 1, or one plane for each class of a map; NaN: not given",
}
"""Conditions besides the class, and what their inputs hold."""


def export_torch(model: Model, path: Path) -> Exported:
    """Writes a program of `torch.export` to `path`, a .pt2, and the JSON next to it."""
    with _quiet():
        torch.export.save(_program(model), path)
        loaded = torch.export.load(path).module()
    exporting.write_json(exporting.about_path(path), {"format": "torch.export", **instructions(model)})
    inputs = exporting.example_inputs(model, _CHECKED)
    with torch.no_grad():
        difference = exporting.relative_difference(loaded(*inputs.values()), exporting.call(model.net, inputs))
    return Exported(
        difference=exporting.accept(difference, path.name),
        checked=f"read back and run by torch {torch.__version__}, with {_CHECKED} images",
        usage=(
            "import torch\n"
            f'network = torch.export.load("{path.name}").module()\n'
            f"{_inputs_in_words(model, 'torch')}\n"
            f"out = network({', '.join(inputs)})\n{_comment(model, path)}"
        ),
        notes=("the program runs on the CPU: move it with torch.export.passes.move_to_device_pass(program, 'cuda')",),
    )


def export_onnx(model: Model, path: Path) -> Exported:
    """Writes an ONNX file to `path` and the JSON next to it; large weights go into a third file, PATH.data.

    Raises:
        ValueError: The packages that ONNX requires are not installed.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX export requires {', '.join(missing)}: pip install 'undiffuse[onnx]'")
    import onnxruntime

    opset = write_onnx(model, path)
    exporting.write_json(exporting.about_path(path), {"format": f"ONNX, opset {opset}", **instructions(model)})
    checked = exporting.example_inputs(model, _CHECKED)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in checked.items()})
    with torch.no_grad():
        difference = exporting.relative_difference(torch.from_numpy(output), exporting.call(model.net, checked))
    guidance = "an ONNX graph has no gradients, which guidance requires: export to torch for them"
    return Exported(
        difference=exporting.accept(difference, path.name),
        checked=f"read back and run by onnxruntime {onnxruntime.__version__}, with {_CHECKED} images",
        usage=(
            "import numpy as np, onnxruntime\n"
            f'network = onnxruntime.InferenceSession("{path.name}")\n'
            f"{_inputs_in_words(model, 'numpy')}\n"
            f"(out,) = network.run(None, {{{', '.join(f'{n!r}: {n}' for n in checked)}}})\n{_comment(model, path)}"
        ),
        notes=(guidance,) if exporting.kind_of(model) == "classifier" else (),
    )


def write_onnx(model: Model, path: Path) -> int:
    """Writes the network as an ONNX file to `path`, and large weights to PATH.data; requires onnx and onnxscript.

    Args:
        model: The model, its network on the CPU.
        path: The file.

    Returns:
        The version of ONNX's operators.

    Raises:
        ValueError: The network cannot be traced.
    """
    inputs = exporting.example_inputs(model, _TRACED)
    program = _program(model)
    with _quiet():
        graph = torch.onnx.export(program, dynamo=True, verbose=False, input_names=list(inputs), output_names=[OUTPUT])
        assert graph is not None
        _name_axes(graph, model)
        size = sum(value.numel() * value.element_size() for value in model.net.state_dict().values())
        graph.save(path, external_data=size > EXTERNAL)
    return int(graph.model.opset_imports.get("", 0) or 0)


def instructions(model: Model) -> dict[str, Any]:
    """Returns the content of the JSON next to a graph: the model, the inputs and output, and the sampling step.

    With discrete noise levels, `abar` [steps + 1] is alpha^2 of each step's level (alpha^2 + sigma^2 = 1), and 1 for
    the clean image at last. With continuous levels, `step` speaks of noise s in x = image + s * noise.
    """
    spec, process = model.spec, model.process
    diffuses, continuous = exporting.kind_of(model) != "classifier", process.continuous
    image = ["batch", *spec.image_shape]
    shapes: dict[str, dict[str, Any]] = {
        "x": {"type": "float32", "shape": image, "what": "`seen` of `step`" if continuous else "noisy images"},
        "t": {
            "type": "float32",
            "shape": ["batch"],
            "what": "t of `step`" if continuous else "time input of the network: time_scale * k for step k",
        },
    }
    conditions = exporting.example_inputs(model, 1, full_size=False).keys()
    if "y" in conditions:
        shapes["y"] = {"type": "int64", "shape": ["batch"], "what": "classes, counted from 0"}
    if "low_res" in conditions:
        small = ["batch", spec.in_channels, "low_height", "low_width"]
        shapes["low_res"] = {"type": "float32", "shape": small, "what": "images to enlarge, -1 to 1"}
    for name in (name for name in _CONDITIONS if name in conditions):
        sides = list(spec.size) if name == "cond_image" else []
        shapes[name] = {
            "type": "float32", "shape": ["batch", spec.width_of(name), *sides], "what": _CONDITIONS[name],
        }  # fmt: skip
    output = ["batch", spec.num_classes] if exporting.kind_of(model) == "classifier" else [*image]
    if len(output) == 4:
        output[1] = process.out_channels(spec.in_channels)
    return {
        **exporting.describe(model),
        "inputs": shapes,
        **({"conditions": model.manifest["conditions"]} if model.manifest.get("conditions") else {}),
        "output": {"type": "float32", "shape": output, "what": _meaning(model)},
        **({"step": graph_steps.of_continuous(process)} if continuous and diffuses else {}),
        **({} if continuous else {"time_scale": exporting.time_scale(process)}),
        **({"step": graph_steps.of_chain(process)} if not continuous and diffuses else {}),
        **({} if continuous else {"abar": [*process.chain().alphas_cumprod.tolist(), 1.0]}),
    }


def _meaning(model: Model) -> str:
    if exporting.kind_of(model) == "classifier":
        return f"scores of {model.spec.num_classes} classes (log-probabilities up to a constant)"
    what = {
        "eps": "noise",
        "x0": "denoised image",
        "v": "v",
        "velocity": "u = noise - image",
        "score": "negative noise",
        "edm": "F of EDM's preconditioning",
        "consistency": "output of a consistency model before its skip connection",
        "previous_mean": "mean of the previous step",
    }
    more = ", then the variance" if model.process.learns_variance else ""
    return f"{what[model.process.target]}{more}"


class _Positional(nn.Module):
    """A network whose conditions are passed by position, in the order of `names`."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        return self.net(x, t, **dict(zip(self.names, conditions, strict=True)))


def _program(model: Model) -> torch.export.ExportedProgram:
    """Traces the network for any number of images, and for low-resolution images of any size."""
    inputs = exporting.example_inputs(model, _TRACED)
    batch = torch.export.Dim("batch", min=1)
    axes: dict[str, dict[int, Any]] = {name: {0: batch} for name in inputs}
    if "low_res" in inputs:
        axes["low_res"] |= {2: torch.export.Dim("low_height", min=1), 3: torch.export.Dim("low_width", min=1)}
    shapes: Any = axes
    net = model.net
    if not is_own(net) or ("low_res" in inputs and "y" not in inputs) or set(_CONDITIONS) & set(inputs):
        net = _Positional(net, list(inputs)[2:])
        shapes = (axes["x"], axes["t"], tuple(axes[name] for name in list(inputs)[2:]))
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(net, tuple(inputs.values()), dynamic_shapes=shapes)
    except Exception as error:
        if is_own(model.net):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"torch.export cannot trace the network {type(model.net).__name__} for any number of images: {reason}"
        ) from error


def _name_axes(graph: Any, model: Model) -> None:
    """Names the axes of variable length in an ONNX graph."""
    shapes = instructions(model)
    named = {**{name: value["shape"] for name, value in shapes["inputs"].items()}, OUTPUT: shapes["output"]["shape"]}
    for value in [*graph.model.graph.inputs, *graph.model.graph.outputs]:
        for axis, length in enumerate(named[value.name]):
            if isinstance(length, str):
                value.shape[axis] = length


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporters' debug messages within the context."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _comment(model: Model, path: Path) -> str:
    step = "" if exporting.kind_of(model) == "classifier" else "; how to take a step"
    return f"# out: {_meaning(model)}{step}: see {exporting.about_path(path).name}"


def _inputs_in_words(model: Model, library: str) -> str:
    """Returns lines of Python, with "torch" or "numpy", that make inputs for four images of pure noise."""
    spec = model.spec
    shape = f"4, {spec.in_channels}, {', '.join(map(str, spec.size))}"
    small = f"4, {spec.in_channels}, {', '.join(map(str, exporting.low_size(model)))}"
    time = exporting.times(model.process, 1)[0].item()
    lines = {
        "x": (f"torch.randn({shape})", f'np.random.standard_normal(({shape})).astype("float32")'),
        "t": (f"torch.full((4,), {time!r})", f'np.full(4, {time!r}, "float32")'),
        "y": (f"torch.arange(4) % {spec.num_classes}", f"np.arange(4) % {spec.num_classes}"),
        "low_res": (f"torch.zeros({small})", f'np.zeros(({small}), "float32")'),
    }
    for name in _CONDITIONS:
        sides = f", {', '.join(map(str, spec.size))}" if name == "cond_image" else ""
        full = f"(4, {spec.width_of(name)}{sides})"
        lines[name] = (f"torch.zeros{full}", f'np.zeros({full}, "float32")')
    taken = exporting.example_inputs(model, 1, full_size=False)
    return "\n".join(f"{name} = {lines[name][library == 'numpy']}" for name in taken)
