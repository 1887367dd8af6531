"""What weights mean: what their shapes tell, what must be said, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from support.foreign_files import layout_of
from support.golden_files import Golden, constructor_arguments, for_each, kind_of
from undiffuse.adapters import openai_weights, published
from undiffuse.adapters.interpretation import Like, interpret
from undiffuse.adapters.openai_weights import Recognised, recognise, recognised_from
from undiffuse.nets import ClassifierConfig, UNetConfig

FILE = Path("somebody/weights.pt")
SMALL = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}


def shapes_of(config: UNetConfig | ClassifierConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in layout_of(config).items()}


def recognised(name: str, **changes: Any) -> Recognised:
    return _recognised(name, tuple(changes.items()))


@lru_cache
def _recognised(name: str, changes: tuple[tuple[str, Any], ...]) -> Recognised:
    return recognise(shapes_of(replace(published.get(name).net, **dict(changes))))  # type: ignore[arg-type]


def meaning(found: Recognised, like: str | None = None, path: Path = FILE, sha256: str = "") -> Any:
    return interpret(found, path, sha256, Like.parse(like) if like is not None else None)


@for_each("unet", "superres", "classifier")
def test_golden_networks_are_recognised(path: Path) -> None:
    golden = Golden(path)
    arguments = constructor_arguments(golden.meta["kwargs"], tuple(golden.take("x").shape[2:]))
    if kind_of(path.name) == "classifier":
        config: UNetConfig | ClassifierConfig = ClassifierConfig(**arguments)
    else:
        config = UNetConfig(**arguments, super_resolution=kind_of(path.name) == "superres")
    shapes = {name: tuple(shape) for name, shape in golden.meta["state_dict"].items()}
    found = recognise(shapes)
    told = dict(recognised_from(config).fields)
    if "image_size" in told:
        told["image_size"] = config.size[0]
    assert dict(found.fields) == told


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("enlarges", [False, True])
def test_channels_variance_and_upsampling_are_told_apart(channels: int, learns: bool, enlarges: bool) -> None:
    config = UNetConfig(
        **SMALL, in_channels=channels, out_channels=channels * (2 if learns else 1), super_resolution=enlarges
    )
    found = recognise(shapes_of(config))
    assert found == recognised_from(config)
    assert found.learns_variance == learns
    assert found.kind == ("upsampler" if enlarges else "diffusion")


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (1,)}, {"channel_mult": (0.5, 1, 1.5)}, {"channel_mult": (1, 1, 1), "num_res_blocks": 3},
        {"attention_resolutions": ()}, {"attention_resolutions": (1, 2)}, {"conv_resample": False, "num_res_blocks": 2},
        {"resblock_updown": True}, {"use_scale_shift_norm": True}, {"num_classes": 5}, {"model_channels": 96,
        "channel_mult": (29 / 96, 1)}, {"num_classes": 3, "null_class": True},
    ],
)  # fmt: skip
def test_shapes_tell_unusual_networks(changes: dict[str, Any]) -> None:
    config = UNetConfig(**{**SMALL, **changes})
    assert recognise(shapes_of(config)) == recognised_from(config)


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2", "attention"])
def test_classifiers_and_their_pools(pool: str) -> None:
    config = ClassifierConfig(**SMALL, out_channels=9, image_size=16, num_head_channels=32, pool=pool)
    found = recognise(shapes_of(config))
    assert found == recognised_from(config)
    assert found.fields.get("image_size") == (16 if pool == "attention" else None)


def test_where_several_networks_have_the_same_shapes_one_must_be_named() -> None:
    """A classifier of one width without attention: its halving blocks look like any other block."""
    config = ClassifierConfig(
        model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(), out_channels=2,
        image_size=16, resblock_updown=True, pool="adaptive",
    )  # fmt: skip
    shapes = shapes_of(config)
    with pytest.raises(ValueError, match="number of residual blocks per level .3 or 1"):
        recognise(shapes)
    assert recognise(shapes, blocks=1) == recognised_from(config)


def spoiled(change: Any) -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(UNetConfig(**SMALL))
    change(shapes)
    return shapes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.clear(), "expected time_embed.0.weight, input_blocks .*got nothing"),
        (lambda s: s.pop("out.2.bias"), r"1 of \d+ tensors differ, out.2.bias is missing, expected"),
        (lambda s: s.update(extra=(3,)), "extra is .3., expected no such parameter"),
        (lambda s: s.update({"out.2.weight": (5, 32, 3, 3)}), "3 input and 5 output channels does not predict an"),
        (lambda s: s.update({"input_blocks.0.0.weight": (32,)}), "tensors differ|does not predict an image"),
        (lambda s: s.update({"input_blocks.999999999.0.weight": (1,)}), "numbered up to 999999999"),
        (lambda s: s.update({"time_embed.0.weight": ()}), "."),
        (lambda s: s.update({"time_embed.0.weight": (0, 0)}), "."),
        (lambda s: s.update({"middle_block.1.transformer_blocks.0.attn1.to_q.weight": (4, 4)}), "no such parameter"),
    ],
)
def test_shapes_of_no_network_are_refused(change: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recognise(spoiled(change))


def test_published_shapes_need_nothing_said() -> None:
    for name, by in (("64x64_diffusion", "shapes"), ("256x256_classifier", "shapes"), ("upsample_cond_500K", "shapes")):
        entry = published.get(name)
        told = meaning(recognised(name))
        assert (told.config, told.process, told.entry, told.by) == (entry.net, entry.process, entry, by)
        assert "images of" in told.facts[f"{name}, by its shapes"]


def test_files_that_mean_the_same_are_recognised_from_name_or_hash_else_not_at_all() -> None:
    found = recognised("lsun_cat")
    for told, entry, by in (
        (meaning(found, path=Path("x/lsun_cat.pt")), "lsun_cat", "name"),
        (meaning(found, sha256=str(published.get("256x256_diffusion_uncond").sha256)), "256x256_diffusion_uncond",
         "hash"),
    ):  # fmt: skip
        assert (told.entry.name, told.by) == (entry, by)
    told = meaning(found)
    assert told.entry is None
    assert replace(told.config, dropout=0.1) == published.get("lsun_cat").net
    assert "lsun_bedroom or lsun_cat" in " ".join(told.facts)


def test_a_name_that_the_shapes_contradict_is_not_believed() -> None:
    told = meaning(recognised("64x64_diffusion"), path=Path("256x256_diffusion.pt"))
    assert told.entry.name == "64x64_diffusion"


def test_where_files_of_the_same_shapes_mean_different_things_nothing_is_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = published.get("64x64_diffusion")
    other = replace(entry, name="other", file="other.pt", flags={**entry.flags, "use_new_attention_order": False})
    monkeypatch.setitem(published.ENTRIES, "other", other)  # type: ignore[arg-type]
    found = recognised("64x64_diffusion")
    with pytest.raises(ValueError, match="several published files have these shapes.*@64x64_diffusion .or other"):
        meaning(found)
    assert meaning(found, path=Path("other.pt")).config == other.net
    assert meaning(found, "64x64_diffusion").config == entry.net


def test_unknown_shapes_are_asked_for() -> None:
    found = recognised("256x256_diffusion", num_classes=10)
    with pytest.raises(ValueError) as caught:
        meaning(found)
    text = str(caught.value)
    for word in (
        "image_size", "num_heads", "use_new_attention_order", "noise_schedule", "diffusion_steps", "10 classes",
        "weights.pt@256x256_diffusion (or", "256x256_diffusion_uncond", "somebody/weights.pt@guided-diffusion",
    ):  # fmt: skip
        assert word in text
    assert "rescale_timesteps" not in text


def test_like_a_published_model_with_other_classes_and_channels() -> None:
    found = recognised("256x256_diffusion", num_classes=10, in_channels=1, out_channels=2)
    told = meaning(found, "256x256_diffusion_uncond")
    expected = replace(published.get("256x256_diffusion").net, num_classes=10, in_channels=1, out_channels=2)
    assert told.config == expected
    assert (told.entry.name, told.by) == ("256x256_diffusion_uncond", "like")


@pytest.mark.parametrize(
    ("name", "like", "told"),
    [
        ("256x256_diffusion", "64x64_classifier", "holds a diffusion model, but 64x64_classifier is a classifier"),
        ("256x256_classifier", "256x256_diffusion", "holds a classifier, but 256x256_diffusion is a diffusion model"),
        ("256x256_diffusion", "64_256_upsampler", "is an upsampler"),
        ("256x256_diffusion", "512x512_diffusion", "channel_mult 1/1/2/2/4/4 .not 0.5/1/1/2/2/4/4"),
        ("256x256_diffusion", "upsample_cond_500K", "is an upsampler"),
        ("128x128_classifier", "256x256_classifier", "image_size 128 .not 256"),
        ("lsun_uncond_100M_1200K_bs128", "lsun_cat", "model_channels 128 .not 256"),
        ("256x256_diffusion", "ddpm_cifar10", "not a DDPM network"),
        ("256x256_diffusion", "256x256_diffusion num_channels=128", "does not match num_channels 128"),
        ("256x256_diffusion", "256x256_diffusion class_cond=False", "class_cond False"),
        ("256x256_diffusion", "256x256_diffusion learn_sigma=False", "learn_sigma False"),
        ("256x256_diffusion", "256x256_diffusion attention_resolutions=16", "attention_resolutions 16"),
        ("256x256_diffusion", "256x256_diffusion channel_mult=1,2,3,4,5,6", "channel_mult 1,2,3,4,5,6"),
        ("256x256_classifier", "256x256_classifier classifier_depth=4", "classifier_depth 4"),
        ("256x256_classifier", "256x256_classifier image_size=128", "image_size 128"),
        ("256x256_diffusion", "256x256_diffusion image_size=100", "must be multiples of 32"),
        ("256x256_diffusion", "256x256_diffusion image_size=large", "expected a whole number"),
        ("256x256_diffusion", "256x256_diffusion rate=1e-4", "flags unknown for guided-diffusion: rate"),
    ],
)
def test_what_contradicts_the_shapes_is_refused(name: str, like: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        meaning(recognised(name), like)


FLAGS = {
    "--attention_resolutions": "32,16,8", "--class_cond": "True", "--diffusion_steps": "1000", "--dropout": "0.1",
    "--image_size": "64", "--learn_sigma": "True", "--noise_schedule": "cosine", "--num_channels": "192",
    "--num_head_channels": "64", "--num_res_blocks": "3", "--resblock_updown": "True",
    "--use_new_attention_order": "True", "--use_fp16": "True", "--use_scale_shift_norm": "True",
}  # fmt: skip


def test_the_flags_of_a_command_line_can_be_pasted() -> None:
    """The README's own flags of the 64x64 model give exactly its configuration, with and without naming the release."""
    entry, found = published.get("64x64_diffusion"), recognised("64x64_diffusion")
    line = " ".join(f"{name} {value}" for name, value in FLAGS.items())
    for like in (line, f"guided-diffusion {line}", " ".join(f"{k[2:]}={v}" for k, v in FLAGS.items())):
        told = meaning(found, like)
        assert replace(told.config, num_heads=4) == entry.net
        assert told.process == entry.process
        assert told.entry is None


