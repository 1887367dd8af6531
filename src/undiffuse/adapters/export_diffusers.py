"""Exports a diffusion model to a diffusers pipeline folder: model_index.json, unet/ (a UNet2DModel) and scheduler/.

UNet2DModel is the same family of networks with fewer options, and its schedulers use whole step numbers. `obstacles`
lists what it cannot express. Converting a model without obstacles only renames weights and splits the rows of qkv.
Supports ADM's U-Net, DDPM's own and networks that came from diffusers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undiffuse.adapters import ddpm_weights, diffusers_config, diffusers_unet, exporting
from undiffuse.adapters.exporting import Exported, Model
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig, DDPMUNet, UNet, UNet2D, UNetConfig
from undiffuse.nets.blocks import Attention
from undiffuse.nets.meta import build_on_meta

WRITTEN_FOR = "0.42.1"  # the version of diffusers whose networks and schedulers these folders were compared with
WEIGHTS = diffusers_config.WEIGHTS[0]

_TARGETS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_VARIANCES = {"learned_range": "learned_range", "fixed_large": "fixed_large", "fixed_small": "fixed_small"}
_RANGE = 1000  # rescaled times lie between 0 and this

_RES = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def export_diffusers(model: Model, folder: Path) -> Exported:
    """Writes the pipeline to `folder`.

    Raises:
        ValueError: diffusers cannot express the model; the message lists why.
    """
    problems = obstacles(model)
    if problems:
        raise ValueError(f"diffusers cannot express this model: {'; '.join(problems)}")
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    save_file(state_dict(model.net), folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    _write(folder / "unet" / "config.json", "UNet2DModel", unet_config(model.net))
    _write(folder / "scheduler" / "scheduler_config.json", "DDPMScheduler", scheduler_config(model.process))
    conditions = model.net.conditions
    if "low_res" not in conditions:
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        _write(folder / "model_index.json", "DDPMPipeline", parts)
    exporting.write_json(folder / exporting.ABOUT, {**exporting.describe(model), "format": "diffusers"})
    difference, checked = _compare(model, folder)
    return Exported(
        difference=exporting.accept(difference, folder.name),
        checked=checked,
        usage=_usage(model, folder.name),
        notes=tuple(_notes(model)),
    )


def obstacles(model: Model) -> list[str]:
    """Lists what a UNet2DModel or a scheduler would compute differently."""
    net, process = model.net, model.process
    if exporting.kind_of(model) == "classifier":
        return ["it is a classifier of noisy images, which diffusers does not support"]
    if not isinstance(net, (UNet, DDPMUNet, UNet2D)):
        return [f"its network, a {type(net).__name__}, is not one of this library's U-Nets; export it as a graph"]
    problems = exporting.level_obstacles(process)
    groups = sorted({module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)})
    if len(groups) > 1 and not isinstance(net, UNet2D):
        counts = ", ".join(map(str, groups))
        problems.append(f"its group norms have {counts} groups, where UNet2DModel has one number for all")
    if isinstance(net, UNet):
        problems += _network_obstacles(net)
    if process.target not in (*_TARGETS, "edm"):
        what = "the mean of the previous step" if process.target == "previous_mean" else process.target
        problems.append(f"it predicts {what}, which no scheduler supports")
    if process.variance not in _VARIANCES:
        problems.append(f"its variance is learned as a logarithm ({process.variance!r}), which no scheduler supports")
    if process.rescale_timesteps and process.steps % _RANGE:
        problems.append(
            f"its network's time input is k * {_RANGE} / {process.steps} for step k, and schedulers use whole numbers"
        )
    return problems


def _network_obstacles(net: UNet) -> Iterator[str]:
    config = net.config
    if config.num_tags or config.num_numbers or config.cond_channels:
        yield "it is conditioned on more than a class: on labels, numbers or a picture; export it as a graph"
    if config.widths[0] != config.model_channels:
        yield (
            f"its time embedding has {config.model_channels} channels and its first level {config.widths[0]}; in "
            "UNet2DModel they are equal"
        )
    if _head_dim(net) == 0:
        heads = [m for m in net.modules() if isinstance(m, Attention)]
        sizes = ", ".join(map(str, sorted({m.qkv.in_channels // m.heads for m in heads})))
        yield f"its attention heads have {sizes} channels, where UNet2DModel has one number for all"
    if config.rescale_residual:
        yield "its residual sums are rescaled (rescale_residual)"
    if not config.conv_resample and not config.resblock_updown and len(config.channel_mult) > 1:
        yield "it resamples between levels without convolutions (conv_resample False)"


def _head_dim(net: UNet) -> int | None:
    """Returns the channels per head; None for one head of any width; 0 if neither is the same everywhere."""
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    if all(module.heads == 1 for module in attentions):
        return None
    sizes = {module.qkv.in_channels // module.heads for module in attentions}
    return sizes.pop() if len(sizes) == 1 else 0


def unet_config(net: UNet | DDPMUNet | UNet2D) -> dict[str, Any]:
    """Returns the arguments of the UNet2DModel that computes the same as `net`."""
    if isinstance(net, UNet2D):
        return diffusers_unet.settings_of(net.config)
    config: UNetConfig | DDPMConfig = net.config
    attends = [2**level in config.attention_resolutions for level in range(len(config.widths))]
    norm = next(module for module in net.modules() if isinstance(module, nn.GroupNorm))
    resnet = isinstance(config, UNetConfig) and config.resblock_updown
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    settings: dict[str, Any] = {
        "sample_size": config.size[0] if config.size[0] == config.size[1] else list(config.size),
        "in_channels": config.in_channels * (2 if config.super_resolution else 1),
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in reversed(attends)],
        "dropout": config.dropout,
    }
    if isinstance(config, DDPMConfig):
        return {**settings, **diffusers_config.DDPM_SETTINGS, "norm_num_groups": norm.num_groups}
    classes = None if config.num_classes is None else config.num_classes + int(config.null_class)
    return {
        **settings,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": norm.eps,
        "norm_num_groups": norm.num_groups,
        "attn_norm_num_groups": norm.num_groups,
        "attention_head_dim": _head_dim(net) if isinstance(net, UNet) else None,
        "downsample_padding": 1,
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        "class_embed_type": None,
        "num_class_embeds": classes,
        "act_fn": "silu",
        "add_attention": True,
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": 1,
        "center_input_sample": False,
    }


def scheduler_config(process: ProcessConfig) -> dict[str, Any]:
    """Returns the arguments of the DDPMScheduler with the process's noise levels.

    With rescaled times only every (steps / 1000)-th step has a whole time; the scheduler then has only those steps.
    """
    chain = process.chain()
    betas = exporting.given_betas(process)
    stride = process.steps // _RANGE if process.rescale_timesteps else 1
    if stride > 1:
        chain = chain.respaced(list(range(0, process.steps, stride)))
        betas = chain.betas.tolist()
    return {
        "num_train_timesteps": chain.steps,
        "beta_schedule": "squaredcos_cap_v2" if process.schedule == "cosine" and betas is None else "linear",
        "beta_start": float(chain.betas[0]),
        "beta_end": float(chain.betas[-1]),
        "trained_betas": betas,
        "prediction_type": _TARGETS[process.target],
        "variance_type": _VARIANCES[process.variance],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "linspace",  # steps from the first to the last, as here; DDIM needs "leading"
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def state_dict(net: UNet | DDPMUNet | UNet2D) -> dict[str, Tensor]:
    """Returns the weights by UNet2DModel's names."""
    state = {name: value.detach().cpu().float().contiguous() for name, value in net.state_dict().items()}
    if isinstance(net, UNet2D):
        return state
    if isinstance(net, DDPMUNet):
        levels = len(net.config.widths)
        renamed = {ddpm_weights.diffusers_name(name, levels): value for name, value in state.items()}
        flat = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
        return {n: (v.flatten(1) if n.endswith(flat) else v).contiguous() for n, v in renamed.items()}
    modules = dict(net.named_modules())
    out: dict[str, Tensor] = {}
    for ours, theirs in _names(net.config):
        for part in ("weight", "bias"):
            value = state.pop(f"{ours}.{part}", None)
            if value is None:  # an embedding table has no bias, a residual block of one width no shortcut
                continue
            if value.ndim == 3:
                value = value.flatten(1)  # 1x1 Conv1d here, linear there
            if ours.endswith(".qkv"):
                block = modules[ours.removesuffix(".qkv")]
                rows = _split(value, block.heads, block.new_order)
                out.update({f"{theirs}.to_{which}.{part}": row for which, row in zip("qkv", rows, strict=True)})
            else:
                out[f"{theirs}.{part}"] = value.contiguous()
    if state:
        raise RuntimeError(f"{len(state)} parameters have no place in UNet2DModel, the first is {min(state)}")
    return out


