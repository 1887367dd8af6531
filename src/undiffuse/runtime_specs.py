"""Runtimes by name: what each is, what it requires and what it can do. Does not import torch; see `runtimes`."""

from __future__ import annotations

from typing import NamedTuple

from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = ["DEFAULT", "RUNTIMES", "Runtime", "check_runtime", "require", "runs_on_cpu", "runtime_notes"]


class Runtime(NamedTuple):
    """Describes a runtime.

    Attributes:
        line: One-line description.
        module: The module with its function `load`.
        package: The library's distribution and module name; "" if torch is all it requires.
        precisions: The precisions that it computes in on a CPU.
        devices: The kinds of devices that it runs on; empty for all.
        gradient: Whether results can be differentiated with respect to the image.
    """

    line: str
    module: str
    package: str = ""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    devices: tuple[str, ...] = ()
    gradient: bool = False


DEFAULT = "torch"
RUNTIMES: dict[str, Runtime] = {
    DEFAULT: Runtime("PyTorch with this package's kernels", "undiffuse.runtimes.pytorch", gradient=True),
    "inductor": Runtime("torch.compile: PyTorch's compiler, C++ on CPUs", "undiffuse.runtimes.inductor"),
    "onnxruntime": Runtime(
        "ONNX Runtime, CPU only", "undiffuse.runtimes.onnxruntime", "onnxruntime", ("fp32",), ("cpu",)
    ),
    "openvino": Runtime("OpenVINO, CPU only", "undiffuse.runtimes.openvino", "openvino", devices=("cpu",)),
}


def check_runtime(name: str, precision: str, device: str, gradient: bool = False) -> None:
    """Checks that a runtime can do what is wanted, and that its library is installed.

    Args:
        name: One of `RUNTIMES`.
        precision: "fp32", "bf16" or "fp16".
        device: The kind of device: "cpu", "cuda" or "mps".
        gradient: Whether gradients with respect to the image are required.

    Raises:
        ConfigError: It cannot ("runtime", or "precision").
    """
    runtime = RUNTIMES[name]
    if runtime.devices and device not in runtime.devices:
        raise ConfigError("runtime", f"{name} runs on {join_names(runtime.devices)}, not on {device}; set `device` to "
                          f"{runtime.devices[0]}, or `runtime` to {DEFAULT}")  # fmt: skip
    if device == "cpu" and precision not in runtime.precisions:
        able = join_names([other for other, info in RUNTIMES.items() if precision in info.precisions])
        raise ConfigError(
            "precision", f"{precision} is not possible with the runtime {name}, which computes in "
            f"{join_names(runtime.precisions)}; for {precision} set `runtime` to one of {able}"
        )  # fmt: skip
    if gradient and not runtime.gradient:
        raise ConfigError(
            "runtime", f"{name} has no gradients through the network, which this method or guidance at x0 requires; "
            f"omit `runtime`, or set it to {DEFAULT}"
        )  # fmt: skip
    require(runtime.package, runtime.package)


def runs_on_cpu(name: str) -> bool:
    """Returns whether a runtime runs on a CPU only."""
    return RUNTIMES[name].devices == ("cpu",)


def require(extra: str, *packages: str) -> None:
    """Raises ConfigError ("runtime") with a pip command unless all packages are installed."""
    from importlib.util import find_spec

    missing = [name for name in packages if name and find_spec(name) is None]
    if missing:
        raise ConfigError("runtime", f'{extra} requires {join_names(missing)}: pip install "undiffuse[{extra}]"')


def runtime_notes(name: str) -> dict[str, str]:
    """Returns what a picture's notes say of a runtime: the version of its library, {} where that is PyTorch's."""
    from importlib.metadata import version

    package = RUNTIMES[name].package
    return {"runtime_version": f"{package} {version(package)}"} if package else {}
