"""Interprets weights of programs other than OpenAI's, DDPM's and diffusers: network, process and advice of each."""

from __future__ import annotations

from collections.abc import Mapping

from undiffuse.adapters import ddp_weights, edm2_weights, edm_weights, foreign, programs, score_sde_weights
from undiffuse.adapters.interpretation import Found, Interpretation, Like
from undiffuse.config import SamplerConfig
from undiffuse.config.advice import to_manifest
from undiffuse.nets import EDM2UNetConfig, EDMUNetConfig, UNet2DConfig


def read(weights: foreign.Weights, said: Like | None) -> Found | None:
    """Interprets the weights in a file of one of these programs; returns None for any other.

    Args:
        weights: The weights.
        said: What the user says of them.

    Raises:
        ValueError: A setting is missing or wrong, or the network is not supported.
    """
    if weights.program in (programs.EDM, programs.EDM2):
        return _of_edm(weights, said)
    if ddp_weights.looks_like(weights.tensors):
        return _of_ddp(weights, said)
    if score_sde_weights.looks_like(weights.tensors):
        return _of_score_sde(weights, said)
    return None


def _of_edm(weights: foreign.Weights, said: Like | None) -> Found:
    """Interprets a network pickle of EDM or EDM2."""
    if said is not None:
        raise ValueError(
            f"a network pickle of {weights.program} contains its own settings: omit the published model or flags"
        )
    content = weights.beside
    module = content.get(weights.name) if isinstance(content, Mapping) else content
    config: EDMUNetConfig | EDM2UNetConfig
    if weights.program == programs.EDM2:
        config, process, state = edm2_weights.read(module, weights.tensors)
        what, sampling = "EDM2's network", edm2_weights.advice()
    else:
        config, process, state = edm = edm_weights.read(module, weights.tensors)
        what, sampling = f"EDM's network, {edm[0].design}", edm_weights.advice(edm[0], process)
    facts = {
        "its own arguments": f"{what}, images of {config.size[0]} pixels",
        "its preconditioning": process.levels_text,
        "licence": edm_weights.LICENCE,
    }
    return Interpretation(config, process, facts), state, weights.name, {"sampling": to_manifest(sampling)}


def _settings(said: Like | None, program: str) -> dict[str, str]:
    """Returns what the user says of a file of a program that is none of OpenAI's, by name."""
    said = said or Like()
    if said.entry is not None or said.release is not None:
        raise ValueError(f"this is a model of {program}: only settings that it lacks can be given, as name=value")
    return {**said.stored, **said.flags}


def _of_score_sde(weights: foreign.Weights, said: Like | None) -> Found:
    """Interprets a checkpoint of score_sde_pytorch."""
    config, process, state = score_sde_weights.read(weights.tensors, _settings(said, programs.SCORE_SDE))
    what = "NCSN++" if isinstance(config, UNet2DConfig) or config.filtered else "DDPM++"
    facts = {"shapes": f"{what} of score_sde_pytorch", "as said": process.levels_text}
    more = {"sampling": to_manifest(score_sde_weights.advice(config.size[0]))}
    return Interpretation(config, process, facts), state, weights.name, more


def _of_ddp(weights: foreign.Weights, said: Like | None) -> Found:
    """Interprets a file of denoising-diffusion-pytorch."""
    flags = _settings(said, programs.DDP)
    beside = weights.beside if isinstance(weights.beside, Mapping) else {}
    version = str(beside.get("version") or "")
    config, process, state = ddp_weights.read(weights.tensors, flags, version)
    facts = {
        "shapes": f"the U-Net of denoising-diffusion-pytorch {version}".rstrip(),
        "its tables": f"{process.levels_text}, predicts {process.target}, variance {process.variance}",
    }
    advice = SamplerConfig(solver="ddpm", steps=str(process.steps), clip="static")
    return Interpretation(config, process, facts), state, weights.name, {"sampling": to_manifest(advice)}
