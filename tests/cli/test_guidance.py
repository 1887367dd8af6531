"""The options of guidance: what they build, their record, and training for classifier-free guidance."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call, one_thread, pixels, write_classifier, write_images, write_model
from undiffuse.checkpoints import read_manifest
from undiffuse.cli.options import sampler_config
from undiffuse.cli.parser import build_parser
from undiffuse.cli.values import guidance_interval
from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, LossGuidance
from undiffuse.models import DiffusionModel, load_classifier, load_diffusion, paired_classifier, save_model
from undiffuse.nets import UNetConfig
from undiffuse.noise_levels import Level
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline

FAST = ("--steps", 4, "--device", "cpu", "--count", 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A model with a null class, one without, and a classifier."""
    folder = tmp_path_factory.mktemp("guides")
    with one_thread():
        plain = load_diffusion(write_model(folder / "plain.safetensors"))
        assert isinstance(plain.net.config, UNetConfig)
        config = plain.net.config.__class__(**{**vars(plain.net.config), "null_class": True})
        torch.manual_seed(1)
        net = config.build()
        for parameter in net.parameters():  # the output layer begins at zero
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        save_model(folder / "free.safetensors", DiffusionModel(net, plain.process, plain.labels))
        write_classifier(folder / "judge.safetensors")
        write_model(folder / "weak.safetensors", seed=3)
        yield {name: folder / f"{name}.safetensors" for name in ("plain", "free", "judge", "weak")}


def settings(*words: Any) -> SamplerConfig:
    args = build_parser().parse_args(["sample", *map(str, words)])
    return sampler_config(args)


def resolved(*words: Any) -> GuidanceConfig:
    """The guidance that these options mean for the shipped model."""
    return settings("fashion-mnist-32", *words).guidance.resolved("fashion-mnist-32", paired_classifier)


def made(out: Path, *words: Any) -> tuple[Path, dict[str, Any]]:
    """The first image that `undiffuse sample` makes, and its record."""
    assert call("sample", "--out", out, *FAST, *words) == 0
    (picture,) = out.glob("*_seed*.png")
    return picture, read_record(picture)


