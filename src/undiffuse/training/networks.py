"""Networks of a user's own in a plan: what they are for, and which process and loss fit their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from undiffuse.data.images import size_pair
from undiffuse.nets import NetworkSpec, conditions_of, describe
from undiffuse.recipes import Recipe
from undiffuse.util.errors import ConfigError

__all__ = ["for_network", "spec_of"]


def spec_of(
    net: Any, size: int | tuple[int, int], channels: int, classes: int | None, widths: Mapping[str, int]
) -> tuple[NetworkSpec, int | tuple[int, int], int]:
    """Describes a given network, by its own word or else by the data.

    Args:
        net: The network.
        size: Size of the images, if it does not say it.
        channels: Their channels, likewise.
        classes: Number of classes of the data.
        widths: `num_tags`, `num_numbers` and `cond_channels` of the data, for a network that does not say its own.

    Returns:
        (spec, size, channels); the number of output channels is always known.

    Raises:
        ConfigError: The network cannot be called as a network must.
    """
    try:
        spec = describe(net, widths=widths)
    except ValueError:  # it does not say which images it is for
        spec = describe(
            net,
            image_shape=(channels, *size_pair(size)),
            num_classes=classes if "y" in conditions_of(net) else None,
            widths=widths,
        )
    if spec.out_channels is None:
        spec = replace(spec, out_channels=_output_channels(net, spec))
    height, width = spec.size
    return spec, height if height == width else (height, width), spec.in_channels


def _output_channels(net: Any, spec: NetworkSpec) -> int:
    """Channels of the output, by one call for one image."""
    was_training, parameter = net.training, next(net.parameters(), torch.zeros(()))
    x = torch.zeros(1, *spec.image_shape, device=parameter.device)
    label = torch.zeros(1, dtype=torch.int64, device=x.device)
    cond = {"y": label} if spec.num_classes is not None else {}
    for name in ("tags", "numbers", "cond_image"):
        if count := spec.width_of(name):
            cond[name] = torch.zeros(1, count, *(spec.size if name == "cond_image" else ()), device=x.device)
    net.eval()
    try:
        with torch.no_grad():
            out = net(x, torch.zeros(1, device=x.device), **cond)
    except Exception as error:
        raise ConfigError(
            "model",
            f"{type(net).__name__} cannot be called as net(x {list(x.shape)}, t [1]"
            f"{''.join(f', {name} {list(value.shape)}' for name, value in cond.items())}): "
            f"{error}",
        ) from error
    finally:
        net.train(was_training)
    if not isinstance(out, torch.Tensor) or out.ndim != 4 or out.shape[2:] != x.shape[2:]:
        got = f"a tensor {list(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise ConfigError("model", f"{type(net).__name__} returned {got} for {list(x.shape)}; expected [B, C, H, W]")
    return int(out.shape[1])


def for_network(recipe: Recipe, spec: NetworkSpec) -> Recipe:
    """Returns a recipe whose process and loss fit the outputs of a given network: variance learned, or fixed."""
    if recipe.kind == "classifier":
        return recipe
    process, objective = recipe.process, recipe.objective
    assert objective is not None
    if process.out_channels(spec.in_channels) != spec.out_channels:
        learned = spec.out_channels == 2 * spec.in_channels
        process = replace(process, variance="learned_range" if learned else "fixed_small")
        objective = replace(objective, loss="hybrid" if learned else "simple")
    return replace(recipe, process=process, objective=objective)
