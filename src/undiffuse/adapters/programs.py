"""Programs of the field by what their files hold: which one wrote a file, and why some files are of no use here.

A file is recognised by its content, never by its name. `writer` gives a program's name, `refusal` one line for files
that cannot be used: who wrote it, what is missing, and what would help.
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
    "is an ONNX graph: a network to be run elsewhere, whose weights have lost their names. Give the model it was "
    "exported from; to run the graph itself, use onnxruntime"
)

_USUAL = {DDP: ("ema_model", "ema")}
"""The weights that a program itself samples with, by what they are called in its files."""

_PERSISTENT = "_reconstruct_persistent_obj"  # by which NVIDIA's pickles make their objects

_WHY = {
    SCORE_SDE: (
        "is a checkpoint of score_sde_pytorch (Song et al. 2021): its networks (NCSN++, DDPM++) and its continuous "
        "SDEs are not built here. What would help: the same model as a folder of diffusers, whose UNet2DModel is read"
    ),
    EDM2: (
        "is a network pickle of NVIDIA's EDM2 (Karras et al. 2024): its magnitude-preserving network is not built here"
        "{latent}. What would help: a model of guided diffusion's architecture, or a diffusers UNet2DModel"
    ),
    K_DIFFUSION: (
        "is a checkpoint of k-diffusion: its {architecture} is not built here. What would help: a model of guided "
        "diffusion's architecture, which k-diffusion only wraps (`K.external.OpenAIDenoiser`), or of diffusers"
    ),
    LATENT: (
        "is a checkpoint of latent-diffusion or Stable Diffusion: its network works on the latents of an autoencoder, "
        "not on pixels, and undiffuse is for pixels. Use diffusers for it"
    ),
    DIT: (
        "is a DiT, a transformer on the latents of an autoencoder, not on pixels, and undiffuse is for pixels. Use "
        "diffusers (DiTPipeline) for it"
    ),
}


def is_onnx(start: bytes, path: Path) -> bool:
    """Whether a file that begins with these bytes is an ONNX graph."""
    named = path.suffix.lower() == ".onnx"
    return start[:1] == b"\x08" and (named or b"pytorch" in start[:40])


def writer(content: Any) -> str:
    """Name the program that wrote a file of this content; "" where the content does not say it."""
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
    """Say in one line why a file of this program cannot be used, as a sentence without its subject; "" if it can."""
    why = _WHY.get(program, "")
    architecture = ""
    latent = ""
    if program == EDM2:
        module = next(iter(modules(content)), None)
        channels = attributes(module).get("img_channels")
        latent = ", and it works on latents of an autoencoder, not on pixels" if channels in (4, 8) else ""
    if program == K_DIFFUSION:
        architecture = "image transformer" if any("patch_in" in name for name in _names(content)) else "U-Net"
    return why.format(architecture=architecture, latent=latent)


def usual_weights(program: str) -> tuple[str, ...]:
    """Names of the weights that a program itself samples with, in its order; none where all are alike."""
    return _USUAL.get(program, ())


def attributes(value: Any) -> Mapping[str, Any]:
    """The attributes of an inert object by name, or a mapping itself; empty for anything else.

    NVIDIA's pickles wrap each object together with its source code, which nobody runs here; the attributes lie within.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, pickled.Inert):
        return {}
    if value.name.endswith(_PERSISTENT) and value.args:
        return attributes(attributes(value.args[0]).get("state"))
    return value.attributes


def class_name(value: Any) -> str:
    """The class of an inert object without its module; "" for anything else."""
    if not isinstance(value, pickled.Inert):
        return ""
    if value.name.endswith(_PERSISTENT) and value.args:
        return str(attributes(value.args[0]).get("class_name", ""))
    return value.name.rpartition(".")[2]


def modules(content: Any) -> Iterator[Any]:
    """The inert objects at the top of a file."""
    parts = [content, *content.values()] if isinstance(content, Mapping) else [content]
    yield from (part for part in parts if isinstance(part, pickled.Inert))


def _names(content: Any) -> Iterator[str]:
    """The keys at the top of a file and one level below."""
    if isinstance(content, Mapping):
        for key, part in content.items():
            yield str(key)
            if isinstance(part, Mapping):
                yield from (str(name) for name in part)


def _has_shadow(content: Any) -> bool:
    ema = content.get("ema") if isinstance(content, Mapping) else None
    return isinstance(ema, Mapping) and "shadow_params" in ema
