"""Models as files: loaded by path or name, and saved. A file says all that is needed to use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from undiffuse import checkpoints
from undiffuse.adapters import hub, published
from undiffuse.denoiser import ProcessConfig
from undiffuse.models.model import ClassifierModel, DiffusionModel
from undiffuse.nets import registry
from undiffuse.nets.protocol import NetworkSpec, describe, memory_format
from undiffuse.sharded_checkpoints import is_sharded_folder

# How images are prepared for a model: what other images need to be treated like those it was trained on.
_PREPARATION = ("size", "channels", "fit", "pad_value", "background", "value_range")

_Kind = TypeVar("_Kind", DiffusionModel, ClassifierModel)

SHIPPED = (
    "fashion-mnist-32", "fashion-mnist-32-classifier", "fashion-mnist-32-judge", "fashion-mnist-32-student",
    "emoji-32", "emoji-32-classifier",
)  # fmt: skip

_ROUNDED = {
    "b7c647f8c67dbca79acbe597570090ae2ff562f2ede504a089d40a260d9a1134":
        "4e2a89f9b3fdaeafc79c29c780914d98060c5b0b81309c1fda91bd9567d9e74f",
    "ee587edce2b8f0c3b0fc067dfe609277d37b0ab7094cdda02b756b7e6516c832":
        "e18cd558eab21703d7c4369061895ded0b22043c8946aff695647ca86ff843fd",
}  # fmt: skip
"""Digests of shipped weights before and after they were rounded to 16 bits, which changes images by rounding only."""


def current_digest(digest: Any) -> Any:
    """Return the digest by which weights go now: shipped ones whose file was rounded to 16 bits have a new one."""
    return _ROUNDED.get(digest, digest)


def resolve(reference: str | Path, weights: str | None = None) -> Path:
    """Return the file of a model, downloaded or converted if necessary.

    Args:
        reference: A file, a run folder (its newest checkpoint), the folder of a sharded checkpoint, the name of a
            shipped or published model, a file or diffusers folder of another program's weights, hf:OWNER/NAME on the
            Hub, or "FILE@LIKE", where LIKE is a published model or the flags that the weights were trained with.
        weights: Which weights to convert, if another program's file holds several.

    Returns:
        The path of a checkpoint.

    Raises:
        ValueError: There is no such file or model.
    """
    path = Path(reference)
    if os.path.isfile(path):  # os.path, because flags may be longer than any file's name, which pathlib calls an error
        return path if checkpoints.is_ours(path) else _importing().convert(path, which=weights)
    if is_sharded_folder(path):
        return path
    if os.path.isdir(path):
        newest = checkpoints.latest(path)
        if newest is not None:
            return newest
        importing = _importing()
        only = None if importing.is_diffusers(path) else importing.only_weights(path)
        return resolve(only, weights) if only is not None else importing.convert(path, which=weights)
    if str(reference) in SHIPPED:
        return Path(str(resources.files("undiffuse") / "assets" / f"{reference}.safetensors"))
    if str(reference) in published.ENTRIES:
        return _importing().published_checkpoint(str(reference))
    if hub.is_reference(str(reference)):
        return _of_hub(str(reference), weights)
    file, like = split_reference(reference)
    if like is not None:
        if os.path.isfile(file) and checkpoints.is_ours(Path(file)):
            raise ValueError(f"{file} says itself what it is: leave {like!r} out")
        return _importing().convert(file, like, weights)
    shown = str(reference) if len(str(reference)) < 200 else f"{str(reference)[:197]}..."
    raise ValueError(
        f"there is no file or folder {shown}, no shipped model of that name ({', '.join(SHIPPED)}) and no "
        f"published one{published.near(str(reference))}"
    )


def _importing() -> Any:
    """The readers of other programs' files, which models of our own do without."""
    from undiffuse.adapters import importing

    return importing


def _of_hub(reference: str, weights: str | None) -> Path:
    """A model on the Hub: hf:OWNER/NAME, with @REVISION or @LIKE behind it, where LIKE has a "=" or a space."""
    name, _, rest = reference.partition("@")
    revision, _, like = rest.partition("@")
    if "=" in revision or " " in revision:
        revision, like = "", rest
    folder = hub.snapshot(f"{name}@{revision}" if revision else name)
    return _importing().convert(folder, like or None, weights)


