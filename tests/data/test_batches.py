"""Order, data set and batches: everything is a pure function of (seed, position)."""

from __future__ import annotations

import json
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import (
    ArraySource,
    Batch,
    BrokenImageError,
    DataConfig,
    ImageDataset,
    batches,
    check_trainable,
    epoch_of,
    index_at,
    indices_at,
    open_data,
    pass_once,
    permutation,
    uniforms,
)

FIRST = [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
LARGE = [3, 5, 2, 8, 7, 9, 6, 4, 1, 0]
CROP = [0.3544453552720829, 0.929644924684009]


def folder(root: Path, count: int = 13, size: tuple[int, int] = (24, 20)) -> Path:
    """Noise pictures, so that every crop and flip shows."""
    rng = np.random.default_rng(5)
    for k in range(count):
        path = root / f"{'ab'[k % 2]}" / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return root


def dataset(root: Path, **keywords: object) -> ImageDataset:
    return DataConfig(path=str(root), **{"size": 8, "seed": 3, **keywords}).build()  # type: ignore[arg-type]


def take(stream: object, count: int) -> list[Batch]:
    found = list(islice(stream, count))  # type: ignore[call-overload]
    stream.close()  # type: ignore[attr-defined]
    return found


def joined(parts: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = [part.labels for part in parts if part.labels is not None]
    return torch.cat([p.images for p in parts]), torch.cat(labels), torch.cat([p.positions for p in parts])


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(one), joined(two), strict=True))


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    epochs = [[index_at(7, p, 101) for p in range(e * 101, (e + 1) * 101)] for e in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(101))
    assert [index_at(8, p, 101) for p in range(101)] != epochs[0]
    assert indices_at(7, np.arange(202).reshape(2, 101), 101).tolist() == epochs[:2]
    assert [epoch_of(p, 101) for p in (0, 100, 101, 505)] == [0, 0, 1, 5]


def test_order_is_frozen_for_ever() -> None:
    # These numbers are a promise: a checkpoint made with one version resumes with the next.
    assert permutation(0, 0, 10).tolist() == FIRST
    assert permutation(12345678901234567890, 3, 10).tolist() == LARGE
    assert uniforms(1, "crop", 2, 2).tolist() == pytest.approx(CROP, abs=0)


def test_permutations_are_unbiased() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), permutation(1, epoch, 5)] += 1
    chi = ((counts - 800) ** 2 / 800).sum()  # 16 degrees of freedom
    assert chi < 40


def test_uniforms_fill_the_interval_and_do_not_repeat() -> None:
    values = np.array([uniforms(4, "crop", p, 3) for p in range(4000)])
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 0.02 and np.abs(values.var(0) - 1 / 12).max() < 0.005
    assert len(np.unique(values)) == values.size
    neighbours = np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]
    assert abs(neighbours) < 0.06
    assert uniforms(4, "flip", 9, 1)[0] != uniforms(4, "crop", 9, 1)[0]


def test_order_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="negative"):
        index_at(0, -1, 5)
    with pytest.raises(ValueError, match="empty"):
        index_at(0, 0, 0)
    with pytest.raises(ValueError, match="out of range"):
        index_at(-1, 0, 5)


def test_example_is_a_pure_function_of_the_position(tmp_path: Path) -> None:
    keywords = {"flip": True, "random_crop": True}
    one, two = dataset(folder(tmp_path), **keywords), dataset(tmp_path, **keywords)
    forward = [one.example(p) for p in range(40)]
    backward = [two.example(p) for p in reversed(range(40))][::-1]
    for a, b in zip(forward, backward, strict=False):
        assert np.array_equal(a.image, b.image) and (a.label, a.index, a.position) == (b.label, b.index, b.position)
    cropping = dataset(tmp_path, random_crop=True)
    crops = {p.image.tobytes() for p in map(cropping.example, range(130)) if p.index == 0}
    assert len(crops) >= 8  # ten epochs, nearly as many different crops of the same picture
    other = dataset(tmp_path, **keywords, seed=4)
    assert [other.example(p).index for p in range(13)] != [e.index for e in forward[:13]]


