"""The registry of published files: complete, the flags of the releases, and of one piece with the recipes."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse import recipes
from undiffuse.adapters import openai_flags, openai_weights, published
from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.grids import grid
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS: dict[str, Any] = json.loads((GOLDEN / "published_checkpoints.json").read_bytes())
LAYOUTS: dict[str, list[str]] = json.loads(gzip.decompress((GOLDEN / "published_layouts.json.gz").read_bytes()))
OPENAI = [name for name, entry in published.ENTRIES.items() if "-diffusion" in entry.release]
each = pytest.mark.parametrize("name", list(published.ENTRIES))
each_of_openai = pytest.mark.parametrize("name", OPENAI)


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    words = (line.split() for line in LAYOUTS[name])
    return {key: tuple(int(n) for n in shape.split("x")) for key, shape in words}


def test_all_files_are_there() -> None:
    count = dict.fromkeys(("guided-diffusion", "improved-diffusion", "consistency_models", "ddpm"), 0)
    for entry in published.ENTRIES.values():
        count[entry.release] += 1
    assert count == {"guided-diffusion": 15, "improved-diffusion": 8, "consistency_models": 12, "ddpm": 9}
    assert set(OPENAI) == set(CHECKPOINTS) == set(LAYOUTS)
    assert len({entry.file for entry in published.ENTRIES.values()}) == len(published.ENTRIES)


@each_of_openai
def test_flags_mean_what_the_releases_flags_mean(name: str) -> None:
    entry, told = published.get(name), CHECKPOINTS[name]
    flags, family = told["flags"], told["family"]
    assert (entry.file, entry.family, entry.parameters) == (told["file"], family, told["parameters"])
    assert str(entry.url).endswith(f"/{told['release']}/{told['file']}")
    if family.endswith("classifier"):
        assert entry.net == openai_flags.classifier_config(flags)
        return
    assert entry.net == openai_flags.unet_config(flags, family)
    assert entry.process == openai_flags.process_config(flags, family)
    assert openai_flags.loss_name(entry.flags, family) == openai_flags.loss_name(flags, family)
    assert entry.num_classes == (1000 if flags["class_cond"] else None)
    assert (entry.image_size, entry.low_size) == (
        flags.get("large_size") or flags["image_size"],
        flags.get("small_size"),
    )


@each_of_openai
def test_the_network_has_the_layout_of_the_file(name: str) -> None:
    with torch.device("meta"):
        state = published.get(name).net.build().state_dict()
    lines = sorted(f"{key} {'x'.join(map(str, value.shape))}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == CHECKPOINTS[name]["layout_sha256"]


@pytest.mark.parametrize("name", [name for name, entry in published.ENTRIES.items() if entry.release == "ddpm"])
def test_ddpms_files(name: str) -> None:
    """Attention at 16x16, one network for 32 pixels and one for 256; counts of parameters as the papers have them."""
    entry = published.get(name)
    net = entry.net
    assert isinstance(net, DDPMConfig)
    with torch.device("meta"):
        assert sum(p.numel() for p in net.build().parameters()) == entry.parameters
    assert entry.image_size // 16 in net.attention_resolutions
    assert entry.process.variance == ("fixed_small" if entry.image_size == 256 else "fixed_large")
    assert (entry.process.schedule, entry.process.steps) == ("linear", 1000)
    if entry.url is None:
        assert name == "ddpm_celeba"
    else:
        assert re.fullmatch("[0-9a-f]{32}", str(entry.md5))


@each
def test_facts_are_of_one_piece(name: str) -> None:
    entry = published.get(name)
    assert published.of_file(f"some/where/{entry.file}") == entry
    assert entry.licence
    assert entry.paper
    assert abs(entry.about_bytes - 4 * entry.parameters) < 1e-3 * entry.about_bytes
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert not entry.results or entry.source
    if entry.kind == "classifier":
        assert isinstance(entry.net, ClassifierConfig)
        guided = [e for e in published.ENTRIES.values() if e.sampling and name in e.sampling.guidance.classifier]
        assert guided
        assert {(e.process.schedule, e.process.steps, e.image_size) for e in guided} == {
            (entry.process.schedule, entry.process.steps, entry.image_size)
        }
        return
    assert entry.sampling is not None
    for config in (entry.sampling, *entry.also):
        resolved = SamplerConfig().resolved(entry.process, config)
        assert grid(entry.process.chain(), resolved.steps, resolved.grid).steps == int(config.steps or 0)
    assert (entry.sampling.guidance.strength > 0) == bool(entry.sampling.guidance.classifier)
    assert (entry.base is not None) == (entry.kind == "upsampler")
    if entry.base is not None:
        base = published.get(entry.base)
        assert (base.image_size, base.num_classes, base.release) == (entry.low_size, entry.num_classes, entry.release)
        assert entry in published.upsamplers_of(base.name)


def test_figures_in_words() -> None:
    entry = published.get("128x128_diffusion")
    assert [result.how for result in entry.results] == [
        "250 steps, guided by 0.5", "25 DDIM steps, guided by 1.25", "250 steps",
    ]  # fmt: skip
    assert entry.results[0].figures == "FID 2.97, sFID 5.09, precision 0.78, recall 0.59"
    assert published.get("cifar10_uncond_50M_500K").results[0].figures == "FID 3.19, bits/dim 3.17"


def test_unknown_names_are_answered_with_near_ones() -> None:
    for wrong, right in {"256 uncond": "256x256_diffusion_uncond", "lsun_bedrom": "lsun_bedroom"}.items():
        with pytest.raises(ValueError, match=right):
            published.get(wrong)
    with pytest.raises(ValueError, match="undiffuse models"):
        published.get("qqq")


@each_of_openai
def test_recipes_say_what_the_registry_says(name: str) -> None:
    entry = published.get(name)
    recipe = next(r for r in map(recipes.get, recipes.names()) if r.published.get("file") == entry.file)
    if isinstance(entry.net, UNetConfig):
        # the number of heads has no influence where their width is given
        ignored = {"num_heads"} if entry.net.num_head_channels != -1 else set()
        ours, theirs = ({k: v for k, v in asdict(net).items() if k not in ignored} for net in (recipe.net, entry.net))
        assert (ours, recipe.process, recipe.low_size) == (theirs, entry.process, entry.low_size)
        assert entry.sampling is not None
        assert replace(recipe.advice, guidance=GuidanceConfig()) == replace(entry.sampling, guidance=GuidanceConfig())
        assert recipe.advice.guidance.scale == entry.sampling.guidance.scale
        guides = [recipes.get(name).published["file"] for name in recipe.advice.guidance.classifier]
        assert guides == [f"{name}.pt" for name in entry.sampling.guidance.classifier]
    for result in entry.results:
        assert any(result.how in key and f"{result.fid:.2f}" in text for key, text in recipe.published.items())


@each_of_openai
def test_shapes_alone_tell_the_network(name: str) -> None:
    """Everything but what no shape can tell, which all published files of the same shapes have in common."""
    found = openai_weights.recognise(shapes_of(name))
    entry = published.get(name)
    assert found == openai_weights.recognised_from(entry.net)  # type: ignore[arg-type]
    assert found.kind == entry.kind
    same = [
        other
        for other in map(published.get, OPENAI)
        if openai_weights.recognised_from(other.net) == found  # type: ignore[arg-type]
    ]
    assert {(other.net.size, other.process) for other in same} == {(entry.net.size, entry.process)}
    ambiguous = {
        "lsun_uncond": 2, "imagenet64_uncond": 2, "cifar10_uncond": 2, "lsun_": 5, "256x256_diffusion_uncond": 5,
    }  # fmt: skip
    expected = next((count for start, count in ambiguous.items() if name.startswith(start)), 1)
    assert len(same) == expected
