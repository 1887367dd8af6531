"""Diffusion models and classifiers through the same loop: what they learn, report and show."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.training_runs import CLASSES, Recorder, run, tiny_classifier, tiny_config, tiny_data, tiny_task
from undiffuse import checkpoints
from undiffuse.data import batches
from undiffuse.denoiser import ProcessConfig
from undiffuse.distributed import DistContext
from undiffuse.nets import UNetConfig
from undiffuse.nets.runner import NetworkRunner
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.training import DiffusionTask, Inputs, outputs, seeded, train
from undiffuse.training.run import Run


def first_inputs(task: Any, batch: int = 4, **changes: Any) -> Inputs:
    one = Run(task, tiny_data(), tiny_config(batch=batch, **changes), Path("unused"), DistContext())
    return one.inputs(next(batches(tiny_data(), 0, batch, workers=0)))


def test_the_folder_holds_what_is_promised(tmp_path: Path) -> None:
    outcome = run(tmp_path, preview_every=16)
    assert outcome.checkpoint == checkpoints.latest(tmp_path)
    names = {p.name for p in (tmp_path / "previews").iterdir()}
    assert names == {f"{n:010d}_{w}.png" for n in (16, 32) for w in ("raw", "ema-0.9", "ema-0.99")}
    assert np.asarray(Image.open(tmp_path / "loss_curve.png")).std() > 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["batch"] == 4
    assert config["net"]["num_classes"] == 3
    manifest = checkpoints.read_manifest(outcome.checkpoint)  # type: ignore[arg-type]
    for key, value in {"kind": "diffusion", "labels": CLASSES, "seed": 0, "ema": ["0.9", "0.99"]}.items():
        assert manifest[key] == value
    assert manifest["progress"]["images"] == 32
    assert len(manifest["data"]["fingerprint"]) == 64
    assert manifest["random"]["images"] == 32
    assert manifest["version"]


def test_without_matplotlib_a_run_draws_no_curve_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    recorder = Recorder()
    run(tmp_path, listeners=[recorder], preview_every=16)
    assert not (tmp_path / "loss_curve.png").exists()
    assert len(list((tmp_path / "previews").iterdir())) == 6  # grids need no matplotlib
    notes = [record.values["text"] for record in recorder.of("note")]
    assert notes == ['no loss curve will be drawn: plots need matplotlib: pip install "undiffuse[plot]"']
    assert not outputs.save_accuracy_curve({"top1": [0.5, 0.25]}, 20, 3, tmp_path / "accuracy.png")


def test_the_curve_shows_what_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(outputs, "draw_plot", lambda panel: drawn.append(dict(panel.lines)) or Image.new("L", (1, 1)))
    calm = [(1, 0.5, 9.0), (2, 0.25, 4.0)]
    for name, rows in (("calm", calm), ("jump", [*calm, (3, 0.125, 4000.0)])):
        path = tmp_path / name
        lines: list[dict[str, Any]] = [
            {"kind": "train", "images": n, "mse": mse, "loss": mse + bits, "bits": bits} for n, mse, bits in rows
        ]
        lines.append({"kind": "validation", "images": 2, "mse": 0.375, "loss": 7.0})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert outputs.save_loss_curve(path, tmp_path / "curve.png")
    assert drawn[0]["mean squared error"] == [(1.0, 0.5), (2.0, 0.25)]
    assert drawn[0]["bits per dimension"] == [(1.0, 9.0), (2.0, 4.0)]
    assert list(drawn[1]) == ["mean squared error", "validation mean squared error"]
    assert drawn[1]["validation mean squared error"] == [(2.0, 0.375)]
    (tmp_path / "plain").write_text(json.dumps({"kind": "train", "images": 1, "loss": 2.0}))
    assert outputs.save_loss_curve(tmp_path / "plain", tmp_path / "curve.png")
    assert drawn[2] == {"loss": [(1.0, 2.0)]}
    assert not outputs.save_loss_curve(tmp_path / "none", tmp_path / "curve.png")


def test_manifest_builds_the_same_network(tmp_path: Path) -> None:
    task = tiny_task()
    outcome = run(tmp_path, task)
    weights, manifest = checkpoints.load_weights(outcome.checkpoint, "net")  # type: ignore[arg-type]
    net = UNetConfig(**manifest["net"]).build()
    net.load_state_dict(weights)
    assert ProcessConfig(**manifest["process"]) == task.process
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 9.0]), torch.tensor([0, 2])
    torch.testing.assert_close(net.eval()(x, t, y=y), task.net.eval()(x, t, y=y))


def test_previews_use_the_same_noise_every_time() -> None:
    task = tiny_task()
    forward = NetworkRunner(task.net, "fp32", torch.device("cpu"))
    task.net.eval()
    a, b = (task.preview(forward, 0, 3, 2, torch.device("cpu")) for _ in range(2))
    c = task.preview(forward, 1, 3, 2, torch.device("cpu"))
    assert a is not None
    assert b is not None
    assert c is not None
    assert a.shape == (3, 1, 8, 8)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert task.preview_labels(4) == ["left", "right", "top", "left"]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, batch=16, steps=40, lr=1e-2, log_every=160, save_every=None, listeners=[recorder])
    losses = [r.values["mse"] for r in recorder.of("train")]
    assert losses[-1] < 0.75 * losses[0]


def test_noise_and_times_depend_on_seed_and_position_only() -> None:
    task = tiny_task()
    whole = first_inputs(task, batch=8)
    one = Run(task, tiny_data(), tiny_config(batch=4), Path("unused"), DistContext())
    stream = batches(tiny_data(), 0, 4, workers=0)
    parts = [one.inputs(next(stream))]
    one.state.images = 4
    parts.append(one.inputs(next(stream)))
    assert torch.equal(torch.cat([p.x0 for p in parts]), whole.x0)
    assert torch.equal(torch.cat([p.t for p in parts]), whole.t)
    assert torch.equal(torch.cat([p.normal() for p in parts]), whole.normal())
    pieces = list(whole.split(3))
    assert [len(p) for p in pieces] == [3, 3, 2]
    assert torch.equal(torch.cat([p.normal() for p in pieces]), whole.normal())
    other = first_inputs(task, batch=8, seed=1)
    assert not torch.equal(other.normal(), whole.normal())


def test_ranks_share_one_draw_of_times() -> None:
    """A stratified batch stays stratified when two processes share it."""
    task = tiny_task()
    whole = first_inputs(task, batch=8, timesteps="stratified")
    halves = []
    for rank in range(2):
        one = Run(task, tiny_data(), tiny_config(batch=8, timesteps="stratified"), Path("unused"), DistContext())
        halves.append(one.inputs(next(batches(tiny_data(), 0, 8, rank, 2, workers=0))))
    assert torch.equal(torch.cat([h.t for h in halves]), whole.t)
    assert len(set((whole.t * 8 // 20).tolist())) >= 7


def test_label_dropout_replaces_labels_by_the_null_class() -> None:
    with seeded(0):
        config = UNetConfig(image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 1),
                            num_res_blocks=1, attention_resolutions=(), num_classes=3, null_class=True)  # fmt: skip
        net = config.build()
    process = ProcessConfig(steps=20, schedule="cosine", variance="fixed_small")
    task = DiffusionTask(net, process, ObjectiveConfig(), labels=CLASSES, label_dropout=0.5)
    inputs = first_inputs(task, batch=24)
    assert inputs.labels is not None
    dropped = inputs.labels == 3
    assert 4 <= int(dropped.sum()) <= 20
    assert torch.equal(dropped, NoiseSource(0, inputs.positions).uniform(0, "label") < 0.5)
    assert set(inputs.labels[~dropped].tolist()) == {0, 1, 2}
    assert bool(torch.isfinite(task.losses(NetworkRunner(net, "fp32", torch.device("cpu")), inputs)["loss"]).all())


def test_super_resolution_is_trained_on_its_own_small_images(tmp_path: Path) -> None:
    with seeded(0):
        config = UNetConfig(image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 1),
                            num_res_blocks=1, attention_resolutions=(), super_resolution=True)  # fmt: skip
        net = config.build()
    process = ProcessConfig(steps=20, schedule="cosine", variance="fixed_small")
    with pytest.raises(ValueError, match="low_size"):
        DiffusionTask(net, process, ObjectiveConfig())
    task = DiffusionTask(net, process, ObjectiveConfig(), low_size=(4, 4))
    seen = []

    def forward(x: torch.Tensor, t: torch.Tensor, low_res: torch.Tensor) -> torch.Tensor:
        seen.append(low_res)
        return torch.zeros_like(x)

    forward.conditions = frozenset(["low_res"])  # type: ignore[attr-defined]
    inputs = first_inputs(task)
    task.losses(forward, inputs)
    torch.testing.assert_close(seen[0], torch.nn.functional.avg_pool2d(inputs.x0, 2))
    assert run(tmp_path, task, steps=2).complete


def test_classifier_learns_and_reports_accuracy_by_noise_level(tmp_path: Path) -> None:
    recorder = Recorder()
    config = tiny_config(
        batch=24, steps=40, lr=2e-2, ema_decays=(0.9,), log_every=24 * 20, save_every=None, weight_decay=0.05,
        validate_images=60,
    )  # fmt: skip
    task = tiny_classifier()
    train(task, tiny_data(48, flip=False), config, tmp_path, [recorder], validation=tiny_data(60, flip=False))
    result = recorder.of("validation")[-1].values
    assert result["validation_images"] == 60
    assert result["weights"] == "0.9"
    by_tenth = result["by_tenth"]["top1"]
    assert len(by_tenth) == 10
    assert by_tenth[0] > 0.9, "clean images are easy"
    quartiles = result["by_quartile"]["top1"]
    assert quartiles[0] > quartiles[3], "and noise is not"
    assert result["top1"] == pytest.approx(sum(quartiles) / 4, abs=0.05)
    assert "top5" not in result, "three classes have no best five"
    assert (tmp_path / "accuracy_by_noise.png").exists()
    assert not (tmp_path / "previews").exists()
    assert recorder.of("train")[-1].values["top1"] > 0.5
    assert checkpoints.read_manifest(checkpoints.latest(tmp_path))["kind"] == "classifier"  # type: ignore[arg-type]


def test_classifier_sees_noise_of_the_level_it_is_told() -> None:
    task = tiny_classifier()
    inputs = first_inputs(task, batch=24)
    calls = []

    def forward(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append((x, t))
        return torch.zeros(len(x), 3)

    task.losses(forward, inputs)
    x, t = calls[0]
    assert torch.equal(t.long(), inputs.t)
    level = task.chain.level(inputs.t)
    alpha, sigma = (v.float().reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    torch.testing.assert_close(x, alpha * inputs.x0 + sigma * inputs.normal())


def test_clean_images_for_the_classifier() -> None:
    for options, share in (({"noise": False}, 1.0), ({"clean_fraction": 0.5}, 0.5)):
        task = tiny_classifier(**options)
        inputs = first_inputs(task, batch=24)
        assert inputs.clean is not None
        clean = inputs.clean
        assert abs(float(clean.float().mean()) - share) < 0.3
        assert int(inputs.t[clean].max()) == 0
        seen: list[Any] = []

        def forward(x: torch.Tensor, t: torch.Tensor, seen: list[Any] = seen) -> torch.Tensor:
            seen.append(x)
            return torch.zeros(len(x), 3)

        task.losses(forward, inputs)
        assert torch.equal(seen[0][clean], inputs.x0[clean])
        if share < 1:
            assert (seen[0][~clean] - inputs.x0[~clean]).abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_classifier_of_clean_images_is_validated_on_clean_images() -> None:
    """Held-out images come with timesteps of the whole chain and are not prepared as training images are."""
    for options, clean in (({"noise": False}, True), ({"clean_fraction": 1.0}, True), ({"clean_fraction": 0.5}, False)):
        task = tiny_classifier(**options)
        inputs = first_inputs(task, batch=6)
        inputs = replace(inputs, t=torch.arange(6) * 2, clean=None)
        seen: list[Any] = []

        def forward(x: torch.Tensor, t: torch.Tensor, seen: list[Any] = seen) -> torch.Tensor:
            seen.append((x, t))
            return torch.zeros(len(x), 3)

        task.losses(forward, inputs)
        assert torch.equal(seen[0][0], inputs.x0) is clean
        assert bool((seen[0][1] == 0).all()) is clean


def test_top5_is_among_the_best_five() -> None:
    task = tiny_classifier()
    inputs = first_inputs(task, batch=4)
    logits = torch.arange(8.0).expand(4, 8)  # ranks 7, 6, 5, 4, 3 first
    inputs = type(inputs)(**{**inputs.__dict__, "labels": torch.tensor([7, 3, 2, 0])})
    terms = task.losses(lambda x, t: logits, inputs)
    assert terms["top1"].tolist() == [1, 0, 0, 0]
    assert terms["top5"].tolist() == [1, 1, 0, 0]


def test_diffusion_validation_is_the_same_every_time(tmp_path: Path) -> None:
    recorder = Recorder()
    config = tiny_config(steps=4, lr=1e-9, ema_decays=(), validate_every=8, validate_images=20)
    train(tiny_task(), tiny_data(), config, tmp_path, [recorder], validation=tiny_data(30))
    first, second = (r.values for r in recorder.of("validation"))
    assert first["weights"] == "net"
    assert first["mse"] == pytest.approx(second["mse"], rel=1e-5), "same images, times and noise"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 100}, "fewer than one batch of 100"),
        ({"steps": 2**31}, "at most 4,294,967,296 images"),
        ({"device": "cuda:99"}, "CUDA"),
    ],
)
def test_mistakes_are_found_before_the_first_step(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_network_and_data_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(8, 8, 1\), the data's are \(8, 8, 3\)"):
        run(tmp_path, data=tiny_data(channels=3))
    with pytest.raises(ValueError, match=r"1 output channels(.|\n)*needs 2"):
        DiffusionTask(UNetConfig(image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,),
                                 attention_resolutions=()).build(),
                      ProcessConfig(), ObjectiveConfig(loss="hybrid"))  # fmt: skip
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not a folder"):
        run(tmp_path / "file")