def test_a_release_gives_its_defaults() -> None:
    """rescale_timesteps is on in improved diffusion and off in guided diffusion."""
    found = recognised("imagenet64_uncond_100M_1500K", num_classes=3)
    said = "image_size=64 noise_schedule=cosine diffusion_steps=4000"
    for release, rescale in (("improved-diffusion", True), ("guided-diffusion", False)):
        told = meaning(found, f"{release} {said}")
        assert told.process.rescale_timesteps is rescale
        assert told.config.num_heads == 4
        assert f"flags and defaults of {release}" in told.facts
    with pytest.raises(ValueError, match="rescale_timesteps"):
        meaning(found, f"{said} num_heads=4 use_new_attention_order=False")
    told = meaning(found, f"{said} num_heads=2 use_new_attention_order=False rescale_timesteps=True")
    assert (told.config.num_heads, told.process.rescale_timesteps) == (2, True)


def test_flags_beside_a_model_replace_what_it_says() -> None:
    told = meaning(
        recognised("256x256_diffusion"), "256x256_diffusion --image_size 128 num_heads=4 --noise_schedule=cosine"
    )
    assert (told.config.size, told.config.num_heads, told.config.num_head_channels) == ((128, 128), 4, -1)
    assert told.config.attention_resolutions == (8, 16, 32)
    assert told.process.schedule == "cosine"


