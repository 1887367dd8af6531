"""Where a run was trained is kept in its folder, and a run is repeated from its folder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import one_thread, write_images
from undiffuse import checkpoints
from undiffuse.cli import main
from undiffuse.cli.rerun import _text
from undiffuse.training.face import train
from undiffuse.training.provenance import SESSIONS, command_line, environment, read_sessions
from undiffuse.training.repeat import Repetition, compare_runs, repeat
from undiffuse.util.errors import ConfigError

SMALL: dict[str, Any] = {
    "recipe": "tiny", "size": 8, "width": 8, "batch": 4, "images": 16, "device": "cpu", "progress": False,
    "ema_decays": (0.9,), "preview_steps": 2, "preview_count": 3, "log_every": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


@pytest.fixture
def trained() -> Path:
    write_images(Path("photos"), each=4)
    return train("photos", out="run", seed=3, **SMALL).folder


def test_every_start_is_recorded(trained: Path) -> None:
    train(resume=trained, images=24, progress=False)
    first, second = read_sessions(trained)
    assert [first["images"], second["images"]] == [0, 16]
    assert torch.__version__.startswith(first["versions"]["torch"].partition("+")[0])
    assert first["machine"]["threads"] == 1
    assert first["processes"] == 1
    assert first["command"]


def test_inspect_shows_the_last_start(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "run"]) == 0
    text = capsys.readouterr().out
    assert f"torch {read_sessions(trained)[0]['versions']['torch']}" in text
    assert "1 thread" in text


def test_a_record_cut_short_is_left_out(trained: Path) -> None:
    with open(trained / SESSIONS, "a") as file:
        file.write('{"started": "2026')
    assert len(read_sessions(trained)) == 1


def test_the_environment_is_plain_json() -> None:
    assert json.loads(json.dumps(environment())) == environment()


def test_a_repeated_run_is_identical(trained: Path) -> None:
    found = repeat(trained)
    assert found.folder == Path("run-rerun")
    assert found.identical
    assert found.close
    assert (found.images, found.distance, found.parted) == (16, 0.0, None)
    assert found.records == 4
    assert not found.settings
    assert not found.surroundings


def test_another_seed_is_not_close(trained: Path) -> None:
    train("photos", out="other", seed=4, **SMALL)
    found = compare_runs(trained, "other")
    assert not found.identical
    assert not found.close
    assert found.parted == 4
    assert [item.name for item in found.settings] == ["train.seed"]


def test_a_weight_off_by_rounding_is_close(trained: Path) -> None:
    shutil.copytree(trained, "copy")
    path = checkpoints.latest("copy")
    assert path is not None
    tensors, manifest = checkpoints.read(path)
    name = next(name for name in tensors if name.startswith("net.") and name.endswith("weight"))
    tensors[name] = tensors[name] * (1 + 1e-6)
    path.unlink()
    checkpoints.write(path, tensors, manifest)
    found = compare_runs(trained, "copy")
    assert not found.identical
    assert 0 < found.distance < 1e-6
    assert found.close


def test_changed_images_are_refused(trained: Path) -> None:
    name = next(Path("photos").rglob("*.png"))
    other = next(file for file in sorted(Path("photos").rglob("*.png"), reverse=True) if file != name)
    name.write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match="^run: the images that run was trained on have changed"):
        repeat(trained)


def test_a_run_that_is_not_complete_is_refused(trained: Path) -> None:
    kept = json.loads((trained / "run.json").read_text())
    kept["request"]["images"] = 32
    (trained / "run.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="^run: run was stopped after 16 of 32 images"):
        repeat(trained)


def test_parts_that_only_a_program_has_are_refused() -> None:
    write_images(Path("photos"), each=4)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    train("photos", out="own", optimizer=sgd, **SMALL)
    with pytest.raises(ConfigError, match="^run: own was trained with parts that only its program has: optimizer"):
        repeat("own")

    def loss(denoiser: Any, x0: Any, noise: Any, t: Any, cond: Any) -> Any:
        return denoiser(x0 + noise, denoiser.preconditioning.level(t), cond).x0.square().flatten(1).mean(1)

    train("photos", out="loss", loss=loss, **SMALL)
    with pytest.raises(ConfigError, match=r"^run: loss was trained from Python(?s:.*)objective.loss"):
        repeat("loss")
    train(np.zeros((8, 8, 8, 3), np.uint8), out="memory", **SMALL)
    with pytest.raises(ConfigError, match="was in memory"):
        repeat("memory")


def test_the_folder_of_the_run_is_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="^out: is the folder of the run|^out is the folder of the run"):
        repeat(trained, "run")


def test_command_says_whether_they_are_equal(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "run"]) == 0
    text = capsys.readouterr().out
    assert "run-rerun equals run: after 16 images all weights are the same, bit for bit." in text
    assert "The loss is the same in all 4 records." in text
    path = checkpoints.latest("run")
    assert path is not None
    tensors, manifest = checkpoints.read(path)
    checkpoints.write(path, {name: tensor * 1.1 for name, tensor in tensors.items()}, manifest)
    assert main(["rerun", "run"]) == 1
    assert "run-rerun differs from run: after 16 images the weights differ by 0.09" in capsys.readouterr().out


def test_command_refuses_what_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert main(["rerun", "empty"]) == 2
    assert "RUN: empty has no run.json" in capsys.readouterr().err


def test_a_recorded_command_can_be_pasted() -> None:
    assert command_line(["/usr/bin/undiffuse", "train", "my photos"]) == "undiffuse train 'my photos'"
    assert command_line(["/x/site-packages/undiffuse/__main__.py", "train", "a"]) == "python -m undiffuse train a"


def test_a_run_of_several_parts_is_not_said_to_differ_without_a_reason(tmp_path: Path) -> None:
    lines = [json.dumps({"command": f"undiffuse train {word}"}) for word in ("photos", "--resume run --images 480")]
    (tmp_path / SESSIONS).write_text("\n".join(lines) + "\n")
    common = {"folder": Path("again"), "images": 480, "records": 0, "parted": None, "settings": [], "surroundings": []}
    differs = _text(str(tmp_path), Repetition(identical=False, distance=0.1, **common))  # type: ignore[arg-type]
    assert "in 2 parts:\n  undiffuse train photos\n  undiffuse train --resume run --images 480\n" in differs
    assert "was trained in" not in _text(str(tmp_path), Repetition(identical=True, distance=0.0, **common))  # type: ignore[arg-type]
