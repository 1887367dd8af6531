"""Recognises networks of OpenAI's code (U-Nets, upsamplers and classifiers) by the names and shapes of their weights.

Guided diffusion, improved diffusion and consistency_models save bare state dicts without a description of the network.
Names and shapes show most of it (`recognise`): widths, blocks per level, attention levels, resampling, conditioning,
classes, a learned variance and the kind of network. They do not show the image size (except in a classifier with
attention pooling), the number of attention heads, the order of queries, keys and values, or the diffusion process: see
`interpretation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.nets.meta import build_on_meta

Shapes = Mapping[str, tuple[int, ...]]
ANCHOR = "time_embed.0.weight"
"""A parameter that all of these networks have."""

KINDS = {"diffusion": "a diffusion model", "upsampler": "an upsampler", "classifier": "a classifier"}
_PROJECTION = re.compile(r"\.\d+\.(qkv|proj_out)\.weight$")  # attention's projections, both linear
_CHANNELS = (3, 1, 4)  # likely numbers of image channels, most likely first


@dataclass(frozen=True)
class Recognised:
    """A network as far as shapes show it.

    Attributes:
        kind: "diffusion", "upsampler" or "classifier".
        fields: The fields of `UNetConfig` or `ClassifierConfig` that shapes show; of the attention resolutions only
            those that the network reaches.
        planar: Whether attention's projections are 2-d convolutions, as in consistency_models.
    """

    kind: str
    fields: Mapping[str, Any]
    planar: bool = field(default=False, compare=False)

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts a variance."""
        return self.kind != "classifier" and self.fields["out_channels"] == 2 * self.fields["in_channels"]

    def config(self, **rest: Any) -> UNetConfig | ClassifierConfig:
        """Returns the configuration. `rest` gives the fields that shapes do not show, and can replace the others."""
        return (ClassifierConfig if self.kind == "classifier" else UNetConfig)(**{**self.fields, **rest})


def looks_like(names: Mapping[str, Any]) -> bool:
    """Returns whether these names are those of a U-Net or classifier of OpenAI's code."""
    return ANCHOR in names and "input_blocks.0.0.weight" in names and "middle_block.0.in_layers.0.weight" in names


def recognise(shapes: Shapes, blocks: int | None = None) -> Recognised:
    """Finds the network that has exactly these names and shapes.

    Args:
        shapes: Shapes by name.
        blocks: Residual blocks per level. Needed only where several networks have the same shapes: classifiers of one
            width without attention.

    Raises:
        ValueError: There is no such network, or there are several.
    """
    if not looks_like(shapes):
        raise ValueError(
            "these are not weights of guided or improved diffusion: expected "
            f"{ANCHOR}, input_blocks and middle_block, got {_some(shapes)}"
        )
    planar = any(_PROJECTION.search(name) and shape[2:] == (1, 1) for name, shape in shapes.items())
    shapes = {name: _linear(name, shape) for name, shape in shapes.items()}
    fitting, problems = [], []
    for guess in _guesses(shapes):
        try:
            problem = _difference(guess, shapes)
        except (TypeError, ValueError) as error:
            problem = str(error)
        if problem:
            problems.append(problem)
        else:
            fitting.append(guess)
    if not fitting:
        raise ValueError(
            "these look like weights of OpenAI's diffusion code, but match no network that it can build: "
            + (problems[0] if problems else "the number of stages does not fit any number of levels")
        )
    chosen = [guess for guess in fitting if blocks in (None, guess.fields["num_res_blocks"])]
    if len(chosen) > 1:
        counts = " or ".join(str(guess.fields["num_res_blocks"]) for guess in fitting)
        raise ValueError(f"the shapes do not show the number of residual blocks per level ({counts})")
    return replace((chosen or fitting)[0], planar=planar)


