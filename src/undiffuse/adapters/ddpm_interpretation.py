"""What a file with weights of DDPM's U-Net holds: from its shapes, the user's flags and the published models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from undiffuse.adapters import (
    ddpm_weights,
    diffusers_config,
    openai_flags,
    published,
)
from undiffuse.adapters.interpretation import REASONS, Interpretation, Like
from undiffuse.adapters.published_entry import DDPM, Published
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig

__all__ = ["interpret_ddpm"]


def interpret_ddpm(
    state: Mapping[str, Tensor], path: Path, said: Like | None, known: Published | None
) -> tuple[Interpretation, Mapping[str, Tensor]]:
    """Interprets weights of DDPM's U-Net and returns them by our names."""
    said = said or Like()
    if said.release not in (None, DDPM):
        other = said.entry.name if said.entry else said.release
        raise ValueError(f"{path} does not match {other}: it is DDPM's U-Net")
    unknown = sorted(set(said.flags) - {"image_size", "sigma_small"})
    if unknown:
        raise ValueError(f"DDPM's U-Net takes the flags image_size and sigma_small, not {', '.join(unknown)}")
    entry, by = known or said.entry, "download" if known else "like"
    if entry is None:
        named = published.of_file(path)
        entry, by = (named, "name") if named is not None and named.release == DDPM else (None, "")
    config, process, ours = _convert(state, said, entry)
    if entry is not None and (entry.net.widths, entry.net.num_res_blocks) != (config.widths, config.num_res_blocks):
        if by != "name":
            widths = "/".join(map(str, config.widths))
            raise ValueError(f"{path} does not match {entry.name}: its levels have {widths} channels")
        entry, by = None, ""
        config, process, ours = _convert(state, said, None)
    shapes = f"{config.model_channels} channels x {'/'.join(f'{m:g}' for m in config.channel_mult)}"
    who = f"{entry.name}, {REASONS[by]}" if entry is not None else "DDPM's settings"
    facts = {
        "shapes": f"DDPM's U-Net, {config.in_channels} channels: {shapes}, {config.num_res_blocks} blocks per level",
        who: f"images of {config.size[0]} pixels, {process.levels_text}, predicts {process.target}, "
        f"variance {process.variance}",
    }
    return Interpretation(config, process, facts, entry, by), ours


def _convert(
    state: Mapping[str, Tensor], said: Like, entry: Published | None
) -> tuple[DDPMConfig, ProcessConfig, dict[str, Tensor]]:
    """Calls `ddpm_weights.convert` with the settings of the user and the published entry."""
    size = entry.image_size if entry is not None else None
    variance = entry.process.variance if entry is not None else None
    if "image_size" in said.flags:
        size = _whole_number(said.flags["image_size"], "image_size")
    if "sigma_small" in said.flags:
        variance = openai_flags.process_config({"sigma_small": said.flags["sigma_small"]}).variance
    return ddpm_weights.convert(
        state,
        unet=diffusers_config.DDPM_SETTINGS if entry is not None else None,
        image_size=size,
        variance=variance,
        dropout=entry.net.dropout if entry is not None else None,
    )


def _whole_number(text: str, name: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{name} {text}: expected a whole number")
    return int(text)
