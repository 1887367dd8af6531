"""`undiffuse models`: the list, everything about one, and looking up classes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from support.cli_runs import call
from undiffuse.adapters import imagenet_classes, importing, published
from undiffuse.cli.models import METRICS, commands
from undiffuse.cli.parser import build_parser
from undiffuse.models import SHIPPED


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing may be downloaded."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    return tmp_path / "cache"


def told(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """What `undiffuse models WORDS...` prints: ASCII in a hundred columns."""
    assert call("models", *words) == 0
    text, error = capsys.readouterr()
    assert error == ""
    assert text.isascii()
    long = [line for line in text.splitlines() if len(line) > 100]
    assert all(len(line.split()) <= 3 for line in long), long  # addresses and hashes stay whole
    return text


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert call("models", *words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    return error


def test_the_list_has_every_model_with_size_and_result(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    text = told(capsys)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert set(lines) == {*SHIPPED, *published.ENTRIES}
    assert len(published.ENTRIES) == 44
    for name, expected in {
        "256x256_diffusion": "diffusion 256 ImageNet, 1000 classes 2.2 GB FID 4.59 guided",
        "64_256_upsampler": "upsampler 64->256 ImageNet, 1000 classes 1.2 GB FID 3.94",
        "64x64_classifier": "classifier 64 ImageNet 262 MB",
        "cifar10_uncond_50M_500K": "diffusion 32 CIFAR-10 210 MB FID 3.19",
        "cd_imagenet64_lpips": "consistency 64 ImageNet, 1000 classes 1.2 GB FID 4.70",
        "edm_cat256_ema": "diffusion 256 LSUN cats 2.1 GB FID 6.69",
        "ddpm_ema_lsun_church": "diffusion 256 LSUN churches 455 MB FID 7.89",
        "fashion-mnist-32": "diffusion 32 Fashion-MNIST, 10 classes here",
    }.items():
        assert " ".join(lines[name].split()) == f"{name} {expected}"
    assert not cache.exists()  # looking makes nothing


def test_what_is_in_the_cache_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "present     no, downloaded" in told(capsys, "lsun_cat")
    file = importing.place_of(published.get("lsun_cat"))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert re.search("lsun_cat .* here  FID 5.57", told(capsys))
    assert "present     yes" in told(capsys, "lsun_cat")
    assert json.loads(told(capsys, "lsun_cat", "--json"))["here"] is True


@pytest.mark.parametrize("name", published.ENTRIES)
def test_everything_about_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = published.get(name)
    text = told(capsys, name)
    assert text.startswith(f"{name}: ")
    for fact in (entry.licence, entry.paper, entry.url or entry.page, f"{entry.parameters:,} parameters", entry.file,
                 entry.data, *filter(None, (entry.sha256, entry.md5))):  # fmt: skip
        assert fact in text
    for result in entry.results:
        assert result.figures in text
    shown = {name for name in METRICS if f"\n  {name} " in text}
    reported = {name for name in METRICS if any(f"{name} " in result.figures for result in entry.results)}
    assert shown == reported  # every metric is explained, and no other


@pytest.mark.parametrize("name", published.ENTRIES)
def test_its_command_lines_can_be_typed(name: str) -> None:
    """They are understood, and what they name exists."""
    lines = [line.strip() for line in commands(published.get(name)) if line.startswith("  ")]
    assert lines
    for line in lines:
        assert len(line) <= 98
        program, *words = shlex.split(line)
        assert program == "undiffuse"
        args = build_parser().parse_args(words)
        if args.command == "sample":
            model = published.get(args.model)
            assert (args.low_res is not None) == (model.kind == "upsampler")
            guidance = model.sampling.guidance.strength  # type: ignore[union-attr]
            assert args.guidance == ([guidance] if guidance else None)
            for text in args.classes or []:
                imagenet_classes.index_of(text)
        else:
            assert (args.command, args.init_from) == ("train", name)


def test_recommended_sampling_is_what_the_line_says() -> None:
    assert commands(published.get("256x256_diffusion"))[1].strip() == (
        'undiffuse sample 256x256_diffusion --class "golden retriever" --guidance 1'
    )
    guided = commands(published.get("256x256_classifier"))
    assert [line.split()[2] for line in guided[1:]] == ["256x256_diffusion", "256x256_diffusion_uncond"]
    assert "--guidance 10" in guided[2]
    assert any("64_256_upsampler --low-res samples" in line for line in commands(published.get("64x64_diffusion")))


def test_json_of_all_and_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    everything = json.loads(told_json(capsys, "--json"))
    assert set(everything) == {*SHIPPED, *published.ENTRIES}
    one = json.loads(told_json(capsys, "512x512_diffusion", "--json"))
    assert one == everything["512x512_diffusion"]
    assert (one["image_size"], one["classes"], one["here"]) == (512, 1000, False)
    assert one["net"]["channel_mult"] == [0.5, 1, 1, 2, 2, 4, 4]
    guided = {"classifier": ["512x512_classifier"], "guidance": [4.0]}
    assert one["sampling"] == {"solver": "ddpm", "steps": "250", **guided}
    assert one["results"][0]["fid"] == 7.72
    assert everything["fashion-mnist-32"]["kind"] == "diffusion"


def told_json(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call("models", *words) == 0
    return capsys.readouterr().out


def test_a_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "fashion-mnist-32") == 0
    text = capsys.readouterr().out
    assert "undiffuse sample --model fashion-mnist-32" in text
    assert "T-shirt/top" in text


def test_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "did you mean 256x256_diffusion" in refused(capsys, "256x256_difusion")
    assert "`undiffuse models` lists them" in refused(capsys, "qwertz")
    (tmp_path / "mine.pt").touch()
    assert "undiffuse inspect " in refused(capsys, tmp_path / "mine.pt")


def test_classes(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--classes", "retriever")
    numbers = [int(line.split()[0]) for line in text.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert numbers == [205, 206, 207, 208, 209]
    assert 'undiffuse sample MODEL --class "flat-coated retriever"' in text
    several = told(capsys, "--classes", "golden", "retriever")  # two words need no quotes
    assert "n02099601  golden retriever" in several
    assert len(several.splitlines()) == 5
    everything = told(capsys, "--classes")
    assert "  999  n15075141  toilet tissue" in everything
    assert len(json.loads(told_json(capsys, "--classes", "--json"))) == 1000
    assert json.loads(told_json(capsys, "--classes", "husky", "--json"))[0] == {
        "number": 248, "synset": "n02109961", "name": "Eskimo dog", "synonyms": ["Eskimo dog", "husky"]
    }  # fmt: skip


def test_classes_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "fashion-mnist-32", "--classes", "shirt").splitlines()[2:] == [
        "     0  T-shirt/top",
        "     6  Shirt",
    ]
    assert "207  n02099601  golden retriever" in told(capsys, "256x256_classifier", "--classes", "207")
    assert "unconditional: it has no classes" in refused(capsys, "lsun_cat", "--classes")


def test_classes_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean golden retriever?" in refused(capsys, "--classes", "golden", "retreiver")
    assert refused(capsys, "--classes", "qwertz").endswith("no class of ImageNet contains 'qwertz'\n")
    assert "no class of fashion-mnist-32" in refused(capsys, "fashion-mnist-32", "--classes", "hat")
    assert json.loads(told_json(capsys, "--classes", "qwertz", "--json")) == []
