"""Sets of images: what may be evaluated, how it is prepared, and what is refused or warned of."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.evaluation_sets import Toy, images, save_folder, save_npz
from undiffuse.data import BrokenImageError
from undiffuse.evaluation import MadeImages, evaluate, open_images
from undiffuse.evaluation.arrays import ArrayImages
from undiffuse.metrics import MetricError
from undiffuse.pictures import preview
from undiffuse.pictures.writer import SampleWriter


def test_folder_zip_and_npz_of_the_same_pictures_are_the_same_set(tmp_path: Path) -> None:
    pictures = images(7)
    folder = save_folder(tmp_path / "a", pictures)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    npz = save_npz(tmp_path / "a.npz", pictures)
    for place in (folder, tmp_path / "a.zip", npz):
        found = open_images(place)
        assert found.shape == (8, 8, 3)
        assert len(found) == 7
        assert np.array_equal(found.batch(2, 6).numpy(), pictures[2:6])


def test_an_uncompressed_npz_is_mapped_and_a_compressed_one_read(tmp_path: Path) -> None:
    pictures = images(5)
    np.savez_compressed(tmp_path / "c.npz", arr_0=pictures)
    found = open_images(save_npz(tmp_path / "s.npz", pictures))
    assert isinstance(found.dataset.source.images, np.memmap)  # type: ignore[attr-defined]
    assert torch.equal(found.batch(0, 5), open_images(tmp_path / "c.npz").batch(0, 5))


def test_grey_pictures_stay_grey_and_sizes_are_prepared_only_when_asked(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "g", images(3, channels=1))
    assert open_images(folder).shape == (8, 8, 1)
    assert open_images(folder, size=12, fit="pad").shape == (12, 12, 1)
    assert open_images(folder, channels=3).shape == (8, 8, 3)
    assert open_images(folder).about["preparation"] == "as stored"
    assert "12x12x1" in open_images(folder, size=12, fit="pad").about["preparation"]


def test_sizes_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", images(2))
    Image.new("RGB", (9, 8)).save(folder / "odd.png")
    with pytest.raises(ValueError, match=r"^size: .*0000\.png is 8x8, odd\.png is 9x8"):
        open_images(folder)
    assert open_images(folder, size=8).shape == (8, 8, 3)


def test_lossy_transparent_and_unbalanced_sets_are_warned_of(tmp_path: Path) -> None:
    jpeg = save_folder(tmp_path / "j", images(3), ".jpg")
    assert any("3 of 3 images are stored lossily" in text for text in open_images(jpeg).warnings)
    clear = tmp_path / "t"
    clear.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(clear / "a.png")
    assert any("transparency" in text for text in open_images(clear).warnings)
    uneven = save_folder(tmp_path / "u", images(5), labels=["x", "x", "x", "x", "y"])
    assert any("1 to 4 images" in text for text in open_images(uneven).warnings)
    assert open_images(save_folder(tmp_path / "ok", images(4), labels=["x", "x", "y", "y"])).warnings == []


def test_counts_are_evenly_spaced_or_the_first(tmp_path: Path) -> None:
    pictures = images(10)
    npz = save_npz(tmp_path / "n.npz", pictures)
    assert np.array_equal(open_images(npz, count=5).batch(0, 5).numpy(), pictures[::2])
    assert np.array_equal(open_images(npz, count=3, first=True).batch(0, 3).numpy(), pictures[:3])
    with pytest.raises(MetricError, match="has 10 images, fewer than the 11 to take"):
        open_images(npz, count=11)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "float32"),
        ({"arr_0": np.full((4, 8, 8, 3), 0.5, np.float32)}, r"value_range is missing: .* float32 .*0\.5\.\.0\.5"),
        ({"arr_0": np.full((4, 8, 8, 3), 200.0, np.float64)}, "value_range is missing: .* float64"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.int64)}, "value_range is missing: .* int64"),
        ({"arr_0": np.full((4, 8, 8, 3), 99, np.int64)}, "value_range is missing: .* int64 .*99"),
        ({"arr_0": np.full((4, 8, 8, 3), 4000, np.uint16)}, "value_range is missing: .*4000"),
        ({"nothing": np.zeros(4, np.uint8)}, "nothing"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "no images"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "bad.npz")


def test_declared_values_become_levels_and_are_clipped(tmp_path: Path) -> None:
    values = np.linspace(-1100, 2100, 4 * 8 * 8 * 3).reshape(4, 8, 8, 3)
    np.savez(tmp_path / "v.npz", arr_0=values.astype(np.float32))
    found = open_images(tmp_path / "v.npz", value_range=(-1000, 2000))
    expected = np.clip((values + 1000) * 255 / 3000, 0, 255)
    assert found.batch(0, 4).dtype == torch.uint8
    assert np.abs(found.batch(0, 4).numpy() - expected).max() <= 0.51
    assert found.about["value_range"] == [-1000.0, 2000.0]
    array = ArrayImages(values, value_range=(-1000.0, 2000.0))
    assert np.abs(array.batch(1, 4).numpy() - expected[1:]).max() <= 0.51
    with pytest.raises(MetricError, match="value_range"):
        ArrayImages(values)


def test_arrays_of_channels_first_and_under_other_names_are_the_same_images(tmp_path: Path) -> None:
    pictures = images(4)
    np.savez(tmp_path / "p.npz", images=np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    assert np.array_equal(open_images(tmp_path / "p.npz").batch(0, 4).numpy(), pictures)


def test_files_of_16_bits_are_warned_of_and_files_of_floats_need_a_range(tmp_path: Path) -> None:
    for kind, dtype in (("deep", np.uint16), ("float", np.float32)):
        (tmp_path / kind).mkdir()
        for i in range(3):
            ending = "png" if kind == "deep" else "tif"
            Image.fromarray(np.full((8, 8), 4000 + i, dtype)).save(tmp_path / kind / f"{i}.{ending}")
    assert any("brightest is 16 of 255" in text for text in open_images(tmp_path / "deep").warnings)
    declared = open_images(tmp_path / "deep", value_range=(0, 4095))
    assert declared.warnings == []
    assert declared.batch(0, 1).max() == round(4000 * 255 / 4095)
    with pytest.raises(ValueError, match=r"float32.*value_range=\(low, high\)"):
        open_images(tmp_path / "float")
    assert open_images(tmp_path / "float", value_range=(0, 4095)).batch(0, 1).max() == round(4000 * 255 / 4095)


@pytest.mark.parametrize("form", ["png", "png16", "tiff", "npy"])
def test_samples_in_units_are_evaluated_in_them(tmp_path: Path, form: str) -> None:
    """Samples of every format, the real data and the model's own samples become the same levels."""
    values = np.random.default_rng(0).uniform(-1000, 2000, (6, 8, 8, 3)).astype(np.float32)
    levels = preview(values, (-1000, 2000))
    writer = SampleWriter(tmp_path / "s", form, run={"seed": 0}, value_range=(-1000, 2000))  # type: ignore[arg-type]
    writer.write(range(6), levels if form == "png" else values)
    writer.finish(6)
    assert np.abs(open_images(tmp_path / "s").batch(0, 6).numpy().astype(int) - levels).max() <= (form == "png16")
    np.savez(tmp_path / "real.npz", images=values)
    report = evaluate(tmp_path / "s", tmp_path / "real.npz", Toy(), ["fd"], device="cpu", cache=False, progress=False)
    distance = report.get("FD-toy")
    assert distance is not None
    assert abs(distance.value) < 1e-2