def test_intervals_are_read() -> None:
    assert guidance_interval("-1,3.5") == ("logsnr", -1.0, 3.5)
    assert guidance_interval("-inf,2") == ("logsnr", -math.inf, 2.0)
    assert guidance_interval("sigma:0.19,1.61") == ("sigma", 0.19, 1.61)
    assert guidance_interval("Steps:0.2,0.8") == ("steps", 0.2, 0.8)
    for text in ("3,-1", "1", "1,2,3", "a,b", "steps:0,2", "sigma:-1,2", "alpha:1,2", ":1,2", "nan,2", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected LO,HI"):
            guidance_interval(text)


def test_options_build_what_they_say(files: dict[str, Path]) -> None:
    """Classifier-free guidance inside, autoguidance around it, the classifiers outside, all with schedule and every."""
    sampler = Pipeline.load(
        settings(
            files["free"], "--cfg", 3, "--cfg-rescale", 0.5, "--autoguide", files["weak"], "--autoguide-scale", 1.5,
            "--classifier", files["judge"], "--guidance", 2, "--classifier", files["judge"], "--guidance", -0.5,
            "--guidance-at", "x0", "--guidance-temperature", 2, "--guidance-normalize", "--guidance-every", 2,
            "--guidance-schedule", "linear", "--guidance-interval", "-1,3", "--steps", 6,
        ),
        "cpu",
    )  # fmt: skip
    outer = sampler.denoiser
    assert isinstance(outer, ClassifierGuidance)
    inner = outer.denoiser
    assert isinstance(inner, ClassifierGuidance)
    assert (inner.scale, outer.scale, inner.at, inner.normalize) == (2.0, -0.5, "x0", True)
    auto = inner.denoiser
    assert isinstance(auto, Autoguidance)
    assert (auto.scale, auto.rescale) == (1.5, 0.5)
    free = auto.denoiser
    assert isinstance(free, ClassifierFree)
    assert (free.scale, free.rescale, free.null) == (3.0, 0.5, {"y": 3})
    level = sampler.model.process.chain().level(10)
    for layer in (outer, inner, auto, free):
        assert layer.cache.every == 2
        assert layer.schedule is not None
        assert 0 <= float(layer.schedule(level)) <= 2
    assert len(sampler.others) == 2
    text = "guidance 2 at x0, and -0.5, temperature 2, normalised, cfg 3, autoguided 1.5, rescaled 0.5, interval -1,3"
    assert text in sampler.text()


def test_passes_in_one_batch_unless_sizes_would_change(files: dict[str, Path]) -> None:
    """Where only some calls ask twice, weights packed for one size of batch would be packed anew again and again."""
    for words, together in (((), True), (("--guidance-every", 2), False), (("--cfg-two-passes",), False)):
        sampler = Pipeline.load(settings(files["free"], "--cfg", 3, *words), "cpu")
        assert isinstance(sampler.denoiser, ClassifierFree)
        assert sampler.denoiser.together is together


def test_steps_of_an_interval_are_those_of_the_path(files: dict[str, Path]) -> None:
    """The middle half of four steps is the second and the third, on whatever grid."""
    for steps in ("4", "at:0,3,10,19"):
        sampler = Pipeline.load(
            settings(files["free"], "--cfg", 2, "--guidance-interval", "steps:0.25,0.75", "--steps", steps), "cpu"
        )
        assert isinstance(sampler.denoiser, ClassifierFree)
        schedule = sampler.denoiser.schedule
        assert schedule is not None
        assert [float(schedule(sampler.path.level(k))) for k in (3, 2, 1, 0)] == [0, 1, 1, 0]
    begin = "; they begin at log-SNR -"
    for interval, told in (("steps:0.3,0.4", ""), ("50,60", begin), ("sigma:1e5,inf", begin)):
        with pytest.raises(ValueError, match=f"none of the 4 steps{told}"):
            Pipeline.load(settings(files["free"], "--cfg", 2, "--guidance-interval", interval, "--steps", 4), "cpu")
    sampler = Pipeline.load(settings(files["free"], "--cfg", 2, "--guidance-interval", "sigma:0.5,2"), "cpu")
    assert isinstance(sampler.denoiser, ClassifierFree)
    assert sampler.denoiser.schedule is not None
    for ratio, inside in ((0.4, 0), (0.6, 1), (1.9, 1), (2.1, 0)):
        alpha = torch.tensor([1 / math.sqrt(1 + ratio**2)], dtype=torch.float64)
        assert float(sampler.denoiser.schedule(Level(alpha, ratio * alpha))) == inside


VARIANTS: dict[str, tuple[Any, ...]] = {
    "cfg": ("free", "--cfg", 3, "--guidance-interval", "-2,9"),
    "two passes": ("free", "--cfg", 3, "--cfg-two-passes", "--cfg-rescale", 0.7),
    "auto": ("plain", "--autoguide", "weak", "--autoguide-scale", 3, "--guidance-schedule", "cosine"),
    "classifiers": ("plain", "--classifier", "judge", "--guidance", 9, "--classifier", "judge", "--guidance", -20),
    "x0": ("plain", "--classifier", "judge", "--guidance", 9, "--guidance-at", "x0", "--guidance-temperature", 0.5),
    "normalised": ("plain", "--classifier", "judge", "--guidance", 0.5, "--guidance-normalize", "--guidance-every", 2),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_guided_images_differ_and_are_made_again(
    name: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [files.get(word, word) if isinstance(word, str) else word for word in VARIANTS[name]]
    picture, record = made(tmp_path / "a", *words)
    unguided, plain = made(tmp_path / "b", words[0])
    assert (pixels(picture) != pixels(unguided)).any()
    told = set(record) - set(plain) - {"classifier_file"}
    assert told, "the options are in the record"
    settings_again = SamplerConfig.from_record(record)
    assert settings_again.guidance != GuidanceConfig() or name == "x0"
    capsys.readouterr()
    assert call("sample", "--from-record", picture, "--out", tmp_path / "again.png", "--device", "cpu") == 0
    assert "identical" in capsys.readouterr().out
    assert set(read_record(tmp_path / "again.png")) == set(record)


def test_old_records_mean_what_they_meant(files: dict[str, Path], tmp_path: Path) -> None:
    """A record without the options, as all were, is one of no such guidance; new ones still lack them."""
    _, record = made(tmp_path, files["plain"], "--classifier", files["judge"], "--guidance", 2)
    assert SamplerConfig.from_record(record).guidance == GuidanceConfig(classifier=(str(files["judge"]),), scale=(2.0,))
    new = {"cfg", "autoguide", "guidance_every", "guidance_interval", "guidance_schedule", "more_classifiers"}
    assert not new & set(record)
    assert (record["guidance"], record["guidance_at"]) == (2.0, "x_t")


def test_records_that_cannot_be_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    _, record = made(tmp_path, files["plain"], "--autoguide", files["weak"])
    wrong = [
        ("cfg", "much", "a finite number"), ("cfg_rescale", 2, "from 0 to 1"), ("guidance_every", 0, "at least 1"),
        ("guidance_schedule", "steep", "constant, linear or cosine"), ("guidance_interval", "3,1", "LO,HI in log-SNR"),
        ("more_classifiers", [["a"]], "a list of pairs"), ("guidance_temperature", 0, "above 0"),
        ("autoguide_file", None, "lacks autoguide_file"), ("guidance_normalize", 1, "true or false"),
        ("more_classifiers", [["abc", 1.0]], "of 2 classifiers"),
    ]  # fmt: skip
    for name, value, expected in wrong:
        with pytest.raises(ValueError, match=expected):
            SamplerConfig.from_record({**record, name: value})
    other = SamplerConfig.from_record(record, autoguide=str(files["plain"]))
    with pytest.raises(ValueError, match="the autoguidance model is not the one"):
        Pipeline.load(other, "cpu").check_identity(record)
    same = Pipeline.load(SamplerConfig.from_record(record), "cpu")
    same.check_identity(record)
    with pytest.raises(ValueError, match="the autoguidance model is not the one"):
        same.check_identity({**record, "autoguide_weights": "0.9"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plain", "--cfg", 3), "label-dropout"),
        (("free", "--guidance-interval", "0,1"), "add `guidance`, `cfg` or `autoguide`"),
        (("free", "--cfg-rescale", 0.5), "`cfg` or `autoguide`"),
        (("free", "--cfg", 2, "--guidance-temperature", 2), "add `guidance`"),
        (("free", "--autoguide-scale", 3), "add `autoguide`"),
        (("free", "--cfg", 2, "--guidance-at", "x0"), "guidance_at has no effect without guidance; add `guidance`"),
        (("free", "--guidance", 2, "--classifier", "judge", "--cfg-two-passes"), "add `cfg`"),
        (("free", "--classifier", "judge", "--classifier", "judge", "--guidance", 1), "one scale for each classifier"),
        (("plain", "--autoguide", "judge"), "is a classifier"),
        (("plain", "--autoguide", "fashion-mnist-32"), "weaker version of the model: it makes images of 1x32x32"),
    ],
)
def test_options_that_do_not_fit(words: tuple[Any, ...], expected: str, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=expected):
        Pipeline.load(settings(*(files.get(w, w) if isinstance(w, str) else w for w in words)), "cpu")


@pytest.mark.parametrize(
    "words",
    [
        ("--guidance", 0, "--guidance-interval", "0,1", "--guidance-temperature", 2, "--guidance-every", 3),
        ("--cfg", 1, "--cfg-rescale", 0.5, "--cfg-two-passes", "--guidance-schedule", "linear"),
        ("--autoguide", "weak.safetensors", "--autoguide-scale", 1, "--guidance-every", 2),
    ],
)
def test_a_strength_that_does_nothing_is_no_guidance(words: tuple[Any, ...]) -> None:
    """So that one of several compared strengths may be none, with the same other options and the same record."""
    assert resolved(*words) == GuidanceConfig()
    both = resolved(*words, *(("--cfg", 3) if "--cfg" not in words else ("--guidance", 2)))
    shaping = {"guidance_interval", "guidance_every", "guidance_schedule"} & {
        str(word).strip("-").replace("-", "_") for word in words
    }
    assert shaping, "of all guidance, so it stays where there is another one"
    assert all(getattr(both, n) != getattr(GuidanceConfig(), n) for n in (s.removeprefix("guidance_") for s in shaping))
    assert (both.temperature, both.cfg_two_passes) == (1.0, False)


def test_weights_of_the_model_itself_can_guide() -> None:
    chosen = resolved("--autoguide-weights", "net")
    assert (chosen.autoguide, chosen.autoguide_weights) == ("fashion-mnist-32", "net")
    assert settings("fashion-mnist-32").guidance == GuidanceConfig()


@pytest.mark.filterwarnings("error")
def test_gradients_go_through_both_compared_models(files: dict[str, Path]) -> None:
    """At x0 the networks that are compared keep their gradients: as those of plain models."""
    words = ("--autoguide", files["weak"], "--autoguide-scale", 3, "--classifier", files["judge"], "--guidance", 5)
    sampler = Pipeline.load(settings(files["plain"], *words, "--guidance-at", "x0", "--clip", "none"), "cpu")
    main, weak = (load_diffusion(files[name]) for name in ("plain", "weak"))
    judge = load_classifier(files["judge"]).level_classifier()
    for model in (main, weak):
        model.net.requires_grad_(False).eval()
    both = Autoguidance(main.denoiser("none"), weak.denoiser("none"), 3.0)
    truth = ClassifierGuidance(both, judge, 5.0, "x0")
    x, cond = torch.randn(2, *main.image_shape, generator=torch.Generator().manual_seed(0)), {"y": torch.tensor([0, 2])}
    level = main.process.chain().level(10)
    (ours,), (theirs,) = (d(x, level, cond).guides for d in (sampler.denoiser, truth))
    expected = theirs.gradient(x, level)
    assert expected.abs().max() > 0
    torch.testing.assert_close(ours.gradient(x, level), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    alone = ClassifierGuidance(main.denoiser("none"), judge, 5.0, "x0")(x, level, cond).guides[0].gradient(x, level)
    assert not torch.allclose(alone, expected, rtol=0.05), "the weaker model's part is seen"


def test_a_network_without_gradients_gives_no_wrong_ones(files: dict[str, Path]) -> None:
    model = load_diffusion(files["plain"])
    denoiser = model.denoiser(precision="fp32")
    guided = LossGuidance(denoiser, lambda x0: x0.square().flatten(1).sum(1))
    x, level = torch.zeros(1, *model.image_shape), model.process.chain().level(3)
    with pytest.raises(ValueError, match="prepare it with gradient=True"):
        guided(x, level, {"y": torch.tensor([1])})
    ready = LossGuidance(load_diffusion(files["plain"]).denoiser(precision="fp32", gradient=True), guided.loss)
    assert torch.isfinite(ready(x, level, {"y": torch.tensor([1])}).guides[0].gradient(x, level)).all()


def test_more_memory_is_expected(files: dict[str, Path]) -> None:
    """Two passes in one batch, and a gradient through the network, take more for each image."""
    size = lambda *words: Pipeline.load(settings(*words), "cpu").bytes_per_image  # noqa: E731
    judge = ("--classifier", files["judge"])
    assert size(files["free"], "--cfg", 2) > 1.5 * size(files["free"])
    assert size(files["free"], "--cfg", 2, "--cfg-two-passes") == size(files["free"])
    assert size(files["free"], *judge, "--guidance-at", "x0") > size(files["free"], *judge)
    through, weak = (*judge, "--guidance-at", "x0"), ("--autoguide", files["weak"])
    assert size(files["free"], *weak, *through) > 1.5 * size(files["free"], *through) > size(files["free"], *weak)


def test_training_without_labels_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`undiffuse train --label-dropout` makes a model for `--cfg`; the same command goes on, another refuses."""
    with one_thread():
        data = write_images(tmp_path / "data")
        net = (
            "model_channels=8",
            "channel_mult=1,2",
            "num_res_blocks=1",
            "attention_resolutions=2",
            "num_head_channels=8",
        )
        sets = [f"net.{field}" for field in net] + ["train.preview_every=none", "process.steps=50"]
        words = [
            "train",
            data,
            "--out",
            tmp_path / "run",
            "--label-dropout",
            0.5,
            "--steps",
            3,
            "--batch",
            4,
            "--size",
            8,
        ]
        words += ["--device", "cpu", *(word for field in sets for word in ("--set", field))]
        assert call(*words) == 0
        assert "label dropped for 50 % of the images" in capsys.readouterr().out
        manifest = read_manifest(tmp_path / "run" / "model.safetensors")
        assert manifest["net"]["null_class"] is True
        assert manifest["objective"]["label_dropout"] == 0.5
        _, record = made(tmp_path / "out", tmp_path / "run", "--cfg", 2)
        assert record["cfg"] == 2.0
        assert call(*words) == 0, "the same run, finished"
        changed = [0.1 if word == 0.5 else word for word in words]
        assert call(*changed) != 0
        assert "label_dropout" in capsys.readouterr().err
        assert call("train", data, "--unconditional", "--label-dropout", 0.1, "--out", tmp_path / "no") != 0