def own_state(config: UNetConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns weights by our names, the inverse of `state_dict` for a `UNet`; None if any is missing."""
    modules = dict(build_on_meta(config.build).named_modules())
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, theirs in _names(config):
        if ours not in modules:
            continue
        for part, wanted in modules[ours].named_parameters(recurse=False):
            if ours.endswith(".qkv"):
                names = [f"{theirs}.to_{which}.{part}" for which in "qkv"]
            else:
                names = [f"{theirs}.{part}"]
            if not all(name in state for name in names):
                return None
            used.update(names)
            value = state[names[0]]
            if len(names) > 1:
                block = modules[ours.removesuffix(".qkv")]
                value = _joined([state[name] for name in names], block.heads, block.new_order)
            if value.numel() != wanted.numel():
                return None
            out[f"{ours}.{part}"] = value.reshape(wanted.shape)
    return out if used == set(state) else None


def _joined(parts: list[Tensor], heads: int, new_order: bool) -> Tensor:
    """The inverse of `_split`."""
    rows = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=0 if new_order else 1)
    return rows.flatten(0, 2)


def _split(rows: Tensor, heads: int, new_order: bool) -> list[Tensor]:
    """Splits rows [3C, ...] of a qkv projection into those of q, k and v, [C, ...] each, heads outermost."""
    parts = rows.unflatten(0, (3, heads, -1) if new_order else (heads, 3, -1))
    return [part.flatten(0, 1).contiguous() for part in parts.unbind(0 if new_order else 1)]


def _names(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yields pairs (our module, UNet2DModel's) of modules with parameters; for qkv the name of the attention block."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("label_emb", "class_embedding"), ("input_blocks.0.0", "conv_in"))
    levels, blocks = len(config.widths), config.num_res_blocks
    stage = 1
    for level in range(levels):
        there = f"down_blocks.{level}"
        for i in range(blocks):
            yield from _res(f"input_blocks.{stage}.0", f"{there}.resnets.{i}")
            if 2**level in config.attention_resolutions:
                yield from _attention(f"input_blocks.{stage}.1", f"{there}.attentions.{i}")
            stage += 1
        if level < levels - 1:
            yield from _resampling(config, f"input_blocks.{stage}.0", f"{there}.downsamplers.0", "op")
            stage += 1
    yield from _res("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _res("middle_block.2", "mid_block.resnets.1")
    for stage in range(levels * (blocks + 1)):
        block, i = divmod(stage, blocks + 1)
        here, there = f"output_blocks.{stage}", f"up_blocks.{block}"
        yield from _res(f"{here}.0", f"{there}.resnets.{i}")
        attends = 2 ** (levels - 1 - block) in config.attention_resolutions
        if attends:
            yield from _attention(f"{here}.1", f"{there}.attentions.{i}")
        if i == blocks and block < levels - 1:
            yield from _resampling(config, f"{here}.{1 + int(attends)}", f"{there}.upsamplers.0", "conv")
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))


def _res(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{own}", f"{theirs}.{their}") for own, their in _RES)


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.norm", f"{theirs}.group_norm"), (f"{ours}.proj_out", f"{theirs}.to_out.0"))
    yield f"{ours}.qkv", theirs


def _resampling(config: UNetConfig, ours: str, theirs: str, conv: str) -> Iterator[tuple[str, str]]:
    if config.resblock_updown:
        yield from _res(ours, theirs)
    else:
        yield f"{ours}.{conv}", f"{theirs}.conv"


def _write(path: Path, name: str, settings: Mapping[str, Any]) -> None:
    exporting.write_json(path, {"_class_name": name, "_diffusers_version": WRITTEN_FOR, **settings})


def _compare(model: Model, folder: Path) -> tuple[float, str]:
    """Returns the relative difference of the written files from the model, computed by diffusers if it is installed."""
    if importlib.util.find_spec("diffusers") is None:
        written, expected = load_file(folder / "unet" / WEIGHTS), state_dict(model.net)
        same = written.keys() == expected.keys() and all(written[n].equal(expected[n]) for n in expected)
        how = "read back, weights equal (its network was not run, because diffusers is not installed)"
        return (0.0 if same else float("inf")), how
    import diffusers

    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).eval()
    inputs = exporting.example_inputs(model, 2, full_size=False)
    with torch.no_grad():
        expected_output = model.net(**inputs)
        sample = inputs["x"]
        if "low_res" in inputs:
            enlarged = nn.functional.interpolate(inputs["low_res"], size=sample.shape[2:], mode="bilinear")
            sample = torch.cat([sample, enlarged], dim=1)
        output = unet(sample, inputs["t"], inputs.get("y")).sample
    difference = exporting.relative_difference(output, expected_output)
    return difference, f"read back and run by diffusers {diffusers.__version__}"


def _notes(model: Model) -> Iterator[str]:
    process, conditions = model.process, model.net.conditions
    if process.rescale_timesteps and process.steps > _RANGE:
        yield (
            f"the network's time input is k * {_RANGE} / {process.steps} for step k and schedulers use whole numbers, "
            f"so the scheduler has every {process.steps // _RANGE}th step, {_RANGE} in total"
        )
    if "low_res" in conditions:
        yield "diffusers has no pipeline for it: concatenate the noisy and the enlarged image yourself, as below"
    elif "y" in conditions:
        yield "DDPMPipeline passes no class labels: call the U-Net yourself, as below"
    ddim = 'DDIMScheduler.from_config(scheduler.config, timestep_spacing="leading")'
    clipped = "step(..., use_clipped_model_output=True)"
    if process.learns_variance:
        count = model.net.config.in_channels
        yield f"for DDIM use {ddim}, the first {count} channels (without the variance) and {clipped}"
        yield (
            "for other schedulers use these channels too, and variance_type=None, thresholding=True, "
            "sample_max_value=1.0 where they have these settings; docs/models.md has a table of equivalent settings"
        )
    else:
        yield f"for DDIM use {ddim} and {clipped}"


def _usage(model: Model, name: str) -> str:
    config, conditions = model.net.config, model.net.conditions
    steps = min(250, scheduler_config(model.process)["num_train_timesteps"])
    if not conditions:
        return (
            "from diffusers import DDPMPipeline\n"
            f'pipe = DDPMPipeline.from_pretrained("{name}")\n'
            f"image = pipe(batch_size=1, num_inference_steps={steps}).images[0]"
        )
    height, width = config.size
    shape = f"4, {config.in_channels}, {height}, {width}"
    lines = [
        "import torch",
        "from diffusers import DDPMScheduler, UNet2DModel",
        f'unet = UNet2DModel.from_pretrained("{name}", subfolder="unet")',
        f'scheduler = DDPMScheduler.from_pretrained("{name}", subfolder="scheduler")',
        f"scheduler.set_timesteps({steps})",
        f"x = torch.randn({shape})",
    ]
    if "y" in conditions:
        lines.append(f"y = torch.arange(4) % {config.num_classes}  # classes")
    if "low_res" in conditions:
        enlarged = f'torch.nn.functional.interpolate(small, ({height}, {width}), mode="bilinear")'
        lines.append(f"low = {enlarged}  # small: images in [-1, 1]")
    given = "torch.cat([x, low], 1)" if "low_res" in conditions else "x"
    labels = ", y" if "y" in conditions else ""
    lines += [
        "with torch.no_grad():",
        "    for t in scheduler.timesteps:",
        f"        x = scheduler.step(unet({given}, t{labels}).sample, t, x).prev_sample",
    ]
    return "\n".join(lines)
