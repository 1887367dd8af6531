"""`undiffuse.train` from Python: data of every kind, own networks and parts, resuming, what it returns and shows."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from support.cli_runs import call, one_thread, write_images, write_model
from support.training_runs import Recorder, assert_same_run, run
from undiffuse import checkpoints
from undiffuse.data import ArraySource
from undiffuse.models import load_model
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import diffuse
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM
from undiffuse.training.face import TrainResult, train
from undiffuse.training.progress import TrainingProgress
from undiffuse.util.errors import ConfigError

PIXELS = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAIRS = TensorDataset(PIXELS, torch.arange(24) % 3)
SMALL: dict[str, Any] = {
    "recipe": "tiny", "size": 8, "width": 8, "batch": 4, "images": 16, "device": "cpu", "progress": False,
    "ema_decays": (0.9,), "preview_steps": 2, "preview_count": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


def small(data: Any = None, **changes: Any) -> TrainResult:
    return train(data, **{**SMALL, **changes})


DATA: dict[str, Any] = {
    "folder": lambda: (str(write_images(Path("photos"), each=4)), {}),
    "array": lambda: (PIXELS.permute(0, 2, 3, 1).numpy(), {"labels": np.arange(24) % 3}),
    "torch data set": lambda: (PAIRS, {}),
    "loader": lambda: (DataLoader(PAIRS, batch_size=6), {"class_names": ["a", "b", "c"]}),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_gives_a_model(kind: str) -> None:
    data, options = DATA[kind]()
    recorder = Recorder()
    result = small(data, out="run", callbacks=[recorder], **options)
    assert result.outcome.complete
    assert result.folder == Path("run")
    assert result.model.num_classes == 3
    assert result.model.weights == "0.9"
    assert [r["kind"] for r in result.records] == [r.kind for r in recorder.records]
    text = repr(result)
    assert "16 of 16 (complete), 4 updates" in text
    assert "run/model.safetensors" in text
    assert result._repr_png_()[:4] == b"\x89PNG"  # type: ignore[index]
    chain = result.model.process.chain()
    cond = {"y": torch.arange(2)}
    denoiser, shape = result.model.denoiser(), result.model.image_shape
    made = generate(denoiser, chain.respaced("2"), DDIM(), NoiseSource(0, [0, 1]), shape, cond=cond)
    assert torch.isfinite(made).all()


def test_a_run_is_resumed_by_its_folder_alone() -> None:
    write_images(Path("photos"), each=4)
    settings = {"seed": 5, "flip": True, "lr_decay": "none", "warmup_images": 0, "log_every": 4}
    small("photos", out="whole", **settings)
    small("photos", out="parts", **{**settings, "images": 8})
    result = train(resume="parts", images=16, progress=False)
    assert result.outcome.images == 16
    whole, parts = (checkpoints.read(checkpoints.checkpoints(name)[-1])[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole | parts)
    assert train(resume="parts", progress=False).outcome.images == 16  # complete: nothing is trained
    with pytest.raises(ConfigError, match="^data: parts is a training run, not images"):
        train("parts", progress=False)
    with pytest.raises(ConfigError, match="^resume: nowhere has no run.json"):
        train(resume="nowhere")


def test_data_in_memory_is_given_again_to_resume() -> None:
    small(PAIRS, out="run", images=8)
    with pytest.raises(ConfigError, match="the data of run was in memory"):
        train(resume="run", images=16)
    assert train(PAIRS, resume="run", images=16, progress=False).outcome.images == 16
    other = TensorDataset(255 - PIXELS, torch.arange(24) % 3)
    with pytest.raises(ValueError, match=r"images to train on are others \(24 images both times, with other contents"):
        train(other, resume="run", images=24, progress=False)


class Net(nn.Module):
    """A network of a user's own, which says nothing of itself."""

    def __init__(self, out: int = 3) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, out, 3, padding=1), nn.Embedding(3, out)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.table(y)[:, :, None, None]


