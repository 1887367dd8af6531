"""`undiffuse sample`: what it writes, that it continues, and that its pictures can be made again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call, one_thread, pixels, write_classifier, write_images, write_model, write_upsampler
from undiffuse.checkpoints import read_manifest
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.pictures import read_record, read_samples

FAST = ("--steps", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with one_thread():
        yield write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "classifier.safetensors")


def test_images_cycle_through_the_classes_and_carry_their_record(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call("sample", "--model", model, "--count", 5, "--seed", 7, "--out", out, *FAST) == 0
    told = capsys.readouterr().out
    assert "5 images made" in told
    assert str(out / "grid.png") in told
    names = sorted(file.name for file in out.glob("*_seed*.png"))
    assert names == [
        "000-left_seed7-000000.png", "000-left_seed7-000003.png", "001-right_seed7-000001.png",
        "001-right_seed7-000004.png", "002-top_seed7-000002.png",
    ]  # fmt: skip
    record = read_record(out / names[-1])
    assert record["model"] == read_manifest(model)["sha256"]
    assert (record["seed"], record["index"], record["class_name"]) == (7, 2, "top")
    assert (record["solver"], record["steps"], record["guidance"]) == ("ddpm", "3", 0.0)
    assert read_record(out / "grid.png")["seed"] == 7
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 90  # a column a class


def test_the_same_command_makes_only_what_is_missing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sample", "--model", model, "--count", 6, "--out", tmp_path, *FAST)
    assert call(*words) == 0
    gone = next(tmp_path.glob("*-000004.png"))
    before = {file.name: (file.stat().st_mtime_ns, pixels(file)) for file in tmp_path.glob("*_seed*.png")}
    gone.unlink()
    capsys.readouterr()
    assert call(*words) == 0
    assert "1 image made (5 already existed)" in capsys.readouterr().out
    for name, (when, image) in before.items():
        assert (tmp_path / name).stat().st_mtime_ns == when or name == gone.name
        assert np.abs(pixels(tmp_path / name) - image).max() <= 1
    assert call(*words) == 0
    assert "all images already exist" in capsys.readouterr().out
    assert call(*words, "--seed", 1) == 2  # another run does not mix with this one
    assert "holds samples made with other settings:\n  seed: 0 there, 1 now\n" in capsys.readouterr().err
    assert call(*words, "--seed", 1, "--overwrite") == 0
    assert {read_record(file)["seed"] for file in tmp_path.glob("*_seed*.png")} == {1}


@pytest.mark.parametrize("solver", [("ddim", "--eta", "1"), ("ddpm",)])
def test_an_image_does_not_depend_on_batch_and_count(model: Path, tmp_path: Path, solver: tuple[str, ...]) -> None:
    for name, batch, count in (("a", 1, 4), ("b", 7, 8)):
        words = ("--batch", batch, "--count", count, "--out", tmp_path / name, "--solver", *solver)
        assert call("sample", "--model", model, *words, *FAST) == 0
    a, b = (read_samples(tmp_path / name) for name in "ab")
    assert len(a.images) == 4
    assert np.abs(a.images.astype(int) - b.images[:4].astype(int)).max() <= 1
    assert len({image.tobytes() for image in b.images}) == 8


def test_formats_and_animation(model: Path, tmp_path: Path) -> None:
    words = ("sample", "--model", model, "--count", 4, *FAST, "--class", "top,left")
    assert call(*words, "--out", tmp_path / "both", "--format", "both", "--animation", "gif") == 0
    assert call(*words, "--out", tmp_path / "npz", "--format", "npz", "--batch", 3) == 0
    packed = tmp_path / "both" / "samples_4x8x8x1.npz"
    with np.load(packed) as a, np.load(tmp_path / "npz" / packed.name) as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"].astype(int)).max() <= 1
        assert a["arr_1"].tolist() == b["arr_1"].tolist() == [2, 0, 2, 0]
    assert not list((tmp_path / "npz").glob("*_seed*.png"))
    assert (tmp_path / "npz" / "grid.png").is_file()
    with Image.open(tmp_path / "both" / "path.gif") as movie:
        assert movie.n_frames == 3  # every step
        movie.seek(2)
        frame = np.asarray(movie.convert("L")).astype(int)
    first = pixels(next((tmp_path / "both").glob("*-000000.png")))
    assert np.abs(frame[:96:12, :96:12] - first).max() <= 1  # it ends at the images


def test_guidance_changes_images_and_is_recorded(model: Path, classifier: Path, tmp_path: Path) -> None:
    plain = ("sample", "--model", model, "--count", 3, *FAST)
    guided = (*plain, "--classifier", classifier)
    assert call(*plain, "--out", tmp_path / "plain") == 0
    assert call(*guided, "--guidance", 30, "--out", tmp_path / "x_t") == 0
    at_mean = ("--guidance-at", "mean")
    assert call(*guided, "--out", tmp_path / "mean", *at_mean) == 0
    images = [read_samples(tmp_path / name).images.astype(int) for name in ("plain", "x_t")]
    assert np.abs(images[0] - images[1]).max() > 1
    record = read_record(next((tmp_path / "mean").glob("*_seed*.png")))
    assert record["guidance"] == 1.0
    assert record["guidance_at"] == "mean"
    assert record["classifier"] == read_manifest(classifier)["sha256"]


def test_from_record(model: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("--classifier", classifier, "--guidance", 3, "--solver", "ddpm", "--class", "right")
    assert call("sample", "--model", model, "--count", 3, "--out", out, *words, *FAST) == 0
    original = out / "001-right_seed0-000002.png"
    again = tmp_path / "again.png"
    capsys.readouterr()
    assert call("sample", "--from-record", original, "--out", again, "--device", "cpu") == 0
    told = capsys.readouterr().out
    assert "image 2 of seed 0, ddpm, 3 of 20 steps, guidance 3" in told
    assert np.abs(pixels(again) - pixels(original)).max() <= 1
    assert read_record(again)["index"] == 2

    for option in (("--steps", 7), ("--guidance", 2), ("--precision", "bf16")):  # never ignored silently
        assert call("sample", "--from-record", original, *option, "--out", tmp_path / "other.png") == 2
        assert f"{option[0]} cannot be combined with --from-record" in capsys.readouterr().err
    assert not (tmp_path / "other.png").exists()
    assert call("sample", "--from-record", out / "grid.png") == 2
    assert "is not a single sample" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "bare.png")
    assert call("sample", "--from-record", tmp_path / "bare.png") == 2
    assert "carries no undiffuse record" in capsys.readouterr().err


def test_from_record_notices_another_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", "--model", model, "--count", 1, "--out", tmp_path / "out", *FAST) == 0
    original = next((tmp_path / "out").glob("*_seed*.png"))
    other = write_model(tmp_path / "other.safetensors", seed=9)
    capsys.readouterr()
    assert call("sample", "--from-record", original, "--model", other, "--out", tmp_path / "x.png") == 2
    assert "is not the one of the record" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_super_resolution_model_enlarges_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_upsampler(tmp_path / "up.safetensors")
    small = write_images(tmp_path / "small", each=1, size=(4, 4))
    words = ("sample", "--model", model, "--out", tmp_path / "out", *FAST)
    assert call(*words) == 2
    assert "--low-res is missing: this model enlarges images" in capsys.readouterr().err
    assert call(*words, "--low-res", small) == 0
    samples = read_samples(tmp_path / "out")
    assert samples.images.shape == (3, 8, 8, 1)  # one for each small image
    names = sorted(file.relative_to(small).as_posix() for file in small.rglob("*.png"))
    made = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.png")}
    assert made == {*names, "grid.png"}  # named as the small ones
    one = tmp_path / "out" / names[1]
    assert call("sample", "--from-record", one, "--out", tmp_path / "again.png") == 0
    assert np.abs(pixels(tmp_path / "again.png") - pixels(one)).max() <= 1
    capsys.readouterr()
    other = write_images(tmp_path / "other", each=2, size=(4, 4))
    assert call("sample", "--from-record", one, "--low-res", other, "--out", tmp_path / "no.png") == 2
    assert "are not those the record was made with" in capsys.readouterr().err
    assert call(*words, "--low-res", small, "--count", 5) == 0  # the same run, made longer
    assert len(read_samples(tmp_path / "out").images) == 5
    large = write_images(tmp_path / "large", each=1, size=(8, 8))
    assert call(*words[:3], "--out", tmp_path / "o", *FAST, "--low-res", large) == 2
    error = capsys.readouterr().err
    assert "--low-res has 3 images of another size than the model enlarges" in error and "is 8x8, expected 4x4" in error
    assert "undiffuse convert --size 4" in error and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--class", "hat"], "class 'hat' is none of the model's classes: left, right, top"),
        (["--class", "7"], "the model has classes 0 to 2"),
        (
            ["--guidance", "2"],
            "needs a classifier of noisy images, and none is known for this model: give --classifier",
        ),
        (["--steps", "99"], "cannot keep 99 steps: it has 20 of the 20"),
        (["--steps", "many"], "cannot read the respacing 'many'"),
        (["--solver", "ddpm", "--eta", "0.5"], "--eta is the noise of ddim"),
        (["--weights", "0.5"], "has no weights '0.5'; it has: net"),
        (["--low-res", "."], "this model does not enlarge images"),
        (["--device", "toaster"], "unknown device 'toaster'; expected auto, cpu, cuda"),
    ],
)
def test_mistakes(words: list[str], told: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", "--model", model, "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_guidance_at_the_mean_needs_ancestral_sampling(
    model: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--classifier", classifier, "--guidance-at", "mean", "--solver", "ddim", "--out", tmp_path / "out")
    assert call("sample", "--model", model, *words) == 2
    assert "works with the solver ddpm only" in capsys.readouterr().err


def test_models_and_classifiers_are_told_apart(
    model: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", "--model", classifier, "--out", tmp_path / "out") == 2
    assert "is a classifier; a diffusion model is needed" in capsys.readouterr().err
    assert call("sample", "--model", model, "--classifier", model, "--out", tmp_path / "out") == 2
    assert "is a diffusion model; a noisy-image classifier is needed" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.pictures import SampleWriter

    write = SampleWriter.write
    calls = iter(range(100))

    def interrupted(self: SampleWriter, *arguments: object) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(self, *arguments)  # type: ignore[arg-type]

    words = ("sample", "--model", model, "--count", 6, "--batch", 2, "--out", tmp_path, *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "write", interrupted)
        assert call(*words) == 130
    told = capsys.readouterr().err
    assert "repeat the command to resume" in told
    assert "Traceback" not in told
    assert len(list(tmp_path.glob("*_seed*.png"))) == 4
    assert call(*words) == 0
    assert "2 images made (4 already existed)" in capsys.readouterr().out


def test_the_solver_follows_from_the_model(model: Path, tmp_path: Path) -> None:
    def solver(name: str, *words: object) -> tuple[str, str]:
        assert call("sample", "--out", tmp_path / name, "--count", 1, *words) == 0
        record = read_record(next(file for file in (tmp_path / name).rglob("*.png") if file.name != "grid.png"))
        return record["solver"], record["steps"]

    assert solver("learned", "--model", model) == ("ddpm", "20")  # 20 is all it has
    assert solver("noisy", "--model", model, "--eta", "0.5") == ("ddim", "20")
    up = write_upsampler(tmp_path / "up.safetensors")  # its variance is fixed
    small = write_images(tmp_path / "small", each=1, size=(4, 4))
    assert solver("fixed", "--model", up, "--low-res", small) == ("ddim", "20")


def test_ddim_takes_the_original_grid_and_clips_again_after_guidance() -> None:
    process = ProcessConfig(schedule="cosine", steps=1000)
    chosen = SamplerConfig(solver="ddim").resolved(process)
    assert chosen.steps == "ddim50"
    assert chosen.clip_after_guidance


def test_overwrite_removes_samples_only(model: Path, tmp_path: Path) -> None:
    words = ("sample", "--model", model, "--count", 2, "--out", tmp_path, *FAST)
    Image.new("L", (8, 8)).save(tmp_path / "holiday.png")
    assert call(*words) == 2  # would lie among the pictures of somebody else
    (tmp_path / "holiday.png").unlink()
    assert call(*words, "--format", "both") == 0
    (tmp_path / "notes.txt").write_text("mine")
    Image.new("L", (8, 8)).save(tmp_path / "holiday.png")
    assert call(*words, "--seed", 3, "--overwrite") == 0
    assert sorted(os.listdir(tmp_path)) == [
        "000-left_seed3-000000.png", "001-right_seed3-000001.png", "grid.png", "holiday.png", "notes.txt", "run.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 3


def test_the_kernels_of_a_run_are_recorded_and_used_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undiffuse import kernels
    from undiffuse.kernels import Plan
    from undiffuse.pictures import read_record
    from undiffuse.pipelines import Pipeline
    from undiffuse.pipelines.record import regenerate
    from undiffuse.pipelines.run import SamplingRun

    plans: list[Plan] = []
    original = Plan.__init__

    def noted(self: Plan, *given: object, **more: object) -> None:
        original(self, *given, **more)  # type: ignore[arg-type]
        plans.append(self)

    with kernels.using("rule"):
        pipeline = Pipeline.from_pretrained(model, steps=2)
        SamplingRun.of(pipeline, tmp_path / "out", count=2, batch=2).run(progress=False)
        picture = min(file for file in (tmp_path / "out").glob("*.png") if file.name != "grid.png")
        record = read_record(picture)
        wanted = {"batch": 2, "torch": ["conv3x3_packed fp32 32-32 77x77"]}
        changed = {**record, "kernels": wanted}
        monkeypatch.setattr("undiffuse.pipelines.record.read_record", lambda path: changed)
        monkeypatch.setattr("undiffuse.pipelines.run.read_record", lambda path: changed)
        monkeypatch.setattr(Plan, "__init__", noted)
        again = regenerate(picture)
        assert again.difference == 0 and again.record["kernels"]["torch"] == wanted["torch"] and not again.remarks
        SamplingRun.of(pipeline, tmp_path / "out", count=3, batch=2).run(progress=False)
        assert any(plan.record().get("torch") == wanted["torch"] and plan.batch == 2 for plan in plans[-2:])
