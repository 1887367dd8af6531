"""denoising-diffusion-pytorch for tests, without the torchvision that it imports and does not need here."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest


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
    return pytest.importorskip(
        "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
        reason="compares with denoising-diffusion-pytorch, which is not needed otherwise",
        exc_type=ImportError,
    )
