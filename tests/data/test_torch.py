"""Torch data sets and loaders as training data: items, ranges, labels, order, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from support.training_runs import assert_same_run, run, tiny_task, told
from undiffuse import checkpoints
from undiffuse.data import DataConfig, ImageDataset, batches, split
from undiffuse.data.memory import as_data, unlabelled
from undiffuse.data.torch_dataset import StreamDataset, TorchSource
from undiffuse.data.torch_items import ItemReader, split_batch
from undiffuse.util.errors import ConfigError

PIXELS = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
UINT8 = PIXELS.permute(0, 2, 3, 1).numpy()


class Interrupt(Exception):
    """Stands for a crash in the middle of a run."""


class Items(Dataset):  # type: ignore[type-arg]
    """Items made by a function, with random transforms if asked for."""

    def __init__(self, item: Any, count: int = 12, **attributes: Any) -> None:
        self.item, self.count, self.reads = item, count, 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.item(i)


ITEMS: dict[str, Any] = {
    "uint8 tensor": lambda i: PIXELS[i],
    "pair": lambda i: (PIXELS[i], int(LABELS[i])),
    "[0, 1]": lambda i: (PIXELS[i].float() / 255, LABELS[i]),
    "[-1, 1]": lambda i: (PIXELS[i].float() / 127.5 - 1, LABELS[i]),
    "bfloat16": lambda i: ((PIXELS[i].float() / 255).bfloat16(), LABELS[i]),
    "PIL": lambda i: (Image.fromarray(UINT8[i]), int(LABELS[i])),
    "numpy HWC": lambda i: (UINT8[i], np.int64(LABELS[i])),
    "dict": lambda i: {"pixel_values": PIXELS[i], "labels": LABELS[i], "name": str(i)},
    "dict of PIL": lambda i: {"image": Image.fromarray(UINT8[i]), "label": int(LABELS[i])},
}


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_every_kind_become_the_same_images(kind: str) -> None:
    source = TorchSource(Items(ITEMS[kind]))
    error = 1 if kind == "bfloat16" else 0
    for i in range(12):
        assert np.abs(np.asarray(source.image(i)).astype(int) - UINT8[i]).max() <= error
    if kind == "uint8 tensor":
        assert source.labels is None
    else:
        assert source.labels is not None
        assert source.labels.tolist() == LABELS.tolist()
        assert source.label_names == ["0", "1", "2"]
    assert unlabelled(source).labels is None
    assert unlabelled(source).fingerprint != source.fingerprint or source.labels is None


def test_the_range_is_detected_and_said() -> None:
    said = {kind: TorchSource(Items(ITEMS[kind])).remarks[0] for kind in ITEMS}
    assert said["[0, 1]"] == "pixel values in [0, 1]"
    assert said["[-1, 1]"] == "pixel values in [-1, 1]"
    assert said["PIL"] == "pixel values 8-bit"
    dark = Items(lambda i: PIXELS[i].float() / 1000)  # as if in [0, 1], unless given
    assert np.asarray(TorchSource(dark).image(0)).max() < 80
    given = TorchSource(dark, value_range=(0, 0.255))
    assert np.abs(np.asarray(given.image(3)).astype(int) - UINT8[3]).max() == 0
    with pytest.raises(ConfigError, match="^value_range: .*Remove a normalization"):
        TorchSource(Items(lambda i: (PIXELS[i].float() - 118) / 60))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: PIXELS[i, :2], r"shape \[2, 8, 8\]"),
        (lambda i: "cat.png", "an image is a str"),
        (lambda i: {"picture": PIXELS[i]}, "keys picture; expected an image under one of image, pixel_values"),
        (lambda i: (), "empty tuple"),
        (lambda i: (PIXELS[i], torch.zeros(3)), r"a label has the shape \[3\]"),
        (lambda i: (PIXELS[i], 0.5), "neither a class index nor a name"),
        (lambda i: (PIXELS[i], None if i == 5 else 1), "1 of 12 items have no label, the first is item 5"),
    ],
)
def test_items_that_are_no_images_are_refused(item: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchSource(Items(item))


def test_labels_come_from_the_data_sets_own_list_or_from_the_items() -> None:
    listed = Items(ITEMS["pair"], targets=LABELS.tolist(), classes=["left", "right", "top"])
    source = TorchSource(listed)
    assert listed.reads < 40
    assert source.label_names == ["left", "right", "top"]
    part = TorchSource(Subset(listed, [4, 2, 9]))
    assert part.labels is not None
    assert part.labels.tolist() == [1, 2, 0]
    assert part.label_names == ["left", "right", "top"]
    wrong = TorchSource(Items(ITEMS["pair"], targets=[0] * 12))  # a list that the items contradict is not used
    assert wrong.labels is not None
    assert wrong.labels.tolist() == LABELS.tolist()
    names = TorchSource(Items(lambda i: (PIXELS[i], ["b", "a"][i % 2])))
    assert names.label_names == ["a", "b"]
    with pytest.raises(ConfigError, match="the label 2 is none of the 2 classes"):
        TorchSource(Items(ITEMS["pair"]), class_names=["x", "y"])


def test_fingerprints_tell_other_pixels_and_labels() -> None:
    first = TorchSource(Items(ITEMS["pair"])).fingerprint
    assert TorchSource(Items(ITEMS["PIL"])).fingerprint == first
    assert TorchSource(Items(lambda i: (255 - PIXELS[i], int(LABELS[i])))).fingerprint != first
    assert TorchSource(Items(lambda i: (PIXELS[i], int(LABELS[i] == 0)))).fingerprint != first
    assert TorchSource(Items(ITEMS["pair"], count=11)).fingerprint != first


def noisy(i: int) -> Any:
    """A random transform of torch's kind."""
    flipped = PIXELS[i].flip(2) if torch.rand(()) < 0.5 else PIXELS[i]  # a user's code draws as it likes
    return flipped, int(LABELS[i])


