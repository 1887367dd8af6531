"""Interprets weights of OpenAI's code: combines what their shapes show with what shapes cannot show.

Shapes do not show the image size, the attention heads, the order of queries, keys and values, or the process. A wrong
guess would load without an error and produce noise, so nothing is guessed. The sources, in this order:

    `Like`             the user names the published model or the flags that the weights were trained with
    the file's hash    equals that of a published file
    its name           is that of a published file with these shapes
    its shapes         are those of published files that all have the same network and process
    otherwise          ValueError, which lists what is missing and how to give it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from undiffuse.adapters import openai_args, openai_flags, published
from undiffuse.adapters.openai_weights import KINDS, Recognised, describe, recognised_from
from undiffuse.adapters.published_entry import CLASSIFIER, CONSISTENCY, DDPM, GUIDED, IMPROVED, UPSAMPLER, Published
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig

REASONS = {
    "download": "as downloaded",
    "hash": "by its hash",
    "name": "by its file name",
    "shapes": "by its shapes",
    "like": "as given",
}
Flags = dict[str, Any]
RELEASES = (GUIDED, IMPROVED, CONSISTENCY, DDPM)
_FREE = {"num_classes", "in_channels"}  # fields that fine-tuning may change, besides a classifier's classes
_PROCESS = ("noise_schedule", "diffusion_steps", "rescale_timesteps")
_OF_CLASSIFIERS = {*_PROCESS, "image_size", "noised"}
# A full dump of training arguments contains one of these sets of flags.
_TELLING = ({"image_size", "noise_schedule", "diffusion_steps"}, {"image_size", "training_mode"})
_SAME_AS = {  # our fields by the flags that set them
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
    """A user's description of a weights file.

    Examples of the text that `parse` reads: "256x256_diffusion", "64x64_diffusion image_size=128",
    "guided-diffusion --image_size 64 --noise_schedule cosine", "flags.txt", "model_config.yaml".

    Attributes:
        entry: The published model that the weights were trained like.
        release: The release whose defaults apply.
        flags: Flags given one by one.
        stored: Flags read from a file, which may belong to several networks.
    """

    entry: Published | None = None
    release: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> Like:
        """Merges the stored flags of one kind of network with those that the user gave.

        A dump of all arguments contains the flags of a model and of its classifier.

        Args:
            kind: A key of `openai_weights.KINDS`.
        """
        if kind == "classifier":
            wanted = {n: v for n, v in self.stored.items() if n.startswith("classifier_") or n in _OF_CLASSIFIERS}
            guided = any(name.startswith("classifier_") for name in wanted)  # only guided diffusion has these
            release = self.release or (GUIDED if guided and self.entry is None else None)
            return replace(self, release=release, flags={**wanted, **self.flags}, stored={})
        wanted = {n: v for n, v in {**self.stored, **self.flags}.items() if not n.startswith("classifier_")}
        alone = self.release is None and "training_mode" in wanted  # a flag that one release has
        return replace(self, release=CONSISTENCY if alone else self.release, flags=wanted, stored={})

    @classmethod
    def parse(cls, text: str) -> Like:
        """Parses the name of a published model, a release, flags, or the path of a text file with flags.

        Args:
            text: The user's description; see `openai_args.read_file` for the formats of a file.

        Raises:
            ValueError: A word is neither a known name nor a flag with its value.
        """
        if not text.strip():
            raise ValueError("the description of the weights is empty: expected a published model or training flags")
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
    """A network, its process, and the sources of this information.

    Attributes:
        config: The network's configuration.
        process: The diffusion process.
        facts: Descriptions by their source.
        entry: The published file that the weights are, or are assumed to be.
        by: How the entry was identified: a key of `REASONS`, or "".
        clean_only: Whether a classifier was trained on images without noise.
    """

    config: Any
    process: ProcessConfig
    facts: Mapping[str, str]
    entry: Published | None = None
    by: str = ""
    clean_only: bool = False


Found: TypeAlias = tuple[Interpretation, Mapping[str, Tensor], str, Mapping[str, Any]]
"""Interpretation, weights by our names, name of the weights, further entries of the manifest."""


def interpret(
    found: Recognised,
    path: Path,
    sha256: str,
    like: Like | None = None,
    known: Published | None = None,
    arguments: Mapping[str, str] | None = None,
) -> Interpretation:
    """Determines the network and the process of a weights file.

    Args:
        found: What the shapes show.
        path: The file.
        sha256: Its hash.
        like: The user's description.
        known: The published file that it was downloaded as.
        arguments: Flags stored with the weights.

    Raises:
        ValueError: Something cannot be determined, or the description contradicts the shapes.
    """
    like = (like or Like()).of_kind(found.kind)
    if like.release == DDPM:
        raise ValueError(f"{path} is not a DDPM network: it is {KINDS[found.kind]} of guided or improved diffusion")
    entries: list[Published] = []
    by = ""
    if known is not None or like.entry is not None:
        entries = [known or like.entry]  # type: ignore[list-item]
        by = "download" if known is not None else "like"
        _check_like(found, entries[0], path)
    elif not like.flags and like.release is None:
        entries, by = _known(found, path, sha256)
        beside = Like(stored=arguments or {}).of_kind(found.kind)
        if by != "hash" and (any(set(beside.flags) >= telling for telling in _TELLING) or not entries):
            like, entries, by = beside, [], ""
    if not entries:
        _check_complete(found, like, path)
    entry = entries[0] if entries else None
    config = _config(found, entry, like, path)
    process = _process(found, entry, like)
    facts = {"shapes": describe(found)}
    if entries:
        facts[f"{' or '.join(e.name for e in entries)}, {REASONS[by]}"] = _not_in_shapes(config, process)
    if like.flags:
        facts["flags"] = ", ".join(f"{name} {value}" for name, value in like.flags.items())
    if not entries:
        facts[f"flags and defaults of {like.release}" if like.release else "result"] = _not_in_shapes(config, process)
    clean = found.kind == "classifier" and str(like.flags.get("noised", "True")).lower() in ("false", "f", "no", "0")
    return Interpretation(config, process, facts, entry if len(entries) == 1 else None, by, clean)


def candidates(found: Recognised) -> list[Published]:
    """Returns the published files that have these shapes."""
    return [entry for entry in _openais() if recognised_from(entry.net) == found]  # type: ignore[arg-type]


def _openais() -> list[Published]:
    return [entry for entry in published.ENTRIES.values() if entry.release != DDPM]


def _known(found: Recognised, path: Path, sha256: str) -> tuple[list[Published], str]:
    """Returns the published files that this may be, all with the same meaning, and how they were identified."""
    same = candidates(found)
    for entry in same:
        if entry.sha256 == sha256:
            return [entry], "hash"
    named = published.of_file(path)
    if named in same:
        return [named], "name"
    # Dropout does not change what is computed, so it is not compared.
    meanings = {(replace(entry.net, dropout=0.0), entry.process) for entry in same}
    return (same, "shapes") if len(meanings) == 1 else ([], "")


def _check_like(found: Recognised, entry: Published, path: Path) -> None:
    """Raises ValueError if the shapes differ from those of `entry` in more than classes and image channels."""
    if entry.kind != found.kind:
        raise ValueError(
            f"{path} does not match {entry.name}: it holds {KINDS[found.kind]}, but {entry.name} is {KINDS[entry.kind]}"
        )
    differences = _differences(found, recognised_from(entry.net))  # type: ignore[arg-type]
    if differences:
        raise ValueError(f"{path} does not match {entry.name}: its shapes give {'; '.join(differences)}")


def _differences(found: Recognised, other: Recognised) -> list[str]:
    """Returns the differences of the shapes from a published network, except those that fine-tuning may cause."""
    out = []
    for name, value in found.fields.items():
        theirs = other.fields.get(name)
        if name == "out_channels" and found.kind != "classifier":
            if found.learns_variance != other.learns_variance:
                ours = ("True", "False") if found.learns_variance else ("False", "True")
                out.append("learn_sigma {} (not {})".format(*ours))
        elif value != theirs and name not in _FREE and name != "out_channels":
            out.append(f"{name} {_shown(value)} (not {_shown(theirs)})")
    return out


def _check_complete(found: Recognised, like: Like, path: Path) -> None:
    """Raises ValueError unless the flags give everything that the shapes do not show."""
    given = like.flags
    missing = []
    same = candidates(found)
    alike = found.planar or (bool(same) and all(entry.release == CONSISTENCY for entry in same))
    karras = like.release == CONSISTENCY or (like.release is None and alike and "noise_schedule" not in given)
    if not {"image_size", "large_size"} & set(given) and "image_size" not in found.fields:
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
    near = same or [e for e in _openais() if e.kind == found.kind and not _differences(found, recognised_from(e.net))]  # type: ignore[arg-type]
    why = "several published files have these shapes" if same else "no published file has these shapes"
    raise ValueError(
        f"the shapes in {path} do not show {', '.join(missing)}, and {why} ({describe(found)}). Append the published "
        f"model that it was trained like to the path: {path}@{near[0].name if near else 'NAME'}"
        + (f" (or {', '.join(entry.name for entry in near[1:])})" if near[1:] else "")
        + f'; or append its training flags: "{path}@{CONSISTENCY if karras else GUIDED} --image_size 64 ..."'
    )


def _config(found: Recognised, entry: Published | None, like: Like, path: Path) -> UNetConfig | ClassifierConfig:
    """Returns the network's configuration from shapes and flags, then the entry, then the release's defaults."""
    size = _size(found, entry, like)
    fields = found.fields
    known = dict(entry.flags) if entry is not None else {}
    given = dict(like.flags)
    for name in ("image_size", "large_size"):
        known.pop(name, None)
        given.pop(name, None)
    config = (_classifier if found.kind == "classifier" else _unet)(found, size, known, given, entry, like)
    _check_flags(found, config, like, path)
    if isinstance(config, UNetConfig):
        config = replace(config, num_classes=fields["num_classes"])
    return replace(
        config,
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        conv_resample=fields["conv_resample"],
    )


def _unet(
    found: Recognised, size: int, known: Flags, given: Flags, entry: Published | None, like: Like
) -> UNetConfig | ClassifierConfig:
    fields = found.fields
    shapes: Flags = {
        "num_channels": fields["model_channels"],
        "num_res_blocks": fields["num_res_blocks"],
        "channel_mult": fields["channel_mult"],
        "attention_resolutions": _pixels(found, size),
        "class_cond": fields["num_classes"] is not None,
        "use_scale_shift_norm": fields["use_scale_shift_norm"],
        "resblock_updown": fields["resblock_updown"],
        "learn_sigma": found.learns_variance,
    }
    if "num_heads" in given:  # num_head_channels would override it
        shapes["num_head_channels"] = -1
    named = "large_size" if found.kind == "upsampler" else "image_size"
    return openai_flags.unet_config({**known, **shapes, **given, named: size}, _family(found, entry, like))


def _classifier(
    found: Recognised, size: int, known: Flags, given: Flags, entry: Published | None, like: Like
) -> UNetConfig | ClassifierConfig:
    fields = found.fields
    shapes: Flags = {
        "classifier_width": fields["model_channels"],
        "classifier_depth": fields["num_res_blocks"],
        "classifier_attention_resolutions": _pixels(found, size),
        "classifier_use_scale_shift_norm": fields["use_scale_shift_norm"],
        "classifier_resblock_updown": fields["resblock_updown"],
        "classifier_pool": fields["pool"],
    }
    heads: Any = {name: _whole(given, name) for name in ("num_heads", "num_head_channels") if name in given}
    flags = {name: value for name, value in given.items() if name not in (*_PROCESS, *heads)}
    config = openai_flags.classifier_config({**known, **shapes, **flags, "image_size": size}, fields["channel_mult"])
    return replace(config, **{"num_head_channels": -1, **heads}) if heads else config


def _pixels(found: Recognised, size: int) -> str:
    """Returns the sides of the feature maps with attention, in the format of the flags."""
    return ",".join(str(size // factor) for factor in found.fields["attention_resolutions"] if size % factor == 0)


def _whole(flags: Mapping[str, Any], name: str) -> int:
    text = str(flags[name])
    if not text.removeprefix("-").isdigit():
        raise ValueError(f"{name} {text}: expected a whole number")
    return int(text)


def _size(found: Recognised, entry: Published | None, like: Like) -> int:
    for name in ("large_size", "image_size"):
        if name in like.flags:
            return _whole(like.flags, name)
    return int(found.fields.get("image_size") or (entry.image_size if entry is not None else 0))


def _check_flags(found: Recognised, config: UNetConfig | ClassifierConfig, like: Like, path: Path) -> None:
    """Raises ValueError if a given flag contradicts the shapes."""
    flagged = recognised_from(config).fields
    wrong = []
    for flag, value in like.flags.items():
        name = _SAME_AS.get(flag, flag)
        if name == "out_channels":
            differs = (config.out_channels == 2 * config.in_channels) != found.learns_variance
        elif name == "num_classes":
            differs = (flagged["num_classes"] is None) != (found.fields["num_classes"] is None)
        else:
            differs = name in flagged and name in found.fields and flagged[name] != found.fields[name]
        if differs:
            wrong.append(f"{flag} {value}")
    if wrong:
        raise ValueError(f"{path} does not match {', '.join(wrong)}: it is {describe(found)}")


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
    """Returns the release whose defaults apply; without one, all flags that matter were given, and either works."""
    if entry is not None:
        return entry.family
    return (like.release or GUIDED) + {"upsampler": UPSAMPLER, "classifier": CLASSIFIER}.get(found.kind, "")


def _not_in_shapes(config: UNetConfig | ClassifierConfig, process: ProcessConfig) -> str:
    """Describes what shapes cannot show."""
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
