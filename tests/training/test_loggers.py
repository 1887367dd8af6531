"""TensorBoard and Weights & Biases: what is sent to them, and, with -m extras, what is read back from their files."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from support.training_runs import run, told
from undiffuse.training import Event
from undiffuse.training.loggers import make_loggers, scalars
from undiffuse.util.errors import ConfigError


def test_numbers_of_a_record_by_name() -> None:
    values = {
        "loss": 0.5, "by_quartile": {"mse": [1.0, None, float("nan"), 2]}, "total_images": 9, "text": "x", "flag": True,
    }  # fmt: skip
    record = Event(kind="train", images=4, steps=1, values=values)
    assert dict(scalars(record)) == {"train/loss": 0.5, "train/by_quartile/mse/0": 1.0, "train/by_quartile/mse/3": 2.0}
    assert not list(scalars(Event(kind="save", images=4, steps=1, values={"loss": 1.0})))


def test_unknown_loggers_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="^log: there is no logger 'mlflow'; expected tensorboard or wandb"):
        make_loggers(["mlflow"], tmp_path, {})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"^log: TensorBoard cannot .*pip install 'undiffuse\[tensorboard\]'"):
        make_loggers(["tensorboard"], tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^log: Weights & Biases cannot .*pip install 'undiffuse\[wandb\]'"):
        make_loggers(["wandb"], tmp_path, {})
    monkeypatch.setenv("RANK", "1")
    assert make_loggers(["wandb"], tmp_path, {}) == []
    assert not list(tmp_path.iterdir())


class Writer:
    """Stands for TensorBoard's writer."""

    made: list[Writer] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: list[tuple[str, int, tuple[int, ...]]] = []
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def add_image(self, name: str, array: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.append((name, step, array.shape))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, float("nan")))

    def close(self) -> None:
        self.closed = True


SETTINGS: dict[str, Any] = {"preview_every": 16, "preview_count": 3, "preview_steps": 2}


def logged(folder: Path, names: list[str], resumed_at: int = 0, **changes: Any) -> None:
    loggers = make_loggers(names, folder, {"recipe": "tiny"}, resumed_at)
    run(folder, listeners=loggers, **{**SETTINGS, **changes})


def test_records_and_previews_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))  # type: ignore[arg-type]
    logged(tmp_path, ["tensorboard"], images=16)
    logged(tmp_path, ["tensorboard"], resumed_at=16)
    first, second = Writer.made[-2:]
    assert (first.purge_step, second.purge_step) == (None, 17)
    assert Path(second.folder) == tmp_path / "tensorboard"
    assert first.closed and second.closed
    both = [*first.scalars["train/mse"], *second.scalars["train/mse"]]
    assert both == [(record["images"], record["mse"]) for record in told(tmp_path)]
    assert {(name, step) for name, step, _ in second.images} == {
        (name, 32) for name in ("preview/raw", "preview/ema-0.9", "preview/ema-0.99")
    }


def test_records_go_to_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    begun: list[dict[str, Any]] = []
    module = ModuleType("wandb")
    end = {"end": True}
    one = SimpleNamespace(define_metric=lambda *a, **k: None, log=sent.append, finish=lambda: sent.append(end))

    def init(**options: Any) -> Any:
        begun.append(options)
        return one

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda picture: picture.size  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    logged(tmp_path / "run", ["wandb"], images=16)
    logged(tmp_path / "run", ["wandb"], resumed_at=16)
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("mine", "run", "allow")
    values = [(record["images"], record["train/mse"]) for record in sent if "train/mse" in record]
    assert values == [(record["images"], record["mse"]) for record in told(tmp_path / "run")]
    assert sum("preview/raw" in record for record in sent) == 2
    assert sent[-1] == {"end": True}


@pytest.mark.extras
def test_tensorboard_reads_the_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/mse")]
    assert found == [(record["images"], pytest.approx(record["mse"])) for record in told(tmp_path)]
    assert "train/by_quartile/mse/3" in events.Tags()["scalars"]
    assert {image.step for image in events.Images("preview/raw")} == {16, 32}
    assert events.Images("preview/raw")[0].width > 8


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records in an offline file: blocks of 32 KiB of [crc32, length, kind] and data, after a header of 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = data[at + 7 : at + 7 + length] if kind in (1, 2) else whole + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole


@pytest.mark.extras
def test_weights_and_biases_keeps_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    logged(tmp_path / "run", ["wandb"])
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    history, files = [], []
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            history.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
        if record.WhichOneof("record_type") == "files":
            files += [one.path for one in record.files.files]
    found = [(int(row["images"]), float(row["train/mse"])) for row in history if "train/mse" in row]
    assert found == [(record["images"], pytest.approx(record["mse"])) for record in told(tmp_path / "run")]
    assert any(key.startswith("preview/raw") for row in history for key in row)
    assert list((file.parent / "files" / "media").rglob("*.png"))
