"""Nothing is lost and nothing changes silently: damage, full disks, folders and images that vanish or change."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from support.training_runs import Recorder, assert_same_run, run, tiny_task
from support.variants import few
from undiffuse import checkpoints
from undiffuse.data import DataConfig, ImageDataset, open_data
from undiffuse.data.content import content_index
from undiffuse.training import TrainConfig
from undiffuse.training.folder import RunFolder
from undiffuse.util.files import temporary

FLIPS = int(os.environ.get("UNDIFFUSE_FLIPS", "60"))


def image_folder(folder: Path, count: int = 12) -> Path:
    """Grey 8x8 BMP files, which all have the same size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{k:02d}.bmp")
    return folder


def dataset(folder: Path) -> ImageDataset:
    return ImageDataset(open_data(folder), DataConfig(path=str(folder), size=8, channels=1))


def unlabelled() -> Any:
    from undiffuse.denoiser import ProcessConfig
    from undiffuse.nets import UNetConfig
    from undiffuse.objectives import ObjectiveConfig
    from undiffuse.training import DiffusionTask, seeded

    with seeded(0):
        net = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,), num_res_blocks=1,
            attention_resolutions=(),
        ).build()  # fmt: skip
    return DiffusionTask(net, ProcessConfig(schedule="cosine", steps=10, variance="fixed_small"), ObjectiveConfig())