def test_classifiers_take_the_schedule_and_heads_that_are_said() -> None:
    found = recognised("64x64_classifier", out_channels=7)
    with pytest.raises(ValueError, match="num_head_channels, noise_schedule .* diffusion_steps"):
        meaning(found)
    told = meaning(found, "noise_schedule=linear diffusion_steps=500 rescale_timesteps=1 num_head_channels=32")
    assert (told.process.schedule, told.process.steps, told.config.num_head_channels) == ("linear", 500, 32)
    told = meaning(found, "64x64_classifier")
    assert (told.process.schedule, told.config.out_channels, told.config.num_head_channels) == ("cosine", 7, 64)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "description of the weights is empty"),
        ("256x256_difusion", "did you mean 256x256_diffusion"),
        ("--image_size", "expected one"),
        ("64x64_diffusion lsun_cat", "expected one published model"),
        ("'unclosed", "cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_said(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Like.parse(text)


def test_descriptions_name_what_was_told() -> None:
    text = openai_weights.describe(recognised("512x512_diffusion"))
    for word in (
        "256 channels x 0.5/1/1/2/2/4/4",
        "2 blocks",
        "1/16, 1/32, 1/64",
        "residual",
        "1000 classes",
        "learned",
    ):
        assert word in text
    found: Mapping[str, Any] = recognised("lsun_uncond_100M_1200K_bs128").fields
    assert found["use_scale_shift_norm"] is False
    assert "addition" in openai_weights.describe(recognised("lsun_uncond_100M_1200K_bs128"))