def as_ours(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns weights with attention's projections as 1-d convolutions [out, in, 1], which ours are.

    consistency_models has 2-d convolutions [out, in, 1, 1].
    """
    return {name: value.reshape(_linear(name, tuple(value.shape))) for name, value in state.items()}


def _linear(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:3] if _PROJECTION.search(name) and len(shape) == 4 and shape[2:] == (1, 1) else shape


def recognised_from(config: UNetConfig | ClassifierConfig) -> Recognised:
    """Returns what `recognise` finds in the shapes of this configuration's weights: the inverse of `recognise`."""
    fields: dict[str, Any] = {
        "in_channels": config.in_channels,
        "model_channels": config.model_channels,
        "out_channels": config.out_channels,
        "num_res_blocks": config.num_res_blocks,
        "channel_mult": _multipliers(config.model_channels, config.widths),
        "attention_resolutions": tuple(
            2**level for level in range(len(config.channel_mult)) if 2**level in config.attention_resolutions
        ),
        "use_scale_shift_norm": config.use_scale_shift_norm,
        **_resampling(config.resblock_updown, config.conv_resample, len(config.channel_mult)),
    }
    if isinstance(config, ClassifierConfig):
        size = {"image_size": config.image_size} if config.pool == "attention" else {}
        return Recognised("classifier", {**fields, "pool": config.pool, **size})
    kind = "upsampler" if config.super_resolution else "diffusion"
    classes = {"num_classes": config.num_classes, "super_resolution": config.super_resolution}
    if config.num_classes is not None and config.null_class:
        classes["num_classes"] = config.num_classes + 1  # its row in the table looks like any other
    return Recognised(kind, {**fields, **classes})


def describe(found: Recognised) -> str:
    """Describes a recognised network."""
    fields = found.fields
    resampling = "convolutional resampling" if fields["conv_resample"] else "resampling without parameters"
    resampling = "residual resampling" if fields["resblock_updown"] else resampling
    parts = [
        f"{fields['model_channels']} channels x {'/'.join(f'{m:g}' for m in fields['channel_mult'])}",
        f"{fields['num_res_blocks']} blocks per level",
        "attention at " + (", ".join(f"1/{f}" for f in fields["attention_resolutions"]) or "the lowest level only"),
        resampling,
        "adaptive group norm" if fields["use_scale_shift_norm"] else "conditioning by addition",
    ]  # fmt: skip
    if found.kind == "classifier":
        parts += [f"{fields['out_channels']} classes", f"{fields['pool']} pool"]
        parts += [f"images of {fields['image_size']} pixels"] if "image_size" in fields else []
    else:
        parts += [f"{fields['num_classes']} classes" if fields["num_classes"] else "no classes"]
        parts += ["learned variance" if found.learns_variance else "fixed variance"]
        parts += ["attention of 2-d convolutions, as in consistency_models"] if found.planar else []
    return f"{KINDS[found.kind]}, {fields['in_channels']} channels: " + ", ".join(parts)


def _difference(guess: Recognised, shapes: Shapes) -> str:
    """Describes how these shapes differ from those of the guessed network; "" if they are equal."""
    rest: dict[str, Any] = {"num_heads": 1}
    if guess.kind == "classifier":  # the width of a head does not affect shapes, but must divide the channels
        rest["num_head_channels"] = 1
    if "image_size" not in guess.fields:
        rest["image_size"] = 2 ** (len(guess.fields["channel_mult"]) - 1)
    net = build_on_meta(guess.config(**rest).build)
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if not odd:
        return ""
    there = list(shapes[odd[0]]) if odd[0] in shapes else "missing"
    wanted = list(expected[odd[0]]) if odd[0] in expected else "no such parameter"
    return f"{len(odd)} of {len(shapes)} tensors differ, {odd[0]} is {there}, expected {wanted}"


def _guesses(shapes: Shapes) -> Iterator[Recognised]:
    """Yields the networks that these shapes may belong to: all consistent divisions of the encoder into levels.

    The encoder has one stage for the first convolution; then each level has `blocks` residual stages and, except for
    the last level, one stage that halves the resolution.
    """
    total = 1 + max(int(m[1]) for name in shapes if (m := re.match(r"input_blocks\.(\d+)\.", name)))
    decoder = [int(m[1]) for name in shapes if (m := re.match(r"output_blocks\.(\d+)\.", name))]
    total = max(total, 1 + max(decoder, default=0))  # the decoder has as many stages as the encoder
    if total > len(shapes):
        raise ValueError(f"stages are numbered up to {total - 1}, but there are only {len(shapes)} tensors")
    for levels in range(1, total + 1):
        if total % levels or total == levels:
            continue
        fields = _encoder(shapes, levels, total // levels - 1)
        if fields is not None:
            yield from _heads(shapes, fields)


def _encoder(shapes: Shapes, levels: int, blocks: int) -> dict[str, Any] | None:
    """Returns the fields that the encoder shows, assuming this many levels and blocks; None if that is impossible."""
    width = shapes[ANCHOR][-1] if len(shapes[ANCHOR]) == 2 else 0
    if width < 1:
        return None
    widths, attends, connections = [], [], set()
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        outs = [shapes.get(f"input_blocks.{first + i}.0.out_layers.3.weight", ())[:1] for i in range(blocks)]
        attention = {f"input_blocks.{first + i}.1.qkv.weight" in shapes for i in range(blocks)}
        if len(set(outs)) != 1 or not outs[0] or len(attention) != 1:
            return None
        widths.append(outs[0][0])
        attends.append(attention.pop())
        if level < levels - 1:
            connections.add(_connection(shapes, f"input_blocks.{first + blocks}."))
    if len(connections) > 1 or "" in connections:
        return None
    connection = connections.pop() if connections else "conv"
    film = shapes.get("middle_block.0.emb_layers.1.weight", (0,))[0] == 2 * widths[-1]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1] if len(shapes["input_blocks.0.0.weight"]) == 4 else 0,
        "model_channels": width,
        "num_res_blocks": blocks,
        "channel_mult": _multipliers(width, widths),
        "attention_resolutions": tuple(2**level for level, attending in enumerate(attends) if attending),
        "use_scale_shift_norm": film,
        **_resampling(connection == "block", connection != "pool", levels),
    }


