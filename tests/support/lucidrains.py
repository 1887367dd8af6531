"""denoising-diffusion-pytorch for tests, without the torchvision that it imports and does not need here."""

from __future__ import annotations

import sys
import types
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch


def _fill(transforms: Any, utils: Any) -> None:
    """What the package's Trainer uses, for grey pictures of the right size."""
    transforms.Compose = lambda parts: lambda picture: reduce(lambda value, part: part(value), parts, picture)
    transforms.Lambda = lambda function: function
    transforms.Resize = lambda size: lambda picture: picture
    transforms.CenterCrop = lambda size: lambda picture: picture
    transforms.RandomHorizontalFlip = lambda: lambda picture: picture
    transforms.ToTensor = lambda: lambda picture: torch.from_numpy(np.array(picture)).float().div(255)[None]
    utils.save_image = lambda *pictures, **how: None


def library() -> Any:
    """The package; skips the test where it is not installed."""
    if "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            fake = types.ModuleType("torchvision")
            for name in ("transforms", "utils", "models", "datasets"):
                part = types.ModuleType(f"torchvision.{name}")
                setattr(fake, name, part)
                sys.modules[f"torchvision.{name}"] = part
            sys.modules["torchvision"] = fake
            _fill(sys.modules["torchvision.transforms"], sys.modules["torchvision.utils"])
    return pytest.importorskip(
        "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
        reason="compares with denoising-diffusion-pytorch, which is not needed otherwise",
        exc_type=ImportError,
    )
