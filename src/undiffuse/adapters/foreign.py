"""Opens weights files of other programs without executing anything in them, and finds the weights inside.

PyTorch's files are pickles, programs that build objects. PyTorch's restricted reader opens them and builds only tensors
and plain containers. Files with other objects, for example EDM's or those with a trainer's arguments, are read by
`pickled`, which calls nothing and keeps such objects as inert data.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from undiffuse.adapters import (
    ddp_weights,
    ddpm_weights,
    openai_args,
    openai_weights,
    pickled,
    programs,
    score_sde_weights,
)
from undiffuse.checkpoints import CheckpointError
from undiffuse.util.limits import check_header, is_zip, open_zip
from undiffuse.util.text import count_of

ALONE = "net"
"""The name of weights that are alone in a file."""

# Names that training programs and containers prepend a prefix to.
_PREFIXED = (openai_weights.ANCHOR, "temb.dense.0.weight", "time_embedding.linear_1.weight", "time_mlp.1.weight")


@dataclass(frozen=True)
class Weights:
    """A state dict found in a file.

    Attributes:
        name: Its name in the file, or `ALONE`.
        tensors: The weights by name, without the prefix that all names share.
        arguments: Flags of OpenAI's programs stored with the weights, as text.
        program: The program that wrote the file, if known: a name in `programs`.
        beside: The whole content of the file.
    """

    name: str
    tensors: Mapping[str, Tensor]
    arguments: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    beside: Any = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(path: Path, which: str | None = None) -> Weights:
    """Reads the weights in a PyTorch or safetensors file, on the CPU; large ones are memory-mapped.

    Args:
        path: The file.
        which: Name of one of several state dicts in the file.

    Raises:
        CheckpointError: The file is damaged or of another kind, would execute code, or has no weights of a known
            diffusion network.
    """
    content = _open(path)
    program = programs.writer(content)
    refusal = programs.refusal(program, content)
    if refusal:
        raise CheckpointError(f"{path} {refusal}")
    try:
        found = score_sde_weights.state_dicts(content) if program == programs.SCORE_SDE else dict(_state_dicts(content))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if program in (programs.EDM, programs.EDM2):
        name = next((name for name in (which or "ema", ALONE) if name in found), None)
        if name is None:
            raise CheckpointError(f"{path} has no weights {which or 'ema'!r}; it has: {', '.join(found)}")
        _check(path, found[name])
        return Weights(name, found[name], {}, program, content)
    known = {name: state for name, state in found.items() if names_a_network(state)}
    if not known:
        raise CheckpointError(f"{path} has no weights of a known diffusion network: {_contents(content, found)}")
    usual = next((name for name in programs.usual_weights(program) if name in known), None)
    if which is not None:
        if which not in known:
            raise CheckpointError(f"{path} has no weights {which!r}; it has: {', '.join(known)}")
        known = {which: known[which]}
    elif usual is not None:
        known = {usual: known[usual]}
    if len(known) > 1:
        raise CheckpointError(f"{path} contains several networks, {', '.join(known)}: choose one by weights=NAME")
    name, state = next(iter(known.items()))
    state = {key: value for key, value in state.items() if not _is_counter(key, value)}
    _check(path, state)
    return Weights(name, state, _arguments(content), program, content)


def tensors(path: Path) -> Mapping[str, Tensor]:
    """Reads all tensors of a file that contains nothing else, on the CPU; CheckpointError as in `read`."""
    content = _open(path)
    if not isinstance(content, Mapping) or not _is_state(content):
        raise CheckpointError(f"{path} has no weights: {_contents(content, {})}")
    _check(path, content)
    return content


def _check(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless all tensors are ordinary and of floating-point numbers."""
    for key, value in state.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{path}: {key} is of type {str(value.dtype).removeprefix('torch.')}, not a weight")
        size = value.numel() * value.element_size()
        if value.layout != torch.strided or value.untyped_storage().nbytes() < size:
            raise CheckpointError(f"{path}: {key} is not an ordinary tensor of {size} bytes")


