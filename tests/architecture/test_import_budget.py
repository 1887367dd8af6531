"""What it costs to import the package, to ask the command line for help and to begin to sample: counted in modules.

Each is looked at in a process of its own. Seconds are measured by `benchmarks/latency.py`; here no clock is read, so
that a busy machine changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from undiffuse.cli import COMMANDS

MATHEMATICS = (
    "noise_levels", "prediction", "denoiser", "nets", "noise", "objectives", "timesteps", "likelihood", "solvers",
    "guidance",
    "sampling", "editing",
)  # fmt: skip
ALL = (*MATHEMATICS, "checkpoints", "models", "data", "pictures", "metrics", "evaluation", "training", "recipes")
# Packages that are slow to import, or not ours to need.
HEAVY = (
    "scipy", "torchvision", "torchaudio", "matplotlib", "pandas", "sklearn", "tensorboard", "wandb", "einops",
    "transformers", "diffusers", "IPython", "pytest", "PIL.ImageTk", "torch.utils.tensorboard",
)  # fmt: skip
# What torch brings only where it compiles, or asks its compiler: together about a second.
COMPILER = (
    "torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx.experimental.symbolic_shapes", "torch.onnx",
    "torch.utils.cpp_extension", "sympy", "mpmath", "networkx", "jinja2", "setuptools", "triton",
)  # fmt: skip
# Of the standard library what takes longer than all of a command's options.
SLOW_LIBRARY = (
    "asyncio", "concurrent", "ctypes", "email", "hashlib", "http", "importlib.metadata",
    "json", "logging", "multiprocessing", "pathlib", "pickle", "socket", "ssl", "subprocess", "tempfile", "unittest",
    "urllib", "zipfile",
)  # fmt: skip
NOT_FOR_SAMPLING = ("undiffuse.training", "undiffuse.metrics", "undiffuse.evaluation", "undiffuse.recipes")
OF_HELP = {
    "undiffuse", "undiffuse.cli", "undiffuse.cli.console", "undiffuse.cli.distillation_options",
    "undiffuse.cli.editing_options", "undiffuse.distillation", "undiffuse.distillation.registry",
    "undiffuse.cli.evaluation_options", "undiffuse.cli.file_options", "undiffuse.cli.options", "undiffuse.cli.parser",
    "undiffuse.cli.sampling_options", "undiffuse.cli.training_options", "undiffuse.cli.values", "undiffuse.cli.words",
    "undiffuse.config", "undiffuse.config.fields", "undiffuse.config.guidance", "undiffuse.config.kinds",
    "undiffuse.config.sampler",
    "undiffuse.grid_specs", "undiffuse.runtime_specs", "undiffuse.solvers", "undiffuse.solvers.registry",
    "undiffuse.util",
    "undiffuse.util.errors", "undiffuse.util.launch", "undiffuse.util.tables", "undiffuse.util.text",
}  # fmt: skip
MOST_FOR_HELP = 60  # modules beside those that come with dataclasses, from whose fields options are made


def run(code: str) -> dict[str, object]:
    """Run Python code in a fresh process and read the JSON of its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules(result: dict[str, object], name: str = "new") -> list[str]:
    """The names of modules that a process told."""
    told = result[name]
    assert isinstance(told, list)
    return told


def loaded(new: list[str], names: tuple[str, ...]) -> list[str]:
    """Those of the modules `new` that belong to one of the packages `names`."""
    return [module for module in new if any(module == name or module.startswith(name + ".") for name in names)]


def brought(code: str, before: str = "import torch") -> list[str]:
    """The modules that `code` brings beyond those that `before` does."""
    return modules(
        run(
            f"import sys, json\n{before}\nbefore = set(sys.modules)\n{code}\n"
            "print(json.dumps({'new': sorted(set(sys.modules) - before)}))\n"
        )
    )


def foreign(new: list[str]) -> set[str]:
    """Packages beyond the standard library and this one."""
    return {module.partition(".")[0] for module in new} - set(sys.stdlib_module_names) - {"undiffuse"}


def test_all_rooms_bring_the_core_dependencies_and_nothing_else() -> None:
    """Every room but the command line, beyond torch: NumPy, Pillow, safetensors, and of torch no part that compiles."""
    new = brought(f"for room in {ALL!r}: __import__('undiffuse.' + room)")
    assert not loaded(new, (*HEAVY, *COMPILER, "undiffuse.cli"))
    assert foreign(new) <= {"torch", "numpy", "PIL", "safetensors"}
    assert len(loaded(new, ("torch",))) <= 5, loaded(new, ("torch",))


