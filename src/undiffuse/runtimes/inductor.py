"""Runs networks by `torch.compile`: C++ that PyTorch's compiler writes for a CPU, Triton and CUDA graphs on GPUs.

The first call of each shape compiles, which takes a minute or more. What is compiled is kept in the cache folder.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from undiffuse.downloads import cache_dir
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.models import DiffusionModel


def load(
    model: DiffusionModel, precision: str, device: torch.device, *, gradient: bool = False, consume: bool = False
) -> NetworkRunner:
    """Prepares the network, see `load_runner`.

    Raises:
        ConfigError: There is no C++ compiler ("runtime").
    """
    if device.type == "cpu":
        _check_compiler()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir("runtimes", "inductor")))
    return prepare_for_inference(model.net, precision, device, compiled=True, consume=consume)


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            "runtime", f"inductor requires a C++ compiler, and there is no {compiler}: install one (apt install g++), "
            "or name it in the environment variable CXX"
        )  # fmt: skip
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise ConfigError(
            "runtime", f"inductor requires Python's header files, and {include} has none: install them "
            "(apt install python3-dev)"
        )  # fmt: skip
