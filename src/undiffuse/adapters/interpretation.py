"""What weights of OpenAI's code mean: what their shapes tell, completed by what they cannot tell.

Shapes leave open the image size, the attention heads, the order of queries, keys and values, and the process. A wrong
guess loads without a word and gives noise, so nothing is guessed. In this order:

    a user says        `Like`: the published model it was trained like, or the flags it was trained with
    the file's hash    is that of a published file
    its name           is that of a published file, which has these shapes
    its shapes         are those of published files that mean the same
    otherwise          ValueError: what is missing, and how to say it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from undiffuse.adapters import openai_args, openai_flags, published
from undiffuse.adapters.openai_weights import KINDS, Recognised, describe, told_by
from undiffuse.adapters.published_entry import CLASSIFIER, CONSISTENCY, DDPM, GUIDED, IMPROVED, UPSAMPLER, Published
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig

REASONS = {
    "download": "as downloaded",
    "hash": "by its hash",
    "name": "by its file name",
    "shapes": "by its shapes",
    "like": "as asked",
}
Flags = dict[str, Any]
RELEASES = (GUIDED, IMPROVED, CONSISTENCY, DDPM)
_FREE = {"num_classes", "in_channels"}  # what a model trained further may have changed, besides a classifier's classes
_PROCESS = ("noise_schedule", "diffusion_steps", "rescale_timesteps")
_OF_CLASSIFIERS = {*_PROCESS, "image_size", "noised"}
# A whole dump of a training's arguments holds one of these sets of flags.
_TELLING = ({"image_size", "noise_schedule", "diffusion_steps"}, {"image_size", "training_mode"})
_SAME_AS = {  # our fields by the flags that say them
    "num_channels": "model_channels",
    "classifier_width": "model_channels",
    "classifier_depth": "num_res_blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_pool": "pool",
    "class_cond": "num_classes",
    "learn_sigma": "out_channels",
}


@dataclass(frozen=True)
class Like:
    """What a user says of a file: a published entry, or a release whose defaults hold, and flags that differ.

    `flags` are given one by one, `stored` come from a file and may belong to several networks.

    "256x256_diffusion", "guided-diffusion --image_size 64 --noise_schedule cosine", "64x64_diffusion image_size=128",
    "flags.txt", "model_config.yaml"
    """

    entry: Published | None = None
    release: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> Like:
        """Merge the stored flags that belong to a network of this kind with those that a user gave.

        A dump of all arguments holds flags of a model and of its classifier; `kind` is one of `openai_weights.KINDS`.
        """
        if kind == "classifier":
            wanted = {n: v for n, v in self.stored.items() if n.startswith("classifier_") or n in _OF_CLASSIFIERS}
            guided = any(name.startswith("classifier_") for name in wanted)  # which guided diffusion alone has
            release = self.release or (GUIDED if guided and self.entry is None else None)
            return replace(self, release=release, flags={**wanted, **self.flags}, stored={})
        wanted = {n: v for n, v in {**self.stored, **self.flags}.items() if not n.startswith("classifier_")}
        alone = self.release is None and "training_mode" in wanted  # a flag that one release has
        return replace(self, release=CONSISTENCY if alone else self.release, flags=wanted, stored={})

    @classmethod
    def parse(cls, text: str) -> Like:
        """Read a published model's name, a release, flags, or the name of a text file that holds them.

        Args:
            text: What the user says of the weights; see `openai_args.read_file` for what a file may hold.

        Raises:
            ValueError: It is neither a known name nor a flag with its value.
        """
        if not text.strip():
            raise ValueError("it is not said which published model the file is like")
        words, flags = ([text], {}) if os.path.isfile(text) else openai_args.split(text)
        flags = {name: value for name, value in flags.items() if name not in openai_flags.OTHERS}
        entry, release = None, None
        stored: Flags = {}
        for word in words:
            if word in RELEASES and release is None:
                release = word
            elif os.path.isfile(word):
                stored |= openai_args.read_file(word)
            elif os.sep in word or word.endswith(openai_args.SUFFIXES):
                raise ValueError(f"there is no file {word} to read flags from")
            elif not word.startswith("-") and entry is None:
                entry = published.get(word)
            else:
                raise ValueError(f"{text!r}: expected one published model, {', '.join(RELEASES)}, or --flag VALUE")
        return cls(entry, entry.release if entry else release, flags, stored)


@dataclass(frozen=True)
class Interpretation:
    """A network and its process, and who said so.

    `entry`  the published file it is, or is taken for; `by` why: see `REASONS`
    `facts`  what was told, by who told it
    `clean_only`  of a classifier, that it was trained on images without noise
    """

    config: Any
    process: ProcessConfig
    facts: Mapping[str, str]
    entry: Published | None = None
    by: str = ""
    clean_only: bool = False


def interpret(
    found: Recognised,
    path: Path,
    sha256: str,
    like: Like | None = None,
    known: Published | None = None,
    arguments: Mapping[str, str] | None = None,
) -> Interpretation:
    """The network and the process of weights whose shapes told `found`, in a file `path` with this hash.

    `known` is the published file that it was downloaded as, `arguments` are flags that lay beside the weights.
    ValueError if something cannot be told, or if what was said contradicts the shapes.
    """
    like = (like or Like()).of_kind(found.kind)
    if like.release == DDPM:
        raise ValueError(
            f"{path} is not like DDPM's network: it is {KINDS[found.kind]} of guided or improved diffusion"
        )
    told: list[Published] = []
    by = ""
    if known is not None or like.entry is not None:
        told = [known or like.entry]  # type: ignore[list-item]
        by = "download" if known is not None else "like"
        _check_like(found, told[0], path)
    elif not like.flags and like.release is None:
        told, by = _known(found, path, sha256)
        beside = Like(stored=arguments or {}).of_kind(found.kind)
        if by != "hash" and (any(set(beside.flags) >= telling for telling in _TELLING) or not told):
            like, told, by = beside, [], ""
    if not told:
        _check_complete(found, like, path)
    entry = told[0] if told else None
    config = _config(found, entry, like, path)
    process = _process(found, entry, like)
    facts = {"shapes": describe(found)}
    if told:
        facts[f"{' or '.join(e.name for e in told)}, {REASONS[by]}"] = _untold(config, process)
    if like.flags:
        facts["flags"] = ", ".join(f"{name} {value}" for name, value in like.flags.items())
    if not told:
        facts[f"flags, and {like.release}'s defaults" if like.release else "so"] = _untold(config, process)
    clean = found.kind == "classifier" and str(like.flags.get("noised", "True")).lower() in ("false", "f", "no", "0")
    return Interpretation(config, process, facts, entry if len(told) == 1 else None, by, clean)


def candidates(found: Recognised) -> list[Published]:
    """The published files that have these shapes."""
    return [entry for entry in _openais() if told_by(entry.net) == found]  # type: ignore[arg-type]


def _openais() -> list[Published]:
    return [entry for entry in published.ENTRIES.values() if entry.release != DDPM]


def _known(found: Recognised, path: Path, sha256: str) -> tuple[list[Published], str]:
    """The published files that this may be, all of which mean the same, and how that is known."""
    same = candidates(found)
    for entry in same:
        if entry.sha256 == sha256:
            return [entry], "hash"
    named = published.of_file(path)
    if named in same:
        return [named], "name"
    # Dropout has no influence on what is computed: the same network and process mean the same.
    meanings = {(replace(entry.net, dropout=0.0), entry.process) for entry in same}
    return (same, "shapes") if len(meanings) == 1 else ([], "")


def _check_like(found: Recognised, entry: Published, path: Path) -> None:
    """ValueError if the shapes are not those of `entry` but for classes and channels of the images."""
    if entry.kind != found.kind:
        raise ValueError(
            f"{path} is not like {entry.name}: it holds {KINDS[found.kind]}, and that is {KINDS[entry.kind]}"
        )
    differences = _differences(found, told_by(entry.net))  # type: ignore[arg-type]
    if differences:
        raise ValueError(f"{path} is not like {entry.name}: its shapes say {'; '.join(differences)}")


def _differences(found: Recognised, other: Recognised) -> list[str]:
    """What the shapes say that is otherwise in a published network, but for what training on may change."""
    out = []
    for name, value in found.told.items():
        theirs = other.told.get(name)
        if name == "out_channels" and found.kind != "classifier":
            if found.learns_variance != other.learns_variance:
                out.append("learn_sigma " + ("True, there False" if found.learns_variance else "False, there True"))
        elif value != theirs and name not in _FREE and name != "out_channels":
            out.append(f"{name} {_shown(value)}, there {_shown(theirs)}")
    return out


def _check_complete(found: Recognised, like: Like, path: Path) -> None:
    """ValueError unless the flags say all that the shapes do not."""
    given = like.flags
    missing = []
    same = candidates(found)
    alike = found.planar or (bool(same) and all(entry.release == CONSISTENCY for entry in same))
    karras = like.release == CONSISTENCY or (like.release is None and alike and "noise_schedule" not in given)
    if not {"image_size", "large_size"} & set(given) and "image_size" not in found.told:
        missing.append("image_size (pixels)")
    if like.release is None and not {"num_heads", "num_head_channels"} & set(given):
        missing.append("num_head_channels" + (" or num_heads" if found.kind != "classifier" else ""))
    if karras:
        if "training_mode" not in given:
            missing.append(f"training_mode ({', '.join(openai_flags.MODES)})")
    elif like.release is None:
        if found.kind != "classifier" and "use_new_attention_order" not in given:
            missing.append("use_new_attention_order (True or False)")
        missing += [name for name in ("noise_schedule (linear or cosine)", "diffusion_steps")
                    if name.split()[0] not in given]  # fmt: skip
        if given.get("diffusion_steps", "1000") != "1000" and "rescale_timesteps" not in given:
            missing.append("rescale_timesteps (True or False)")
    if not missing:
        return
    near = same or [e for e in _openais() if e.kind == found.kind and not _differences(found, told_by(e.net))]  # type: ignore[arg-type]
    why = "several published files have its shapes" if same else "no published file has its shapes"
    raise ValueError(
        f"the shapes in {path} do not tell {', '.join(missing)}, and {why} ({describe(found)}). Say which published "
        f"model it was trained like, --like {near[0].name if near else 'NAME'}"
        + (f" (or {', '.join(entry.name for entry in near[1:])})" if near[1:] else "")
        + f', or with which flags, --like "{CONSISTENCY if karras else GUIDED} --image_size 64 ..."; where there is no '
        f"--like, put it behind the file: {path}@NAME"
    )


def _config(found: Recognised, entry: Published | None, like: Like, path: Path) -> UNetConfig | ClassifierConfig:
    """The network's configuration: what shapes and flags say, else the entry, else the release's defaults."""
    size = _size(found, entry, like)
    told = found.told
    known = dict(entry.flags) if entry is not None else {}
    given = dict(like.flags)
    for name in ("image_size", "large_size"):
        known.pop(name, None)
        given.pop(name, None)
    config = (_classifier if found.kind == "classifier" else _unet)(found, size, known, given, entry, like)
    _check_flags(found, config, like, path)
    if isinstance(config, UNetConfig):
        config = replace(config, num_classes=told["num_classes"])
    return replace(
        config,
        in_channels=told["in_channels"],
        out_channels=told["out_channels"],
        conv_resample=told["conv_resample"],
    )


def _unet(
    found: Recognised, size: int, known: Flags, given: Flags, entry: Published | None, like: Like
) -> UNetConfig | ClassifierConfig:
    told = found.told
    shapes: Flags = {
        "num_channels": told["model_channels"],
        "num_res_blocks": told["num_res_blocks"],
        "channel_mult": told["channel_mult"],
        "attention_resolutions": _pixels(found, size),
        "class_cond": told["num_classes"] is not None,
        "use_scale_shift_norm": told["use_scale_shift_norm"],
        "resblock_updown": told["resblock_updown"],
        "learn_sigma": found.learns_variance,
    }
    if "num_heads" in given:  # which is not looked at where the width of a head is known
        shapes["num_head_channels"] = -1
    named = "large_size" if found.kind == "upsampler" else "image_size"
    return openai_flags.unet_config({**known, **shapes, **given, named: size}, _family(found, entry, like))


def _classifier(
    found: Recognised, size: int, known: Flags, given: Flags, entry: Published | None, like: Like
) -> UNetConfig | ClassifierConfig:
    told = found.told
    shapes: Flags = {
        "classifier_width": told["model_channels"],
        "classifier_depth": told["num_res_blocks"],
        "classifier_attention_resolutions": _pixels(found, size),
        "classifier_use_scale_shift_norm": told["use_scale_shift_norm"],
        "classifier_resblock_updown": told["resblock_updown"],
        "classifier_pool": told["pool"],
    }
    heads: Any = {name: _whole(given, name) for name in ("num_heads", "num_head_channels") if name in given}
    flags = {name: value for name, value in given.items() if name not in (*_PROCESS, *heads)}
    config = openai_flags.classifier_config({**known, **shapes, **flags, "image_size": size}, told["channel_mult"])
    return replace(config, **{"num_head_channels": -1, **heads}) if heads else config


def _pixels(found: Recognised, size: int) -> str:
    """The side of the feature maps where the network attends, as flags have it."""
    return ",".join(str(size // factor) for factor in found.told["attention_resolutions"] if size % factor == 0)


def _whole(flags: Mapping[str, Any], name: str) -> int:
    text = str(flags[name])
    if not text.removeprefix("-").isdigit():
        raise ValueError(f"{name} {text}: expected a whole number")
    return int(text)


def _size(found: Recognised, entry: Published | None, like: Like) -> int:
    for name in ("large_size", "image_size"):
        if name in like.flags:
            return _whole(like.flags, name)
    return int(found.told.get("image_size") or (entry.image_size if entry is not None else 0))


def _check_flags(found: Recognised, config: UNetConfig | ClassifierConfig, like: Like, path: Path) -> None:
    """ValueError if a flag that was given says other than the shapes."""
    said = told_by(config).told
    wrong = []
    for flag, value in like.flags.items():
        name = _SAME_AS.get(flag, flag)
        if name == "out_channels":
            differs = (config.out_channels == 2 * config.in_channels) != found.learns_variance
        elif name == "num_classes":
            differs = (said["num_classes"] is None) != (found.told["num_classes"] is None)
        else:
            differs = name in said and name in found.told and said[name] != found.told[name]
        if differs:
            wrong.append(f"{flag} {value}")
    if wrong:
        raise ValueError(f"{path} has not the shapes of {', '.join(wrong)}: it is {describe(found)}")


def _process(found: Recognised, entry: Published | None, like: Like) -> ProcessConfig:
    if found.kind == "classifier":
        base = {"noise_schedule": entry.schedule} if entry is not None else {}
        flags = {name: value for name, value in like.flags.items() if name in _PROCESS}
        return replace(openai_flags.process_config({**base, **flags}, GUIDED), variance="learned_range")
    known = dict(entry.flags) if entry is not None else {}
    return openai_flags.process_config(
        {**known, **like.flags, "learn_sigma": found.learns_variance}, _family(found, entry, like)
    )


def _family(found: Recognised, entry: Published | None, like: Like) -> str:
    """The release whose defaults hold; without one all that matters was given, and either will do."""
    if entry is not None:
        return entry.family
    return (like.release or GUIDED) + {"upsampler": UPSAMPLER, "classifier": CLASSIFIER}.get(found.kind, "")


def _untold(config: UNetConfig | ClassifierConfig, process: ProcessConfig) -> str:
    """What no shape tells, in words."""
    height, width = config.size
    heads = f"heads of {config.num_head_channels} channels" if config.num_head_channels != -1 else ""
    heads = heads or f"{config.num_heads} head{'s' if config.num_heads != 1 else ''}"
    order = "new" if config.use_new_attention_order else "legacy"
    scaled = ", times rescaled to 1000" if process.rescale_timesteps and process.steps != 1000 else ""
    target = "" if isinstance(config, ClassifierConfig) else f", predicts {process.target}"
    size = f"{height} pixels" if height == width else f"{height}x{width} pixels"
    return f"images of {size}, {heads}, {order} order of qkv, {process.levels_text}{scaled}{target}"


def _shown(value: Any) -> str:
    return "/".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