def test_flip_is_fair_and_off_by_default(tmp_path: Path) -> None:
    flipping, plain = dataset(folder(tmp_path, 3), flip=True), dataset(tmp_path)
    mirrored = 0
    for p in range(300):
        picture, reference = flipping.example(p).image, plain.plain(plain.example(p).index).image
        assert np.array_equal(plain.example(p).image, reference)
        if not np.array_equal(picture, reference):
            assert np.array_equal(picture, reference[:, ::-1])
            mirrored += 1
    assert 115 <= mirrored <= 185


def test_labels_and_shape(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), size=(8, 12), channels=1)
    assert data.shape == (8, 12, 1) and data.num_classes == 2 and data.label_names == ["a", "b"] and len(data) == 13
    example = data.example(30)
    assert example.image.shape == (8, 12, 1) and example.label == "ab".index(data.source.name(example.index)[0])
    assert data.epoch_of(30) == 2


def test_batches_do_not_depend_on_workers_ranks_or_batch_size(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), flip=True, random_crop=True)
    reference = take(batches(data, 5, 4, workers=0), 9)
    assert joined(reference)[2].tolist() == list(range(5, 41))
    assert reference[0].images.shape == (4, 8, 8, 3) and reference[0].images.dtype == torch.uint8
    assert reference[0].labels is not None and reference[0].labels.dtype == torch.int64
    assert [data.source.name(int(i)) for i in reference[3].indices] == list(reference[3].names)
    for workers, prefetch in ((1, 1), (3, 2), (7, 5)):
        assert same(reference, take(batches(data, 5, 4, workers=workers, prefetch=prefetch), 9))
    assert same(reference, take(batches(data, 5, 12, workers=2), 3))
    ranks = [take(batches(data, 5, 4, rank=r, world_size=2, workers=r), 9) for r in range(2)]
    assert same(reference, [part for pair in zip(*ranks, strict=False) for part in pair])


def test_resuming_at_a_position_continues_the_stream(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), flip=True, random_crop=True)
    assert same(
        take(batches(data, 0, 4), 10)[6:], take(batches(dataset(tmp_path, flip=True, random_crop=True), 24, 4), 4)
    )


def test_unlabelled_data_have_no_labels(tmp_path: Path) -> None:
    batch = next(batches(dataset(folder(tmp_path), labels="none"), 0, 2))
    assert batch.labels is None and len(batch) == 2


def test_pass_once_sees_everything_once_without_augmentation(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), flip=True, random_crop=True)
    for workers in (0, 3):
        parts = list(pass_once(data, 5, workers=workers))
        assert [len(part) for part in parts] == [5, 5, 3]
        images, _, positions = joined(parts)
        assert positions.tolist() == list(range(13))
        assert all(np.array_equal(images[i].numpy(), data.plain(i).image) for i in range(13))
    ranks = [[b.positions.tolist() for b in pass_once(data, 6, rank=r, world_size=4)] for r in range(4)]
    assert sorted(i for rank in ranks for part in rank for i in part) == list(range(13))
    assert list(ranks[3]) == [[4, 5], [10, 11], [12]]
    assert sum(len(part) for part in pass_once(data, 5, limit=7)) == 7


def test_impossible_batches_are_refused_at_once(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path))
    for arguments in ((0, 5, 0, 2), (0, 0), (-1, 4), (0, 4, 2, 2), (0, 4, -1, 1)):
        with pytest.raises(ValueError):
            batches(data, *arguments)
    with pytest.raises(ValueError, match="workers=-1"):
        batches(data, 0, 4, workers=-1)
    with pytest.raises(ValueError):
        pass_once(data, 0)
    with pytest.raises(ValueError):
        pass_once(data, 4, rank=3, world_size=2)


def test_threads_end_with_their_stream(tmp_path: Path) -> None:
    stream = batches(dataset(folder(tmp_path)), 0, 4, workers=3)
    next(stream)
    assert any(thread.name.startswith("undiffuse-data") for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("undiffuse-data") for thread in threading.enumerate())


