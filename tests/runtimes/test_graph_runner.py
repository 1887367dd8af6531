"""What runtimes of graphs have in common, with one that is PyTorch in disguise: cache, check, conditions, errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.export_models import SMALL, model
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.nets.runner import is_consumed
from undiffuse.runtime_specs import RUNTIMES, check_runtime
from undiffuse.runtimes import base, graphs
from undiffuse.util.errors import ConfigError

TINY: dict[str, Any] = {**SMALL, "image_size": 8, "channel_mult": (1,), "attention_resolutions": ()}
PROCESS = ProcessConfig(variance="fixed_large")


class Disguised:
    """Exports that are hashes of weights, and sessions that call the network with the weights of that hash."""

    def __init__(self) -> None:
        self.exports, self.nets, self.factor = 0, {}, 1.0
        self.seen: dict[str, np.ndarray] = {}

    def write(self, given: Any, path: Path) -> int:
        self.exports += 1
        name = f"graph {self.exports}"
        self.nets[name] = {key: value.clone() for key, value in given.net.state_dict().items()}, given.net.config
        path.write_text(name)
        return 20

    def open(self, path: Path, precision: str) -> Any:
        weights, config = self.nets[path.read_text()]  # KeyError for a damaged file
        net = config.build().eval()
        net.load_state_dict(weights)

        def session(inputs: dict[str, np.ndarray]) -> np.ndarray:
            self.seen = dict(inputs)
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            with torch.no_grad():
                return (self.factor * net(given.pop("x"), given.pop("t"), **given)).numpy()

        return session


@pytest.fixture
def disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disguised]:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    found = Disguised()
    monkeypatch.setattr(graphs, "write_onnx", found.write)
    monkeypatch.setattr(graphs, "require", lambda *names: None)
    monkeypatch.setattr(base, "runtime_notes", lambda name: {"runtime_version": "disguise 1"})
    yield found


def runner(given: Any, disguised: Disguised, **more: Any) -> base.GraphRunner:
    return base.GraphRunner(given, "onnxruntime", disguised.open, "fp32", **more)


def call(run: Any, count: int = 2, **conditions: torch.Tensor) -> torch.Tensor:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return run(x, torch.linspace(10, 900, count), **conditions)


def test_a_network_is_exported_once(disguised: Disguised) -> None:
    """Also by another process: the graph lies in the cache, by its weights and config."""
    given = model(UNetConfig(**TINY), PROCESS)
    first = call(runner(given, disguised))
    torch.testing.assert_close(first, call(given.net))
    assert disguised.exports == 1
    assert call(runner(model(UNetConfig(**TINY), PROCESS), disguised)).equal(first)
    assert disguised.exports == 1
    other = model(UNetConfig(**TINY), PROCESS)
    other.net.out[-1].bias.data += 1
    runner(other, disguised)
    assert disguised.exports == 2
    runner(model(UNetConfig(**{**TINY, "dropout": 0.1}), PROCESS), disguised)
    assert disguised.exports == 3


def test_changed_weights_are_exported_again(disguised: Disguised) -> None:
    given = model(UNetConfig(**TINY), PROCESS)
    run = runner(given, disguised)
    before = call(run)
    with torch.no_grad():
        given.net.out[-1].bias += 1
    torch.testing.assert_close(call(run), before + 1)
    assert disguised.exports == 2


def test_weights_are_given_up_on_request(disguised: Disguised) -> None:
    given = model(UNetConfig(**TINY), PROCESS)
    expected = call(given.net)
    run = runner(given, disguised, consume=True)
    assert is_consumed(given.net)
    for _ in range(2):
        torch.testing.assert_close(call(run), expected)
    with pytest.raises(ValueError, match="given up"):
        runner(given, disguised)


@pytest.mark.parametrize("damage", ["of nothing", "of other weights"])
def test_a_wrong_graph_in_the_cache_is_replaced(damage: str, disguised: Disguised) -> None:
    """A file that cannot be read, and one whose first output differs from PyTorch's."""
    given, other = model(UNetConfig(**TINY), PROCESS), model(UNetConfig(**TINY), PROCESS)
    with torch.no_grad():
        other.net.out[-1].bias += 1
    runner(given, disguised), runner(other, disguised)
    graphs.graph_path(given, given.digest).write_text("graph 2" if damage == "of other weights" else "graph 17")
    torch.testing.assert_close(call(runner(given, disguised)), call(given.net))
    assert disguised.exports == 3


def test_a_library_that_computes_something_else_is_an_error(disguised: Disguised) -> None:
    run = runner(model(UNetConfig(**TINY), PROCESS), disguised)
    disguised.factor = 1.0003
    with pytest.raises(RuntimeError, match=r"disguise 1 computes this network differently: .* is 0.0003, and 0.0002"):
        call(run)


def test_conditions(disguised: Disguised) -> None:
    """Classes come as int64, missing labels, numbers and pictures as NaN; a missing class is an error."""
    config = UNetConfig(**TINY, num_classes=3, num_tags=4, num_numbers=2, cond_channels=1)
    given = model(config, PROCESS)
    run = runner(given, disguised)
    y = torch.tensor([0, 2], dtype=torch.int32)
    torch.testing.assert_close(call(run, y=y), call(given.net, y=y.long()))
    assert disguised.seen["y"].dtype == np.int64
    missing = {name for name, value in disguised.seen.items() if np.isnan(value).all()}
    assert missing == {"tags", "numbers", "cond_image"}
    numbers = torch.tensor([[0.5, torch.nan], [1.0, 2.0]])
    torch.testing.assert_close(call(run, y=y, numbers=numbers), call(given.net, y=y.long(), numbers=numbers))
    with pytest.raises(ValueError, match="requires the condition 'y'"):
        call(run)
    assert {"y", "tags", "numbers", "cond_image"} <= run.conditions


def test_gradients_through_the_network_are_refused(disguised: Disguised) -> None:
    run = runner(model(UNetConfig(**TINY), PROCESS), disguised)
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    with pytest.raises(ConfigError, match="no gradients through the network: set `runtime` to torch"):
        run(x, torch.zeros(1))


def test_what_a_runtime_cannot_do() -> None:
    with pytest.raises(ConfigError, match="onnxruntime runs on cpu, not on cuda; set `device` to cpu"):
        check_runtime("onnxruntime", "fp32", "cuda")
    with pytest.raises(ConfigError, match="bf16 is not possible with the runtime onnxruntime.*to one of torch, ind"):
        check_runtime("onnxruntime", "bf16", "cpu")
    with pytest.raises(ConfigError, match="inductor has no gradients through the network"):
        check_runtime("inductor", "fp32", "cpu", gradient=True)
    check_runtime("torch", "bf16", "cpu", gradient=True)


@pytest.mark.parametrize("name", [name for name, info in RUNTIMES.items() if info.package])
def test_missing_packages_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf'{name} requires {name}: pip install "undiffuse\[{name}\]"'):
        check_runtime(name, "fp32", "cpu")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.runtimes import load_runner

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="requires a C.. compiler, and there is no no-such-compiler"):
        load_runner(model(UNetConfig(**TINY), PROCESS), "inductor", "fp32", torch.device("cpu"))
