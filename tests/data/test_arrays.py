"""Arrays as sources: npz files, arrays in memory, and Fashion-MNIST where Debian puts it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from undiffuse.data import FASHION_CLASSES, ArraySource, fashion_mnist, open_data

DEBIAN = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 4)])
def test_npz(tmp_path: Path, compressed: bool, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", images, np.array([207, 3, 207, 20, 3]))
    source = open_data(tmp_path / "x.npz")
    assert len(source) == 5 and source.name(2) == "x.npz[2]" and source.stored_size(0) == (7, 6)
    assert all(np.array_equal(np.asarray(source.image(i)), images[i]) for i in range(5))
    assert source.label_names == ["3", "20", "207"]
    assert [source.label(i) for i in range(5)] == [2, 0, 2, 1, 0]
    assert isinstance(source, ArraySource) and isinstance(source.images, np.memmap) is not compressed
    assert source.fingerprint == ArraySource(images, source.labels, source.label_names).fingerprint
    other = images.copy()
    other[3, 2, 1] ^= 1
    assert source.fingerprint != ArraySource(other, source.labels, source.label_names).fingerprint
    assert open_data(tmp_path / "x.npz", labels="none").label_names is None
    table = [str(k) for k in range(1000)]
    assert open_data(tmp_path / "x.npz", label_names=table).label(0) == 207


def test_npz_with_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=[2, 0], label_names=["z", "y", "x"])
    source = open_data(tmp_path / "x.npz")
    assert source.label_names == ["z", "y", "x"] and [source.label(0), source.label(1)] == [2, 0]
    np.savez(tmp_path / "y.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=[3, 0], label_names=["z", "y", "x"])
    with pytest.raises(ValueError, match="arr_1: 3 does not fit the 3 class names z, y, x"):
        open_data(tmp_path / "y.npz")


def test_npz_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    good = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    np.savez(path, mu=np.zeros(8), sigma=np.zeros((8, 8)))
    with pytest.raises(ValueError, match="has the arrays mu .*expected images"):
        open_data(path)
    np.savez(path, good, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="4 images but labels of shape"):
        open_data(path)
    np.savez(path, good, np.array(["2024-01-01"] * 4, dtype="datetime64[D]"))
    with pytest.raises(ValueError, match="must be integers"):
        open_data(path)
    np.savez(path, good, np.array([0, -1, 1, 1]))
    with pytest.raises(ValueError, match=r"no label \(arr_1\) for 1 of 4 images: x.npz\[1\]"):
        open_data(path)
    assert [open_data(path, on_broken="skip").label(i) for i in range(3)] == [0, 1, 1]
    np.savez(path, good[:0])
    with pytest.raises(ValueError, match="holds no images"):
        open_data(path)
    np.savez(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        open_data(path)
    np.savez(path, good, np.arange(4))
    with pytest.raises(ValueError, match="no label field 'prefix'"):
        open_data(path, labels="prefix")
    with pytest.raises(ValueError, match="not in the class table: 2, 3"):
        open_data(path, label_names=["0", "1"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as an npz"):
        open_data(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be read as an npz"):
        open_data(path)
    np.save(tmp_path / "y.npy", good)
    os.rename(tmp_path / "y.npy", path)
    with pytest.raises(ValueError, match="no zip archive of arrays"):
        open_data(path)


def test_source_refuses_labels_outside_its_table() -> None:
    images = np.zeros((2, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"0..1, got 0..2"):
        ArraySource(images, np.array([0, 2]), ["a", "b"])
    with pytest.raises(ValueError, match="come together"):
        ArraySource(images, np.array([0, 1]))


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    source = open_data("fashion-mnist:test")
    assert len(source) == 10_000 and source.label_names == list(FASHION_CLASSES)
    assert source.class_counts() == dict.fromkeys(FASHION_CLASSES, 1000)
    assert [source.label(i) for i in range(5)] == [9, 2, 1, 1, 6]
    assert source.stored_size(0) == (28, 28) and source.in_memory
    assert open_data("fashion-mnist:test", labels="none").labels is None
    reordered = open_data("fashion-mnist:test", label_names=sorted(FASHION_CLASSES))
    assert reordered.label_names is not None and reordered.label_names[reordered.label(0) or 0] == "Ankle boot"
    assert len(fashion_mnist("train", labels=False)) == 60_000