def test_samples_of_many_channels_are_refused(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "s", "tiff", run={"seed": 0})
    writer.write(range(2), np.zeros((2, 8, 8, 5), np.float32))
    writer.finish(2)
    with pytest.raises(MetricError, match="5 channels"):
        open_images(tmp_path / "s")


def test_pickled_and_truncated_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", arr_0=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        open_images(tmp_path / "p.npz")
    whole = save_npz(tmp_path / "w.npz", images(9)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        open_images(tmp_path / "cut.npz")


def test_a_broken_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "b", images(4, size=32))
    data = (folder / "0002.png").read_bytes()
    (folder / "0002.png").write_bytes(data[: len(data) // 2])
    with pytest.raises((BrokenImageError, ValueError), match=r"0002\.png"):
        open_images(folder).batch(0, 4)


@pytest.mark.parametrize("form", ["png", "npz"])
def test_the_output_of_sample_is_read_without_its_grid_and_with_its_record(tmp_path: Path, form: str) -> None:
    pictures = images(6, channels=1)
    run = {"command": "sample", "seed": 3, "solver": "ddim", "steps": "10"}
    writer = SampleWriter(tmp_path / "s", form, run=run, label_names=["x", "y"])  # type: ignore[arg-type]
    writer.write(list(range(6)), torch.from_numpy(pictures), [i % 2 for i in range(6)])
    writer.finish(6)
    Image.new("RGB", (99, 99)).save(tmp_path / "s" / "grid.png")
    found = open_images(tmp_path / "s")
    assert np.array_equal(found.batch(0, 6).numpy(), pictures)
    assert found.about["record"]["solver"] == "ddim"
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_sampling_folder_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "sample"}))
    with pytest.raises(MetricError, match="no samples"):
        open_images(tmp_path)


def test_made_images_are_made_in_batches_and_known_before_they_exist() -> None:
    asked: list[list[int]] = []

    def make(numbers: list[int]) -> torch.Tensor:
        asked.append(numbers)
        return torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1)

    def made(seed: int) -> MadeImages:
        return MadeImages(make, 10, (2, 2, 1), where="m", identity={"seed": seed}, batch=4)

    assert made(0).batch(1, 8)[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert asked == [[1, 2, 3, 4], [5, 6, 7]]
    assert made(0).key(0, 4) == made(0).key(0, 4)
    assert len({made(0).key(0, 4), made(1).key(0, 4), made(0).key(0, 5), made(0).key(4, 8)}) == 4
    with pytest.raises(MetricError, match="at least one"):
        MadeImages(make, 0, (2, 2, 1), where="m", identity={})


def test_pixels_of_zero_and_one_are_images_in_another_range(tmp_path: Path) -> None:
    binary = save_npz(tmp_path / "b.npz", images(4) // 200)
    with pytest.raises(MetricError, match=r"are 0 or 1.*expected uint8 in 0\.\.255"):
        open_images(binary).batch(0, 4)
    assert open_images(save_npz(tmp_path / "one.npz", np.zeros((1, 8, 8, 3), np.uint8))).batch(0, 1).sum() == 0
