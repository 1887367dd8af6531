"""`undiffuse sample --upsampler`: two models in one command, each going on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli_runs import call, one_thread, pixels, write_classifier, write_images, write_model
from support.training_runs import CLASSES
from undiffuse.checkpoints import read_manifest
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import DiffusionModel, save_model
from undiffuse.nets import UNetConfig
from undiffuse.noise import NoiseSource
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import Pipeline, cascade
from undiffuse.pipelines.source import SampleSource
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.training import seeded

FAST = ("--steps", 3, "--upsampler-steps", 2, "--device", "cpu")


def write_enlarger(path: Path, labels: tuple[str, ...] | None = CLASSES, low: int = 8) -> Path:
    """A model that enlarges grey 8x8 to 16x16, told classes where `labels` are given."""
    with seeded(1):
        net = UNetConfig(
            image_size=16, in_channels=1, out_channels=2, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(), super_resolution=True, num_classes=len(labels) if labels else None,
        ).build()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    manifest = {"objective": {"loss": "simple", "low_size": [low, low]}}
    process = ProcessConfig(schedule="cosine", steps=20, variance="learned_range")
    save_model(path, DiffusionModel(net=net, process=process, labels=labels, manifest=manifest))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    with one_thread():
        yield {
            "base": write_model(folder / "base.safetensors"),
            "classifier": write_classifier(folder / "classifier.safetensors"),
            "up": write_enlarger(folder / "up.safetensors"),
            "unconditional": write_enlarger(folder / "unconditional.safetensors", labels=None),
        }


def words(files: dict[str, Path], out: Path, *more: object, up: str = "up") -> list[object]:
    return ["sample", "--model", files["base"], "--upsampler", files[up], "--out", out, "--seed", 5, *FAST, *more]


def test_every_stage_is_what_its_model_makes(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = ("--classifier", files["classifier"], "--guidance", 2, "--class", "top,left", "--count", 3)
    assert call(*words(files, tmp_path, *guided, "--upsampler-solver", "ddim")) == 0
    told = capsys.readouterr().out
    assert "stage 1 of 2: base.safetensors" in told
    assert "guidance 2" in told
    assert "ddim, 2 of 20 steps" in told

    # Stage by stage with the library: noise by hand, 8 bits by truncation, the class told to both models.
    base = Pipeline.load(
        SamplerConfig(model=str(files["base"]), steps="3").replace(classifier=str(files["classifier"]), guidance=2.0),
        "cpu",
    )
    up = Pipeline.load(SamplerConfig(model=str(files["up"]), solver="ddim", steps="2"), "cpu")
    small = to_uint8(base.from_noise(NoiseSource(5, [0, 1, 2]), [2, 0, 2]), "truncate")
    noise = NoiseSource(5, [0, 1, 2], stream="upsampler/")
    large = to_uint8(up.from_noise(noise, [2, 0, 2], from_uint8(small)))

    kept = read_samples(tmp_path / "base" / "samples_3x8x8x1.npz")
    assert kept.labels is not None
    assert kept.labels.tolist() == [2, 0, 2]
    assert np.abs(kept.images.astype(int) - small.numpy()).max() <= 1
    assert (kept.images != small.numpy()).mean() < 0.02  # rounding to nearest would change half of them
    made = read_samples(tmp_path)
    assert made.images.shape == (3, 16, 16, 1)
    assert np.abs(made.images.astype(int) - large.numpy()).max() <= 2
    record = read_record(tmp_path / "002-top_seed5-000002.png")
    assert record["model"] == read_manifest(files["up"])["sha256"]
    assert record["base"]["model"] == read_manifest(files["base"])["sha256"]
    assert (record["base"]["guidance"], record["guidance"], record["class_name"]) == (2.0, 0.0, "top")
    assert (record["base"]["solver"], record["solver"]) == ("ddpm", "ddim")


def test_the_class_reaches_the_upsampler(files: dict[str, Path], tmp_path: Path) -> None:
    up = Pipeline.load(SamplerConfig(model=str(files["up"]), solver="ddim", steps="2"), "cpu")
    low = torch.zeros(1, 1, 8, 8)
    one, other = (up.from_noise(NoiseSource(0, [0]), [k], low) for k in (0, 1))
    assert (one - other).abs().max() > 0.05  # the comparison above would notice another class


def test_the_noise_of_the_stages_is_independent() -> None:
    ours = NoiseSource(1, range(4)).normal((3, 16, 16), purpose="x_T").flatten()
    theirs = NoiseSource(1, range(4), stream=cascade.STREAM).normal((3, 16, 16), purpose="x_T").flatten()
    assert abs(float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])) < 0.1
    again = NoiseSource(1, [2], stream=cascade.STREAM).normal((3, 16, 16), purpose="x_T").flatten()
    assert torch.equal(again, theirs.reshape(4, -1)[2])


def test_a_stopped_run_goes_on_and_nothing_is_made_twice(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[int, list[int]]] = []
    make = SampleSource._make
    stop_at: list[int] = []

    def counted(self: SampleSource, indices: list[int], *rest: object) -> torch.Tensor:
        if stop_at and len(made) == stop_at[0]:
            raise KeyboardInterrupt
        made.append((self.pipeline.shape[1], list(indices)))
        return make(self, indices, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SampleSource, "_make", counted)
    order = words(files, tmp_path / "a", "--count", 4, "--batch", 2)
    stop_at[:] = [1]
    assert call(*order) == 130  # in the first stage
    stop_at[:] = [3]
    assert call(*order) == 130  # in the second
    stop_at[:] = []
    assert call(*order) == 0
    assert made == [(8, [0, 1]), (8, [2, 3]), (16, [0, 1]), (16, [2, 3])]
    capsys.readouterr()
    assert call(*order) == 0
    assert capsys.readouterr().out.count("all images already exist") == 2
    assert len(made) == 4

    assert call(*words(files, tmp_path / "a", "--count", 6, "--batch", 2)) == 0
    assert made[4:] == [(8, [4, 5]), (16, [4, 5])]
    assert call(*words(files, tmp_path / "b", "--count", 6, "--batch", 5)) == 0
    a, b = (read_samples(tmp_path / name).images.astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 2  # an image depends on the seed and its number only


def test_from_record_makes_both_stages_again(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = ("--classifier", files["classifier"], "--guidance", 2, "--count", 3)
    assert call(*words(files, tmp_path / "out", *guided)) == 0
    original, again = tmp_path / "out" / "001-right_seed5-000001.png", tmp_path / "again.png"
    assert call("sample", "--from-record", original, "--out", again, "--device", "cpu") == 0
    assert np.abs(pixels(again) - pixels(original)).max() <= 2
    assert read_record(again)["base"] == read_record(original)["base"]
    capsys.readouterr()
    other = write_model(tmp_path / "other.safetensors", seed=9)
    assert call("sample", "--from-record", original, "--model", other, "--out", tmp_path / "x.png") == 2
    assert f"the model {other} is not the one of the base in the record" in capsys.readouterr().err
    assert call("sample", "--from-record", original, "--upsampler", files["unconditional"]) == 2
    assert "Give the upsampler that made the image" in capsys.readouterr().err
    assert call("sample", "--from-record", original, "--low-res", tmp_path) == 2
    assert "which makes its small images again" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_an_upsampler_without_classes_keeps_them_in_the_names(files: dict[str, Path], tmp_path: Path) -> None:
    assert call(*words(files, tmp_path / "out", "--count", 2, up="unconditional")) == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*_seed*.png"))
    assert names == ["000-left_seed5-000000.png", "001-right_seed5-000001.png"]
    again = tmp_path / "again.png"
    assert call("sample", "--from-record", tmp_path / "out" / names[1], "--out", again) == 0
    assert np.abs(pixels(again) - pixels(tmp_path / "out" / names[1])).max() <= 2


def test_overwrite_begins_both_stages_anew(files: dict[str, Path], tmp_path: Path) -> None:
    assert call(*words(files, tmp_path, "--count", 2)) == 0
    before = read_samples(tmp_path / "base").images
    assert call(*words(files, tmp_path, "--count", 2, "--class", "top")) == 2
    assert call(*words(files, tmp_path, "--count", 2, "--class", "top", "--overwrite")) == 0
    assert (read_samples(tmp_path / "base").images != before).any()
    assert {read_record(path)["class_name"] for path in tmp_path.glob("*_seed*.png")} == {"top"}


def test_another_run_in_the_folder_is_noticed_before_anything_is_made(files: dict[str, Path], tmp_path: Path) -> None:
    assert call("sample", "--model", files["base"], "--count", 1, "--out", tmp_path, "--steps", 3) == 0
    assert call(*words(files, tmp_path)) == 2
    assert not (tmp_path / "base").exists()


def test_mistakes(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*given: object) -> str:
        assert call("sample", "--out", tmp_path / "out", "--device", "cpu", *given) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    pair = ("--model", files["base"], "--upsampler")
    assert "an upsampler must be a super-resolution model" in refused(*pair, files["base"])
    wrong = write_enlarger(tmp_path / "wrong.safetensors", low=4)
    assert "enlarges images of 1x4x4 (channels x height x width)" in refused(*pair, wrong)
    named = write_enlarger(tmp_path / "named.safetensors", labels=("cat", "dog", "cow"))
    assert "the classes of" in refused(*pair, named)
    assert "none is published for" in refused(*pair, "auto")
    small = write_images(tmp_path / "small", each=1)
    assert "omit one" in refused(*pair, files["up"], "--low-res", small)
    assert "must make them from noise" in refused("--model", files["up"], "--upsampler", files["up"])
    assert "--upsampler-steps has no effect without --upsampler" in refused(
        "--model", files["base"], "--upsampler-steps", 3
    )
    assert "cannot keep 99" in refused(*pair, files["up"], "--upsampler-steps", 99)


def test_auto_finds_the_published_upsampler(tmp_path: Path) -> None:
    assert cascade.upsampler_of("64x64_diffusion") == "64_256_upsampler"
    assert cascade.upsampler_of("128x128_diffusion") == "128_512_upsampler"
    (tmp_path / "64x64_diffusion.pt").touch()
    assert cascade.upsampler_of(str(tmp_path / "64x64_diffusion.pt")) == "64_256_upsampler"
    (tmp_path / "64_256_upsampler.pt").touch()
    assert cascade.upsampler_of(str(tmp_path / "64x64_diffusion.pt")) == str(tmp_path / "64_256_upsampler.pt")
    with pytest.raises(ValueError, match="none is published for lsun_cat"):
        cascade.upsampler_of("lsun_cat")