def problem_with_archive(path: Path) -> str:
    """Checks the checksums inside a PyTorch file and returns what is wrong; "" if nothing, or if it has none."""
    if not is_zip(path):
        return ""
    try:
        with open_zip(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it is damaged: {error}"
    return f"it is damaged: the checksum of {damaged} in it is wrong" if damaged else ""


def _open(path: Path) -> Any:
    """Returns the content of a file; CheckpointError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        if programs.is_onnx(start, path):
            raise CheckpointError(f"{path} {programs.ONNX_REASON}")
        if start[8:9] == b"{" and path.suffix.lower() not in (".pt", ".pth"):
            check_header(path)
            with safetensors.safe_open(str(path), framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (not a mapping)
        with warnings.catch_warnings():  # about pickles of unusual kinds; those that matter are errors
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except (OSError, MemoryError, CheckpointError):
        raise
    except Exception as error:  # a file can make its reader raise anything
        archive = start[:4] == b"PK\x03\x04" and "TorchScript" not in str(error)
        if start[:1] == b"\x80" or (archive and "GLOBAL" in str(error)):
            return _as_data(path, start)
        raise CheckpointError(f"{path} {_reason(error, start)}") from None


def _as_data(path: Path, start: bytes) -> Any:
    """Reads a pickle that PyTorch's reader refuses, keeping objects as inert data."""
    try:
        return pickled.read(path)
    except pickled.Refused as error:
        text = str(error)
        reason = _reason(error, start) if text.startswith("GLOBAL") else text.removeprefix("it ")
        raise CheckpointError(f"{path} {reason}") from None


def _reason(error: Exception, start: bytes) -> str:
    """Returns why a file cannot be opened. (PyTorch's own messages advise to open it unrestricted, which is unsafe.)"""
    text = str(error)
    wants = re.search(r"GLOBAL ([\w.]+)", text)
    if wants:
        return (
            f"is refused: it contains {wants[1]}, and opening it could execute code. Ask its owner for the weights "
            "alone (a state dict), best as safetensors"
        )
    if "TorchScript" in text:
        return "is a TorchScript program, not weights: give the state dict that it was made from"
    if start[:4] == b"PK\x03\x04" or "EOF" in text or isinstance(error, (EOFError, safetensors.SafetensorError)):
        return f"is damaged or incomplete ({text.splitlines()[0][:100] if text else 'it is empty'})"
    return "is neither weights of PyTorch nor a checkpoint of undiffuse"


def _state_dicts(content: Any) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yields (name, tensors) of all mappings of tensors in a file's content, without their common prefix."""
    if isinstance(content, pickled.Inert):
        yield ALONE, _stripped(module_state(content))
    elif isinstance(content, Mapping):
        if _is_state(content):
            yield from _parts(ALONE, content)
            return
        for name, part in content.items():
            if isinstance(part, pickled.Inert):
                part = module_state(part)
            if isinstance(part, Mapping) and _is_state(part):
                yield from _parts(str(name), part)
    else:  # DDIM's training writes a list
        part = ddpm_weights.weights_in(content)
        if part is not None and _is_state(part):
            yield ALONE, _stripped(part)


def _parts(name: str, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yields the networks in one state dict: itself, or several with different prefixes, named by their prefixes."""
    prefixes = [key.removesuffix(anchor) for key in state for anchor in _PREFIXED if key.endswith(anchor)]
    prefixes = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    # denoising-diffusion-pytorch stores its network inside its process, next to the process's tables.
    prefixes = [p.removesuffix("model.") if f"{p.removesuffix('model.')}betas" in state else p for p in prefixes]
    whole = len(prefixes) == 1 and all(key.startswith(prefixes[0]) for key in state)
    if not prefixes or whole or "" in prefixes:
        yield name, _stripped(state)
        return
    for prefix in prefixes:
        called = name if len(prefixes) == 1 else prefix.rstrip(".")
        yield called, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def module_state(module: pickled.Inert) -> dict[str, Tensor]:
    """Returns the state dict of a PyTorch module that was pickled as a whole; empty if it is not one."""
    out: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        prefix, at = waiting.pop(0)
        attributes = programs.attributes(at)
        for kind in ("_parameters", "_buffers"):
            held = attributes.get(kind)
            if isinstance(held, Mapping):
                out |= {f"{prefix}{name}": value for name, value in held.items() if isinstance(value, Tensor)}
        parts = attributes.get("_modules")
        if isinstance(parts, Mapping):
            waiting = [(f"{prefix}{name}.", part) for name, part in parts.items() if part is not None] + waiting
    return out


def _arguments(content: Any) -> dict[str, str]:
    """Returns the flags of OpenAI's programs in a file's content; {} if there are none."""
    parts = list(content.values()) if isinstance(content, Mapping) else []
    found = [openai_args.of_arguments(programs.attributes(part)) for part in parts]
    return max(found, key=len, default={})


def _is_counter(name: str, value: Tensor) -> bool:
    """Returns whether a tensor is a counter and not a weight, for example the steps of an EMA."""
    return value.ndim == 0 and name.rpartition(".")[2] in ("step", "num_updates", "initted", "decay", "n_averaged")


def names_a_network(names: Mapping[str, Any]) -> bool:
    """Returns whether these are the names of the weights of a known network."""
    return (
        openai_weights.looks_like(names)
        or ddpm_weights.recognise(names) is not None
        or ddp_weights.looks_like(names)
        or score_sde_weights.looks_like(names)
    )


def _is_state(part: Mapping[Any, Any]) -> bool:
    return bool(part) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in part.items())


def _stripped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Removes a prefix that all names share, for example "module."."""
    if ddp_weights.looks_like(state):
        return state
    for name in state:
        for anchor in _PREFIXED:
            prefix = name.removesuffix(anchor)
            if prefix and prefix != name and all(other.startswith(prefix) for other in state):
                return {other[len(prefix) :]: tensor for other, tensor in state.items()}
    return state


def _contents(content: Any, found: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Describes the content of a file without known weights."""
    if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
        return "it is the state of an optimizer; the weights are in another file (model*.pt or ema_*.pt)"
    for name, state in found.items():
        more = ", ..." if len(state) > 3 else ""
        return f"{name} has {count_of(len(state), 'tensor')}: {', '.join(list(state)[:3])}{more}"
    if isinstance(content, Mapping):
        return f"it contains {', '.join(map(str, list(content)[:5])) or 'nothing'}, and no named tensors"
    return f"it is a {type(content).__name__}"
