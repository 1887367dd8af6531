"""Checkpoint files: whole or absent, self-describing, verified, kept and deleted as promised."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from undiffuse import checkpoints
from undiffuse.checkpoints import CheckpointError
from undiffuse.util.files import remove_leftovers


def tensors(fill: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "net.w": torch.full((4, 3, 2, 2), fill).contiguous(memory_format=torch.channels_last),
        "net.b": torch.arange(4.0),
        "ema.0.9.w": torch.full((4, 3, 2, 2), 9.0),
        "ema.0.9.b": torch.zeros(4),
        "ema.0.99.w": torch.full((4, 3, 2, 2), 99.0),
        "ema.0.99.b": torch.ones(4),
        "optimizer.w.step": torch.tensor(7.0),
        "sampler.counts": torch.arange(3),
    }


def manifest(**more: Any) -> dict[str, Any]:
    return {"kind": "diffusion", "ema": ["0.9", "0.99"], "progress": {"images": 5, "third": 1 / 3}, **more}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.safetensors"
    written = checkpoints.write(path, tensors(), manifest())
    back, card = checkpoints.read(path)
    assert card == written
    assert card["format"] == 1
    assert card["progress"] == {"images": 5, "third": 1 / 3}
    assert set(card["hashes"]) == {"net", "ema.0.9", "ema.0.99", "optimizer", "sampler"}
    assert all(torch.equal(back[name], t) for name, t in tensors().items())
    assert back["optimizer.w.step"].shape == ()
    only, _ = checkpoints.read(path, "ema.0.9")
    assert set(only) == {"ema.0.9.w", "ema.0.9.b"}


def test_sha256_is_of_the_weights_not_of_the_file(tmp_path: Path) -> None:
    full = checkpoints.write(tmp_path / "full.safetensors", tensors(), manifest())
    alone = {name: t for name, t in tensors().items() if name.startswith("net.")}
    shipped = checkpoints.write(tmp_path / "shipped.safetensors", alone, {"kind": "diffusion"})
    other = checkpoints.write(tmp_path / "other.safetensors", tensors(2.0), manifest())
    assert full["sha256"] == shipped["sha256"] == checkpoints.weights_hash({n[4:]: t for n, t in alone.items()})
    assert full["sha256"] != other["sha256"]


def test_manifest_needs_the_header_only(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    checkpoints.write(path, {"net.w": torch.zeros(50_000_000, dtype=torch.uint8)}, {"kind": "diffusion"})
    before = _resident()
    assert checkpoints.read_manifest(path)["kind"] == "diffusion"
    assert _resident() - before < 10_000_000, "the tensors (50 MB) must not be read"


def _resident() -> int:
    """Bytes this process has in memory (0 where the system does not say)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def test_which_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, tensors(3.0), manifest())
    value = {which: checkpoints.load_weights(path, which)[0]["w"].mean().item() for which in (None, "net", "0.9")}
    assert value == {None: 99.0, "net": 3.0, "0.9": 9.0}
    with pytest.raises(CheckpointError, match=r"no weights '0.5'; it has: net, 0.9, 0.99"):
        checkpoints.load_weights(path, "0.5")
    checkpoints.write(path, {"net.w": torch.ones(2)}, {"kind": "classifier"})
    assert checkpoints.load_weights(path)[0]["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("stage", ["writing", "forcing to disk", "renaming"])
def test_crash_while_saving_leaves_the_old_file(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, tensors(1.0), manifest())
    before = path.read_bytes()

    def half_a_file(data: Any, name: Any, metadata: Any = None) -> None:
        save_file(data, name, metadata=metadata)
        os.truncate(name, os.path.getsize(name) // 2)
        raise OSError("No space left on device")

    def crash(*arguments: Any) -> None:
        raise OSError("crash")

    if stage == "writing":
        monkeypatch.setattr(checkpoints, "save_file", half_a_file)
    else:
        monkeypatch.setattr(checkpoints.os, "fsync" if stage == "forcing to disk" else "replace", crash)
    with pytest.raises(OSError, match=r"No space|crash"):
        checkpoints.write(path, tensors(2.0), manifest())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"], "nothing half-written stays"


def test_order_of_a_durable_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data must be on the disk before the name is, and the name before anything older is deleted."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append("sync file" if os.path.isfile(f"/proc/self/fd/{handle}") else "sync folder")
        real_fsync(handle)

    def replace(a: Any, b: Any) -> None:
        events.append("rename")
        real_replace(a, b)

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    monkeypatch.setattr(checkpoints.os, "replace", replace)
    checkpoints.write(tmp_path / "x.safetensors", tensors(), manifest())
    if os.path.isdir("/proc/self/fd"):
        assert events == ["sync file", "rename", "sync folder"]
    else:
        assert "rename" in events


@pytest.mark.parametrize("cut", [0, 4, 100, 0.5, 0.999])
def test_truncated_files_are_noticed(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, tensors(), manifest())
    data = path.read_bytes()
    path.write_bytes(data[: int(cut if cut >= 1 or cut == 0 else cut * len(data))])
    with pytest.raises(CheckpointError, match=r"x.safetensors .*truncated"):
        checkpoints.read(path)


def test_damage_is_noticed_in_every_group(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, tensors(), manifest())
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in tensors():
        damaged = bytearray(data)
        damaged[start + header[name]["data_offsets"][0]] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.read(path)
        assert checkpoints.read(path, verify=False)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="there is no file"):
        checkpoints.read_manifest(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not an undiffuse checkpoint"):
        checkpoints.read_manifest(path)
    save_file({"net.w": torch.zeros(2)}, path, metadata={"undiffuse": json.dumps({"format": 2})})
    with pytest.raises(CheckpointError, match="format 2; this version reads format 1"):
        checkpoints.read_manifest(path)
    with pytest.raises(CheckpointError, match="network's weights"):
        checkpoints.write(path, {"w": torch.zeros(2)}, {})


def save_at(run: Path, *images: int) -> None:
    for n in images:
        checkpoints.write(checkpoints.checkpoint_path(run, n), {"net.w": torch.tensor([float(n)])}, manifest())


def test_latest_and_order(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.newest_sound(tmp_path) is None
    save_at(tmp_path, 900, 12_000_000_000, 64)
    (tmp_path / "checkpoints" / "notes.safetensors").write_bytes(b"")
    assert [checkpoints.images_of(p) for p in checkpoints.checkpoints(tmp_path)] == [64, 900, 12_000_000_000]
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.name == "12000000000.safetensors"


def test_retention_keeps_the_last_and_the_milestones(tmp_path: Path) -> None:
    batch = 64
    save_at(tmp_path, *range(batch, 20 * batch + 1, batch))
    gone = checkpoints.prune(tmp_path, keep=2, milestones=500, batch=batch)
    left = [checkpoints.images_of(p) for p in checkpoints.checkpoints(tmp_path)]
    # the first multiples of 64 at or after 500 and 1000, and the last two
    assert left == [512, 1024, 1216, 1280]
    assert len(gone) == 16
    checkpoints.prune(tmp_path, keep=1)
    assert [checkpoints.images_of(p) for p in checkpoints.checkpoints(tmp_path)] == [1280]


def test_newest_sound_passes_over_damage_and_says_so(tmp_path: Path) -> None:
    save_at(tmp_path, 10, 20, 30)
    for n in (20, 30):
        checkpoints.checkpoint_path(tmp_path, n).write_bytes(b"x")
    found = checkpoints.newest_sound(tmp_path)
    assert found is not None
    path, loaded, _, problems = found
    assert checkpoints.images_of(path) == 10
    assert loaded["net.w"].tolist() == [10.0]
    assert len(problems) == 2
    assert "0000000030" in problems[0]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    save_at(tmp_path, 10)
    stray = tmp_path / "checkpoints" / ".undiffuse-0123456789ab.tmp"
    stray.write_bytes(b"half")
    remove_leftovers(tmp_path / "checkpoints")
    assert not stray.exists()
    assert len(checkpoints.checkpoints(tmp_path)) == 1


def test_a_checkpoint_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    """safetensors itself makes files of mode 600, which a wheel or a shared folder would carry on."""
    (tmp_path / "ordinary").touch()
    checkpoints.write(tmp_path / "a.safetensors", {"net.w": torch.zeros(1)}, {})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_slim_file_knows_its_weights_by_the_name_they_had(tmp_path: Path) -> None:
    """What was exported from the average 0.9 is asked for as 0.9 again (records and latents name it so)."""
    path = tmp_path / "slim.safetensors"
    checkpoints.write(path, {"net.w": torch.ones(1)}, {"ema": [], "weights": "0.9"})
    for which in (None, "0.9"):
        tensors, manifest = checkpoints.load_weights(path, which)
        assert torch.equal(tensors["w"], torch.ones(1))
    assert checkpoints.weight_names(manifest) == ["0.9"]
    with pytest.raises(CheckpointError, match="it has: 0.9$"):
        checkpoints.load_weights(path, "net")
