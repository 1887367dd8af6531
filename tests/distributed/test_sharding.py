"""A training that is split over processes (FSDP2) is that of one process, resumes anywhere, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import undiffuse
from support.cli_runs import call, write_images
from support.training_runs import Processes, run, tiny_config, tiny_data, tiny_task, told
from support.variants import few
from tests.cli.test_train import TINY
from undiffuse import checkpoints, distributed, sharded_checkpoints
from undiffuse.distributed.sharding import copy_rows_, gathered, is_sharded, rows_of, shard_
from undiffuse.models import load_diffusion
from undiffuse.train_config import TrainConfig
from undiffuse.training import engine, read_events
from undiffuse.training.diagnosis import _broken
from undiffuse.training.optim import gradient_norm
from undiffuse.training.sharded import ShardedSaver

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")

SETTINGS: dict[str, Any] = {
    "ema_decays": (0.9,), "lr": 1e-3, "grad_clip": 0.5, "save_every": 8, "keep": 9, "preview_every": 16,
    "posthoc_widths": (0.1,), "posthoc_every": 16, "validate_every": 16, "timesteps": "loss-second-moment",
}  # fmt: skip


def train_in_parts(folder: str, changes: dict[str, Any]) -> None:
    """Fresh weights differ between the processes: those of rank 0 must win."""
    task = tiny_task(seed=int(os.environ.get("RANK", "0")), dropout=0.0)
    config = {**SETTINGS, **changes}
    engine.train(task, tiny_data(), tiny_config(**config), folder, validation=tiny_data(9))


def assert_close(a: Path, b: Path) -> None:
    """Two checkpoints hold the same up to rounding; weights move by 1e-3 an update."""
    (one, first), (two, second) = checkpoints.read(a), checkpoints.read(b)
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert tensor.shape == two[name].shape and tensor.dtype == two[name].dtype
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    for key in ("images", "steps", "updates", "skipped"):
        assert first["progress"][key] == second["progress"][key]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight updates by one process."""
    folder = tmp_path_factory.mktemp("plain")
    train_in_parts(str(folder), {"steps": 8})
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four of them by two processes that share the state."""
    folder = tmp_path_factory.mktemp("sharded")
    changes = {"steps": 4, "sharding": "fsdp", "microbatch": 1}
    assert Processes(train_in_parts, str(folder), changes, world_size=2).join(300) == [0, 0]
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_it_is_the_training_of_one_process(plain: Path, sharded: Path) -> None:
    assert [path.name for path in checkpoints.checkpoints(sharded)] == ["0000000008.sharded", "0000000016.sharded"]
    assert_close(plain / "checkpoints/0000000016.safetensors", sharded / "checkpoints/0000000016.sharded")
    for a, b in zip(told(plain)[:2], told(sharded), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    values = [
        [r["loss"] for r in read_events(folder / "metrics.jsonl") if r["kind"] == "validation"][0]
        for folder in (plain, sharded)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    names = ["previews/0000000016_raw.png", "previews/0000000016_ema-0.9.png", "posthoc/0000000016-0.1.safetensors"]
    for name in names:
        assert (sharded / name).is_file(), name
    whole = [checkpoints.read(folder / names[-1])[0] for folder in (plain, sharded)]
    assert all(torch.allclose(whole[0][key], whole[1][key], atol=1e-4) for key in whole[0])


def test_each_process_keeps_and_writes_its_rows_only(sharded: Path) -> None:
    newest = checkpoints.latest(sharded)
    assert newest is not None
    sizes = [path.stat().st_size for path in sorted(newest.glob("*.safetensors"))]
    whole = sum(t.numel() * t.element_size() for t in checkpoints.read(newest)[0].values())
    assert len(sizes) == 2
    assert all(0.4 * whole < size < 0.75 * whole for size in sizes)


@pytest.mark.slow
def test_it_resumes_on_other_numbers_of_processes_and_whole(plain: Path, sharded: Path, tmp_path: Path) -> None:
    changed = copied(sharded, tmp_path / "changed")
    split: dict[str, Any] = {"sharding": "fsdp"}
    train_in_parts(str(changed), {"steps": 5})  # one process, from the parts of two
    assert checkpoints.latest(changed).suffix == ".safetensors"  # type: ignore[union-attr]
    assert Processes(train_in_parts, str(changed), {"steps": 6, **split}, world_size=4).join(300) == [0] * 4
    assert len(list(checkpoints.latest(changed).glob("*.safetensors"))) == 4  # type: ignore[union-attr]
    assert Processes(train_in_parts, str(changed), {"steps": 8, **split}, world_size=2).join(300) == [0, 0]
    assert_close(plain / "checkpoints/0000000032.safetensors", changed / "checkpoints/0000000032.sharded")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits(precision: str, plain: Path, tmp_path: Path) -> None:
    changes = {"steps": 4, "sharding": "fsdp", "precision": precision, "gradient_dtype": "bf16"}
    assert Processes(train_in_parts, str(tmp_path), changes, world_size=2).join(300) == [0, 0]
    assert told(tmp_path)[-1]["loss"] == pytest.approx(told(plain)[1]["loss"], rel=0.05)
    tensors, manifest = checkpoints.read(checkpoints.latest(tmp_path))  # type: ignore[arg-type]
    assert all(t.dtype == torch.float32 for name, t in tensors.items() if not name.startswith("sampler."))
    assert manifest["progress"]["updates"] == 4 or precision == "fp16"


def test_users_get_one_model_file_and_every_command_reads_the_parts(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints.latest(sharded)
    assert newest is not None
    for reference in (sharded, newest):
        model = load_diffusion(reference)
        assert model.weights == "0.9" and model.labels == ("left", "right", "top")
        assert call("inspect", reference) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "split into 2 files" in text and "million parameters" in text
    out = tmp_path / "samples"
    assert call("sample", sharded, "--count", 2, "--steps", 2, "--out", out) == 0
    assert list(out.rglob("*.png"))
    assert call("ema", sharded, "--width", 0.1, "--out", tmp_path / "average.safetensors") == 0
    load_diffusion(tmp_path / "average.safetensors")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "text"),
    few(
        count=2,
        variants=[
            (lambda folder: flip(folder / "shard-00002-model-00001-of-00001.safetensors"), "has another hash"),
            (lambda folder: (folder / "shard-00001-model-00001-of-00001.safetensors").unlink(), "cannot be read"),
            (lambda folder: flip(folder / "manifest.json"), "manifest"),
            (lambda folder: (folder / "manifest.json").unlink(), "manifest cannot be read"),
            (lambda folder: os.truncate(folder / "shard-00002-model-00001-of-00001.safetensors", 5000), "5,000 bytes"),
        ],
    ),
)
def test_damage_anywhere_falls_back_to_the_checkpoint_before(
    damage: Any, text: str, sharded: Path, tmp_path: Path
) -> None:
    folder = copied(sharded, tmp_path / "run")
    damage(folder / "checkpoints/0000000016.sharded")
    left = folder / "checkpoints/.0000000024.sharded.tmp"  # of a save that was cut short
    left.mkdir()
    (left / "0.json").write_text("{}")
    train_in_parts(str(folder), {"steps": 5})
    notes = [r["text"] for r in read_events(folder / "metrics.jsonl") if r["kind"] == "note"]
    assert any(text in note and "resuming from the checkpoint before it" in note for note in notes), notes
    assert (folder / "checkpoints/0000000016.sharded.damaged").is_dir() and not left.exists()


def test_pytorch_reads_the_files(sharded: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    newest = checkpoints.latest(sharded)
    assert newest is not None
    expected = checkpoints.read(newest)[0]
    found = {name: torch.zeros_like(t) for name, t in expected.items() if t.dim()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(newest)), no_dist=True)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def decide(folder: str) -> None:
    """Numbers that are not finite, or large, in the rows of the second process only."""
    with distributed.session("cpu") as ranks:
        conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # which FSDP2 refuses as it lies
        shard_(conv, ranks)
        conv(torch.zeros(1, 4, 3, 3).contiguous(memory_format=torch.channels_last)).sum().backward()
        net = nn.Linear(3, 5)
        sums = shard_(net, ranks)
        sums.arm()
        net(torch.full((2, 3), 1.0 + ranks.rank)).sum().backward()
        sums.finish()
        weight = net.weight
        assert is_sharded(weight) and weight.grad is not None
        expected = 2 * (1 + 2) * (15 + 0) ** 0.5  # the sum over both processes; the bias has 4 in each of five rows
        norms = [gradient_norm([weight.grad], ranks)]
        found = {"norm": norms[0], "expected": expected, "rows": list(rows_of(weight).local.shape)}
        if ranks.rank == 1:
            rows_of(weight.grad).local[0, 0] = float("inf")
        found["bad norm"] = gradient_norm([weight.grad], ranks)
        found["broken"] = _broken({n: p.grad for n, p in net.named_parameters() if p.grad is not None}, ranks)
        numbers = torch.arange(15.0).reshape(5, 3)
        copy_rows_(weight, numbers)
        whole = gathered({"weight": weight}, ranks)
        assert set(whole) == ({"weight"} if ranks.is_main else set())
        assert not whole or torch.equal(whole["weight"], numbers)
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(found))


def test_decisions_are_made_over_all_rows(tmp_path: Path) -> None:
    assert Processes(decide, str(tmp_path), world_size=2).join(300) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["norm"] == second["norm"] == pytest.approx(first["expected"])
    assert first["bad norm"] == second["bad norm"] == float("inf")
    assert first["broken"] == second["broken"] == ["weight"]
    assert (first["rows"], second["rows"]) == ([3, 3], [2, 3])


def run_out_of_memory(folder: str) -> None:
    task = tiny_task(dropout=0.0)
    original, calls = task.losses, []

    def terms(forward: Any, inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(forward, inputs)

    task.losses = terms  # type: ignore[method-assign]
    began = time.monotonic()
    try:
        run(Path(folder), task, steps=6, save_every=8, sharding="fsdp")
    except (MemoryError, RuntimeError) as error:
        seconds = time.monotonic() - began
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps([type(error).__name__, str(error), seconds]))


def test_a_process_without_memory_ends_all_with_advice(tmp_path: Path) -> None:
    codes = Processes(run_out_of_memory, str(tmp_path), world_size=2).join(300)
    kind, text, _ = json.loads((tmp_path / "1.json").read_text())
    assert kind == "MemoryError" and "2 images at once do not fit" in text and "microbatch=1" in text
    if (tmp_path / "0.json").exists():
        kind, text, _ = json.loads((tmp_path / "0.json").read_text())
        assert kind == "RankLostError" and "rank 1" in text and "microbatch=1" in text
    else:  # it waited for the other inside the network for too long, and was ended
        assert codes[0] == 1
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["0000000008.sharded"]


def test_a_process_that_dies_while_it_writes_leaves_no_checkpoint(tmp_path: Path) -> None:
    final = checkpoints.checkpoint_path(tmp_path, 8, sharded=True)
    temporary = sharded_checkpoints.begin(final)
    sharded_checkpoints.note_file(temporary, 0, None)
    with pytest.raises(OSError, match="another process ended before it had written its part"):
        sharded_checkpoints.complete(final, 2, lambda files: "", lambda: True)
    assert checkpoints.checkpoints(tmp_path) == []
    checkpoints.remove_leftovers(tmp_path)
    assert list((tmp_path / checkpoints.FOLDER).iterdir()) == []


def save_slowly(folder: str) -> None:
    """Training does not wait for files, and a checkpoint is of the moment it was begun."""
    original = ShardedSaver._write_rows

    def write(self: Any, *arguments: Any) -> None:
        time.sleep(1.0)
        original(self, *arguments)

    ShardedSaver._write_rows = write  # type: ignore[method-assign]
    seen: list[Any] = []

    def listen(record: Any) -> None:
        seen.append((record.kind, record.images, len(checkpoints.checkpoints(folder))))

    run(Path(folder), tiny_task(dropout=0.0), steps=6, save_every=8, log_every=4, sharding="fsdp", listeners=[listen])
    if os.environ["RANK"] == "0":
        Path(folder, "seen.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_training_waits_for_the_copy_only(tmp_path: Path) -> None:
    assert Processes(save_slowly, str(tmp_path), world_size=2).join(300) == [0, 0]
    seen = [tuple(record) for record in json.loads((tmp_path / "seen.json").read_text())]
    assert ("train", 12, 0) in seen  # the checkpoint of 8 images was not on disk yet
    for path in checkpoints.checkpoints(tmp_path):
        assert checkpoints.read(path)[1]["progress"]["images"] == checkpoints.images_of(path)


def train_by_users(folder: str) -> None:
    """From the command line, and a network of one's own from Python, with an evaluator."""
    words = ["train", Path(folder, "photos"), *TINY, "--batch", 8, "--images", 16, "--out", Path(folder, "run")]
    assert call(*words, "--set", "train.sharding=fsdp", "--set", "train.preview_steps=2") == 0
    net = Mlp()
    result = undiffuse.train(
        np.zeros((8, 8, 8, 1), np.uint8), model=net, batch=4, steps=2, out=Path(folder, "own"), progress=False,
        device="cpu", **{"train.sharding": "fsdp", "train.preview_every": None, "train.preview_steps": 2},
    )  # fmt: skip
    assert isinstance(result.model.net, Mlp)
    assert not any(map(is_sharded, result.model.net.parameters()))


class Mlp(nn.Module):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.SiLU()) for _ in range(2)])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = x.flatten(1)
        for layer in self.layers:
            out = layer(out)
        return out.reshape(x.shape)


@pytest.mark.slow
def test_users_train_by_one_setting(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", each=8)
    assert Processes(train_by_users, str(tmp_path), world_size=2).join(300) == [0, 0]
    assert checkpoints.latest(tmp_path / "run").suffix == ".sharded"  # type: ignore[union-attr]
    load_diffusion(tmp_path / "run" / "model.safetensors")


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="sharding is one of none, fsdp; got 'zero'"):
        TrainConfig(images=4, sharding="zero")
    with pytest.raises(ValueError, match="sharding and compile"):
        TrainConfig(images=4, sharding="fsdp", compile=True)
