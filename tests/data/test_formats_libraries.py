"""Formats read through the library of their field, written by that library: Hugging Face, HDF5, Zarr, science."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.formats_made import COUNT, GREY, NAMES, X, Y, check, classes, pixels, png, write_pngs
from undiffuse.data import DataConfig, open_data

FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
METADATA = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}


def table(chosen: range, **columns: Any) -> Any:
    import pyarrow

    data = {"image": [{"bytes": png(X[i]), "path": f"{i}.png"} for i in chosen], "label": [int(Y[i]) for i in chosen]}
    data.update({name: [make(i) for i in chosen] for name, make in columns.items()})
    return pyarrow.Table.from_pydict(data).replace_schema_metadata(METADATA)


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for k in range(2):
        rows = table(range(6 * k, 6 * k + 6), caption=lambda i: f"picture {i}")
        parquet.write_table(rows, tmp_path / "data" / f"train-0000{k}-of-00002.parquet", row_group_size=4)
    parquet.write_table(table(range(3)), tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\n---\n")
    source = open_data(tmp_path)
    check(source, names=NAMES)
    assert source.format == "Hugging Face parquet" and source.held_out == {"test": 3}
    assert any("not used: caption" in note for note in source.notes)
    assert source.name(7) == "train-00001-of-00002.parquet[1]"
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    check(open_data(f"{tmp_path}:test"), X[:3], Y[:3], NAMES)
    check(open_data(tmp_path / "data" / "test-00000-of-00001.parquet"), X[:3], Y[:3], NAMES)
    assert open_data(tmp_path, labels="none").labels is None
    order = open_data(f"{tmp_path}:test", label_names=sorted(NAMES))
    assert order.label_names == sorted(NAMES) and classes(order) == [NAMES[y] for y in Y[:3]]


def test_parquet_of_other_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"jpg": [png(x) for x in X], "cls": Y}), tmp_path / "a.parquet")
    check(open_data(tmp_path / "a.parquet"))
    parquet.write_table(pyarrow.table({"img": X.tolist(), "y": [NAMES[y] for y in Y]}), tmp_path / "b.parquet")
    source = open_data(tmp_path / "b.parquet")
    assert np.array_equal(pixels(source), X) and source.label_names == sorted(NAMES)
    write_pngs(tmp_path, [f"p/{i}.png" for i in range(COUNT)])
    rows = [{"image": {"bytes": None, "path": f"p/{i}.png"}, "fine_label": int(Y[i])} for i in range(COUNT)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    check(open_data(tmp_path / "c.parquet"))
    parquet.write_table(pyarrow.table({"a": [1, 2]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="no column of pictures; its columns are a"):
        open_data(tmp_path / "d.parquet")
    missing = [{"image": {"bytes": png(X[0]), "path": None}, "label": 0}, {"image": None, "label": 1}]
    parquet.write_table(pyarrow.Table.from_pylist(missing), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be read: e.parquet\[1\] \(the table has nothing"):
        open_data(tmp_path / "e.parquet")
    unlabelled = table(range(3)).set_column(1, "label", pyarrow.array([-1, -1, -1]))
    parquet.write_table(unlabelled, tmp_path / "f.parquet")
    assert open_data(tmp_path / "f.parquet").labels is None


def test_several_configurations_are_a_question(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("cropped", "full"):
        (tmp_path / name).mkdir()
        parquet.write_table(table(range(2)), tmp_path / name / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="several data sets, cropped, full: name one"):
        open_data(tmp_path)
    assert len(open_data(tmp_path / "full")) == 2


def arrow_folder(path: Path, rows: Any, files: int = 2) -> Path:
    """What datasets 5.2.0 writes for Dataset.save_to_disk."""
    import pyarrow

    path.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{files:05d}.arrow" for k in range(files)]
    each = -(-len(rows) // files)
    for k, name in enumerate(names):
        with pyarrow.OSFile(str(path / name), "wb") as file, pyarrow.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows.slice(k * each, each), max_chunksize=4)
    (path / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_fingerprint": "x"}))
    return path


def test_save_to_disk(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = open_data(arrow_folder(tmp_path / "one", table(range(COUNT))))
    check(source, names=NAMES)
    assert source.format == "Hugging Face save_to_disk"
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    arrow_folder(tmp_path / "dict" / "train", table(range(8)))
    arrow_folder(tmp_path / "dict" / "test", table(range(8, COUNT)))
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_data(tmp_path / "dict")
    check(source, X[:8], Y[:8], NAMES)
    assert source.held_out == {"test": 4}
    check(open_data(f"{tmp_path / 'dict'}:test"), X[8:], Y[8:], NAMES)
    check(open_data(tmp_path / "one" / "data-00001-of-00002.arrow"), X[6:], Y[6:], NAMES)
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match="lacks its data"):
        open_data(tmp_path / "one")


def test_save_to_disk_of_a_selection(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = arrow_folder(tmp_path / "x", table(range(COUNT)))
    chosen = pyarrow.table({"indices": pyarrow.array([7, 0, 3], pyarrow.uint64())})
    with pyarrow.OSFile(str(path / "indices.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, chosen.schema) as out:
        out.write_table(chosen)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    check(open_data(path), X[[7, 0, 3]], Y[[7, 0, 3]], NAMES)


@pytest.mark.parametrize("planes", [False, True])
def test_hdf5(tmp_path: Path, planes: bool) -> None:
    h5py = pytest.importorskip("h5py")
    stored = X.transpose(0, 3, 1, 2) if planes else X
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=stored, chunks=(1, *stored.shape[1:]), compression="gzip")
        file["labels"] = Y
        file.attrs["class_names"] = NAMES
    source = open_data(tmp_path / "a.h5")
    check(source, names=NAMES)
    assert source.format == "HDF5" and np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.h5").rename(tmp_path / "folder" / "a.h5")
    with pytest.raises(ValueError, match=r"files ending in .h5. Give one of its files, as in .*a.h5 \(HDF5\)"):
        open_data(tmp_path / "folder")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["train/x"], file["train/y"], file["test/x"], file["test/y"] = stored[:8], Y[:8], stored[8:], Y[8:]
    source = open_data(tmp_path / "b.hdf5")
    check(source, X[:8], Y[:8])
    assert source.held_out == {"test": 4}


def test_hdf5_of_files_texts_and_pairs(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", (COUNT,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(COUNT):
            images[i] = np.frombuffer(png(X[i]), np.uint8)
        file["label"] = [NAMES[y] for y in Y]
    source = open_data(tmp_path / "a.h5")
    assert np.array_equal(pixels(source), X) and classes(source) == [NAMES[y] for y in Y]
    with h5py.File(tmp_path / "pcam_train_x.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "pcam_train_y.h5", "w") as file:
        file["y"] = Y.reshape(COUNT, 1, 1, 1)
    check(open_data(tmp_path / "pcam_train_x.h5"))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = GREY.astype(np.float32) / 255
    dataset = DataConfig(path=str(tmp_path / "f.h5"), size=(10, 14), channels=1).build()
    assert np.array_equal(dataset.plain(1).image[..., 0], GREY[1])
    (tmp_path / "g.h5").write_bytes(b"\x89HDF\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match="cannot be read as an HDF5"):
        open_data(tmp_path / "g.h5")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    group.create_array("images", data=X, chunks=(2, 10, 14, 3))
    group.create_array("labels", data=Y)
    group.attrs["class_names"] = NAMES
    source = open_data(tmp_path / "a.zarr")
    check(source, names=NAMES)
    assert source.format == "Zarr array" and np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    zarr.create_array(str(tmp_path / "b.zarr"), data=X.transpose(0, 3, 1, 2), zarr_format=version)
    check(open_data(tmp_path / "b.zarr"), labels=None)


@pytest.mark.parametrize("name", ["a.zarr.zip", "a.zip"])
def test_zarr_in_a_zip(tmp_path: Path, name: str) -> None:
    zarr = pytest.importorskip("zarr")
    with zarr.storage.ZipStore(str(tmp_path / name), mode="w") as store:
        group = zarr.open_group(store, mode="w")
        group.create_array("images", data=X)
        group.create_array("labels", data=Y)
    check(open_data(tmp_path / name))


def dicom(path: Path, image: np.ndarray, bits: int = 12, **tags: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = image.shape[-2:] if image.ndim < 3 or image.shape[-1] != 3 else image.shape[-3:-1]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8 * image.itemsize, bits, bits - 1, 0
    if image.ndim == 3 and image.shape[-1] != 3:
        data.NumberOfFrames = len(image)
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = image.tobytes()
    data.save_as(path, enforce_file_format=True)
    del pydicom


def test_dicom(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 16
    for i in range(3):
        dicom(tmp_path / f"{i}.dcm", values[i], RescaleSlope=1, RescaleIntercept=-1024)
    source = open_data(tmp_path)
    assert source.format == "DICOM" and source.value_range == (-1024, 3071) and source.stored_size(0) == (14, 10)
    assert np.array_equal(pixels(source), values[:3].astype(int) - 1024)
    shown = DataConfig(path=str(tmp_path), size=(10, 14), channels=1).build().plain(1).image[..., 0]
    assert np.array_equal(shown, np.floor(values[1] / 4095 * 255 + 0.5))
    (tmp_path / "b").mkdir()
    dicom(tmp_path / "b" / "stack.dcm", values)
    dicom(tmp_path / "b" / "x.dcm", values[0], PhotometricInterpretation="MONOCHROME1")
    source = open_data(tmp_path / "b")
    assert len(source) == COUNT + 1 and source.name(2) == "stack.dcm[2]"
    assert np.array_equal(np.asarray(source.image(3)), values[3])
    assert np.array_equal(np.asarray(source.image(COUNT)), 4095 - values[0].astype(int))
    dicom(tmp_path / "IM0001", X[0], 8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.array_equal(pixels(open_data(tmp_path / "IM0001")), X[:1])


def test_nifti(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.moveaxis(GREY.astype(np.int16) * 10 - 1000, 0, -1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"value_range=\(black, white\)"):
        open_data(tmp_path / "a.nii.gz")
    source = open_data(tmp_path / "a.nii.gz", value_range=(-1000, 1550))
    assert len(source) == COUNT and source.name(4) == "a.nii.gz[4]"
    assert np.array_equal(pixels(source), GREY.astype(int) * 10 - 1000)
    declared = nibabel.Nifti1Image(volume, np.eye(4))
    declared.header["cal_min"], declared.header["cal_max"] = -1000, 1550
    nibabel.save(declared, tmp_path / "b.nii")
    dataset = DataConfig(path=str(tmp_path / "b.nii"), size=(10, 14), channels=1).build()
    assert np.array_equal(dataset.plain(2).image[..., 0], GREY[2])
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(GREY, 0, -1), np.eye(4)), tmp_path / "c.nii")
    assert np.array_equal(pixels(open_data(tmp_path / "c.nii")), GREY)


def test_fits(tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    header = fits.Header([("DATAMIN", 0.0), ("DATAMAX", 25.5)])
    for i in range(2):
        fits.PrimaryHDU(GREY[i].astype(np.float32) / 10, header).writeto(tmp_path / f"{i}.fits")
    source = open_data(tmp_path)
    assert source.format == "FITS" and source.value_range == (0, 25.5)
    dataset = DataConfig(path=str(tmp_path), size=(10, 14), channels=1).build()
    assert np.array_equal(dataset.plain(1).image[..., 0], GREY[1])
    cube = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(GREY), fits.ImageHDU(GREY[0])])
    cube.writeto(tmp_path / "cube.fit")
    source = open_data(tmp_path / "cube.fit")
    assert np.array_equal(pixels(source), GREY) and any("1 others" in note for note in source.notes)


def test_ome_tiff_keeps_all_its_channels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    planes = np.moveaxis(X.astype(np.uint16) * 257, -1, 1)
    metadata = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, metadata=metadata)
    source = open_data(tmp_path / "a.ome.tif")
    assert source.format == "OME-TIFF" and np.array_equal(pixels(source), X.astype(np.uint16) * 257)
    assert any("3 channels: DAPI, GFP, RFP" in note for note in source.notes)
    tifffile.imwrite(tmp_path / "c.tif", planes, metadata=metadata, ome=True)
    assert open_data(tmp_path / "c.tif").format == "OME-TIFF"
    tifffile.imwrite(tmp_path / "b.ome.tif", GREY[:1], metadata={"axes": "TYX"})
    assert np.array_equal(pixels(open_data(tmp_path / "b.ome.tif")), GREY[:1])


@pytest.mark.parametrize(
    "library, extra, name",
    [("h5py", "hdf5", "a.h5"), ("pyarrow.parquet", "parquet", "a.parquet"), ("lmdb", "lmdb", "a.mdb"),
     ("zarr", "zarr", "a.zarr"), ("nibabel", "science", "a.nii"),
     ("pydicom", "science", "a.dcm"), ("tifffile", "science", "a.ome.tif"), ("astropy.io.fits", "science", "a.fits")],
)  # fmt: skip
def test_a_missing_library_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, name: str
) -> None:
    starts = {"a.h5": b"\x89HDF\r\n\x1a\n", "a.dcm": b"\0" * 128 + b"DICM"}
    (tmp_path / name).write_bytes(starts.get(name, b"x" * 200))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ValueError, match=rf"needs the package {library.partition('.')[0]}: pip install 'undiffuse\[{extra}\]'"
    ):
        open_data(tmp_path / name)


def test_parquet_shards_that_number_classes_differently(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def shard(name: str, rows: slice, names: list[str] | None) -> None:
        numbers = [(names or NAMES).index(NAMES[y]) for y in Y[rows]]
        table = pyarrow.table({"image": [{"bytes": png(x), "path": None} for x in X[rows]], "label": numbers})
        if names is not None:
            features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / name)

    shard("train-00000-of-00002.parquet", slice(0, 6), NAMES)
    shard("train-00001-of-00002.parquet", slice(6, COUNT), sorted(NAMES))
    source = open_data(tmp_path)
    check(source, X, Y, NAMES)
    assert any("different orders" in note for note in source.notes)
    shard("train-00002-of-00003.parquet", slice(0, 2), None)
    with pytest.raises(ValueError, match="train-00002-of-00003.parquet does not say which"):
        open_data(tmp_path)


def test_parquet_of_lists_and_dictionaries(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in X]
    tags = [[0, 1], [2, 3]] * 6
    features = {"labels": {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}}
    columns = {
        "lists": pyarrow.array([list(file) for file in files], pyarrow.list_(pyarrow.uint8())),
        "words": pyarrow.array(files).dictionary_encode(),
    }
    for name, column in columns.items():
        table = pyarrow.table({"image": column, "labels": tags})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        source = open_data(tmp_path / f"{name}.parquet")
        check(source, X, None)
        assert source.multi_hot and source.vector_names == NAMES
        assert source.vectors is not None and source.vectors[:2].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]


def test_hdf5_attributes_and_pictures_of_their_own(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = X
        file["images"].attrs["labels"], file["images"].attrs["class_names"] = Y, NAMES
    check(open_data(tmp_path / "a.h5"), X, Y, NAMES)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"], file["mean"], file.attrs["label"] = X, X.mean(axis=0), Y
    check(open_data(tmp_path / "b.h5"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for i in range(COUNT):
            file[f"{i:03d}"] = X[i]
            file[f"{i:03d}"].attrs["label"] = NAMES[Y[i]]
    source = open_data(tmp_path / "c.h5")
    assert classes(source) == [NAMES[y] for y in Y] and np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    assert source.stored_size(0) == (14, 10)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for i in range(COUNT):
            file[f"{'train' if i < 8 else 'test'}/{NAMES[Y[i]]}/{i:03d}"] = X[i] / np.float32(255)
    source = open_data(tmp_path / "d.h5")
    assert source.value_range == (0, 1) and source.held_out == {"test": 4}
    assert classes(source) == sorted(NAMES[y] for y in Y[:8])