def test_a_model_and_a_sampler_come_without_the_other_rooms() -> None:
    """What most programs import: `undiffuse.models` and `undiffuse.sampling`."""
    new = brought("import undiffuse.models, undiffuse.sampling")
    others = ("training", "data", "pictures", "metrics", "evaluation", "recipes", "cli")
    assert not loaded(new, (*HEAVY, *COMPILER, "PIL", *(f"undiffuse.{room}" for room in others)))
    assert len(new) <= 96, new


def test_mathematics_needs_no_images_and_no_files() -> None:
    """Solvers, guidance, objectives and likelihood come without Pillow, safetensors and the command line."""
    new = brought(f"for room in {MATHEMATICS!r}: __import__('undiffuse.' + room)", before="")
    assert "torch" in new
    assert not loaded(new, (*HEAVY, "PIL", "safetensors", "undiffuse.training", "undiffuse.data", "undiffuse.cli"))


def test_the_bare_package_is_light() -> None:
    """`import undiffuse` gives the version and imports nothing of its own, so that the command line answers at once."""
    new = brought("import undiffuse; assert undiffuse.__version__; dir(undiffuse)", before="import typing, importlib")
    assert set(new) <= {"undiffuse", "__future__"}


ASKED = [["--help"], ["--version"], [], *([command, "--help"] for command in COMMANDS)]
MISTAKEN = [["smaple"], ["sample", "--nothing"], ["sample", "--seed", "x"], ["train"], ["export", "m", "--to", "word"]]


@pytest.mark.parametrize("arguments", [*ASKED, *MISTAKEN], ids=lambda arguments: " ".join(arguments) or "nothing")
def test_help_and_mistakes_are_answered_at_once(arguments: list[str]) -> None:
    """Without torch, or anything else that takes longer than argparse."""
    result = run(
        "import sys\n"
        "before = set(sys.modules)\n"
        "from undiffuse.cli import main\n"
        f"code = main({arguments!r})\n"
        "new = sorted(set(sys.modules) - before)\n"
        "import json\n"  # only now: it is one of those that must not be among the new ones
        "print()\n"
        "print(json.dumps({'code': code, 'new': new}))\n"
    )
    new = modules(result)
    assert result["code"] == (2 if arguments in MISTAKEN else 0)
    assert not foreign(new)
    assert set(loaded(new, ("undiffuse",))) <= OF_HELP
    assert not loaded(new, SLOW_LIBRARY)
    own = set(brought("import dataclasses", before="import re, collections, functools"))
    assert len(set(new) - own) <= MOST_FOR_HELP, new


def test_sampling_commands_bring_no_training() -> None:
    """Before anything is sampled: the bodies of the commands that make images."""
    new = brought("import undiffuse.cli.sample, undiffuse.cli.decode, undiffuse.cli.quickstart")
    assert not loaded(new, (*HEAVY, *COMPILER))
    assert not loaded(new, NOT_FOR_SAMPLING)


def test_the_first_images_need_no_compiler_and_no_training(tmp_path: Path) -> None:
    """From the process's start to images: what the shipped models and their sampling import; and what `main` does about
    garbage, once, is undone where it would be noticed.
    """
    result = run(
        "import gc, sys, json\n"
        "import undiffuse.cli\n"
        "before = set(sys.modules)\n"
        "def quickstart():\n"
        f"    words = ['quickstart', '--per-class', '1', '--steps', '2', '--out', {str(tmp_path / 'out')!r}]\n"
        "    return undiffuse.cli.main(words)\n"
        "codes = [quickstart()]\n"
        "torch = sys.modules['torch']\n"
        "new, frozen = sorted(set(sys.modules) - before), gc.get_freeze_count()\n"
        "codes.append(undiffuse.cli.main(['recipes', 'smoke']))\n"
        "told = {'new': new, 'codes': codes, 'enabled': gc.isenabled()}\n"
        "print(json.dumps({**told, 'frozen': frozen, 'later': gc.get_freeze_count()}))\n"
    )
    new = modules(result)
    plain = modules(run("import sys, json, torch; print(json.dumps({'new': sorted(sys.modules)}))"))
    more = sorted(set(new) - set(plain))
    assert result["codes"] == [0, 0]
    assert "undiffuse.models" in new
    assert not loaded(more, (*HEAVY, *COMPILER))
    assert not loaded(more, NOT_FOR_SAMPLING)
    assert result["enabled"] is True
    assert result["frozen"] > 10_000  # type: ignore[operator]  # torch's
    assert result["later"] <= result["frozen"]  # type: ignore[operator]  # a second command freezes nothing
