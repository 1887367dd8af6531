"""Distillation on the engine: resumed and shared runs, stages, and students as models."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import undiffuse
from support.cli_runs import call, write_classifier, write_images, write_model
from support.training_runs import Processes, assert_same_run, run, tiny_config
from support.variants import few
from undiffuse import checkpoints
from undiffuse.config import GuidanceConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.distillation import METHODS
from undiffuse.models import DiffusionModel, load_classifier, load_diffusion, save_model
from undiffuse.nets import UNetConfig
from undiffuse.training import seeded
from undiffuse.training.distillation import Distillation, DistillationTask, student_process
from undiffuse.util.errors import ConfigError

STUDENT = ProcessConfig(schedule="cosine", steps=20, target="v", variance="fixed_small")
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "moment-matching": {},
    "progressive": {"start": 8},
    "consistency-distillation": {"target_decay": 0.9, "first": 4, "last": 6},
    "consistency-training": {"segments": 0, "first": 4, "last": 8},
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0, null_class: bool = False) -> torch.nn.Module:
    with seeded(seed):
        net = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(2,), num_classes=3, use_scale_shift_norm=True, null_class=null_class,
        ).build()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return net


def write_teacher(path: Path, null_class: bool = False) -> Path:
    """A teacher that predicts v, three classes."""
    labels = ("left", "right", "top")
    save_model(path, DiffusionModel(net=network(7, null_class), process=STUDENT, labels=labels))
    return path


def task_of(teacher: Path, method: str, seed: int = 0, clip: str | None = None, **how: Any) -> DistillationTask:
    settings = {k: v for k, v in METHOD_SETTINGS[method].items() if k != "start"}
    settings |= {} if clip is None else {"clip": clip}
    made = Distillation(teacher=str(teacher), calls=2, method=method, settings=settings, **how)
    return DistillationTask(network(seed), STUDENT, made, train=tiny_config(), labels=("left", "right", "top"))


class Interrupt(BaseException):
    """Stands for a kill in the middle of a run."""


@pytest.mark.parametrize("method", few(METHODS, count=2))
def test_a_resumed_distillation_is_bit_identical(tmp_path: Path, method: str) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    run(tmp_path / "whole", task_of(teacher, method), lr=1e-3)
    task = task_of(teacher, method)
    original, calls = task.losses, iter(range(10**6))

    def terms(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise Interrupt
        return original(*arguments)

    task.losses = terms  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        run(tmp_path / "parts", task, lr=1e-3)
    assert run(tmp_path / "parts", task_of(teacher, method, seed=5), lr=1e-3).complete  # fresh weights do not matter
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_networks_beside_the_student_are_trained_and_kept(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    for method, name in (("moment-matching", "auxiliary"), ("consistency-distillation", "target")):
        run(tmp_path / method, task_of(teacher, method), lr=1e-3)
        tensors, manifest = checkpoints.read(checkpoints.latest(tmp_path / method) or "")
        mine = {key for key in tensors if key.startswith(f"companion.{name}.")}
        assert len(mine) == len(list(network().state_dict()))
        begin = network(7 if name == "auxiliary" else 0).state_dict()
        moved = [key for key in mine if not torch.equal(tensors[key], begin[key.removeprefix(f"companion.{name}.")])]
        assert len(moved) == len(mine)
        moments = [key for key in tensors if key.startswith(f"optimizer.companion.{name}.")]
        assert bool(moments) == (name == "auxiliary")
        assert manifest["distillation"]["method"] == method


def share(folder: str, teacher: str, method: str) -> None:
    torch.set_num_threads(1)
    # Without clipping, because sums in another order put single values on the other side of its bounds.
    task = task_of(Path(teacher), method, seed=int(os.environ.get("RANK", "0")), clip="none")
    run(Path(folder), task, steps=4, lr=1e-3, grad_clip=0.5)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")
def test_two_processes_train_the_student_of_one(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    arguments = (str(tmp_path / "two"), str(teacher), "moment-matching")
    assert Processes(share, *arguments, world_size=2).join(120) == [0, 0]
    share(str(tmp_path / "one"), str(teacher), "moment-matching")
    one, two = (checkpoints.read(checkpoints.latest(tmp_path / name) or "")[0] for name in ("one", "two"))
    for name, value in one.items():
        if not name.startswith("optimizer."):
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=2e-3, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("method", METHODS)
def test_distill_makes_a_model_that_knows_how_it_is_sampled(tmp_path: Path, method: str) -> None:
    model, images = write_model(tmp_path / "model.safetensors"), write_images(tmp_path / "images")
    settings = ",".join(f"{key}={value}" for key, value in METHOD_SETTINGS[method].items())
    out = tmp_path / "student"
    words = ["distill", model, images, "--calls", 2, "--method", method, "--settings", settings, "--images", 32]
    words += ["--batch", 4, "--lr", "1e-3", "--set", "train.preview_count=3", "--out", out]
    assert call(*words) == 0
    assert call(*words) == 0  # complete: nothing to do
    student = load_diffusion(out / "model.safetensors")
    assert student.process == student_process(load_diffusion(model).process, method)
    assert student.distillation is not None
    assert student.distillation["method"] == method
    assert student.distillation["calls"] == 2
    assert len(student.distillation["logsnr"]) == 2
    if method != "consistency-training":
        assert student.distillation["origin"]["name"] == "model.safetensors"
    pipeline = undiffuse.Pipeline.from_pretrained(out / "model.safetensors")
    assert pipeline.path.steps == 2
    assert pipeline.config.solver == {"moment-matching": "ddpm", "consistency-distillation": "consistency"}.get(
        method, "ddim"
    )
    seen = []
    made = pipeline.sample(3, progress=False, on_step=lambda step: seen.append(step.nfe))
    assert seen == [1, 2]
    assert made.images.shape == (3, 8, 8, 1)


def test_progressive_distillation_halves(tmp_path: Path) -> None:
    teacher, images = write_teacher(tmp_path / "teacher.safetensors"), write_images(tmp_path / "images")
    result = undiffuse.distill(
        teacher, images, calls=1, method="progressive", settings={"start": 4}, images=16, batch=4,
        out=tmp_path / "student", progress=False, **{"train.preview_count": 3},
    )  # fmt: skip
    first = load_diffusion(tmp_path / "student-2" / "model.safetensors")
    assert first.distillation is not None
    assert first.distillation["teacher"] == load_diffusion(teacher).digest
    last = result.model
    assert isinstance(last, DiffusionModel)
    assert last.distillation is not None
    assert last.distillation["teacher"] == first.digest
    assert last.distillation["calls"] == 1


def test_a_discriminator_is_trained_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    classifier = write_classifier(tmp_path / "classifier.safetensors")
    settings = {"inputs": "own", "adversarial": 0.1, "discriminator": str(classifier), "every": 2, "wait": 1}

    def task(seed: int = 0) -> DistillationTask:
        how = Distillation(teacher=str(teacher), calls=2, method="moment-matching", settings=settings)
        return DistillationTask(network(seed), STUDENT, how, train=tiny_config(), labels=("left", "right", "top"))

    run(tmp_path / "whole", task(), lr=1e-3)
    stopped = task()
    original, calls = stopped.losses, iter(range(10**6))

    def terms(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise Interrupt
        return original(*arguments)

    stopped.losses = terms  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        run(tmp_path / "parts", stopped, lr=1e-3)
    assert run(tmp_path / "parts", task(5), lr=1e-3).complete
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    tensors, _ = checkpoints.read(checkpoints.latest(tmp_path / "parts") or "")
    begin = load_classifier(classifier).net.state_dict()
    names = [name for name in tensors if name.startswith("companion.discriminator.")]
    assert len(names) == len(begin)
    assert any(not torch.equal(tensors[name], begin[name.removeprefix("companion.discriminator.")]) for name in names)


@pytest.mark.parametrize("method", ["moment-matching", "progressive"])
def test_a_student_is_distilled_from_noise_alone(tmp_path: Path, method: str) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    out = tmp_path / "student"
    words = ["distill", teacher, "--calls", 2, "--method", method, "--images", 16, "--batch", 4, "--out", out]
    words += ["--set", "train.preview_count=3", *(["--settings", "start=4"] if method == "progressive" else [])]
    assert call(*words) == 0
    student = load_diffusion(out / "model.safetensors")
    assert student.distillation is not None
    assert student.distillation["settings"]["inputs"] == "own"
    assert student.labels == ("left", "right", "top")
    result = undiffuse.distill(
        teacher, calls=2, method=method, settings={"start": 4} if method == "progressive" else {}, images=16, batch=4,
        out=tmp_path / "other", progress=False, **{"train.preview_count": 3},
    )  # fmt: skip
    assert result.model.digest == student.digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "consistency-training"), "DATA: is needed by consistency-training, which trains on images; "),
        (("--method", "consistency-distillation"), "moment-matching and progressive can do without"),
        (("--settings", "inputs=data"), "DATA: is needed by these settings"),
        (("--settings", "adversarial=0.1"), "DATA: is needed by these settings"),
    ],
)
def test_what_needs_images_says_so(
    tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    assert call("distill", teacher, *words, "--out", tmp_path / "student") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "student").exists()


def test_a_model_of_noise_first_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("distill", write_model(tmp_path / "model.safetensors"), "--out", tmp_path / "student") == 2
    assert "predicts eps, and first learns from images" in " ".join(capsys.readouterr().err.split())


def test_the_teachers_guidance_is_baked_in(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors", null_class=True)
    classifier = write_classifier(tmp_path / "classifier.safetensors")
    losses = {}
    for name, guidance in {
        "none": GuidanceConfig(),
        "classifier": GuidanceConfig(classifier=(str(classifier),), scale=(5.0,)),
        "cfg": GuidanceConfig(cfg=4.0),
    }.items():
        how = Distillation(teacher=str(teacher), calls=2, method="progressive", guidance=guidance)
        net = network(0, null_class=True)
        task = DistillationTask(net, STUDENT, how, train=tiny_config(), labels=("left", "right", "top"))
        assert Distillation.from_dict(how.to_dict()) == how
        run(tmp_path / name, task, steps=1)
        manifest = checkpoints.read_manifest(checkpoints.latest(tmp_path / name) or "")
        assert bool(manifest["distillation"].get("guidance")) == (name != "none")
        losses[name] = checkpoints.read(checkpoints.latest(tmp_path / name) or "")[0]["net.out.2.weight"]
    assert not torch.equal(losses["none"], losses["classifier"])
    assert not torch.equal(losses["none"], losses["cfg"])


def test_students_are_guided_between_calls_and_refuse_other_levels(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    classifier = write_classifier(tmp_path / "classifier.safetensors")
    run(tmp_path / "run", task_of(teacher, "moment-matching"), steps=1)
    plain = undiffuse.Pipeline.from_pretrained(tmp_path / "run")
    guided = plain.replace(classifier=str(classifier), guidance=20.0)
    images = [p.sample(3, seed=1, progress=False).images for p in (plain, guided)]
    assert (images[0] != images[1]).any()
    for settings in ({"steps": 4}, {"steps": 2, "grid": "logsnr"}, {"steps": 10, "solver": "dpmpp-2m"}):
        with pytest.raises(ConfigError, match="distilled for 2 calls"):
            plain.replace(**settings)


def test_inspect_says_what_a_student_was_distilled_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    run(tmp_path / "run", task_of(teacher, "moment-matching"), steps=1)
    assert call("inspect", tmp_path / "run") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"from a model {load_diffusion(teacher).digest[:12]}, by moment-matching, 2 calls at log-SNR" in text


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"calls": 0}, "calls: expected a whole number of at least 1, got 0"),
        ({"method": "magic"}, "method: 'magic' is unknown; choose one of moment-matching"),
        ({"settings": {"anker": 1}}, "moment-matching has no setting 'anker'; it has: anchor, clip"),
        ({"settings": {"anchor": -1}}, "anchor=-1: expected a number of 0 or more"),
        (
            {"method": "consistency-training", "settings": {"curve": "bent"}},
            "expected one of fixed, original, improved",
        ),
        ({"guidance": GuidanceConfig(cfg=2.0, every=2)}, "a teacher is guided at every call"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match=message):
        Distillation(**{"teacher": str(teacher), "calls": 2, "method": "moment-matching", **how})


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    images = write_images(tmp_path / "images")
    how = Distillation(teacher=str(teacher), calls=2, method="moment-matching")
    other = ProcessConfig(schedule="linear", steps=20, target="v", variance="fixed_small")
    with pytest.raises(ConfigError, match="trained on other noise levels"):
        DistillationTask(network(), other, how, train=tiny_config())
    with pytest.raises(ConfigError, match="has no teacher"):
        guided = GuidanceConfig(cfg=2.0)
        DistillationTask(
            network(), STUDENT,
            Distillation(teacher=str(teacher), calls=2, method="consistency-training", guidance=guided),
            train=tiny_config(),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="start=6 is not a power of two times calls=2; for example 8"):
        undiffuse.distill(teacher, images, calls=2, method="progressive", settings={"start": 6}, progress=False)