def prepared(source: Any, **changes: Any) -> ImageDataset:
    return ImageDataset(source, DataConfig(**{"path": "torch", "size": 8, "channels": 3, **changes}))


def test_random_transforms_are_a_function_of_seed_and_position() -> None:
    a, b = (prepared(TorchSource(Items(noisy))) for _ in range(2))
    state = torch.get_rng_state()
    seen = [a.example(p).image for p in range(60)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(np.array_equal(b.example(p).image, seen[p]) for p in reversed(range(60)))
    flips = [not np.array_equal(image, UINT8[a.example(p).index]) for p, image in enumerate(seen)]
    assert 15 < sum(flips) < 45
    other = prepared(a.source, seed=1)
    assert any(not np.array_equal(other.example(p).image, seen[p]) for p in range(60))
    held = split(a.source, 0.25).train
    assert held.augments
    hidden = np.random.default_rng(0)
    outside = TorchSource(Items(lambda i: PIXELS[i] if hidden.random() < 0.5 else PIXELS[i].flip(2), count=12))
    assert any("not bit for bit" in text for text in outside.remarks)


def torch_data(size: int = 24) -> ImageDataset:
    """24 grey 8x8 images of three classes with a random transform."""
    pixels = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def item(i: int) -> Any:
        return torch.roll(pixels[i], int(torch.randint(0, 3, ())), 1), i % 3

    names = ["left", "right", "top"]
    return ImageDataset(
        TorchSource(Items(item, size), class_names=names), DataConfig(path="torch", size=8, channels=1, flip=True)
    )


def test_a_killed_run_on_a_map_style_data_set_equals_the_whole_one(tmp_path: Path) -> None:
    run(tmp_path / "whole", data=torch_data())
    task = tiny_task()
    original, calls = task.losses, iter(range(100))

    def terms(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise Interrupt
        return original(*arguments)

    task.losses = terms  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        run(tmp_path / "parts", task, torch_data())
    torch.manual_seed(123)
    run(tmp_path / "parts", data=torch_data())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


class Endless(IterableDataset):  # type: ignore[type-arg]
    """The images in their order, once a pass."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((PIXELS[i], int(LABELS[i])) for i in range(12))


def streamed(items: Any, count: int = 9, batch: int = 4, **options: Any) -> tuple[np.ndarray, list[int] | None]:
    data = StreamDataset(items, **options).prepared(DataConfig(path="stream", size=8, channels=3))
    parts = list(islice(data.stream(0, batch), count))
    labels = None if parts[0].labels is None else [int(x) for part in parts for x in part.labels]  # type: ignore[union-attr]
    return np.concatenate([part.images.numpy() for part in parts]), labels


def test_iterables_and_loaders_are_followed_in_their_own_order() -> None:
    names = {"class_names": ["0", "1", "2"]}
    images, labels = streamed(Endless(), **names)
    assert np.array_equal(images, np.concatenate([UINT8] * 3))
    assert labels == LABELS.tolist() * 3
    for loader in (
        DataLoader(TensorDataset(PIXELS, LABELS), batch_size=5),
        DataLoader(Items(ITEMS["dict"]), batch_size=5),
        DataLoader(Items(ITEMS["[0, 1]"]), batch_size=None),
    ):
        images, labels = streamed(loader, **names)
        assert np.array_equal(images, np.concatenate([UINT8] * 3))
        assert labels == LABELS.tolist() * 3
    images, labels = streamed(iter([PIXELS[i] for i in range(12)]), count=3)  # an iterator, which cannot begin again
    assert np.array_equal(images, UINT8)
    assert labels is None
    with pytest.raises(ValueError, match="has ended and cannot be iterated again"):
        streamed(iter([PIXELS[i] for i in range(12)]), count=4)
    with pytest.raises(ConfigError, match="^class_names: .*how many classes"):
        StreamDataset(Endless())
    with pytest.raises(ConfigError, match="yields no images"):
        StreamDataset(iter([]))
    assert StreamDataset(Endless(), use_labels=False).label_names is None
    assert StreamDataset(DataLoader(TensorDataset(PIXELS), batch_size=5)).batch == 5


def test_processes_share_the_batches_of_a_stream() -> None:
    def part(rank: int, world_size: int) -> np.ndarray:
        data = StreamDataset(Endless(), use_labels=False).prepared(DataConfig(path="s", size=8, channels=3, flip=True))
        return next(islice(data.stream(0, 4, rank, world_size), 1, 2)).images.numpy()

    assert np.array_equal(np.concatenate([part(0, 2), part(1, 2)]), part(0, 1))


def test_a_run_on_a_loader_says_that_its_order_cannot_be_repeated(tmp_path: Path) -> None:
    grey = TensorDataset(PIXELS[:, :1], LABELS)
    data = StreamDataset(DataLoader(grey, batch_size=4), class_names=["left", "right", "top"])
    assert [text for text in data.remarks if "cannot be repeated" in text]
    data.prepared(DataConfig(path="stream", size=8, channels=1))
    outcome = run(tmp_path, data=data)
    assert outcome.complete
    assert checkpoints.read_manifest(checkpoints.checkpoints(tmp_path)[-1])["data"]["count"] == 12
    assert len(told(tmp_path)) == 4
    run(tmp_path, data=data, images=48)  # resumes


def test_arrays_and_our_own_sets_are_data_too() -> None:
    source = as_data(UINT8, labels=LABELS.numpy(), class_names=["a", "b", "c"])
    assert source is not None
    assert source.label_names == ["a", "b", "c"]
    tensor = as_data(PIXELS)
    assert np.array_equal(tensor.image(4), UINT8[4])  # type: ignore[union-attr]
    assert as_data("photos") is None
    assert as_data(prepared(source)) is source
    for wrong in (UINT8.astype(float), 3, {"a": 1}):
        with pytest.raises(ConfigError, match="^data: "):
            as_data(wrong)
    assert next(batches(prepared(TorchSource(Items(ITEMS["PIL"]))), 0, 4)).images.shape == (4, 8, 8, 3)


def test_batches_are_split_into_items() -> None:
    assert len(list(split_batch((PIXELS, LABELS)))) == 12
    assert len(list(split_batch({"image": PIXELS, "label": LABELS, "meta": "x"}))) == 12
    assert len(list(split_batch([Image.new("L", (2, 2))] * 3))) == 3
    assert len(list(split_batch((Image.new("L", (2, 2)), 1)))) == 1
    assert len(list(split_batch(PIXELS[0]))) == 1
    assert ItemReader().parts([PIXELS[0]])[1] is None
