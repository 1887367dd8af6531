"""Recognises which program wrote a weights file, by its content and never by its name.

`writer` returns the program's name. For files that undiffuse cannot use, `refusal` returns one line that says which
program wrote the file, why it cannot be used and what to use instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from undiffuse.adapters import pickled

DDP = "denoising-diffusion-pytorch"
SCORE_SDE = "score_sde_pytorch"
EDM = "EDM"
EDM2 = "EDM2"
K_DIFFUSION = "k-diffusion"
LATENT = "latent-diffusion"
DIT = "DiT"
ONNX_REASON = (
    "is an ONNX graph, whose weights have lost their names. Give the model it was exported from; to run the graph "
    "itself, use onnxruntime"
)

_USUAL = {DDP: ("ema_model", "ema"), SCORE_SDE: ("ema", "model")}
"""Names of the weights that a program samples with."""

_PERSISTENT = "_reconstruct_persistent_obj"  # the function with which NVIDIA's pickles build their objects

_WHY = {
    K_DIFFUSION: (
        "is a checkpoint of k-diffusion: its {architecture} is not supported. Use a model of guided diffusion's "
        "architecture, which k-diffusion only wraps (`K.external.OpenAIDenoiser`), or a diffusers model"
    ),
    LATENT: (
        "is a checkpoint of latent-diffusion or Stable Diffusion: its network works on the latents of an autoencoder, "
        "and undiffuse supports only pixel-space models. Use diffusers for it"
    ),
    DIT: (
        "is a DiT, a transformer on the latents of an autoencoder, and undiffuse supports only pixel-space models. Use "
        "diffusers (DiTPipeline) for it"
    ),
}


def is_onnx(start: bytes, path: Path) -> bool:
    """Returns whether a file that begins with these bytes is an ONNX graph."""
    named = path.suffix.lower() == ".onnx"
    return start[:1] == b"\x08" and (named or b"pytorch" in start[:40])


def writer(content: Any) -> str:
    """Returns the name of the program that wrote a file with this content; "" if it is unknown."""
    names = frozenset(_names(content))
    top = frozenset(str(key) for key in content) if isinstance(content, Mapping) else frozenset()
    if any(name.endswith(("x_embedder.proj.weight", "pos_embed.proj.weight")) for name in names) and any(
        "adaLN_modulation" in name for name in names
    ):
        return DIT
    if any(name.startswith("first_stage_model.") for name in names) or any(
        ".transformer_blocks." in name and "attn2" in name for name in names
    ):
        return LATENT
    if {"model", "ema", "step"} <= top and any(name.startswith("ema_model.") for name in names):
        return DDP
    if any(name.endswith(("model.init_conv.weight", "init_conv.weight")) for name in names):
        return DDP
    if any("all_modules.0." in name for name in names) or _has_shadow(content):
        return SCORE_SDE
    if any(name.startswith(("inner_model.mapping.", "inner_model.patch_in.", "inner_model.proj_in")) for name in names):
        return K_DIFFUSION
    if {"model", "model_ema", "ema_sched"} <= top:
        return K_DIFFUSION
    classes = [class_name(part) for part in modules(content)]
    if any(name in ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond") for name in classes):
        return EDM
    return EDM2 if "Precond" in classes else ""


def refusal(program: str, content: Any) -> str:
    """Returns one line that says why a file of this program cannot be used (without a subject); "" if it can."""
    why = _WHY.get(program, "")
    architecture = ""
    if program == K_DIFFUSION:
        architecture = "image transformer" if any("patch_in" in name for name in _names(content)) else "U-Net"
    return why.format(architecture=architecture)


def usual_weights(program: str) -> tuple[str, ...]:
    """Returns the names of the weights that a program samples with, in order of preference; empty if unknown."""
    return _USUAL.get(program, ())


def attributes(value: Any) -> Mapping[str, Any]:
    """Returns the attributes of an inert object by name, or a mapping unchanged; empty for anything else.

    NVIDIA's pickles wrap each object together with its source code. The code is never run; the attributes are inside.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, pickled.Inert):
        return {}
    if value.name.endswith(_PERSISTENT) and value.args:
        return attributes(attributes(value.args[0]).get("state"))
    return value.attributes


def class_name(value: Any) -> str:
    """Returns the class name of an inert object without its module; "" for anything else."""
    if not isinstance(value, pickled.Inert):
        return ""
    if value.name.endswith(_PERSISTENT) and value.args:
        return str(attributes(value.args[0]).get("class_name", ""))
    return value.name.rpartition(".")[2]


def modules(content: Any) -> Iterator[Any]:
    """Yields the inert objects at the top level of a file."""
    parts = [content, *content.values()] if isinstance(content, Mapping) else [content]
    yield from (part for part in parts if isinstance(part, pickled.Inert))


def _names(content: Any) -> Iterator[str]:
    """Yields the keys at the top level of a file and one level below."""
    if isinstance(content, Mapping):
        for key, part in content.items():
            yield str(key)
            if isinstance(part, Mapping):
                yield from (str(name) for name in part)


def _has_shadow(content: Any) -> bool:
    ema = content.get("ema") if isinstance(content, Mapping) else None
    return isinstance(ema, Mapping) and "shadow_params" in ema
