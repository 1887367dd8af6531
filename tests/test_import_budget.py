"""What it costs to import the package and to ask the command line for help, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

MATHEMATICS = (
    "levels", "prediction", "denoiser", "nets", "noise", "objectives", "timesteps", "likelihood", "solvers", "guidance",
    "sampling",
)  # fmt: skip
ALL = (*MATHEMATICS, "checkpoints", "models", "data", "pictures", "metrics", "evaluation", "training", "recipes")
# Packages that are slow to import, or not ours to need.
HEAVY = (
    "scipy", "torchvision", "torchaudio", "matplotlib", "pandas", "sklearn", "tqdm", "tensorboard", "wandb", "einops",
    "transformers", "diffusers", "IPython", "pytest", "PIL.ImageTk", "torch.utils.tensorboard",
)  # fmt: skip


def run(code: str) -> dict[str, object]:
    """Run Python code in a fresh process and read the JSON of its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def loaded(new: object, names: tuple[str, ...]) -> list[str]:
    """Those of the modules `new` that belong to one of the packages `names`."""
    assert isinstance(new, list)
    return [module for module in new if any(module == name or module.startswith(name + ".") for name in names)]


def test_import_costs_little_beyond_torch() -> None:
    """With torch, NumPy, Pillow and safetensors there already, everything of ours takes a fraction of torch's time."""
    result = run(
        "import sys, time, json\n"
        "a = time.perf_counter()\n"
        "import torch, numpy, safetensors.torch, PIL.Image\n"
        "b = time.perf_counter()\n"
        "before = set(sys.modules)\n"
        "import undiffuse\n"
        f"for room in {ALL!r}: __import__('undiffuse.' + room)\n"
        "c = time.perf_counter()\n"
        "print(json.dumps({'torch': b - a, 'ours': c - b, 'new': sorted(set(sys.modules) - before)}))\n"
    )
    assert not loaded(result["new"], HEAVY)
    assert result["ours"] < 0.35 * result["torch"] + 0.1, (result["ours"], result["torch"])  # type: ignore[operator]


def test_mathematics_needs_no_images_and_no_files() -> None:
    """Solvers, guidance, objectives and likelihood come without Pillow, safetensors and the command line."""
    result = run(
        "import sys, json\n"
        f"for room in {MATHEMATICS!r}: __import__('undiffuse.' + room)\n"
        "print(json.dumps({'new': sorted(sys.modules)}))\n"
    )
    assert not loaded(
        result["new"], (*HEAVY, "PIL", "safetensors", "undiffuse.training", "undiffuse.data", "undiffuse.cli")
    )


def test_the_bare_package_is_light() -> None:
    """`import undiffuse` gives the version without torch, so that the command line answers at once."""
    result = run(
        "import sys, json, undiffuse\n"
        "print(json.dumps({'version': undiffuse.__version__, 'modules': sorted(sys.modules)}))\n"
    )
    assert result["version"]
    assert "torch" not in result["modules"]  # type: ignore[operator]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sample", "--help"], ["--version"]])
def test_help_answers_at_once(arguments: list[str]) -> None:
    """In well under a second, hence without torch; the best of three runs counts, the machine may be busy."""
    code = (
        "import sys, json\n"
        f"sys.argv = ['undiffuse', *{arguments!r}]\n"
        "from undiffuse.cli import main\n"
        "try: code = main()\n"
        "except SystemExit as end: code = end.code\n"
        "print()\n"
        "print(json.dumps({'code': code, 'modules': sorted(sys.modules)}))\n"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run(code)
        seconds.append(time.perf_counter() - start)
        assert result["code"] in (0, None)
        loaded = {"torch", "numpy", "PIL", "safetensors"} & set(result["modules"])  # type: ignore[call-overload]
        assert not loaded, f"help loads {sorted(loaded)}"
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 1.0
