"""Virtual environments for other projects' packages, and what stands in for torchvision."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
import venv
from collections.abc import Sequence
from pathlib import Path


def prepared(folder: Path, support: Sequence[str], alone: Sequence[str]) -> Path:
    """The Python of a virtual environment in `folder`, made unless it is there with the same packages.

    It gets the torch of this environment's version and `support` with their dependencies, and `alone` without: those
    ask for torchvision or leave the choice of torch to the installer, which would bring another build of it.
    """
    version = importlib.metadata.version("torch").split("+")[0]
    wanted = [f"torch=={version}", *support]
    python, ready = folder / "bin" / "python", folder / "ready"
    complete = json.dumps([*wanted, *alone])
    if not ready.exists() or ready.read_text() != complete:
        print(f"installing {', '.join(alone)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *wanted], check=True)
        subprocess.run([*install, "--no-deps", *alone], check=True)
        ready.write_text(complete)
    return python


def stand_in() -> None:
    """Puts modules in torchvision's place if it cannot be imported; nothing of them is ever called."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # a build for another torch fails in its own ways
        for name in ("", ".transforms", ".transforms.functional", ".datasets", ".utils"):
            module = types.ModuleType("torchvision" + name)
            sys.modules["torchvision" + name] = module
            parent, _, last = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)
        for name in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(sys.modules["torchvision.datasets"], name, type(name, (), {}))
