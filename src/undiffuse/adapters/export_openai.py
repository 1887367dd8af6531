"""Exports a model to guided-diffusion (Dhariwal & Nichol 2021): weights as a .pt, settings as JSON.

The original's files contain only tensors, so the JSON next to the weights contains, in this order of preference,

    flags             arguments of the original's scripts, if they can express the model
    model, diffusion  classes of the original with their arguments, for models that the flags cannot express: other
                      numbers of channels or classes, widths that the image size does not imply, given betas
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.adapters import exporting, openai_flags
from undiffuse.adapters.exporting import Exported, Model
from undiffuse.adapters.returning import WRITTEN
from undiffuse.checkpoints import weights_hash
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from undiffuse.nets.blocks import Attention
from undiffuse.nets.meta import build_on_meta
from undiffuse.nets.registry import config_fields

GROUPS = 32
_CLASSES = {"UNetModel": UNetConfig, "SuperResModel": UNetConfig, "EncoderUNetModel": ClassifierConfig}
_MEANS = {"eps": "EPSILON", "x0": "START_X", "previous_mean": "PREVIOUS_X"}
_VARIANCES = {
    "learned_range": "LEARNED_RANGE",
    "learned": "LEARNED",
    "fixed_large": "FIXED_LARGE",
    "fixed_small": "FIXED_SMALL",
}
# Image sizes that the original's scripts support without a flag for the widths.
_SIZES = {"SuperResModel": (64, 256, 512), "EncoderUNetModel": (64, 128, 256, 512)}
# Our fields that are not arguments of the original's classes.
_OURS = {"rescale_residual", "null_class", "super_resolution", "num_tags", "num_numbers", "cond_channels"}
# Fields that do not affect the output of a trained network.
_IDLE = {"use_checkpoint", "dropout"}


def export_openai(model: Model, path: Path) -> Exported:
    """Writes the weights to `path`, a .pt in float32, and the JSON next to it.

    Raises:
        ValueError: The original cannot express the model; the message lists why.
    """
    problems = obstacles(model)
    if problems:
        raise ValueError(f"guided-diffusion cannot express this model: {'; '.join(problems)}")
    config, process = written_config(model.net.config), model.process
    flags, reasons = script_flags(model)
    state = state_dict(model.net)
    about = {
        **exporting.describe(model),
        "net": config_fields(config),
        WRITTEN: weights_hash(state),
        "format": "guided-diffusion",
        "flags": flags,
        "command_line": command_line(flags) if flags else None,
        "without_flags": reasons,
        "model": {"class": f"guided_diffusion.unet.{_class_name(config)}", "arguments": _arguments(config)},
        "diffusion": _diffusion(process),
    }
    torch.save(state, path)
    exporting.write_json(exporting.about_path(path), about)
    again = read_back(path)
    inputs = exporting.example_inputs(model, 2, full_size=False)
    with torch.no_grad():
        difference = exporting.relative_difference(again(**inputs), model.net(**inputs))
    return Exported(
        difference=exporting.accept(difference, str(path.name)),
        checked=f"read back by its {'flags' if flags else 'arguments'}, all tensors by name and shape",
        usage=_usage(model, path.name, flags),
        notes=(f"its flags cannot express {', '.join(reasons)}; use its classes, as below",) if reasons else (),
    )


def obstacles(model: Model) -> list[str]:
    """Lists what the original's classes cannot express about a model."""
    net: Any = model.net
    config: Any = getattr(net, "config", None)
    if not isinstance(net, (UNet, NoisyClassifier)):
        return [f"its network is a {type(net).__name__}, which guided diffusion does not have"]
    problems = exporting.level_obstacles(model.process)
    groups = {m.num_channels: m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    others = {channels: count for channels, count in groups.items() if count != GROUPS}
    if others:
        channels, count = min(others.items())
        problems.append(f"not all of its group norms have {GROUPS} groups ({count} for {channels} channels)")
    if isinstance(config, UNetConfig) and (config.num_tags or config.num_numbers or config.cond_channels):
        problems.append("it is conditioned on more than a class: on labels, numbers or a picture")
    if config.rescale_residual:
        problems.append("its residual sums are rescaled (rescale_residual)")
    if getattr(config, "pool", None) == "attention" and config.size[0] != config.size[1]:
        problems.append(f"its attention pool is for images of {config.size[0]}x{config.size[1]}, not square")
    if model.process.target not in (*_MEANS, "F") and exporting.kind_of(model) == "diffusion":
        problems.append(f"it predicts {model.process.target}, not the noise, the image or the previous mean")
    return problems


def state_dict(net: UNet | NoisyClassifier) -> OrderedDict[str, Tensor]:
    """Returns the weights by the original's names, which are ours, in float32 and in the original's order.

    Rows of qkv are put into the legacy order if the original's scripts have no flag for the new one.
    """
    state = OrderedDict((name, value.detach().cpu().float().contiguous()) for name, value in net.state_dict().items())
    if net.config.use_new_attention_order and not written_config(net.config).use_new_attention_order:
        for name, module in net.named_modules():
            if isinstance(module, Attention):
                for part in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
                    state[part] = legacy_order(state[part], module.heads)
    return state


def legacy_order(rows: Tensor, heads: int) -> Tensor:
    """Converts rows [3C, ...] of a qkv projection from the new order (3, heads, d) to the legacy one (heads, 3, d)."""
    return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def written_config(config: UNetConfig | ClassifierConfig) -> UNetConfig | ClassifierConfig:
    """Returns the configuration of the written network: with the new order of qkv only if there is a flag for it."""
    if isinstance(config, UNetConfig) and not config.super_resolution:
        return config
    return type(config)(**{**_fields(config), "use_new_attention_order": False})


def script_flags(model: Model) -> tuple[dict[str, Any] | None, list[str]]:
    """Returns all flags of the original's scripts, or None and the reasons why they cannot express the model.

    The flags are converted back and compared with the model, so any difference is found.
    """
    config = written_config(model.net.config)
    classifier = isinstance(config, ClassifierConfig)
    sizes = _SIZES.get(_class_name(config))
    reasons = []
    if sizes and config.size[0] not in sizes:
        reasons.append(f"image_size = {config.size[0]} (only {', '.join(map(str, sizes))})")
    flags = _classifier_flags(config) if isinstance(config, ClassifierConfig) else _network_flags(model, config)
    try:
        if classifier:
            meant: UNetConfig | ClassifierConfig = openai_flags.classifier_config(flags)
        else:
            meant = openai_flags.unet_config(flags)
        wanted, got = _effective(config), _effective(meant)
        reasons += [f"{name} = {_shown(wanted[name])}" for name in wanted if wanted[name] != got[name]]
    except ValueError:  # the image size implies no widths, and there is no flag for them
        reasons += [] if reasons else [f"channel_mult = {_shown(config.channel_mult)}"]
    process_flags = _process_flags(model.process)
    compared = [field.name for field in fields(model.process)]
    if classifier:  # it uses the noise levels, but predicts no image
        compared = ["schedule", "steps", "betas", "rescale_timesteps"]
        del process_flags["learn_sigma"], process_flags["predict_xstart"]
    meant_process = openai_flags.process_config(process_flags)
    for name in compared:
        if getattr(model.process, name) != getattr(meant_process, name):
            reasons.append(f"{name} = {_shown(getattr(model.process, name))}")
    return ({**flags, **process_flags}, []) if not reasons else (None, reasons)


def command_line(flags: Mapping[str, Any]) -> str:
    """Formats flags as a command line."""
    return " ".join(f"--{name} {value}" for name, value in flags.items() if value != "")


def read_back(path: Path) -> UNet | NoisyClassifier:
    """Builds the network of a file written by `export_openai` from the JSON next to it."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    about = json.loads(exporting.about_path(path).read_text(encoding="utf-8"))
    name = about["model"]["class"].rsplit(".", 1)[1]
    if about["flags"] is None:
        more = {"super_resolution": True} if name == "SuperResModel" else {}
        config = _CLASSES[name](**{**about["model"]["arguments"], **more})
    elif name == "EncoderUNetModel":
        process = set(_process_flags(ProcessConfig()))
        config = openai_flags.classifier_config({k: v for k, v in about["flags"].items() if k not in process})
    else:
        config = openai_flags.unet_config(about["flags"])
    net = build_on_meta(config.build)
    net.load_state_dict(state, assign=True)
    return net.eval()


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _class_name(config: UNetConfig | ClassifierConfig) -> str:
    if isinstance(config, ClassifierConfig):
        return "EncoderUNetModel"
    return "SuperResModel" if config.super_resolution else "UNetModel"


def _arguments(config: UNetConfig | ClassifierConfig) -> dict[str, Any]:
    """Returns the arguments of the original's class, which have the names of our fields."""
    arguments = {name: value for name, value in _fields(config).items() if name not in _OURS}
    arguments["image_size"] = config.size[0]  # one number; only the attention pool uses it
    if isinstance(config, UNetConfig) and config.num_classes is not None:
        arguments["num_classes"] = config.num_classes + int(config.null_class)
    return arguments


def _diffusion(process: ProcessConfig) -> dict[str, Any]:
    """Returns the original's process class with its arguments as Python; loss_type matters only in training."""
    betas = f"get_named_beta_schedule({process.schedule!r}, {process.steps})"
    return {
        "class": "guided_diffusion.respace.SpacedDiffusion",
        "use_timesteps": f"range({process.steps})",
        "betas": exporting.given_betas(process) or betas,
        "model_mean_type": f"ModelMeanType.{_MEANS.get(process.target, 'EPSILON')}",
        "model_var_type": f"ModelVarType.{_VARIANCES[process.variance]}",
        "loss_type": "LossType.MSE",
        "rescale_timesteps": process.rescale_timesteps,
    }


def _effective(config: UNetConfig | ClassifierConfig) -> dict[str, Any]:
    """Returns the fields that affect the output of this network."""
    values = {name: value for name, value in _fields(config).items() if name not in _IDLE}
    reached = {2**level for level in range(len(config.channel_mult))}
    values["attention_resolutions"] = sorted(reached & set(config.attention_resolutions))
    values["image_size"] = config.size
    if config.num_head_channels != -1:
        values["num_heads"] = values["num_heads_upsample"] = None
    elif config.num_heads_upsample in (-1, config.num_heads):
        values["num_heads_upsample"] = -1
    if config.resblock_updown:
        values["conv_resample"] = True
    return values


def _network_flags(model: Model, config: UNetConfig) -> dict[str, Any]:
    size = config.size[0]
    flags = {
        "image_size": size,
        "num_channels": config.model_channels,
        "num_res_blocks": config.num_res_blocks,
        "num_heads": config.num_heads,
        "num_heads_upsample": config.num_heads_upsample,
        "num_head_channels": config.num_head_channels,
        "attention_resolutions": _resolutions(config),
        "channel_mult": _multipliers(config),
        "dropout": config.dropout,
        "class_cond": config.num_classes is not None,
        "use_checkpoint": config.use_checkpoint,
        "use_scale_shift_norm": config.use_scale_shift_norm,
        "resblock_updown": config.resblock_updown,
        "use_fp16": False,
        "use_new_attention_order": config.use_new_attention_order,
        "learn_sigma": config.out_channels == 2 * config.in_channels,
    }
    if config.super_resolution:
        for name in ("image_size", "channel_mult", "use_new_attention_order"):
            del flags[name]
        flags = {"large_size": size, "small_size": exporting.low_size(model)[0], **flags}
    return flags


def _classifier_flags(config: ClassifierConfig) -> dict[str, Any]:
    return {
        "image_size": config.size[0],
        "classifier_use_fp16": False,
        "classifier_width": config.model_channels,
        "classifier_depth": config.num_res_blocks,
        "classifier_attention_resolutions": _resolutions(config),
        "classifier_use_scale_shift_norm": config.use_scale_shift_norm,
        "classifier_resblock_updown": config.resblock_updown,
        "classifier_pool": config.pool,
    }


def _process_flags(process: ProcessConfig) -> dict[str, Any]:
    return {
        "learn_sigma": process.variance == "learned_range",
        "diffusion_steps": process.steps,
        "noise_schedule": process.schedule,
        "predict_xstart": process.target == "x0",
        "rescale_timesteps": process.rescale_timesteps,
    }


def _resolutions(config: UNetConfig | ClassifierConfig) -> str:
    """Returns the sides of the feature maps with attention as a flag. A side larger than the image means none."""
    size = config.size[0]
    sizes = [size // factor for factor in config.attention_resolutions if factor <= config.downsampling]
    return ",".join(map(str, sizes)) or str(2 * size)


def _multipliers(config: UNetConfig) -> str:
    """Returns channel_mult as a flag of whole numbers; "" for fractions, which only the image size can imply."""
    if all(mult == int(mult) for mult in config.channel_mult):
        return ",".join(str(int(mult)) for mult in config.channel_mult)
    return ""


def _shown(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _usage(model: Model, name: str, flags: Mapping[str, Any] | None) -> str:
    about = exporting.about_path(Path(name)).name
    if flags is None:
        return (
            "import json, torch\n"
            f"from guided_diffusion.unet import {_class_name(written_config(model.net.config))} as Network\n"
            f'net = Network(**json.load(open("{about}"))["model"]["arguments"])\n'
            f'net.load_state_dict(torch.load("{name}"))\n'
            f'# the process: "diffusion" in {about}'
        )
    given = command_line(flags)
    if exporting.kind_of(model) == "classifier":
        return f'FLAGS="{given}"\npython scripts/classifier_sample.py $MODEL_FLAGS $FLAGS --classifier_path {name} ...'
    if model.spec.super_resolution:
        return f'FLAGS="{given}"\npython scripts/super_res_sample.py $FLAGS --model_path {name} --base_samples ...'
    return f'FLAGS="{given}"\npython scripts/image_sample.py $FLAGS --model_path {name} --timestep_respacing 250'
