"""Long jobs: named files, resuming, refusing foreign folders, the original's npz, and crashes at every moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.pictures import SampleWriter, read_record, read_samples
from undiffuse.pictures.names import parse_name, safe, sample_name

RUN = {"seed": 5, "model": "abc", "solver": {"name": "ddim", "eta": 0.0}, "steps": 50}
NAMES = ["T-shirt/top", "Trouser", "Ankle boot"]
FORMATS = ["png", "npz", "both"]


def image_of(index: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (6, 4, channels), dtype=np.uint8)


def label_of(index: int) -> int:
    return index % 3


def write(writer: SampleWriter, indices: list[int], labels: bool = True, channels: int = 3) -> None:
    images = np.stack([image_of(i, channels) for i in indices])
    writer.write(indices, images, [label_of(i) for i in indices] if labels else None)


def assert_samples(path: Path, count: int, labels: bool = True, channels: int = 3) -> None:
    samples = read_samples(path)
    assert samples.indices.tolist() == list(range(count)) and samples.images.dtype == np.uint8
    assert np.array_equal(samples.images, np.stack([image_of(i, channels) for i in range(count)]))
    if labels:
        assert samples.labels is not None and samples.labels.dtype == np.int64
        assert samples.labels.tolist() == [label_of(i) for i in range(count)]
    else:
        assert samples.labels is None


def test_png_names_and_records(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "out", run=RUN, notes={"version": "0.1"}, label_names=NAMES)
    write(writer, [0, 1, 2])
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "000-T-shirt-top_seed5-000000.png",
        "001-Trouser_seed5-000001.png",
        "002-Ankle-boot_seed5-000002.png",
        "run.json",
    ]
    record = read_record(tmp_path / "out" / "002-Ankle-boot_seed5-000002.png")
    assert record == {**RUN, "version": "0.1", "index": 2, "class": 2, "class_name": "Ankle boot"}
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == RUN


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("labels", [True, False])
def test_written_in_any_order_read_in_order(tmp_path: Path, format: str, channels: int, labels: bool) -> None:
    writer = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
    assert writer.missing(7) == list(range(7))
    write(writer, [5, 2], labels, channels)
    write(writer, [6, 0, 3], labels, channels)
    assert writer.missing(7) == [1, 4] and writer.missing(1) == []
    again = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
    assert again.missing(8) == [1, 4, 7]
    write(again, [4, 1], labels, channels)
    result = again.finish(7)
    assert_samples(tmp_path, 7, labels, channels)
    assert_samples(result, 7, labels, channels)
    assert result == (tmp_path if format == "png" else tmp_path / f"samples_7x6x4x{channels}.npz")
    assert not (tmp_path / "parts").exists()
    assert SampleWriter(tmp_path, format, run=RUN).missing(7) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["npz", "both"])
@pytest.mark.parametrize("labels", [True, False])
def test_npz_equals_the_original_layout(tmp_path: Path, format: str, labels: bool) -> None:
    writer = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
    write(writer, [3, 1], labels)
    write(writer, [0, 2], labels)
    ours = writer.finish()
    images, classes = np.stack([image_of(i) for i in range(4)]), np.array([label_of(i) for i in range(4)], np.int64)
    original = tmp_path / "original.npz"
    np.savez(original, *([images, classes] if labels else [images]))
    assert ours.name == "samples_4x6x4x3.npz"
    with zipfile.ZipFile(ours) as a, zipfile.ZipFile(original) as b:
        assert a.testzip() is None
        assert [i.filename for i in a.infolist()] == [i.filename for i in b.infolist()]
        assert all(i.compress_type == zipfile.ZIP_STORED for i in a.infolist())
        for name in b.namelist():
            assert a.read(name) == b.read(name)  # headers and data, byte for byte


@pytest.mark.parametrize("format", FORMATS)
def test_finish_needs_every_image(tmp_path: Path, format: str) -> None:
    writer = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing was written"):
        writer.finish()
    write(writer, [0, 2, 5])
    with pytest.raises(ValueError, match=r"3 of 6 samples are missing \(1, 3, 4\)"):
        writer.finish()
    with pytest.raises(ValueError, match="5 of 8"):
        writer.finish(8)
    assert not list(tmp_path.glob("samples_*"))
    assert read_samples(tmp_path).indices.tolist() == [0, 2, 5]


def test_a_finished_npz_can_be_continued(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, "npz", run=RUN)
    write(writer, [0, 1, 2])
    write(writer, [3, 4])
    first = writer.finish(4)  # the part with image 4 is still needed
    assert_samples(first, 4)
    more = SampleWriter(tmp_path, "npz", run=RUN)
    assert more.missing(7) == [5, 6]
    write(more, [6, 5])
    assert_samples(more.finish(7), 7)
    assert_samples(first, 4)
    assert more.finish(7) == tmp_path / "samples_7x6x4x3.npz"
    assert_samples(more.finish(2), 2)
    assert more.missing(7) == []


def test_a_packed_file_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, "npz", run=RUN)
    write(writer, [0, 1, 2])
    packed = writer.finish()
    data = packed.read_bytes()
    packed.write_bytes(data[:-50])
    assert writer.missing(3) == [0, 1, 2]
    packed.rename(tmp_path / "samples_9x6x4x3.npz").write_bytes(data)  # whole, but not what its name says
    assert writer.missing(9) == list(range(9))
    write(writer, [2, 1, 0])
    assert_samples(writer.finish(3), 3)


def test_png_run_becomes_both_without_new_work(tmp_path: Path) -> None:
    write(SampleWriter(tmp_path, "png", run=RUN), [0, 1, 2])
    both = SampleWriter(tmp_path, "both", run=RUN)
    assert both.missing(3) == []
    assert_samples(both.finish(3), 3)


def test_interleaved_processes_share_a_run(tmp_path: Path) -> None:
    writers = [SampleWriter(tmp_path, "npz", run=RUN) for _ in range(3)]
    for start in range(0, 60, 12):
        for rank, writer in enumerate(writers):
            write(writer, list(range(start + rank, start + 12, 3)))
    assert_samples(writers[0].finish(60), 60)


@pytest.mark.parametrize("format", FORMATS)
def test_another_run_is_refused_and_the_difference_named(tmp_path: Path, format: str) -> None:
    write(SampleWriter(tmp_path, format, run=RUN), [0])  # type: ignore[arg-type]
    before = sorted(f.name for f in tmp_path.rglob("*"))
    other = {**RUN, "steps": 100, "solver": {"name": "ddim", "eta": 0.5}, "guidance": 4.0}
    del other["model"]
    with pytest.raises(ValueError) as error:
        SampleWriter(tmp_path, format, run=other)  # type: ignore[arg-type]
    message = str(error.value)
    assert "steps: 50 there, 100 now" in message and "solver.eta: 0.0 there, 0.5 now" in message
    assert "\n  guidance: not set there, 4.0 now\n" in message and "  model: abc there, not set now\n" in message
    assert "solver.name" not in message and "seed" not in message and "Choose another place" in message
    assert sorted(f.name for f in tmp_path.rglob("*")) == before
    SampleWriter(tmp_path, format, run=RUN, notes={"version": "0.2"})  # type: ignore[arg-type]


def test_samples_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    write(SampleWriter(tmp_path, run=RUN), [0])
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json"):
        SampleWriter(tmp_path, run=RUN)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="not readable"):
        SampleWriter(tmp_path, run=RUN)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "readme.txt").write_text("of somebody else")
    with pytest.raises(FileExistsError, match=r"readme\.txt.*output"):
        SampleWriter(other, run=RUN)
    assert not (other / "run.json").exists()


def test_damaged_files_do_not_count(tmp_path: Path) -> None:
    png, npz = SampleWriter(tmp_path / "png", run=RUN), SampleWriter(tmp_path / "npz", "npz", run=RUN)
    for writer in (png, npz):
        write(writer, [0, 1])
        write(writer, [2, 3])
    cut = tmp_path / "png" / "001_seed5-000001.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    part = sorted((tmp_path / "npz" / "parts").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-30])
    assert png.missing(4) == [1] and npz.missing(4) == [2, 3]
    write(png, [1])
    write(npz, [3, 2])
    png.finish(4)
    assert_samples(tmp_path / "png", 4)
    assert_samples(npz.finish(4), 4)
    assert not (tmp_path / "npz" / "parts").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("failing", range(6))
def test_an_error_at_any_rename_loses_at_most_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, failing: int
) -> None:
    calls, real = [], os.replace

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    batches = [[0, 1], [2, 3], [4, 5]]
    done: list[int] = []
    try:
        writer = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
        for batch in batches:
            write(writer, batch)
            done += batch
        writer.finish(6)
    except OSError:
        pass
    monkeypatch.setattr(os, "replace", real)
    assert not list(tmp_path.rglob("*.tmp"))
    writer = SampleWriter(tmp_path, format, run=RUN)  # type: ignore[arg-type]
    missing = writer.missing(6)
    assert not set(missing) & set(done) and (missing or failing >= 4 or format == "npz")
    for index in missing:
        write(writer, [index])
    writer.finish(6)
    assert_samples(tmp_path, 6)


JOB = """
    import os, sys, time
    import numpy as np
    from undiffuse.pictures import SampleWriter
    folder, format = sys.argv[1:]
    writer = SampleWriter(folder, format, run={"seed": 5, "steps": 50})
    todo = writer.missing(4000)
    for k in range(0, len(todo), 20):
        batch = todo[k : k + 20]
        writer.write(batch, np.stack([np.full((64, 64, 3), i % 251, np.uint8) for i in batch]), [i % 10 for i in batch])
        print(len(batch), flush=True)
    writer.finish(4000)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is a POSIX matter")
