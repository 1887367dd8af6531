"""Calls a network through an ONNX graph; what the runtimes of such graphs have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from undiffuse.adapters.exporting import example_inputs, relative_difference
from undiffuse.nets.protocol import conditions_of
from undiffuse.nets.runner import Prepared, give_up_weights, is_consumed, plain_copy
from undiffuse.runtime_specs import DEFAULT, runtime_notes
from undiffuse.runtimes.graphs import graph_path, make_graph
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.models import DiffusionModel

__all__ = ["TOLERANCE", "GraphRunner", "Session"]

TOLERANCE = {"fp32": 2e-4, "bf16": 0.1}
"""Largest difference from PyTorch's output at the first call, relative to the largest output."""
_NULLABLE = ("tags", "numbers", "cond_image")
"""Conditions of which NaN means "not given"."""


class Session(Protocol):
    """A graph that a library has loaded: it takes inputs by name and returns the output."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray: ...


class GraphRunner:
    """Calls a network through another library; inputs and outputs are float32 tensors on the CPU.

    The first image of the first call is also computed by PyTorch, and a graph from the cache that differs is made
    again. If the weights of the model change, the next call exports it again.

    Args:
        model: The model.
        name: The runtime's name.
        open_session: Loads a graph: (its path, the precision) -> session.
        precision: "fp32" or "bf16".
        consume: Whether to give up the weights of the model's network.

    Attributes:
        conditions: Names of the conditions the network accepts.
        precision: The precision.
        footprint: Memory of the weights.

    Raises:
        ConfigError: Packages are missing ("runtime").
        ValueError: The network cannot be exported, or its weights were given up.
    """

    def __init__(
        self,
        model: DiffusionModel,
        name: str,
        open_session: Callable[[Path, str], Session],
        precision: str,
        *,
        consume: bool = False,
    ) -> None:
        if is_consumed(model.net):
            raise ValueError("the weights of this network were given up: load or build it again")
        self.conditions = conditions_of(model.net)
        self.precision, self._name, self._open = precision, name, open_session
        self._template = dataclasses.replace(model, net=None, net_spec=model.spec)
        digest = model.digest
        net, self.footprint = plain_copy(model.net)
        if consume:
            give_up_weights(model.net)
        self._prepared = Prepared(None if consume else model.net, lambda original: plain_copy(original)[0], False)
        self._start(net, digest)

    def _start(self, net: nn.Module, digest: str | None = None) -> None:
        """Makes or finds the graph of a network and loads it."""
        self._model = dataclasses.replace(self._template, net=net)
        self._graph = graph_path(self._model, self._model.digest if digest is None else digest)
        self._names = tuple(example_inputs(self._model, 1, full_size=False))
        self._unchecked = True
        self._made = make_graph(self._model, self._graph, self._name)
        try:
            self._session = self._open(self._graph, self.precision)
        except Exception:  # each library has errors of its own for a damaged file
            if self._made:
                raise
            self._again()

    def _again(self) -> None:
        self._made = make_graph(self._model, self._graph, self._name, again=True)
        self._session = self._open(self._graph, self.precision)

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Call the network.

        Args:
            x: Images [B, C, H, W].
            t: The network's time input [B].
            **conditions: Those of `conditions`, by name.

        Returns:
            The network's output as float32.

        Raises:
            ConfigError: A gradient with respect to `x` is required ("runtime").
            ValueError: A condition is missing.
            RuntimeError: The output differs from PyTorch's.
        """
        if torch.is_grad_enabled() and any(value.requires_grad for value in (x, *conditions.values())):
            raise ConfigError(
                "runtime", f"{self._name} has no gradients through the network: set `runtime` to {DEFAULT}"
            )
        if self._prepared.outdated():
            self._start(self._prepared.again())
        inputs = self._inputs(x, t, conditions)
        out = torch.from_numpy(self._session(inputs))
        if not self._unchecked:
            return out
        return self._checked(inputs, out)

    def _inputs(self, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Returns the graph's inputs: all that the network takes, NaN for what is not given."""
        given = {"x": x, "t": t, **conditions}
        inputs = {}
        for name in self._names:
            value = given.get(name)
            if value is None and name not in _NULLABLE:
                raise ValueError(f"the network requires the condition {name!r}, which was not given")
            if value is None:
                sides = x.shape[2:] if name == "cond_image" else ()
                value = torch.full((len(x), self._template.spec.width_of(name), *sides), torch.nan)
            kind = torch.int64 if name == "y" else torch.float32
            inputs[name] = value.detach().to("cpu", kind).contiguous().numpy()
        return inputs

    def _checked(self, inputs: dict[str, np.ndarray], out: Tensor) -> Tensor:
        """Compares the first image with PyTorch's; a graph that was not made just now gets a second chance."""
        first = {name: torch.from_numpy(value[:1].copy()) for name, value in inputs.items()}
        with torch.no_grad():
            expected = self._model.net(first.pop("x"), first.pop("t"), **first).float()
        difference = relative_difference(out[:1], expected)
        if not difference <= TOLERANCE[self.precision] and not self._made:
            self._again()
            out = torch.from_numpy(self._session(inputs))
            difference = relative_difference(out[:1], expected)
        if not difference <= TOLERANCE[self.precision]:
            raise RuntimeError(
                f"{next(iter(runtime_notes(self._name).values()))} computes this network differently: the relative "
                f"difference from PyTorch's output is {difference:.2g}, and {TOLERANCE[self.precision]:g} is allowed. "
                f"Omit the runtime {self._name}, and please report this"
            )
        self._unchecked = False
        self._model = self._template  # the weights are in the graph
        return out