def test_an_own_network_is_trained_and_comes_back() -> None:
    own = {key: value for key, value in SMALL.items() if key != "width"}
    net = Net()
    before = net.conv.weight.clone()
    result = train(PAIRS, out="run", model=net, **own)
    assert isinstance(result.model.net, Net)
    assert result.model.num_classes == 3
    assert result.model.process.variance == "fixed_small"
    assert not torch.equal(result.model.net.conv.weight, before)
    assert torch.equal(load_model("run", net=Net()).net.conv.weight, result.model.net.conv.weight)
    learned = train(PAIRS, out="learned", model=Net(6), **own)
    assert learned.model.process.learns_variance
    with pytest.raises(ConfigError, match="^width: the network is given"):
        train(PAIRS, out="wide", model=Net(), **SMALL)
    with pytest.raises(ConfigError, match=r"^model: Linear cannot be called as net\(x \[1, 3, 8, 8\]"):
        train(PAIRS, out="wrong", model=nn.Linear(2, 2), **own)
    with pytest.raises(ConfigError, match="this run has no net"):
        train(PAIRS, out="set", model=Net(), **own, **{"net.dropout": 0.1})


def test_own_parts_and_settings_by_name() -> None:
    result = small(
        PAIRS,
        out="run",
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        lr_schedule=lambda opt: torch.optim.lr_scheduler.ConstantLR(opt, 0.5, 3),
        density="lognormal:0,1",
        grad_clip=0.5,
        **{"net.dropout": 0.25},
    )
    assert result.plan.config.density == "lognormal:0,1"
    assert result.plan.config.grad_clip == 0.5
    assert result.model.net.config.dropout == 0.25
    (record,) = [record for record in result.records if record["kind"] == "train"]
    assert record["lr"] == pytest.approx(0.1)  # after three updates at half of it
    with pytest.raises(ConfigError, match="^colour: there is no such setting"):
        small(PAIRS, out="other", colour="red")
    with pytest.raises(ConfigError, match="^data: give images to train on, or resume=RUN"):
        train()


def test_a_run_starts_from_a_models_weights() -> None:
    write_images(Path("photos"), each=4)
    write_model(Path("given.safetensors"))
    options = {key: value for key, value in SMALL.items() if key not in ("recipe", "width", "size")}
    result = train("photos", model="given.safetensors", **options)
    assert result.folder == Path("runs/photos-from-given")
    assert result.model.manifest["init"]["source"] == "given.safetensors"


def test_progress_is_shown_after_the_first_update_and_needs_no_records(tmp_path: Path) -> None:
    out = io.StringIO()
    run(tmp_path / "plain", listeners=[TrainingProgress(out)], log_every=None)
    first, last, *_ = out.getvalue().splitlines()
    assert first.startswith(" 12.5%  4 images  mse ")
    assert " images/s  " in first
    assert " left  " in first
    assert last.startswith("100.0%  32 images")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    run(tmp_path / "bar", listeners=[TrainingProgress(terminal)], log_every=None)
    shown = terminal.getvalue()
    assert "/32 images [" in shown
    assert "mse " in shown
    assert_same_run(tmp_path / "plain", tmp_path / "bar")


@pytest.mark.parametrize("what", [nn.Conv2d, "model", 3], ids=["class", "model", "number"])
def test_what_is_no_network_is_refused(what: Any) -> None:
    model = load_model("fashion-mnist-32") if what == "model" else what
    with pytest.raises(
        ConfigError, match="^model: expected a network .* got (the class Conv2d|a DiffusionModel|a int)"
    ):
        train(PAIRS, model=model)


def test_the_loss_in_the_documentation_of_losses_trains() -> None:
    from undiffuse.training import tasks

    text = Path(tasks.__file__).read_text().partition("Huber loss of the denoised image:")[2].partition('"""')[0]
    names: dict[str, Any] = {"diffuse": diffuse, "F": torch.nn.functional}
    exec(textwrap.dedent(text), names)
    assert small(PAIRS, out="run", loss=names["huber"]).outcome.complete


def test_names_of_channels_are_kept_in_the_model_file(capsys: pytest.CaptureFixture[str]) -> None:
    source = ArraySource(torch.randint(0, 256, (24, 8, 8, 5), dtype=torch.uint8).numpy())
    source.channel_names = ("DAPI", "GFP", "RFP", "CY5", "BF")
    result = small(source, out="run", channels=5)
    assert load_model("run/model.safetensors").channel_names == source.channel_names
    assert call("inspect", "run/model.safetensors") == 0
    assert "DAPI, GFP, RFP, CY5, BF" in capsys.readouterr().out
    assert small(PAIRS, out="plain").model.channel_names == ()
    assert result.outcome.complete