def _connection(shapes: Shapes, stage: str) -> str:
    """Returns how a stage halves the resolution: "block", "conv", "pool" (no parameters), or "" if unknown."""
    names = [name for name in shapes if name.startswith(stage)]
    if not names:
        return "pool"
    if f"{stage}0.op.weight" in names:
        return "conv"
    return "block" if f"{stage}0.in_layers.0.weight" in names and f"{stage}1.qkv.weight" not in names else ""


def _heads(shapes: Shapes, fields: dict[str, Any]) -> Iterator[Recognised]:
    """Completes a guess by the fields that the last layers show."""
    if any(name.startswith("output_blocks.") for name in shapes):
        last = shapes.get("out.2.weight", (0,))[0]
        table = shapes.get("label_emb.weight", (0,))[0]
        channels, enlarges = _image_channels(fields["in_channels"], last)
        yield Recognised(
            "upsampler" if enlarges else "diffusion",
            {
                **fields,
                "in_channels": channels,
                "out_channels": last,
                "num_classes": table or None,
                "super_resolution": enlarges,
            },
        )
    elif "out.2.positional_embedding" in shapes:
        tokens = shapes["out.2.positional_embedding"][-1] - 1
        side = round(max(tokens, 0) ** 0.5)
        size = side * 2 ** (len(fields["channel_mult"]) - 1)
        classes = shapes.get("out.2.c_proj.weight", (0,))[0]
        yield Recognised("classifier", {**fields, "out_channels": classes, "pool": "attention", "image_size": size})
    else:
        final = "out.3.weight" if "out.3.weight" in shapes else "out.2.weight"
        classes = shapes.get(final, (0,))[0]
        for pool in ("adaptive", "spatial", "spatial_v2"):
            yield Recognised("classifier", {**fields, "out_channels": classes, "pool": pool})


def _image_channels(given: int, out: int) -> tuple[int, bool]:
    """Finds the image channels of a network, and whether it is an upsampler, from its input and output channels.

    The input has the image's channels, or twice as many in an upsampler; the output has the image's channels, or twice
    as many with a learned variance. If several readings are possible, the one with likely image channels is taken.

    Returns:
        Image channels, and whether the network is an upsampler.
    """
    readings = [
        (channels, enlarges)
        for enlarges in (False, True)
        for channels in (given // 2 if enlarges else given,)
        if channels > 0 and channels * (1 + enlarges) == given and out in (channels, 2 * channels)
    ]
    if not readings:
        raise ValueError(f"a network with {given} input and {out} output channels does not predict an image")
    return min(readings, key=lambda reading: (reading[0] not in _CHANNELS, reading[1]))


def _resampling(blocks: bool, convolution: bool, levels: int) -> dict[str, bool]:
    """Returns the fields of the resampling; with one level there is none, and the defaults apply."""
    if levels == 1:
        return {"resblock_updown": False, "conv_resample": True}
    return {"resblock_updown": blocks, "conv_resample": blocks or convolution}


def _multipliers(width: int, widths: Any) -> tuple[float, ...]:
    """Returns factors whose products with `width`, rounded down, are `widths`."""
    return tuple(
        w // width if w % width == 0 else next(m for m in (w / width, (w + 0.5) / width) if int(width * m) == w)
        for w in widths
    )


def _some(names: Mapping[str, Any]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > 3 else "") if first else "nothing"