def split_reference(reference: str | Path) -> tuple[str, str | None]:
    """Split "FILE@LIKE" into (FILE, LIKE); (reference, None) if it is no such pair or is the name of a file."""
    text = str(reference)
    file, at, like = text.rpartition("@")
    return (file, like) if at and not os.path.exists(text) and os.path.exists(file) else (text, None)


def paired_classifier(reference: str | Path) -> str | None:
    """Return the reference of the classifier made for a model: a name, or a file beside the model's, or None."""
    if str(reference) in SHIPPED and f"{reference}-classifier" in SHIPPED:
        return f"{reference}-classifier"
    file, like = split_reference(reference)
    entry = published.ENTRIES.get(like or file) or published.of_file(file)
    if entry is None or entry.sampling is None or not entry.sampling.guidance.classifier:
        return None
    name = entry.sampling.guidance.classifier[0]
    beside = Path(file).parent / published.get(name).file
    return str(beside) if os.path.isfile(file) and os.path.isfile(beside) else name


def load_model(
    reference: str | Path,
    *,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    net: nn.Module | None = None,
) -> DiffusionModel | ClassifierModel:
    """Load a model from a file, a run folder or by its name.

    On a CPU the weights are read from the file when they are first used, and the operating system may drop and reread
    them; do not change the file in place while the model is in use.

    Args:
        reference: See `resolve`.
        weights: "net" (as trained), the name of an average ("0.999"), or None for the slowest average there is.
        device: The device to load to.
        net: A network that receives the weights, for files of an architecture that is not registered.

    Returns:
        The model. Its network is in evaluation mode, its parameters are frozen.

    Raises:
        CheckpointError: A ValueError. The file is damaged, of another format, or of an architecture that is not known.
    """
    path = resolve(reference, weights)
    state, manifest = checkpoints.load_weights(path, weights)
    which = weights or checkpoints.default_weights(manifest)
    kind = manifest.get("kind")
    if kind not in ("diffusion", "classifier"):
        raise checkpoints.CheckpointError(f"{path} holds a {kind!r}; expected a diffusion model or a classifier")
    try:
        config: Any = manifest["net"] if net is not None else registry.config_from_dict(manifest["net"], kind)
        process = ProcessConfig(**manifest["process"])
        labels = tuple(manifest["labels"]) if manifest.get("labels") else None
        if net is None:
            registry.check_size(config, len(state))
            net = registry.build(config)
        net = _with_weights(net, state if which == "net" else _complete(net, state, path))
        spec = _spec_of(net, manifest)
        process.chain()
    except registry.UnknownArchitecture as error:
        raise checkpoints.CheckpointError(
            f"{path} cannot be loaded: {error}. Or pass a network that takes its weights: load_model(..., net=net)"
        ) from error
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise checkpoints.CheckpointError(f"{path} does not describe a model that can be built: {reason}") from error
    if labels is not None and spec.num_classes not in (None, len(labels)):
        raise checkpoints.CheckpointError(f"{path} names {len(labels)} classes for {spec.num_classes}")
    net = net.to(device=device).eval().requires_grad_(False)
    if torch.device(device).type != "cpu" and memory_format(net) == torch.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cls = ClassifierModel if kind == "classifier" else DiffusionModel
    return cls(net, process, labels, manifest, which, spec)


def _spec_of(net: nn.Module, manifest: Mapping[str, Any]) -> NetworkSpec:
    """Return what a loaded network's images are, as it says itself, else as its file says."""
    try:
        return describe(net)
    except ValueError:
        return describe(manifest["net"])