def spoil(root: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_file_that_breaks_later_is_named(tmp_path: Path, workers: int) -> None:
    data = dataset(folder(tmp_path))
    spoil(tmp_path, "b/07.png")
    with pytest.raises(BrokenImageError, match="b/07.png"):
        take(batches(data, 0, 13, workers=workers), 1)
    with pytest.raises(BrokenImageError, match="b/07.png"):
        list(pass_once(data, 4, workers=workers))


def test_skipping_replaces_deterministically_and_notes_it(tmp_path: Path) -> None:
    keywords = {"on_broken": "skip", "check": "none", "random_crop": True}
    spoil(folder(tmp_path), "b/07.png")
    spoil(tmp_path, "b/09.png")
    data = dataset(tmp_path, **keywords)
    bad = [i for i in range(13) if data.source.name(i) in ("b/07.png", "b/09.png")]
    reference = take(batches(data, 0, 13, workers=0), 2)
    assert same(reference, take(batches(dataset(tmp_path, **keywords), 0, 13, workers=4), 2))
    assert sorted(data.replaced) == bad
    indices = torch.cat([batch.indices for batch in reference])
    assert not set(bad) & set(indices.tolist())
    wanted = indices_at(3, np.arange(26), 13)
    for got, want in zip(indices.tolist(), wanted.tolist(), strict=False):
        assert got == (want if want not in bad else want + 1 if want + 1 not in bad else want + 2)
    seen = [name for batch in pass_once(data, 4) for name in batch.names]
    assert len(seen) == 11 and "b/07.png" not in seen


def test_skipping_ends_when_nothing_is_left(tmp_path: Path) -> None:
    for name in ("a/00.png", "b/01.png"):
        spoil(folder(tmp_path, 2), name)
        spoil(tmp_path, "b/01.png" if name == "a/00.png" else "a/00.png")
    with pytest.raises(BrokenImageError):
        dataset(tmp_path, on_broken="skip", check="none").example(0)


def test_pixels_that_cannot_be_prepared_name_the_file(tmp_path: Path) -> None:
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(BrokenImageError, match="float.tif.*floating-point"):
        dataset(tmp_path, check="none").example(0)


def test_arrays_in_memory_need_no_threads() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    source = ArraySource(images, np.arange(6) % 3, ["x", "y", "z"])
    data = ImageDataset(source, DataConfig(path="array", size=32, channels=1, fit="pad"))
    before = threading.active_count()
    stream = batches(data, 0, 3)
    batch = next(stream)
    assert threading.active_count() == before
    assert batch.images.shape == (3, 32, 32, 1)
    assert np.array_equal(batch.images[0, 2:30, 2:30, 0].numpy(), images[int(batch.indices[0])])


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path / "two"))
    check_trainable(data, 13, conditional=True)
    with pytest.raises(ValueError, match="13 usable images, fewer than one batch of 14.*at most 13"):
        check_trainable(data, 14, conditional=False)
    with pytest.raises(ValueError, match="at least 1"):
        check_trainable(data, 0, conditional=False)
    bare = dataset(tmp_path / "two", labels="none")
    check_trainable(bare, 13, conditional=False)
    with pytest.raises(ValueError, match="has no labels"):
        check_trainable(bare, 13, conditional=True)
    one = ImageDataset(data.source.subset([0, 1, 2]), data.config)
    check_trainable(one, 3, conditional=False)
    with pytest.raises(ValueError, match="one class, 'a'"):
        check_trainable(one, 3, conditional=True)
    with pytest.raises(ValueError, match="holds no images"):
        ImageDataset(data.source.subset([]), data.config)


def test_config_survives_json_and_refuses_nonsense() -> None:
    config = DataConfig(path="x", size=(32, 48), background=(1, 2, 3), flip=True)
    assert DataConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.shape == (32, 48, 3)
    with pytest.raises(ValueError, match="unknown data settings colour"):
        DataConfig.from_dict({"path": "x", "colour": 1})
    for wrong in ({"size": 0}, {"channels": 0}, {"fit": "x"}, {"background": 256}, {"background": (1, 2)}):
        with pytest.raises(ValueError):
            DataConfig(path="x", **wrong)  # type: ignore[arg-type]
    for wrong in ({"pad_value": -1}, {"workers": -1}, {"seed": -1}):
        with pytest.raises(ValueError):
            DataConfig(path="x", **wrong)  # type: ignore[arg-type]


def test_config_opens_what_it_says(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    with pytest.raises(ValueError, match="smaller than 32x32"):
        dataset(tmp_path, size=32, on_tiny="refuse")
    assert len(dataset(tmp_path, size=32, on_tiny="refuse", fit="pad")) == 4  # padding enlarges nothing
    table = DataConfig(path=str(tmp_path), size=8).build(label_names=["b", "c", "a"])
    assert table.label_names == ["b", "c", "a"] and table.plain(0).label == 2
    assert open_data(tmp_path).fingerprint != table.source.fingerprint