def rewrite(path: Path, change: Any) -> None:
    """Writes a checkpoint anew after change(tensors, metadata), as a damaging tool would."""
    with safe_open(str(path), framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def test_a_flipped_bit_anywhere_falls_back_or_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, images=24)
    newest = checkpoints.checkpoints(tmp_path)[-1]
    whole = newest.read_bytes()
    tensors, manifest = checkpoints.read(newest)
    header = int.from_bytes(whole[:8], "little") + 8
    progress = whole.index(b"progress")
    rng = random.Random(0)
    places = [rng.randrange(len(whole)) for _ in range(FLIPS // 3)]
    places += [rng.randrange(header) for _ in range(FLIPS // 3)]
    places += [rng.randrange(progress, progress + 600) for _ in range(FLIPS // 3)]
    noticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        newest.write_bytes(damaged)
        found = checkpoints.newest_sound(tmp_path)
        assert found is not None
        path, back, card, problems = found
        if path == newest:
            assert card == manifest, f"byte {place}"
            assert set(back) == set(tensors)
            assert all(torch.equal(back[name], tensors[name]) for name in tensors)
        else:
            noticed += 1
            assert newest.name in problems[0]
    assert noticed > 0.9 * len(places)


def _without_optimizer(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


def _without_one_moment(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    del tensors[next(name for name in tensors if name.startswith("optimizer."))]


def _another_count(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    manifest = json.loads(metadata["undiffuse"])
    manifest["progress"]["updates"] += 1
    metadata["undiffuse"] = json.dumps(manifest)


def _older_file_without(key: str) -> Any:
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        manifest = json.loads(metadata["undiffuse"])
        del manifest["manifest_sha256"], manifest["progress"][key]
        metadata["undiffuse"] = json.dumps(manifest)

    return change


def _older_file_without_optimizer(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    manifest = json.loads(metadata["undiffuse"])
    del manifest["manifest_sha256"], manifest["hashes"]["optimizer"]
    metadata["undiffuse"] = json.dumps(manifest)
    _without_optimizer(tensors, metadata)


@pytest.mark.parametrize(
    "change",
    few(count=3, variants=[
        _without_optimizer, _without_one_moment, _another_count, _older_file_without("tally"),
        _older_file_without("images"), _older_file_without_optimizer,
    ]),
)  # fmt: skip
def test_a_checkpoint_with_missing_or_changed_parts_is_passed_over(tmp_path: Path, change: Any) -> None:
    run(tmp_path / "whole", images=24)
    run(tmp_path / "parts", images=24)
    rewrite(checkpoints.checkpoints(tmp_path / "parts")[-1], change)
    recorder = Recorder()
    run(tmp_path / "parts", images=24, listeners=[recorder])
    notes = [r.values["text"] for r in recorder.of("note")]
    assert any("0000000024" in text and "checkpoint before" in text for text in notes)
    assert recorder.of("start")[0].images == 12
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_files_from_before_the_hash_of_the_manifest_still_load(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoints.write(path, {"net.w": torch.ones(2)}, {"kind": "diffusion", "ema": []})

    def older(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        manifest = json.loads(metadata["undiffuse"])
        del manifest["manifest_sha256"]
        metadata["undiffuse"] = json.dumps(manifest)

    rewrite(path, older)
    assert checkpoints.read(path)[1]["kind"] == "diffusion"


def test_temporary_files_of_killed_runs_are_removed(tmp_path: Path) -> None:
    run(tmp_path, images=8)
    (tmp_path / "previews").mkdir(exist_ok=True)
    for folder in ("checkpoints", "previews"):
        (tmp_path / folder / ".undiffuse-0123456789ab.tmp").touch()
    (tmp_path / ".undiffuse-00.tmp").touch()
    with temporary(tmp_path) as held:
        run(tmp_path, images=8)
        assert list(tmp_path.rglob(".undiffuse-*")) == [held], "another command is writing it"


def test_a_full_disk_is_found_before_the_first_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40_000))
    recorder = Recorder()
    with pytest.raises(OSError, match=r"no room for the run's checkpoints \(only 0.04 MB are free\): .* MB are needed"):
        run(tmp_path / "run", listeners=[recorder])
    assert not recorder.of("train")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve space here")
def test_a_quota_is_found_before_the_first_update(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = Recorder()
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="no room for the run's checkpoints"):
            run(tmp_path / "run", listeners=[recorder])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not recorder.of("train")


def test_a_run_folder_deleted_under_a_run_is_an_error_and_the_state_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def delete(record: Any) -> None:
        if record.kind == "train" and record.images == 16:
            shutil.rmtree(folder)

    with pytest.raises(OSError, match="was deleted while the run was training"):
        run(folder, listeners=[delete], save_every=None)
    assert [path.name for path in checkpoints.checkpoints(folder)] == ["0000000024.safetensors"]
    outcome = run(folder, save_every=None)
    assert outcome.complete


def test_another_run_in_the_place_of_a_deleted_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def replace(record: Any) -> None:
        if record.kind == "train" and record.images == 16:
            folder.rename(tmp_path / "away")
            with RunFolder(folder, TrainConfig(images=8, batch=4)):
                pass

    with pytest.raises(OSError, match="replaced by that of another run"):
        run(folder, listeners=[replace], save_every=None)
    assert not checkpoints.checkpoints(folder)


def test_images_that_break_save_the_state_first(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    data = dataset(images)
    recorder = Recorder()

    def spoil(record: Any) -> None:
        recorder(record)
        if record.kind == "train" and record.images == 8:
            for file in images.iterdir():
                file.write_bytes(b"BMno picture")

    with pytest.raises(Exception, match=r"\.bmp"):
        run(tmp_path / "run", unlabelled(), data, listeners=[spoil], save_every=None, images=400)
    newest = checkpoints.latest(tmp_path / "run")
    assert newest is not None
    assert any(str(newest) in r.values["text"] for r in recorder.of("note"))
    assert checkpoints.read(newest)[1]["progress"]["images"] == checkpoints.images_of(newest) >= 8


def test_an_error_in_a_listener_saves_the_state_first(tmp_path: Path) -> None:
    def fail(record: Any) -> None:
        if record.kind == "train" and record.images == 16:
            raise RuntimeError("disk of the logger is full")

    with pytest.raises(RuntimeError, match="logger"):
        run(tmp_path / "parts", listeners=[fail], save_every=None)
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "parts")] == ["0000000016.safetensors"]
    run(tmp_path / "parts", tiny_task(seed=3))
    run(tmp_path / "whole")
    newest = [checkpoints.read(checkpoints.checkpoints(tmp_path / name)[-1])[0] for name in ("whole", "parts")]
    assert all(torch.equal(newest[0][name], newest[1][name]) for name in newest[0])


@pytest.mark.parametrize("settled", [True, False])
def test_swapped_images_of_equal_size_are_noticed_and_named(
    tmp_path: Path, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    images = image_folder(tmp_path / "images")
    if settled:
        monkeypatch.setattr("undiffuse.data.containers.SETTLED", -1e6)  # what was read is kept in the cache at once
    run(tmp_path / "run", unlabelled(), dataset(images), images=8)
    run(tmp_path / "run", unlabelled(), dataset(images), images=12)
    for a, b in (("00", "01"), ("02", "03")):
        (images / f"{a}.bmp").rename(images / "x")
        (images / f"{b}.bmp").rename(images / f"{a}.bmp")
        (images / "x").rename(images / f"{b}.bmp")
    with pytest.raises(ValueError, match=r"4 images changed: 00.bmp, 01.bmp, 02.bmp and 1 more(.|\n)*init_from="):
        run(tmp_path / "run", unlabelled(), dataset(images), images=16)
    (images / "11.bmp").rename(images / "12.bmp")
    with pytest.raises(ValueError, match=r"1 image missing: 11.bmp; 1 image new: 12.bmp"):
        run(tmp_path / "run", unlabelled(), dataset(images), images=16)


def test_a_folder_its_copy_and_its_zip_have_the_same_contents(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    shutil.copytree(images, tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted(images.iterdir()):
            archive.write(file, file.name)
    found = [content_index(open_data(tmp_path / name)) for name in ("images", "copy", "images.zip")]
    assert len({index.hash for index in found if index is not None}) == 1
    half = content_index(open_data(images).subset([3, 1]))
    assert half is not None
    assert half.names == ["03.bmp", "01.bmp"]


def test_images_of_a_large_folder_that_changed_are_noticed_before_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("undiffuse.data.index.FROM", 3)
    monkeypatch.setattr("undiffuse.data.containers.SETTLED", -1e6)
    images = image_folder(tmp_path / "images")
    run(tmp_path / "run", unlabelled(), dataset(images), images=8)
    before = checkpoints.checkpoints(tmp_path / "run")
    (images / "02.bmp").write_bytes((images / "05.bmp").read_bytes())
    with pytest.raises(ValueError, match=r"have changed since they were indexed \(1 image changed: 02.bmp\)"):
        run(tmp_path / "run", unlabelled(), dataset(images), images=16)
    assert checkpoints.checkpoints(tmp_path / "run") == before
    with pytest.raises(ValueError, match=r"images to train on are others \(1 image changed: 02.bmp\)"):
        run(tmp_path / "run", unlabelled(), dataset(images), images=16)
