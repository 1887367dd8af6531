"""Reader of the golden files: numbers of the original implementations, with all that is needed to repeat them.

The directory is that of the environment variable UNDIFFUSE_GOLDEN, by default the copy beside the tests. The kind of
a file is the prefix of its name ("unet_adm_deep.safetensors" is of kind "unet"). Nothing about a file is assumed
beyond its kind: arguments, sizes, seed and layout are read from it (see the README in the directory).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

KINDS = (
    "unet",
    "superres",
    "classifier",
    "schedules",
    "gaussian_process",
    "trajectories",
    "loss_second_moment",
    "published_checkpoints",
    "published_layouts",
    "published_consistency_layouts",
    "published_consistency",
    "consistency",
)
NETWORKS = 2e-4  # of the largest magnitude: float32 sums in another order, through a deep network
FLOAT64 = 1e-12


def directory() -> Path:
    """Where the golden files are."""
    return Path(os.environ.get("UNDIFFUSE_GOLDEN") or Path(__file__).parents[1] / "golden")


def kind_of(name: str) -> str | None:
    """Kind of a file by the prefix of its name; None if no kind is known by it."""
    for kind in KINDS:
        rest = name.removeprefix(kind)
        if rest != name and not rest[:1].isalnum():
            return kind
    return None


def of_kind(*kinds: str) -> list[Path]:
    """All files of these kinds, sorted by name."""
    folder = directory()
    return sorted(p for p in folder.iterdir() if p.is_file() and kind_of(p.name) in kinds) if folder.is_dir() else []


def for_each(*kinds: str) -> Callable[[Callable[..., None]], Callable[..., None] | None]:
    """Decorator: run the test once for each golden file of these kinds (argument `path`).

    Where there is no such file there is no such test: a golden directory need not hold every kind.
    """
    files = of_kind(*kinds)
    mark = pytest.mark.parametrize("path", files, ids=[p.name.split(".")[0] for p in files])
    return lambda function: mark(function) if files else None


class Golden:
    """One golden file: inputs are `take`n, results are `compare`d, and `finish` complains about all that was not.

    Comparisons collect instead of raising, so that one run names every number that is off.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        self.path = path
        self.used: set[str] = set()
        self.failures: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def take(self, key: str) -> torch.Tensor:
        """A tensor of the file, noted as used."""
        self.used.add(key)
        return self._tensors[key]

    def compare(
        self, key: str, value: torch.Tensor | np.ndarray | float, tolerance: float, scale: float | None = None
    ) -> None:
        """Compare `value` with the tensor `key`: |difference| <= tolerance * scale, scale = its largest magnitude."""
        expected = self.take(key).double()
        got = torch.as_tensor(value).detach().cpu().double()
        if got.shape != expected.shape:
            self.failures.append(f"{key}: shape {list(got.shape)}, expected {list(expected.shape)}")
            return
        largest = expected.abs().max().item() if scale is None else scale
        error = (got - expected).abs().max().item()
        if not error <= tolerance * largest:
            self.failures.append(f"{key}: differs by {error:.3g}, allowed {tolerance:.1g} of {largest:.3g}")

    def fail(self, message: str) -> None:
        self.failures.append(message)

    def finish(self) -> None:
        """Fail if anything differed, or if a tensor of the file was neither used nor compared."""
        unused = sorted(set(self._tensors) - self.used)
        messages = [f"never checked: {', '.join(unused)}"] if unused else []
        messages += self.failures
        assert not messages, f"{self.path.name}\n  " + "\n  ".join(messages)


def draw_weights(layout: Mapping[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Weights of a network by the recipe of the golden files' README, one independent draw a name."""
    weights = {}
    for name, shape in layout.items():
        r = np.random.RandomState((seed + zlib.crc32(name.encode())) % 2**32).standard_normal(shape)
        if len(shape) >= 2:
            r = r / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            r = 1 + 0.1 * r
        else:
            r = 0.1 * r
        weights[name] = torch.from_numpy(r.astype("float32"))
    return weights


# Defaults of the original constructors where ours differ or have no default; the rest of the names are the same.
_CONSTRUCTOR = {
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "num_heads": 1,
    "num_head_channels": -1,
}
# Arguments that say nothing about the function computed (precision, and two-dimensional convolutions).
_IGNORED = {"use_fp16": (False,), "dims": (2,)}


def constructor_arguments(kwargs: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of an original constructor as those of our configurations, for images of `size` (height, width)."""
    ours = {**_CONSTRUCTOR, **kwargs, "image_size": size}
    for name, allowed in _IGNORED.items():
        assert ours.pop(name, allowed[0]) in allowed, f"cannot repeat an original network with {name}={kwargs[name]}"
    return ours


def load_weights(net: torch.nn.Module, layout: Mapping[str, list[int]], seed: int) -> torch.nn.Module:
    """`net` with the recipe's weights, in evaluation mode; its layout must equal `layout` in names and shapes."""
    own = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert own == {name: list(shape) for name, shape in layout.items()}
    net.load_state_dict(draw_weights(layout, seed))
    return net.eval()
