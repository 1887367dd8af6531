"""Arrays and the binary forms of well-known sets: npz, npy, IDX, CIFAR, STL-10."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from support.formats_made import COUNT, GREY, X, Y, check, cifar10, classes, idx, pixels
from undiffuse.adapters import imagenet_classes
from undiffuse.data import DataConfig, open_data
from undiffuse.data.formats import imagenet


@pytest.mark.parametrize(
    "names",
    [("arr_0", "arr_1"), ("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "target"), ("imgs", "cls"),
     ("image", "label"), ("my_pictures", "classes")],
)  # fmt: skip
@pytest.mark.parametrize("deep", [False, True])
def test_names_of_arrays(tmp_path: Path, names: tuple[str, str], deep: bool) -> None:
    np.savez(tmp_path / "a.npz", **{names[0]: X, names[1]: Y[:, None] if deep else Y})
    source = open_data(tmp_path / "a.npz")
    check(source)
    assert f"images from {names[0]}" in source.notes and source.format == "NumPy archive (npz)"


@pytest.mark.parametrize("form", ["x_{0}", "{0}_images", "{0}/x", "images_{0}"])
def test_parts_of_an_npz(tmp_path: Path, form: str) -> None:
    labels = form.replace("images", "labels").replace("x", "y")
    arrays = {}
    for part, chosen in (("train", slice(0, 8)), ("test", slice(8, 10)), ("val", slice(10, 12))):
        arrays[form.format(part)], arrays[labels.format(part)] = X[chosen], Y[chosen, None]
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    source = open_data(tmp_path / "a.npz")
    check(source, X[:8], Y[:8])
    assert source.held_out == {"test": 2, "val": 2}
    check(open_data(f"{tmp_path / 'a.npz'}:validation", label_names=source.label_names), X[10:], Y[10:])
    whole = open_data(f"{tmp_path / 'a.npz'}:all")
    assert len(whole) == COUNT and not whole.held_out


def test_layouts_are_told_apart_or_a_question(tmp_path: Path) -> None:
    planes = X.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "chw.npz", planes)
    check(open_data(tmp_path / "chw.npz"), labels=None)
    np.savez(tmp_path / "ambiguous.npz", np.zeros((2, 3, 5, 4), np.uint8))
    with pytest.raises(ValueError, match='layout="HWC" or "CHW"'):
        open_data(tmp_path / "ambiguous.npz")
    assert open_data(tmp_path / "ambiguous.npz", layout="CHW").stored_size(0) == (4, 5)
    assert open_data(tmp_path / "ambiguous.npz", layout="HWC").stored_size(0) == (5, 3)
    with pytest.raises(ValueError, match="layout='NHWC'"):
        open_data(tmp_path / "ambiguous.npz", layout="NHWC")  # type: ignore[arg-type]
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(X), Y)
    check(open_data(tmp_path / "fortran.npz"))
    np.savez(tmp_path / "big.npz", X.astype(">u2") * 257, Y.astype(">i8"))
    big = open_data(tmp_path / "big.npz")
    assert np.array_equal(pixels(big), X.astype(np.uint16) * 257) and classes(big) == [str(y) for y in Y]
    config = DataConfig(path=str(tmp_path / "big.npz"), size=(10, 14))
    assert np.array_equal(config.build().plain(3).image, X[3])


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x: x / np.float32(255), "0 is black, 1 is white"),
        (lambda x: x.astype(np.float32) / 127.5 - 1, "-1 is black, 1 is white"),
        (lambda x: x.astype(np.int64), "255 is white"),
        (lambda x: x.astype(np.float64), "255 is white"),
    ],
)
def test_values_that_people_agree_on(tmp_path: Path, change: object, said: str) -> None:
    np.savez(tmp_path / "a.npz", x=change(X), y=Y)  # type: ignore[operator]
    source = open_data(tmp_path / "a.npz")
    assert any(said in note for note in source.notes), source.notes
    dataset = DataConfig(path=str(tmp_path / "a.npz"), size=(10, 14)).build()
    assert all(np.array_equal(dataset.plain(i).image, X[i]) for i in range(COUNT))


def test_truth_values_and_undeclared_values(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", x=GREY > 100)
    mask = DataConfig(path=str(tmp_path / "mask.npz"), size=(10, 14), channels=1).build()
    assert np.array_equal(mask.plain(0).image[..., 0], (GREY[0] > 100) * 255)
    np.savez(tmp_path / "ct.npz", x=GREY.astype(np.int16) * 10 - 1000)
    with pytest.raises(ValueError, match=r"int16 values -1\d+..\d+.*value_range=\(black, white\)"):
        open_data(tmp_path / "ct.npz")
    looked_at = open_data(tmp_path / "ct.npz", value_range="found")
    assert looked_at.value_range == (int(GREY.min()) * 10 - 1000, int(GREY.max()) * 10 - 1000)
    ct = DataConfig(path=str(tmp_path / "ct.npz"), size=(10, 14), channels=1, value_range=(-1000, 1550)).build()
    assert np.allclose(ct.plain(2).image[..., 0], GREY[2] / 127.5 - 1)


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "hot.npz", x=X, y=np.eye(5)[Y])
    hot = open_data(tmp_path / "hot.npz")
    check(hot)
    assert any("one-hot" in note for note in hot.notes)
    np.savez(tmp_path / "v.npz", x=X, y=np.linspace(0, 1, COUNT * 3).reshape(COUNT, 3))
    vectors = open_data(tmp_path / "v.npz").vectors
    assert vectors is not None and vectors.shape == (COUNT, 3)
    np.savez(tmp_path / "age.npz", x=X, y=np.linspace(0.5, 9.3, COUNT))
    age = open_data(tmp_path / "age.npz")
    assert age.labels is None and age.vectors is not None and age.vectors.shape == (COUNT, 1)
    np.savez(tmp_path / "bad.npz", x=X, y=np.array([np.nan] + [0.5] * 11))
    with pytest.raises(ValueError, match=r"no label \(y\) for 1 of 12 images: bad.npz\[0\]"):
        open_data(tmp_path / "bad.npz")
    np.savez(tmp_path / "none.npz", x=X, y=np.full(COUNT, -1))
    none = open_data(tmp_path / "none.npz")
    assert none.labels is None and any("no label" in note for note in none.notes)
    np.savez(tmp_path / "two.npz", x=X, y=Y, z=np.arange(COUNT))
    assert open_data(tmp_path / "two.npz", labels="z").label_names == [str(k) for k in range(COUNT)]
    assert any("not used: z" in note for note in open_data(tmp_path / "two.npz").notes)


def test_npy_with_labels_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "train_images.npy", X)
    np.save(tmp_path / "train_labels.npy", Y)
    check(open_data(tmp_path / "train_images.npy"))
    np.save(tmp_path / "X.npy", X)
    check(open_data(tmp_path / "X.npy"), labels=None)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        open_data(tmp_path / "o.npy")
    (tmp_path / "short.npy").write_bytes((tmp_path / "X.npy").read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot be read as an npy"):
        open_data(tmp_path / "short.npy")


def test_kmnist_has_its_labels_in_other_files(tmp_path: Path) -> None:
    for part, chosen in (("train", slice(0, 8)), ("test", slice(8, 12))):
        np.savez_compressed(tmp_path / f"kmnist-{part}-imgs.npz", GREY[chosen])
        np.savez_compressed(tmp_path / f"kmnist-{part}-labels.npz", Y[chosen].astype(np.uint8))
    check(open_data(tmp_path / "kmnist-train-imgs.npz"), GREY[:8], Y[:8])
    source = open_data(tmp_path)
    check(source, GREY[:8], Y[:8])
    assert source.held_out == {"test": 4}


def test_downsampled_imagenet_becomes_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(6, -1)
    folder = tmp_path / "Imagenet8_train_npz"
    folder.mkdir()
    for k in range(2):
        chosen = slice(3 * k, 3 * k + 3)
        labels = np.array([1, 2, 1000]) if k == 0 else np.array([3, 1, 2])
        np.savez(folder / f"train_data_batch_{k + 1}.npz", data=planes[chosen], labels=labels, mean=np.zeros(192))
    np.savez(folder / "val_data.npz", data=planes[:1], labels=np.array([1]))
    one = open_data(folder / "train_data_batch_1.npz")
    assert np.array_equal(pixels(one), images[:3])
    assert classes(one) == ["kit fox", "English setter", "dumbbell"]
    assert one.labels is not None and one.labels[0] == 278  # its place in the sorted order of WordNet ids
    assert any("development kit" in note for note in one.notes)
    whole = open_data(folder)
    assert np.array_equal(pixels(whole), images) and whole.held_out == {"val": 1}
    assert classes(whole)[3:] == ["Siberian husky", "kit fox", "English setter"]
    np.savez(tmp_path / "plain.npz", data=planes, labels=np.arange(6))  # from 0: not this set
    assert open_data(tmp_path / "plain.npz").label_names == [str(k) for k in range(6)]


def test_names_of_imagenet_in_other_words_and_orders() -> None:
    names, order = imagenet.names(), imagenet.devkit_order()
    theirs = [", ".join(imagenet_classes.synonyms(k)) for k in range(1000)]
    theirs[517] = "crane2"  # Hugging Face's list has "crane" for the bird
    assert imagenet.translated(theirs, names, theirs) == names
    assert imagenet.translated([theirs[k] for k in order], names, [theirs[k] for k in order]) == [
        names[k] for k in order
    ]
    assert imagenet.translated(["tench, Tinca tinca", "n01443537"], names) == names[:2]
    assert imagenet.translated(["crane", "0", "134"], names) == ["crane", "0", "134"]  # ambiguous, or of unknown order
    assert imagenet.translated(["n01443537"], ["cat", "dog"]) == ["n01443537"]
    shuffled = theirs[1:] + theirs[:1]
    assert imagenet.translated(["crane"], names, shuffled) == ["crane"]


def test_imagenet_folders_meet_its_names(tmp_path: Path) -> None:
    from support.formats_made import write_pngs
    from undiffuse.data.formats.imagenet import names

    write_pngs(tmp_path, ["n02119789/a.png", "n02100735/b.png"], X[:2])
    assert classes(open_data(tmp_path, label_names=names())) == ["English setter", "kit fox"]
    assert open_data(tmp_path).label_names == ["n02100735", "n02119789"]


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    def write(name: str, array: np.ndarray) -> None:
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(idx(array)) if packed else idx(array))

    write("train-images-idx3-ubyte", GREY[:8])
    write("train-labels-idx1-ubyte", Y[:8])
    write("t10k-images-idx3-ubyte", GREY[8:])
    write("t10k-labels-idx1-ubyte", Y[8:])
    source = open_data(tmp_path)
    check(source, GREY[:8], Y[:8])
    assert source.held_out == {"test": 4} and source.format == "IDX (MNIST)"
    check(open_data(f"{tmp_path}:test", label_names=source.label_names), GREY[8:], Y[8:])
    check(open_data(tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)), GREY[8:], Y[8:])
    with pytest.raises(ValueError, match="holds labels, not images"):
        open_data(tmp_path / ("train-labels-idx1-ubyte" + ".gz" * packed))


def test_idx_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(GREY)[:-5])
    with pytest.raises(ValueError, match="was cut short"):
        open_data(tmp_path / "a-images-idx3-ubyte")
    (tmp_path / "b-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(GREY))[:-40])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        open_data(tmp_path / "b-images-idx3-ubyte.gz")


def test_emnist_is_turned_back_and_named(tmp_path: Path) -> None:
    turned = GREY.transpose(0, 2, 1)
    (tmp_path / "emnist-letters-train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(turned)))
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(Y + 1)))
    (tmp_path / "emnist-letters-mapping.txt").write_text("".join(f"{k} {64 + k} {96 + k}\n" for k in range(1, 6)))
    source = open_data(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz")
    check(source, GREY, Y, ["Aa", "Bb", "Cc", "Dd", "Ee"])
    assert any("rows and columns" in note for note in source.notes)


def test_cifar(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    ten = tmp_path / "cifar-10-batches-bin"
    ten.mkdir()
    (ten / "data_batch_1.bin").write_bytes(cifar10(images[:2], [1, 0]))
    (ten / "data_batch_10.bin").write_bytes(cifar10(images[3:4], [0]))
    (ten / "data_batch_2.bin").write_bytes(cifar10(images[2:3], [2]))
    (ten / "test_batch.bin").write_bytes(cifar10(images[4:], [1]))
    names = ["plane", "car", "bird"] + [f"c{k}" for k in range(7)]
    (ten / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    source = open_data(ten)
    check(source, images[:4], [1, 0, 2, 0], names)
    assert source.held_out == {"test": 1} and source.format == "CIFAR-10 binary"
    check(open_data(ten / "test_batch.bin"), images[4:], [1], names)
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    rows = [bytes([k, 10 * k]) + cifar10(images[k : k + 1], [0])[1:] for k in range(5)]
    (hundred / "train.bin").write_bytes(b"".join(rows[:4]))
    (hundred / "test.bin").write_bytes(rows[4])
    (hundred / "fine_label_names.txt").write_text("\n".join(f"f{k}" for k in range(100)))
    (hundred / "coarse_label_names.txt").write_text("\n".join(f"c{k}" for k in range(20)))
    check(open_data(hundred), images[:4], [0, 10, 20, 30], [f"f{k}" for k in range(100)])
    check(open_data(hundred, labels="coarse"), images[:4], [0, 1, 2, 3], [f"c{k}" for k in range(20)])
    with pytest.raises(ValueError, match="no label field 'rough': expected one of coarse, fine"):
        open_data(hundred, labels="rough")


def test_stl10_has_its_columns_one_after_the_other(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    (tmp_path / "train_X.bin").write_bytes(images[:2].transpose(0, 3, 2, 1).tobytes())
    (tmp_path / "train_y.bin").write_bytes(bytes([2, 1]))
    (tmp_path / "unlabeled_X.bin").write_bytes(images[2:].transpose(0, 3, 2, 1).tobytes())
    (tmp_path / "class_names.txt").write_text("airplane\nbird\n")
    source = open_data(tmp_path)
    check(source, images[:2], [1, 0], ["airplane", "bird"])
    assert source.held_out == {"unlabeled": 1}
    check(open_data(f"{tmp_path}:unlabeled"), images[2:], None)


@pytest.mark.parametrize("grey", [False, True])
def test_flattened_pictures_in_planes_or_by_pixel(tmp_path: Path, grey: bool) -> None:
    y, x = np.mgrid[0:16, 0:16]
    waves = [np.sin(x / 3) * 60 + 120, (np.cos(y / 4) * 80 + 110) if not grey else np.sin(x / 3) * 60 + 120]
    image = np.stack([waves[0], waves[1], waves[0]], axis=-1).astype(np.uint8)
    images = np.stack([np.roll(image, k, axis=0) for k in range(COUNT)])
    np.savez(tmp_path / "pixels.npz", data=images.reshape(COUNT, -1), labels=Y)
    source = open_data(tmp_path / "pixels.npz")
    check(source, images)
    assert "three values for each pixel" in source.notes[1]
    np.savez(tmp_path / "planes.npz", data=images.transpose(0, 3, 1, 2).reshape(COUNT, -1), labels=Y)
    check(open_data(tmp_path / "planes.npz"), images)
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", data=noise.reshape(COUNT, -1), labels=Y)
    check(open_data(tmp_path / "noise.npz", layout="HWC"), noise)


def test_npy_folders_are_arrays_with_names(tmp_path: Path) -> None:
    for name, array in {"train_images": X, "train_labels": Y, "test_images": X[:3], "test_labels": Y[:3]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    source = open_data(tmp_path)
    check(source)
    assert source.held_out == {"test": 3}
    many = tmp_path / "many"
    many.mkdir()
    for i in range(65):
        np.save(many / f"{i:03d}.npy", X[0])
    with pytest.raises(ValueError, match="holds 65 npy files: expected a few arrays"):
        open_data(many)


def test_folders_that_wrap_a_set(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(idx(GREY))
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(Y))
    check(open_data(tmp_path), GREY)
    (raw / "train-labels-idx1-ubyte").unlink()
    many = np.stack([Y, Y + 100], axis=1)  # QMNIST: the class, then the writer
    (raw / "train-labels-idx2-int").write_bytes(bytes([0, 0, 12, 2]) + many.shape[0].to_bytes(4, "big")
                                                + (2).to_bytes(4, "big") + many.astype(">i4").tobytes())  # fmt: skip
    source = open_data(tmp_path)
    check(source, GREY)
    assert "the first is the class" in source.notes[0]
