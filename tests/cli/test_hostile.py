"""Records, latents and options that somebody made up: each gets one clear line, never a traceback."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from support.cli_runs import call, one_thread, write_images, write_model
from undiffuse.config import SamplerConfig
from undiffuse.data import open_data
from undiffuse.data.sources import BrokenImageError
from undiffuse.pictures import SampleWriter, read_record
from undiffuse.pipelines import latents

FAST = ("--steps", 3, "--device", "cpu")
DEEP = "[" * 100_000 + "]" * 100_000
LESS_DEEP = '{"a": ' * 400 + "1" + "}" * 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def record(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    with one_thread():
        assert call("sample", "--model", model, "--count", 1, "--out", out, *FAST) == 0
    return read_record(next(out.glob("*_seed*.png")))


@pytest.fixture(scope="module")
def encoded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    images = write_images(folder / "images", each=1)
    assert call("encode", images, "--model", model, *FAST, "--out", folder / "l.safetensors") == 0
    return folder / "l.safetensors"


def write_png(path: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("undiffuse", text)
    Image.new("L", (8, 8)).save(path, pnginfo=info)
    return path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("undiffuse: error: ")
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("solver", "eulers"), ("solver", None), ("solver", ["ddim"]), ("solver", {}),
        ("clip", "wild"), ("clip", 3), ("precision", "fp8"), ("guidance_at", "nowhere"),
        ("guidance", "strong"), ("guidance", True), ("guidance", 10**400), ("guidance", None),
        ("eta", -1), ("eta", [0]), ("clip_after_guidance", "yes"), ("clip_after_guidance", 1), ("steps", 3),
        ("steps", ""), ("steps", None),
        ("weights", 0), ("weights", None), ("weights", {"a": 1}), ("model", 3),
        ("model_file", 7), ("model_file", None), ("model_file", ""), ("classifier", 5),
        ("index", "2"), ("index", -1), ("index", 1.0), ("index", True), ("index", None), ("index", 2**32),
        ("seed", "0"), ("seed", -1), ("seed", None), ("seed", 2**64), ("seed", 0.5),
        ("class", "top"), ("class", 3), ("class", -1), ("class", None), ("class", 1.0),
        ("low_res_data", 4),
    ],
)  # fmt: skip
def test_a_record_with_a_wrong_value(
    field: str, value: Any, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_png(tmp_path / "x.png", json.dumps({**record, field: value}))
    assert call("sample", "--from-record", file, "--out", tmp_path / "again.png") == 2
    error = told(capsys)
    assert field in error
    assert str(file) in error
    assert not (tmp_path / "again.png").exists()


def test_a_record_that_lacks_something(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for field in ("solver", "seed", "class"):
        short = {name: value for name, value in record.items() if name != field}
        file = write_png(tmp_path / "x.png", json.dumps(short))
        assert call("sample", "--from-record", file, "--out", tmp_path / "again.png") == 2
        error = told(capsys)
        assert field in error
        assert str(file) in error
    guided = {**record, "classifier": "0" * 64, "classifier_file": 3}
    assert call("sample", "--from-record", write_png(tmp_path / "x.png", json.dumps(guided))) == 2
    assert "classifier_file = 3" in told(capsys)
    with pytest.raises(ValueError, match="the record has eta = inf; expected a number of at least 0"):
        SamplerConfig.from_record({**record, "eta": float("inf")})


@pytest.mark.parametrize("text", [DEEP, LESS_DEEP, '{"a": NaN}', "1" * 5000, "{", "[]", '"x"'])
def test_a_record_that_is_no_json_of_ours(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_png(tmp_path / "x.png", text)
    assert call("sample", "--from-record", file) == 2
    assert str(file) in told(capsys)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json"):
        SampleWriter(tmp_path / "run", run={"seed": 0})


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [30_000, 2**31 - 1, 8])
def test_pictures_that_are_huge_or_broken(side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    file = tmp_path / "seed0-000000.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"rubbish") + chunk(b"IEND", b""))
    assert call("sample", "--from-record", file) == 2
    assert str(file) in told(capsys)
    with pytest.raises((OSError, ValueError), match="seed0-000000.png"):
        read_record(file)


def test_truncated_pictures_are_named(record: dict[str, Any], tmp_path: Path) -> None:
    whole = write_png(tmp_path / "x.png", json.dumps(record)).read_bytes()
    for length in (0, 4, 20, 40, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises((OSError, ValueError), match="cut.png"):
            read_record(tmp_path / "cut.png")


ABOUT = {"record": {}, "notes": {}}
GOOD = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("tensors", "about", "said"),
    [
        ({"x": GOOD}, ABOUT, "lacks the tensor latents"),
        ({"latents": GOOD.int()}, ABOUT, "floating-point numbers"),
        ({"latents": GOOD[0]}, ABOUT, "[N, C, H, W]"),
        ({"latents": GOOD[:0]}, ABOUT, "at least one image"),
        ({"latents": GOOD, "labels": torch.zeros(3).long()}, ABOUT, "labels must be one whole number"),
        ({"latents": GOOD, "labels": torch.zeros(2)}, ABOUT, "labels must be one whole number"),
        ({"latents": GOOD, "labels": torch.zeros(2, 1).long()}, ABOUT, "labels must be one whole number"),
        ({"latents": GOOD}, ABOUT, "does not say how to make an image: it lacks"),
        ({"latents": GOOD}, [], "should hold a JSON object"),
        ({"latents": GOOD}, {"record": {}}, "'notes' is missing"),
        ({"latents": GOOD}, {"record": [], "notes": {}}, "'record' is missing"),
        ({"latents": GOOD}, DEEP, "nested too deeply"),
        ({"latents": GOOD}, "{", "not readable JSON"),
    ],
)
def test_latents_of_another_kind(
    tensors: dict[str, torch.Tensor], about: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "l.safetensors"
    save_file(tensors, file, {latents.KEY: about if isinstance(about, str) else json.dumps(about)})
    assert call("decode", file, "--out", tmp_path / "out") == 2
    error = told(capsys)
    assert said in error
    assert str(file) in error
    assert not (tmp_path / "out").exists()


def test_latents_that_do_not_fit_the_model(encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = latents.read_about(encoded)
    file = tmp_path / "l.safetensors"

    def decode(tensors: dict[str, torch.Tensor], *words: str, **changed: Any) -> str:
        record = {**about["record"], **changed}
        save_file(tensors, file, {latents.KEY: json.dumps({**about, "record": record})})
        assert call("decode", file, "--out", tmp_path / "out", *words) == 2
        error = told(capsys)
        assert str(file) in error
        return error

    labels = torch.zeros(2).long()
    assert "labels 0 to 3, but the model has classes 0 to 2" in decode(
        {"latents": GOOD, "labels": labels + labels.new([0, 3])}
    )
    assert "labels -1 to -1" in decode({"latents": GOOD, "labels": labels - 1})
    assert "--class: missing; the model is class-conditional, but" in decode({"latents": GOOD})
    assert "latents of 3x8x8" in decode({"latents": GOOD.repeat(1, 3, 1, 1), "labels": labels})
    assert "clip = 'wild'" in decode({"latents": GOOD, "labels": labels}, clip="wild")
    assert "is not the one of the record in" in decode({"latents": GOOD, "labels": labels}, model="0" * 64)


def test_damaged_parts_of_latents_are_made_again(tmp_path: Path) -> None:
    about = {"record": {}, "notes": {}, "names": ["a", "b"]}

    def writer() -> latents.LatentsWriter:
        return latents.LatentsWriter(tmp_path / "l", about)

    writer().write([0], GOOD[:1])
    parts = tmp_path / "l.safetensors.parts"
    (parts / "part-000000001-00000000.npz").write_bytes(b"rubbish")
    assert writer().missing(2) == [1]
    with pytest.raises(ValueError, match=r"1 of 2 latents are missing \(1\)"):
        writer().finish(2, None)
    writer().write([1], torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="contains latents of several shapes"):
        writer().finish(2, None)
    for text in (DEEP, "{", "[]"):
        (parts / "about.json").write_text(text)
        with pytest.raises(ValueError, match=r"about\.json.*choose another place"):
            writer()
    (parts / "about.json").write_text("{}")
    with pytest.raises(ValueError, match=r"(?s)made with other settings.*names: not set there, a, b now"):
        writer()
    (parts / "000000000-000000001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="parts of an earlier version"):
        writer()
    assert latents.LatentsWriter(tmp_path / "l", about, overwrite=True).missing(2) == [0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--count", "99999999999999999999999"], "is too large: the maximum is 2^32"),
        (["sample", "--count", "9" * 9999], "is too large: the maximum is 2^32"),
        (["sample", "--count", "4_294_967_297"], "is too large: the maximum is 2^32"),
        (["sample", "--seed", str(2**64)], "is too large: the maximum is 2^64 - 1"),
        (["train", ".", "--size", "65537"], "a side has at most 65,536 pixels"),
        (["train", ".", "--size", "9" * 9999], "a side has at most 65,536 pixels"),
        (["train", ".", "--size", "8x\u00b2"], "a size, for example 64"),
        (["train", ".", "--size", "0"], "a size, for example 64"),
        (["train", ".", "--channels", "0"], "argument --channels: '0': expected a whole number of at least 1"),
        (["train", ".", "--precision", "fp8"], "argument --precision: 'fp8': expected one of fp32, bf16, fp16\n"),
        (["smaple"], "there is no command 'smaple'; expected quickstart, studio, train"),
        (["it's"], 'there is no command "it\'s"; expected quickstart, studio, train'),
        (["sample", "--steps", ""], "argument --steps: '': expected text"),
        (["sample", "--model", ""], "--model is empty"),
        (["sample", "--weights", " "], "--weights is empty"),
        (["encode", "x.png", "--model", ""], "--model is empty"),
    ],
)
def test_options(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    assert said in told(capsys)


def test_an_empty_model_is_not_taken_for_the_one_of_the_record(
    record: dict[str, Any], encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_png(tmp_path / "x.png", json.dumps(record))
    assert call("sample", "--from-record", file, "--model", "", "--out", tmp_path / "y.png") == 2
    assert "--model is empty" in told(capsys)
    assert call("decode", encoded, "--model", "", "--out", tmp_path / "out") == 2
    assert "--model is empty" in told(capsys)


@pytest.mark.parametrize("name", ["grid.png", "path.gif", "path.apng"])
def test_pictures_of_somebody_else_are_not_replaced(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    words = ("sample", "--model", model, "--count", 1, "--out", tmp_path, *FAST)
    assert call(*words) == 2
    assert f"{tmp_path} holds files that were not written by this command ({name})" in told(capsys)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert call(*words, "--overwrite") == 2  # it removes what a run wrote, and this no run did
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("error", [struct.error("a buffer"), zlib.error("a stream"), IndexError("a table")])
def test_what_decoders_raise_for_damaged_pictures(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pillow has no error of its own for a file that is cut short where frames are counted or decoded."""
    path = tmp_path / "a.gif"
    frames = [Image.new("L", (8, 8), k) for k in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    source = open_data(path, frames="all")

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(GifImageFile, "seek", fails)
    monkeypatch.setattr(GifImageFile, "n_frames", property(fails))
    with pytest.raises(BrokenImageError, match=str(error)):
        source.image(1)
    call("inspect", path)
    assert "Traceback" not in capsys.readouterr().err