def _complete(net: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> Mapping[str, torch.Tensor]:
    """Complete an average, which holds each parameter once and no buffers, for a network with tied ones or buffers."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}
    tied = {name: first[id(parameter)] for name, parameter in net.named_parameters(remove_duplicate=False)}
    state = {**state, **{name: state[tied[name]] for name in tied.keys() - state.keys() if tied[name] in state}}
    missing = {name for name, _ in net.named_buffers()} & net.state_dict().keys() - state.keys()
    if not missing:
        return state
    trained, _ = checkpoints.read(path, "net")
    return {**state, **{name: trained[f"net.{name}"] for name in missing if f"net.{name}" in trained}}


def _with_weights(net: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Give a network the weights `state`, in float32; ValueError unless they fit exactly."""
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        first = f"{odd[0]} is {found.get(odd[0], 'missing')} there, {expected.get(odd[0], 'unknown')} in the network"
        raise ValueError(f"{len(odd)} of its tensors are not those of its network; {first}")
    parameters = dict(net.named_parameters(remove_duplicate=False))
    if not all(value.is_floating_point() for name, value in state.items() if name in parameters):
        raise ValueError("its weights are not floating-point numbers")
    ready = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    tied = len(parameters) > len({id(parameter) for parameter in parameters.values()})
    net.load_state_dict(ready, assign=not tied)  # assigning would untie them
    return net


def load_diffusion(reference: str | Path, **options: Any) -> DiffusionModel:
    """Load a diffusion model; the arguments are those of `load_model`. Raises ValueError for a classifier."""
    return _expect(DiffusionModel, load_model(reference, **options), reference)


def load_classifier(reference: str | Path, **options: Any) -> ClassifierModel:
    """Load a classifier of noisy images; the arguments are those of `load_model`.

    Raises:
        ValueError: The file holds a diffusion model.
    """
    return _expect(ClassifierModel, load_model(reference, **options), reference)


def _expect(kind: type[_Kind], model: DiffusionModel | ClassifierModel, reference: str | Path) -> _Kind:
    if not isinstance(model, kind):
        found, needed = "a classifier", "a diffusion model"
        if kind is ClassifierModel:
            found, needed = needed, "a noisy-image classifier"
        raise ValueError(f"{reference} is {found}; {needed} is needed here")
    return model


def save_model(path: str | Path, model: DiffusionModel | ClassifierModel, *, dtype: torch.dtype | None = None) -> None:
    """Write the weights alone, with everything needed to use them: the slim form of a checkpoint, to share.

    Args:
        path: The file, a .safetensors.
        model: The model.
        dtype: Rounds the weights to torch.float16 or torch.bfloat16, for a file of half the size. Loading makes them
            float32 again, and the loaded model has a digest of its own.

    Raises:
        TypeError: `model` is something else, for example because the arguments are in the other order.
        ValueError: The model's weights were given up (`consume=True`), its config cannot be written as JSON, or a
            weight is too large for float16.
    """
    if not isinstance(model, DiffusionModel | ClassifierModel):
        raise TypeError(
            f"save_model(path, model) expects a DiffusionModel or ClassifierModel, got {type(model).__name__}; a bare "
            "network is saved by DiffusionModel(net, process)"
        )
    model._check_weights("it cannot be saved")
    state = {f"net.{name}": _rounded(tensor, dtype).contiguous() for name, tensor in model.net.state_dict().items()}
    kept = (
        "conditions", "objective", "train", "progress", "seed", "recipe", "init", "source", "posthoc", "sampling",
        "distillation",
    )  # fmt: skip
    manifest = {name: model.manifest[name] for name in kept if name in model.manifest}
    if "init" in manifest:  # the model it began with by its name, not by where it lay
        manifest["init"] = {key: value for key, value in manifest["init"].items() if key != "from"}
    # Of the data what identifies it and how it was prepared, not where it lay on somebody's disk.
    data = model.manifest.get("data") or {}
    names = ("fingerprint", "count", "size", "channels", "channel_names")
    manifest["data"] = {name: data[name] for name in names if name in data}
    manifest["data"]["config"] = {name: value for name, value in model.preparation.items() if name in _PREPARATION}
    kind = "diffusion" if isinstance(model, DiffusionModel) else "classifier"
    labels = list(model.labels) if model.labels is not None else None
    about = {"kind": kind, "net": _net_card(model), "process": asdict(model.process), "labels": labels}
    checkpoints.write(path, state, {**manifest, **about, "ema": [], "weights": model.weights, "version": _version()})


def _rounded(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    made = tensor.to(dtype)
    if not bool(torch.isfinite(made).all()):
        raise ValueError(f"a weight of {float(tensor.abs().max()):.3g} cannot be written as {dtype}: use bfloat16")
    return made


def _net_card(model: DiffusionModel | ClassifierModel) -> dict[str, Any]:
    """Return what a file says of the network; of one without a registered architecture what its own file said."""
    if not registry.is_registered(model.net) and model.manifest.get("net"):
        return dict(model.manifest["net"])
    return registry.config_to_dict(model.net, model.net_spec)


def _version() -> str:
    from undiffuse import __version__

    return __version__
