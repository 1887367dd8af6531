"""The walls of the house, read from the source: who may import whom, and what no library file may do."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

_SPEC = importlib.util.find_spec("undiffuse")
assert _SPEC is not None
assert _SPEC.submodule_search_locations
PACKAGE = Path(next(iter(_SPEC.submodule_search_locations)))
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may look at, bottom up. A room is the first name after "undiffuse": a file or a folder.
GROUND = {
    "arithmetic",
    "noise_levels",
    "noise",
    "ema",
    "pixels",
    "downloads",
    "distributed",
    "sharded_checkpoints",
    "checkpoints",
    "timesteps",
    "schedules",
    "grid_specs",
    "runtime_specs",
}
MATHEMATICS = {"noise_levels", "grids", "noise", "prediction", "preconditioning", "denoiser"}
CORE = MATHEMATICS | {"solvers", "guidance", "weightings", "objectives"}
BELOW_TRAINING = (
    GROUND
    | CORE
    | {"nets", "kernels", "data", "pictures", "models", "sampling", "adapters", "metrics", "evaluation"}
    | {"pipelines", "tuning", "train_config", "conditions", "config", "likelihood"}
)
MAY_IMPORT: dict[str, set[str]] = {
    "util": set(),  # which every room may import
    **{room: set() for room in GROUND},
    "checkpoints": {"sharded_checkpoints"},
    "conditions": {"pixels"},
    "config": {"grid_specs", "solvers", "noise_levels", "runtime_specs"},
    "kernels": {"downloads"},
    "nets": {"kernels", "arithmetic"},
    "data": {"conditions", "pixels", "downloads", "adapters", "noise", "pictures"},  # of adapters, ImageNet's classes
    "pictures": {"pixels"},
    "noise_levels": {"schedules"},
    "prediction": {"noise_levels"},
    "preconditioning": {"noise_levels"},
    "denoiser": {"noise_levels", "prediction", "preconditioning", "nets"},
    "grids": {"noise_levels", "grid_specs"},
    "solvers": MATHEMATICS,
    "guidance": MATHEMATICS,
    "weightings": {"noise_levels"},
    "objectives": MATHEMATICS | {"weightings"},
    "likelihood": MATHEMATICS
    | {"config", "distributed", "objectives", "data", "pictures", "pipelines", "pixels", "runtime_specs"},
    "sampling": CORE,
    "testing": CORE | {"sampling"},
    "tuning": CORE | {"sampling", "grid_specs", "solvers", "downloads", "pipelines"},
    "frontiers": {"downloads", "grid_specs", "solvers", "pictures"},
    "pipelines": CORE
    | GROUND
    | {"conditions", "config", "sampling", "adapters", "data", "kernels", "models", "nets", "pictures", "frontiers"}
    | {"runtimes", "runtime_specs"},
    "editing": MATHEMATICS
    | {"config", "distributed", "solvers", "guidance", "kernels", "sampling", "data", "pictures", "pixels"}
    | {"pipelines"},
    "distillation": MATHEMATICS,
    "adapters": MATHEMATICS | {"config", "nets", "checkpoints", "downloads"},
    "runtimes": {"adapters", "downloads", "models", "nets", "runtime_specs"},
    "models": CORE | {"adapters", "checkpoints", "sharded_checkpoints", "conditions", "config", "nets"},
    "metrics": {"arithmetic", "pixels", "downloads", "models"},
    "evaluation": MATHEMATICS
    | {"conditions", "data", "distributed", "downloads", "metrics", "models", "pictures", "pixels"}
    | {"config", "grid_specs", "runtime_specs", "solvers", "frontiers", "pipelines", "tuning"},
    "sampling_defaults": {"denoiser", "noise_levels", "grid_specs", "solvers"},
    "train_config": {"ema", "timesteps"},
    "recipes": BELOW_TRAINING,
    "training": BELOW_TRAINING | {"recipes", "sampling_defaults", "distillation"},
    "doctor": BELOW_TRAINING | {"training"},
    "reports": BELOW_TRAINING | {"frontiers", "training"},
    "studio": BELOW_TRAINING | {"editing", "recipes", "training", "doctor", "reports"},
    "reproduce": BELOW_TRAINING | {"recipes", "testing", "training"},
}
TOP = {"cli", "__main__", "__init__"}  # may look at everything

# The only packages beyond the standard library, and who may use them.
EVERYWHERE = {"torch", "numpy"}
OUTSIDE = {
    "tqdm": {"training", "util"},
    "wandb": {"training"},
    "PIL": {"data", "pictures", "pixels", "pipelines", "editing", "training", "reports", "studio", "cli"},
    "gradio": {"studio"},
    "starlette": {"studio"},
    "safetensors": {"evaluation", "checkpoints", "sharded_checkpoints", "models", "adapters", "metrics"}
    | {"pipelines", "reproduce", "cli"},
    # Extras, imported by the functions that need them: what an export is for, and is checked with.
    "matplotlib": {"pictures"},
    "triton": {"kernels"},
    "diffusers": {"adapters"},
    "onnxruntime": {"adapters", "runtimes"},
    "openvino": {"runtimes"},
    "huggingface_hub": {"adapters"},
}
ONLY_NUMPY = {"timesteps"}

DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "randint_like",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
}
IN_PLACE_DRAWS = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "log_normal_",
    "geometric_",
    "cauchy_",
}
NUMPY_GENERATORS = {"Generator", "Philox", "PCG64", "SeedSequence", "BitGenerator"}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name) of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write the full name"
            yield from ((node.lineno, [*(node.module or "").split("."), alias.name]) for alias in node.names)


def dotted(node: ast.AST) -> list[str]:
    """The names of an attribute chain such as torch.random.fork_rng; [] if it does not start with a plain name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, list[str], set[str]]]:
    """(call, dotted name of the function, names of the keyword arguments)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func), {k.arg for k in node.keywords if k.arg}


def wrong_imports(room: str, tree: ast.AST) -> Iterator[str]:
    # `import undiffuse` alone gives the version; what is reached through it counts as imported.
    used = [(node.lineno, dotted(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    reached = [(line, name) for line, name in used if name[:1] == ["undiffuse"]]
    for line, (package, *rest) in [*imports(tree), *reached]:
        if package == "undiffuse":
            if room not in TOP and rest and rest[0] not in {room, "__version__", "util"} | MAY_IMPORT[room]:
                yield f"line {line}: {room} may not import undiffuse.{rest[0]}"
        elif package not in sys.stdlib_module_names:
            allowed = room in OUTSIDE.get(package, set()) or (package in EVERYWHERE and room not in ONLY_NUMPY)
            if not allowed and not (package == "numpy" and room in ONLY_NUMPY):
                yield f"line {line}: {room} may not import {package}"
            if package == "torch" and rest[:1] == ["distributed"] and room != "distributed":
                yield f"line {line}: only undiffuse.distributed imports torch.distributed"


def wrong_acts(room: str, tree: ast.AST) -> Iterator[str]:
    for line, (package, *_) in imports(tree):
        if package in {"pickle", "dill", "shelve", "marshal"}:
            yield f"line {line}: {package} can execute code from files"
        if package == "random":
            yield f"line {line}: the global random generator"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node)[:2] == ["torch", "distributed"] and room != "distributed":
            yield f"line {node.lineno}: only undiffuse.distributed uses torch.distributed"
    for call, name, keywords in calls(tree):
        where = f"line {call.lineno}: {'.'.join(name)}"
        if name[:1] == ["torch"] and len(name) == 2 and name[1] in DRAWS and "generator" not in keywords:
            yield f"{where} without generator="
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if method in IN_PLACE_DRAWS and "init" not in name and "generator" not in keywords:
            yield f"line {call.lineno}: .{method} without generator="
        if name[:2] in (["np", "random"], ["numpy", "random"]) and len(name) > 2 and name[2] not in NUMPY_GENERATORS:
            seeded = name[2] in {"default_rng", "RandomState"} and (call.args or call.keywords)
            if not seeded:
                yield f"{where} draws from, or seeds from, outside the program"
        if name == ["torch", "load"]:
            safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)
            if not safe:
                yield f"{where} without weights_only=True"
        if name == ["torch", "save"] and room != "adapters":  # whose files are for programs that read pickles
            yield f"{where} writes a pickle"
        plain = any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in call.keywords)
        if name in (["np", "load"], ["numpy", "load"]) and not plain:
            yield f"{where} without allow_pickle=False"
        if name == ["print"] and room not in {"cli", "__main__"}:
            yield f"{where} in the library"


def wrong_form(text: str, tree: ast.Module) -> Iterator[str]:
    if len(text.splitlines()) > 450:
        yield "split this file"
    if not ast.get_docstring(tree) and tree.body:
        yield "the first lines should say what the file is for"
    yield from (f"{word} in it" for word in ("/tmp/", "/home/", "/root/", "TODO", "FIXME") if word in text)


def faults(check: Callable[[str, str, ast.Module], Iterable[str]]) -> list[str]:
    """What a check finds wrong, in all files: "file: fault"."""
    found = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        said = check(room_of(path), text, ast.parse(text))
        found += [f"{path.relative_to(PACKAGE)}: {fault}" for fault in said]
    return found


def test_every_room_has_a_place() -> None:
    """A new room must be entered in the table above, below all that may use it."""
    rooms = {room_of(path) for path in FILES}
    assert rooms <= set(MAY_IMPORT) | TOP, f"no place for {sorted(rooms - set(MAY_IMPORT) - TOP)}"
    assert rooms >= GROUND - {"downloads"} | CORE | {"sampling"}


def test_the_table_points_downwards() -> None:
    """No cycle among the rooms: they can be put in an order in which each looks only at earlier ones."""
    placed: set[str] = set()
    while remaining := {room for room in MAY_IMPORT if room not in placed}:
        ready = {room for room in remaining if MAY_IMPORT[room] - {room} <= placed}
        assert ready, f"rooms that look at each other: {sorted(remaining)}"
        placed |= ready


def test_imports_point_downwards() -> None:
    assert not faults(lambda room, text, tree: wrong_imports(room, tree))


def test_no_hidden_randomness_pickle_or_printing() -> None:
    assert not faults(lambda room, text, tree: wrong_acts(room, tree))


def test_files_are_short_and_say_what_they_are() -> None:
    assert not faults(lambda room, text, tree: wrong_form(text, tree))


@pytest.mark.parametrize(
    "source",
    ['"""Too long."""\n' + "x = 1\n" * 450, "x = 1\n", '"""A doc."""\nHOME = "/root/x"\n', '"""A doc."""\n# TODO\n'],
)
def test_a_wrong_form_is_found(source: str) -> None:
    assert list(wrong_form(source, ast.parse(source)))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("noise_levels", "from undiffuse.denoiser import ChainDenoiser"),
        ("denoiser", "def f():\n    from undiffuse import sampling"),
        ("nets", "import undiffuse.noise_levels"),
        ("nets", "import undiffuse\nundiffuse.levels.Level.clean()"),
        ("sampling", "import scipy.stats"),
        ("training", "from torchvision import io"),
        ("training", "import torch.distributed as dist"),
        ("objectives", "from torch import distributed"),
        ("prediction", "from PIL import Image"),
        ("timesteps", "import torch"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str) -> None:
    assert list(wrong_imports(room, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import random",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.save(x, f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.randn(3)",
        "torch.randn_like(x)",
        "x.normal_()",
        "self.weight.data.uniform_(0, 1)",
        "np.random.rand(3)",
        "np.random.default_rng()",
        "np.random.seed(0)",
        "torch.distributed.barrier()",
        "print('hello')",
    ],
)
def test_a_wrong_act_is_found(source: str) -> None:
    assert list(wrong_acts("sampling", ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "torch.randn(3, generator=g)",
        "np.random.default_rng(seed)",
        "np.random.Generator(np.random.Philox(1))",
        "torch.load(f, weights_only=True)",
        "np.load(f, allow_pickle=False)",
        "nn.init.normal_(p)",
        "noise.normal(shape)",
    ],
)
def test_what_is_allowed_is_not_found(source: str) -> None:
    assert not list(wrong_acts("sampling", ast.parse(source)))
