"""Animations: number of frames, their times and their pixels, read back by another route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from undiffuse.pictures import read_record, save_animation, tile


def path_of(steps: int, channels: int, count: int = 4, size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (steps, count, size, size, channels), dtype=np.uint8)


def read(path: Path) -> tuple[list[np.ndarray], list[int], dict]:
    with Image.open(path) as file:
        frames, times = [], []
        for frame in ImageSequence.Iterator(file):
            frames.append(np.asarray(frame.convert("RGBA")))
            times.append(round(frame.info["duration"]))
        return frames, times, dict(file.info)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".apng"])
def test_grey_frames_are_exact_and_the_last_is_held(tmp_path: Path, suffix: str) -> None:
    frames = path_of(5, 1)
    file = save_animation(tmp_path / f"a{suffix}", frames, columns=2, scale=2, gap=1, frame_ms=70, hold_ms=900)
    got, times, info = read(file)
    assert times == [70, 70, 70, 70, 900] and info["loop"] == 0
    for frame, pixels in zip(frames, got, strict=True):
        assert np.array_equal(pixels, np.asarray(tile(frame, 2, scale=2, gap=1, background=250).convert("RGBA")))


@pytest.mark.parametrize("channels", [3, 4])
def test_apng_keeps_colours_and_transparency(tmp_path: Path, channels: int) -> None:
    frames = path_of(4, channels)
    got, times, _ = read(save_animation(tmp_path / "a.png", frames, gap=0))
    assert times == [60, 60, 60, 1500]
    for frame, pixels in zip(frames, got, strict=True):
        expected = np.asarray(tile(frame, gap=0).convert("RGBA"))
        if channels == 4:
            assert np.array_equal(pixels[..., 3], expected[..., 3])
        visible = expected[..., 3] > 0
        assert np.array_equal(pixels[visible], expected[visible])


def test_gif_colours_are_close_and_few_colours_exact(tmp_path: Path) -> None:
    ramp = np.stack(np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 4)), -1).astype(np.uint8)
    frame = np.concatenate([ramp, np.full_like(ramp[..., :1], 90)], -1)[None]
    (pixels, _), _, _ = read(save_animation(tmp_path / "ramp.gif", [frame, frame[:, ::-1]], gap=0))
    error = pixels[..., :3].astype(int) - frame[0]
    assert np.abs(error.mean()) < 2 and np.sqrt((error**2).mean()) < 16
    flat = np.zeros((1, 8, 8, 3), np.uint8)
    flat[:, :4], flat[:, 4:] = (200, 30, 40), (10, 90, 250)
    (pixels, _), _, _ = read(save_animation(tmp_path / "flat.gif", [flat, flat[:, ::-1]], gap=0))
    assert np.array_equal(pixels[..., :3], flat[0])


def test_gif_lays_transparency_on_white(tmp_path: Path) -> None:
    frame = np.zeros((1, 4, 4, 4), np.uint8)
    (pixels,), _, _ = read(save_animation(tmp_path / "a.gif", [frame], gap=0))
    assert np.all(pixels == 255)


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_equal_neighbours_keep_their_time(tmp_path: Path, suffix: str) -> None:
    frames = path_of(3, 1)
    got, times, _ = read(save_animation(tmp_path / f"a{suffix}", frames[[0, 0, 0, 1, 2, 2]], frame_ms=50, hold_ms=1000))
    assert times == [150, 50, 1050] and len(got) == 3


@pytest.mark.parametrize(
    ("suffix", "loops", "stored"), [(".gif", 1, None), (".gif", 3, 2), (".gif", 0, 0), (".png", 3, 3)]
)
def test_number_of_showings(tmp_path: Path, suffix: str, loops: int, stored: int | None) -> None:
    _, _, info = read(save_animation(tmp_path / f"a{suffix}", path_of(2, 1), loops=loops))
    assert info.get("loop") == stored


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_record_travels_along(tmp_path: Path, suffix: str) -> None:
    record = {"seed": 7, "label": "caf\u00e9", "note": "x" * 900}
    file = save_animation(tmp_path / f"a{suffix}", path_of(2, 1), record=record)
    assert read_record(file) == record


def test_finished_pictures_and_generators_are_frames_too(tmp_path: Path) -> None:
    pictures = (Image.new("RGB", (9, 7), (k * 50, 0, 0)) for k in range(4))
    got, _, _ = read(save_animation(tmp_path / "a.png", pictures))
    assert [tuple(f[0, 0, :3]) for f in got] == [(0, 0, 0), (50, 0, 0), (100, 0, 0), (150, 0, 0)]
    assert got[0].shape == (7, 9, 4)


def test_bad_input_is_explained_and_leaves_nothing_behind(tmp_path: Path) -> None:
    frames = path_of(2, 1)
    for arguments, message in [
        ({"path": "a.mp4", "frames": frames}, "must end in .gif"),
        ({"path": "a.gif", "frames": []}, "at least one frame"),
        ({"path": "a.gif", "frames": frames, "frame_ms": 5}, "frame_ms=5"),
        ({"path": "a.gif", "frames": frames, "loops": -1}, "got -1"),
        ({"path": "a.gif", "frames": [frames[0], frames[0][:, :3]], "columns": 4}, "the same size"),
        ({"path": "a.png", "frames": frames, "record": {"a": float("nan")}}, "record entry 'a'"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_animation(tmp_path / arguments.pop("path"), **arguments)
    assert list(tmp_path.iterdir()) == []
    save_animation(tmp_path / "a.gif", frames)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_animation(tmp_path / "a.gif", frames)
    save_animation(tmp_path / "a.gif", frames, overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["a.gif"]
