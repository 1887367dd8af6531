"""Other projects' packages, for the parity tests. None of them is needed to use or to test this library:

    pip install 'undiffuse[parity]'
    pip install --no-deps torchvision==0.28.* torch-fidelity==0.4.0 clean-fid==0.1.35 pytorch-fid==0.3.0 \\
        open-clip-torch==3.3.0 timm
    pytest -n 0 tests/parity/test_peers.py tests/parity/test_networks.py

--no-deps keeps them from bringing another torch; torchvision may be of any build, see `peer`. What is not installed is
skipped. The version of torchvision goes with torch's (0.28 with 2.13).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch

_OPERATORS: list[torch.library.Library] = []


ALONE = ("prdc", "transformers", "vendi_score")
"""Those that need no torchvision."""


def peer(name: str) -> Any:
    """The module, or a skip. Those that need torchvision get its Python part even where its compiled part cannot be
    used, as that of a wheel for another build of torch."""
    package = name.partition(".")[0]
    for needed in (package,) if package in ALONE else (package, "torchvision"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed; tests/support/peers.py says how")
    if not _OPERATORS and importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Its import only looks for these two operators, and nothing here uses them.
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _OPERATORS.append(library)
    return importlib.import_module(name)