@pytest.mark.parametrize("format", ["png", "npz"])
def test_killed_in_the_middle_and_continued(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "out"
    job = [sys.executable, "-c", textwrap.dedent(JOB), str(folder), format]
    with subprocess.Popen(job, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reported = sum(int(process.stdout.readline()) for _ in range(3))
        time.sleep(0.013)
        process.send_signal(signal.SIGKILL)
        reported += sum(int(line) for line in process.stdout)
    assert process.returncode == -signal.SIGKILL and reported >= 60
    leftover = folder / ("parts" if format == "npz" else "") / ".undiffuse-0123.tmp"
    leftover.write_bytes(b"half a file, as a kill within a write leaves it")

    writer = SampleWriter(folder, format, run={"seed": 5, "steps": 50})  # type: ignore[arg-type]
    missing = writer.missing(4000)
    there = 4000 - len(missing)
    assert reported <= there < 4000 and missing == list(range(there, 4000))
    partial = read_samples(folder)  # all that counts is readable
    assert partial.images[:, 0, 0, 0].tolist() == [i % 251 for i in range(there)]
    total = there + 30
    rest = [i for i in missing if i < total]
    writer.write(rest, np.stack([np.full((64, 64, 3), i % 251, np.uint8) for i in rest]), [i % 10 for i in rest])
    writer.finish(total)
    assert not leftover.exists()
    samples = read_samples(folder)
    assert np.array_equal(samples.images, np.stack([np.full((64, 64, 3), i % 251, np.uint8) for i in range(total)]))
    assert samples.labels is not None and samples.labels.tolist() == [i % 10 for i in range(total)]


def test_same_image_twice_under_two_names_is_an_error(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, run=RUN)
    writer.write([0], image_of(0)[None], [1])
    writer.write([0], image_of(0)[None], [2])
    with pytest.raises(ValueError, match="image 0 twice"):
        writer.missing(1)


def test_mixed_shapes_and_labels_are_refused(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "a", "npz", run=RUN)
    write(writer, [0])
    with pytest.raises(ValueError, match="one shape"):
        write(writer, [1], channels=1)
    with pytest.raises(ValueError, match="all or none a label"):
        write(writer, [1], labels=False)
    write(SampleWriter(tmp_path / "a", "npz", run=RUN), [1], labels=False)  # another process did not know
    with pytest.raises(ValueError, match="1 of 2 images have labels"):
        writer.finish(2)
    assert not list((tmp_path / "a").glob("samples_*")) and len(list((tmp_path / "a" / "parts").iterdir())) == 2
    write(SampleWriter(tmp_path / "b", "npz", run=RUN), [0])
    write(SampleWriter(tmp_path / "b", "npz", run=RUN), [1], channels=1)
    with pytest.raises(ValueError, match="image 1 is uint8"):
        SampleWriter(tmp_path / "b", "npz", run=RUN).finish(2)
    with pytest.raises(ValueError, match="several shapes"):
        read_samples(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], np.zeros((2, 4, 4, 3), np.uint8)), "indices must be 2 whole numbers"),
        (([0.5, 1.0], np.zeros((2, 4, 4, 3), np.uint8)), "float64"),
        (([-1, 0], np.zeros((2, 4, 4, 3), np.uint8)), "0 or more"),
        (([1, 1], np.zeros((2, 4, 4, 3), np.uint8)), "same image twice"),
        (([0, 1], np.zeros((2, 4, 4, 3), np.uint8), [0]), "labels must be 2"),
        (([0, 1], np.zeros((2, 4, 4, 3), np.uint8), [0, 3]), "label 3 has no name"),
        (([0, 1], np.zeros((2, 3, 4, 4), np.float32)), "to_uint8"),
    ],
)
@pytest.mark.parametrize("format", ["png", "npz"])
def test_wrong_batches_write_nothing(tmp_path: Path, format: str, arguments: tuple, message: str) -> None:
    writer = SampleWriter(tmp_path, format, run=RUN, label_names=NAMES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        writer.write(*arguments)
    assert writer.missing(2) == [0, 1]


def test_tensors_are_welcome(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, "npz", run=RUN)
    images = torch.from_numpy(np.stack([image_of(0), image_of(1)]))
    writer.write(torch.tensor([0, 1]), images, torch.tensor([0, 1], dtype=torch.int32))
    assert_samples(writer.finish(2), 2)


@pytest.mark.parametrize("run", [{}, {"seed": -1}, {"seed": "0"}, {"seed": True}, {"seed": 0, "x": float("inf")}])
def test_runs_that_cannot_be_recorded(tmp_path: Path, run: dict) -> None:
    with pytest.raises(ValueError, match=r"seed|'x'"):
        SampleWriter(tmp_path / "out", run=run)
    assert not (tmp_path / "out").exists()


def test_wrong_format_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'both'"):
        SampleWriter(tmp_path, "jpg", run=RUN)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        SampleWriter(tmp_path / "file", run=RUN)
    with pytest.raises(ValueError, match="total=-1"):
        SampleWriter(tmp_path / "a", run=RUN).missing(-1)


def test_unicode_and_hostile_labels_make_safe_names(tmp_path: Path) -> None:
    names = [
        "../../etc/passwd",
        "\u65e5\u672c\u8a9e",
        'cafe\u0301 a\\b:c*?"<>|',
        "...",
        "x" * 500,
        "\u00e9" * 200,
        "a_seed9-000001",
    ]
    writer = SampleWriter(tmp_path / "out", run=RUN, label_names=names)
    writer.write(range(7), np.stack([image_of(i) for i in range(7)]), range(7))  # type: ignore[arg-type]
    files = sorted(f.name for f in (tmp_path / "out").glob("*.png"))
    assert files[0] == "000-etc-passwd_seed5-000000.png" and files[1] == "001-\u65e5\u672c\u8a9e_seed5-000001.png"
    assert files[2] == "002-caf\u00e9-a-b-c_seed5-000002.png" and files[3] == "003_seed5-000003.png"
    assert len(files) == 7 and all(len(name.encode()) < 120 for name in files)
    assert writer.missing(8) == [7]
    samples = read_samples(tmp_path / "out")
    assert samples.labels is not None and samples.labels.tolist() == list(range(7))
    assert read_record(tmp_path / "out" / files[0])["class_name"] == names[0]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("label", [None, 0, 7, 999, 1234])
@pytest.mark.parametrize("index", [0, 999_999, 12_345_678])
def test_names_round_trip(index: int, label: int | None) -> None:
    name = parse_name(sample_name(index, 42, label, "any - name_seed1-000002.png"))
    assert name is not None and (name.index, name.seed, name.label) == (index, 42, label)


def test_other_names_are_not_samples() -> None:
    assert sample_name(17, 0, 3, "Dress") == "003-Dress_seed0-000017.png"
    for name in (
        "grid.png",
        "seed0-17.png",
        "003-Dress_seed0-000017.jpg",
        "003-Dress_seed0-000017.png.tmp",
        "x_seed0-000017.png",
    ):
        assert parse_name(name) is None
    assert safe(" a  b/\u2603c ") == "a-b-c"


def test_read_samples_explains_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_samples(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no samples"):
        read_samples(tmp_path)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    cases = {
        "keys": ({"images": images}, "no 'arr_0'"),
        "float": ({"arr_0": images.astype(np.float32)}, "float32"),
        "axes": ({"arr_0": images[0]}, r"\[4, 4, 3\]"),
        "labels": ({"arr_0": images, "arr_1": np.zeros(3, np.int64)}, "each of 2 images"),
        "pickle": ({"arr_0": np.array([{}], dtype=object)}, "Python objects"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            read_samples(tmp_path / f"{name}.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        read_samples(tmp_path / "cut.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="damaged"):
        read_samples(tmp_path / "text.npz")
    np.savez(tmp_path / "ok.npz", images, np.array([1, 0], np.int32))
    assert read_samples(tmp_path / "ok.npz").labels.tolist() == [1, 0]  # type: ignore[union-attr]


def test_packing_holds_one_batch_in_memory(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, "npz", run=RUN)
    for start in range(0, 1200, 20):  # 60 parts, 59 MB
        writer.write(range(start, start + 20), np.full((20, 128, 128, 3), start % 251, np.uint8))  # type: ignore[arg-type]
    tracemalloc.start()
    writer.finish(1200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 35e6


def test_hashes_of_other_runs_are_shortened(tmp_path: Path) -> None:
    SampleWriter(tmp_path, run={**RUN, "model": "a" * 64})
    with pytest.raises(ValueError, match=r"model: a{12}\.\.\. there, b{12}\.\.\. now"):
        SampleWriter(tmp_path, run={**RUN, "model": "b" * 64})
