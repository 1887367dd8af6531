"""What reports are made of in tests: a run, samples, evaluations and a sweep, all tiny."""

from __future__ import annotations

import json
from pathlib import Path

from support.cli_runs import one_thread, write_images
from undiffuse.pipelines import Pipeline
from undiffuse.training.face import train


def write_run(folder: Path) -> Path:
    """Images in `photos`, a run on them in `run` with three previews, and six samples of it in `samples`."""
    write_images(folder / "photos", each=4)
    with one_thread():
        train(
            str(folder / "photos"), out=folder / "run", recipe="tiny", size=8, width=8, batch=4, images=24,
            device="cpu", progress=False, ema_decays=(0.9,), preview_steps=2, preview_count=3, preview_every=8,
            log_every=4, validation=0.2,
        )  # fmt: skip
        Pipeline.from_pretrained(str(folder / "run"), solver="ddim", steps=2).sample(6, seed=0).save(folder / "samples")
    return folder


def write_evaluation(path: Path, name: str = "mine", value: float = 0.5) -> Path:
    """An evaluation with one metric."""
    estimate = {
        "name": "KID", "value": value, "stderr": 0.02, "stderr_method": "jackknife", "n": 10, "n_reference": 10,
        "bias": None, "extra": {}, "settings": {}, "warnings": ["reference: 1 unreadable image was left out"],
        "card": None,
    }  # fmt: skip
    values = {
        "format": 1, "kind": "evaluation", "name": name, "samples": {"where": "samples"},
        "reference": {"where": "folder photos"}, "metrics": [estimate], "skipped": {}, "environment": {}, "seconds": {},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    return path


def write_sweep(folder: Path) -> Path:
    """A sweep of guidance over two scales."""
    folder.mkdir()
    for k, scale in enumerate([0.0, 2.0]):
        write_evaluation(folder / f"{k}.json", name=f"guidance {scale:g}", value=0.5 - 0.1 * k)
    rows = [{"scale": scale, "file": f"{k}.json"} for k, scale in enumerate([0.0, 2.0])]
    settings = {"over": "guidance", "count": 10, "model": "m", "seed": 0}
    (folder / "sweep.json").write_text(json.dumps({"settings": settings, "rows": rows}))
    return folder
