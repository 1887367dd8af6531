"""What a checkup says of runs: each finding on the records that call for it, and silence on those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.training.checkup import Finding, check_run


def run_folder(path: Path, losses: Any, *, count: int = 50_000, total: int | None = None, **more: Any) -> Path:
    """A run folder with a record of training every 100 images, and an empty checkpoint at its end."""
    (path / "checkpoints").mkdir(parents=True)
    total = 100 * len(losses) if total is None else total
    records = [{"kind": "start", "images": 0, "steps": 0}]
    for k, loss in enumerate(losses, 1):
        records.append(
            {"kind": "train", "images": 100 * k, "steps": 10 * k, "mse": float(loss), "total_images": total,
             "seconds_left": 90.0, "skipped": more.get("skipped", 0) if k == len(losses) else 0}
        )  # fmt: skip
    records += more.get("records", [])
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "config.json").write_text(json.dumps({"data": {"count": count, "config": {"path": "photos"}}, "train": {}}))
    (path / "checkpoints" / f"{100 * len(losses):010d}.safetensors").write_bytes(b"")
    return path


def falling(n: int = 80, noise: float = 0.01) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(0))
    return 1 / np.arange(1, n + 1) + 0.2 + noise * rng.standard_normal(n)


def flat(n: int = 80, noise: float = 0.01) -> np.ndarray:
    return 0.3 + noise * np.random.Generator(np.random.PCG64(1)).standard_normal(n)


def said(found: list[Finding], severity: str) -> str:
    return "\n".join(item.text for item in found if item.severity == severity)


def test_nothing_is_wrong_with_a_run_that_levelled_off(tmp_path: Path) -> None:
    found = check_run(run_folder(tmp_path / "run", flat()))
    assert said(found, "problem") == said(found, "advice") == ""
    assert "no longer falls measurably" in said(found, "fine")
    assert "Nothing is wrong" in said(found, "fine")


def test_a_run_that_still_improves_should_be_longer(tmp_path: Path) -> None:
    losses = np.linspace(1.0, 0.2, 80) + 0.001 * np.random.Generator(np.random.PCG64(2)).standard_normal(80)
    found = check_run(run_folder(tmp_path / "run", losses))
    assert "still falling at the end" in said(found, "advice")
    assert found[0].do == f"Train longer: undiffuse train --resume {tmp_path / 'run'} --images 16000"


def test_a_rising_loss_is_a_problem(tmp_path: Path) -> None:
    losses = flat()
    losses[-20:] += np.linspace(0.05, 0.3, 20)
    found = check_run(run_folder(tmp_path / "run", losses))
    assert "The mean squared error rises" in said(found, "problem")
    assert "Nothing is wrong" not in said(found, "fine")


def test_noise_is_not_taken_for_a_trend(tmp_path: Path) -> None:
    for seed in range(20):
        rng = np.random.Generator(np.random.PCG64(seed + 10))
        found = check_run(run_folder(tmp_path / str(seed), 0.3 + 0.05 * rng.standard_normal(80)))
        assert said(found, "problem") == ""


def test_a_stopped_run_says_how_to_resume(tmp_path: Path) -> None:
    end = {"kind": "end", "images": 2000, "steps": 200, "text": "stopped by SIGTERM after 2,000 images"}
    found = check_run(run_folder(tmp_path / "run", flat(20), total=10_000, records=[end]))
    assert "2,000 of 10,000 images" in said(found, "advice")
    assert "stopped by SIGTERM" in said(found, "advice")
    assert f"undiffuse train --resume {tmp_path / 'run'}" in found[0].do


def test_skipped_updates_are_counted(tmp_path: Path) -> None:
    skip = {"kind": "skipped", "images": 50, "steps": 5, "files": ["bad.png"]}
    few = check_run(run_folder(tmp_path / "few", flat(), skipped=3, records=[skip]))
    assert "3 updates of 800 had a loss or gradient that was not finite" in said(few, "advice")
    assert "Images in them: bad.png." in said(few, "advice")
    many = check_run(run_folder(tmp_path / "many", flat(), skipped=30))
    assert "30 updates of 800" in said(many, "problem")


def test_a_rising_validation_error_is_overfitting(tmp_path: Path) -> None:
    def validation(values: list[float]) -> list[dict[str, Any]]:
        return [{"kind": "validation", "images": 1000 * k, "steps": k, "mse": v} for k, v in enumerate(values, 1)]

    found = check_run(run_folder(tmp_path / "over", flat(), records=validation([0.4, 0.3, 0.35, 0.4])))
    assert "lowest after 2,000 images (0.3) and is now 0.4" in said(found, "problem")
    fine = check_run(run_folder(tmp_path / "fine", flat(), records=validation([0.4, 0.3, 0.3, 0.302])))
    assert said(fine, "problem") == ""


def test_few_images_and_damaged_checkpoints(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", flat(), count=40)
    (folder / "checkpoints" / "0000000100.safetensors.damaged").write_bytes(b"")
    found = check_run(folder)
    assert "each of its 40 images about 200 times" in said(found, "advice")
    command = f"undiffuse sample {folder} --out samples-run && undiffuse report samples-run --training photos"
    assert command in "".join(item.do for item in found)
    assert "1 checkpoint of this run could not be read: 0000000100.safetensors.damaged" in said(found, "problem")
    assert found[0].severity == "problem"


def test_an_empty_run_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert "no records" in said(check_run(tmp_path), "advice")
