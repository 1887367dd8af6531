"""Folders of DICOM, NIfTI and OME-TIFF files: classes, parts, tables, and files that are no pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.formats_made import COUNT, GREY, NAMES, Y, classes, pixels
from undiffuse.data import open_data

DEEP = GREY.astype(np.uint16) * 16


def dicom(path: Path, image: np.ndarray | None) -> None:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    if image is not None:
        data.Rows, data.Columns = image.shape
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PixelData = image.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(str(path), enforce_file_format=True)


def volume(path: Path, array: np.ndarray) -> None:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), str(path))


def test_folders_are_classes_and_parts_are_not_mixed(tmp_path: Path) -> None:
    for i in range(COUNT):
        dicom(tmp_path / "d" / ("train" if i < 8 else "test") / NAMES[Y[i]] / f"{i:02d}.dcm", DEEP[i])
    source = open_data(tmp_path / "d")
    order = sorted(range(8), key=lambda i: (NAMES[Y[i]], i))
    assert np.array_equal(pixels(source), DEEP[order]) and source.value_range == (0, 4095)
    assert classes(source) == [NAMES[Y[i]] for i in order] and source.held_out == {"test": 4}
    assert len(open_data(tmp_path / "d:test")) == 4 and len(open_data(tmp_path / "d:all")) == COUNT
    with pytest.raises(ValueError, match="has no part 'val'"):
        open_data(tmp_path / "d:val")
    assert open_data(tmp_path / "d", labels="none").labels is None


def test_a_table_names_files_with_or_without_their_endings(tmp_path: Path) -> None:
    for i in range(4):
        volume(tmp_path / "d" / f"case{i}.nii.gz", np.full((4, 6, 3), i, np.uint8))
    (tmp_path / "d" / "labels.csv").write_text("id,label\n" + "\n".join(f"case{i},{NAMES[Y[i]]}" for i in range(4)))
    source = open_data(tmp_path / "d")
    assert classes(source) == [NAMES[Y[i // 3]] for i in range(12)] and not source.left_out
    (tmp_path / "t.csv").write_text("file,age\n" + "\n".join(f"case{i}.nii.gz,{30.5 + i}" for i in range(3)))
    with pytest.raises(ValueError, match="no label for 1 of 4 images: case3.nii.gz"):
        open_data(tmp_path / "d", labels=str(tmp_path / "t.csv"))
    ages = open_data(tmp_path / "d", labels=str(tmp_path / "t.csv"), on_broken="skip")
    assert ages.vectors is not None and ages.vectors[:, 0].tolist() == [30.5 + i // 3 for i in range(9)]
    assert [int(np.asarray(ages.image(i))[0, 0]) for i in range(9)] == [i // 3 for i in range(9)]


def test_maps_of_labels_are_no_pictures(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        volume(tmp_path / folder / "a.nii.gz", np.full((4, 6, 3), 7, np.uint8))
    source = open_data(tmp_path)
    assert len(source) == 3 and source.name(0) == "imagesTr/a.nii.gz[0]"
    assert source.held_out == {"imagesTs": 1} and source.left_out == {"maps in labelsTr": 1}


def test_what_is_no_picture_is_counted_and_damage_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        dicom(tmp_path / f"{i}.dcm", DEEP[i])
    dicom(tmp_path / "report.dcm", None)
    (tmp_path / "notes.pdf").write_bytes(b"x")
    source = open_data(tmp_path)
    assert len(source) == 3 and source.left_out == {"DICOM files without pixels": 1, "files ending in .pdf": 1}
    (tmp_path / "bad.dcm").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1 of 5 files cannot be read: bad.dcm \(InvalidDicomError"):
        open_data(tmp_path)
    assert [item.name for item in open_data(tmp_path, on_broken="skip").excluded] == ["bad.dcm"]


def test_sixteen_bits_without_a_declared_white(tmp_path: Path) -> None:
    tifffile: Any = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.ome.tif", DEEP[:2], metadata={"axes": "CYX"}, photometric="minisblack")
    source = open_data(tmp_path / "a.ome.tif")
    assert source.value_range == (0, 65535)
    brightest = round(DEEP[:2].max() / 257)
    assert any(f"the brightest becomes {brightest} of 255" in note for note in source.notes)


def test_channels_of_ome_tiff_have_their_names(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    names = ["DAPI", "GFP"]
    about = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(tmp_path / "a.ome.tif", DEEP[:2].astype(np.uint8), metadata=about, photometric="minisblack")
    source = open_data(tmp_path / "a.ome.tif")
    assert source.channel_names == ("DAPI", "GFP")
    assert source.subset(np.array([0])).channel_names == ("DAPI", "GFP")
