"""Samples in the units of the training data: formats, channels, records, previews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli_runs import WINDOW, call, write_bands
from undiffuse.editing import inpaint
from undiffuse.likelihood import measure
from undiffuse.models import load_diffusion
from undiffuse.pictures import load_image, read_record, read_samples
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import model_images, open_images
from undiffuse.pipelines.latents import decode_into
from undiffuse.pipelines.run import SamplingRun
from undiffuse.pixels import to_units
from undiffuse.util.errors import ConfigError


def sampled(tmp_path: Path, channels: int, *words: str, value_range: tuple[float, float] | None = WINDOW) -> list[Path]:
    """The files of four samples."""
    model = tmp_path / "m.safetensors"
    if not model.exists():
        write_bands(model, channels, value_range)
    out = tmp_path / "out"
    assert call("sample", model, "--count", 4, "--steps", 3, "--device", "cpu", "--out", out, *words) == 0
    return sorted(file for file in out.iterdir() if file.name.startswith("seed"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("format", ["png16", "tiff", "npy"])
def test_files_hold_the_models_values_in_its_units(tmp_path: Path, channels: int, format: str) -> None:
    if format == "png16" and channels == 5:
        return
    files = sampled(tmp_path, channels, "--format", format)
    assert [file.suffix for file in files] == [{"png16": ".png", "tiff": ".tiff", "npy": ".npy"}[format]] * 4
    samples = Pipeline.from_pretrained(tmp_path / "m.safetensors", device="cpu", steps="3").sample(4, progress=False)
    assert samples.value_range == WINDOW
    assert samples.values.dtype == np.float32
    assert samples.values.min() < 0 < samples.values.max() <= 2000
    step = 3000 / 65535 if format == "png16" else 1e-3
    for file, values, record in zip(files, samples.values, range(4), strict=True):
        found, kept = load_image(file)
        assert np.abs(found - values).max() <= step
        if format != "npy":
            assert kept["value_range"] == [-1000.0, 2000.0]
            assert kept["index"] == record
            assert read_record(file) == kept
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_png_cannot_hold_become_tiff(
    tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sampled(tmp_path, channels, "--animation", "gif", value_range=None)
    assert {file.suffix for file in files} == {".tiff"}
    assert f"images of {channels} channels are written as TIFF" in capsys.readouterr().out
    assert load_image(files[0])[0].shape == (8, 8, channels)
    assert call("inspect", files[0]) == 0
    assert "TIFF picture, 8x8" in capsys.readouterr().out
    assert call("inspect", tmp_path / "out") == 0
    assert "samples: 4 TIFF files" in capsys.readouterr().out
    assert (tmp_path / "out" / "path.gif").exists()
    assert call("sample", tmp_path / "m.safetensors", "--format", "png", "--out", tmp_path / "b") == 2
    error = capsys.readouterr().err
    assert "--format" in error and f"{channels} channels" in error and "'tiff'" in error
    assert not (tmp_path / "b").exists()


def test_png_of_a_model_with_a_range_says_so_and_keeps_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sampled(tmp_path, 1)[0]
    assert (
        "values -1000..2000 are written as 0..255; the formats png16, tiff and npy keep them" in capsys.readouterr().out
    )
    values, record = load_image(file)
    assert record["value_range"] == [-1000.0, 2000.0]
    expected = Pipeline.from_pretrained(tmp_path / "m.safetensors", device="cpu", steps="3").sample(1, progress=False)
    assert np.abs(values - expected.values[0]).max() <= 3000 / 255


def test_another_format_does_not_take_the_files_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(tmp_path, 1)
    out = tmp_path / "out"
    assert (
        call("sample", tmp_path / "m.safetensors", "--count", 4, "--steps", 3, "--format", "png16", "--out", out) == 2
    )
    assert "format" in capsys.readouterr().err
    files = sampled(tmp_path, 1, "--format", "png16", "--overwrite")
    assert len(files) == 4
    before = [file.stat().st_mtime_ns for file in files]
    assert [file.stat().st_mtime_ns for file in sampled(tmp_path, 1, "--format", "png16")] == before


@pytest.mark.parametrize("format", ["png", "png16", "tiff"])
def test_a_record_makes_the_file_again(tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = sampled(tmp_path, 3, "--format", format)[2]
    again = tmp_path / f"again{file.suffix}"
    assert call("sample", "--from-record", file, "--device", "cpu", "--out", again) == 0
    report = capsys.readouterr().out
    assert "identical" in report or "rounding" in report
    assert np.abs(load_image(again)[0] - load_image(file)[0]).max() <= 3000 / 255 * 1.01
    assert read_record(again)["index"] == 2


def test_an_npy_file_has_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sampled(tmp_path, 1, "--format", "npy")[0]
    assert call("sample", "--from-record", file, "--out", tmp_path / "again.npy") == 2
    assert "npy files have no place for one" in capsys.readouterr().err


def test_a_changed_value_is_noticed_in_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sampled(tmp_path, 1, "--format", "tiff")[0]
    values, record = load_image(file)
    from undiffuse.pictures import save_image

    values[0, 0] = values[0, 0] + 300 if values[0, 0, 0] < 1000 else values[0, 0] - 300
    save_image(file, values, "tiff", WINDOW, record=record, overwrite=True)
    assert call("sample", "--from-record", file, "--device", "cpu", "--out", tmp_path / "again.tiff") == 1
    assert "25.5 of 255" in capsys.readouterr().out  # 300 of 3000


def test_samples_save_in_units(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(write_bands(tmp_path / "m.safetensors", 5), device="cpu", steps="2")
    samples = pipeline.sample(3, progress=False)
    assert [picture.mode for picture in samples.pil()] == ["RGB"] * 3
    assert samples[0].mode == "RGB"
    assert samples[1:].values.shape == (2, 8, 8, 5)
    samples.save(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.tiff"))) == 3
    samples.save(tmp_path / "b", format="npy")
    assert np.array_equal(load_image(next((tmp_path / "b").glob("*000001.npy")))[0], samples.values[1])
    with pytest.raises(ConfigError, match="^format: 'png'"):
        samples.save(tmp_path / "c", format="png")
    run = SamplingRun.of(pipeline, tmp_path / "d", count=2)
    assert run.format == "tiff"
    run.run(progress=False)
    assert np.array_equal(load_image(next((tmp_path / "d").glob("*000001.tiff")))[0], samples.values[1])
    assert read_samples(tmp_path / "d").images.shape == (2, 8, 8, 3)


def test_sixteen_bit_colours_are_shown_as_what_they_are(tmp_path: Path) -> None:
    """12-bit numbers in 16-bit RGB files: white must not become 15 of 255 in grids and `read_samples`."""
    write_bands(tmp_path / "m.safetensors", 3, (0.0, 4095.0))
    sampled(tmp_path, 3, "--format", "png16")
    read = read_samples(tmp_path / "out").images
    expected = Pipeline.from_pretrained(tmp_path / "m.safetensors", device="cpu", steps="3").sample(4, progress=False)
    assert np.abs(read.astype(int) - expected.images.astype(int)).max() <= 1


def test_decoding_keeps_units(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(
        write_bands(tmp_path / "m.safetensors", 2), device="cpu", steps="3", solver="ddim"
    )
    x = torch.rand(2, 2, 8, 8) * 2 - 1
    encoded = pipeline.encode(x)
    decode_into(tmp_path / "out", pipeline, encoded, progress=False)
    files = sorted((tmp_path / "out").glob("seed*.tiff"))
    assert len(files) == 2
    assert np.array_equal(load_image(files[1])[0], pipeline.decode(encoded).values[1])


@pytest.mark.parametrize("format", ["png", "png16", "tiff"])
def test_edited_images_are_prepared_and_written_in_the_models_units(tmp_path: Path, format: str) -> None:
    files = sampled(tmp_path, 1, "--format", format)
    pipeline = Pipeline.from_pretrained(tmp_path / "m.safetensors", device="cpu", steps="2")
    x0 = model_images(open_images(files, pipeline.model), range(4), "cpu")
    expected = np.stack([load_image(file)[0] for file in files])
    assert np.abs(to_units(x0, WINDOW).numpy() - expected).max() <= 0.1
    result = inpaint(files, hole=(0, 0, 4, 8), model=pipeline, out=tmp_path / "edited", format="tiff", progress=False)
    assert [Path(name).suffix for name in result.names] == [".tiff"] * 4
    for name, before in zip(result.names, expected, strict=True):
        values, record = load_image(tmp_path / "edited" / name)
        assert np.abs(values[4:] - before[4:]).max() <= 0.1
        assert record["value_range"] == [-1000.0, 2000.0]
    assert read_samples(tmp_path / "edited").images.shape == (4, 8, 8, 1)


def test_arrays_and_tensors_are_inputs_in_units(tmp_path: Path) -> None:
    model = load_diffusion(write_bands(tmp_path / "m.safetensors", 2))
    units = np.random.default_rng(0).uniform(-1000, 2000, (3, 8, 8, 2))
    x0 = model_images(open_images(units, model), range(3), "cpu")
    assert np.abs(to_units(x0, WINDOW).numpy() - units).max() <= 1e-2
    assert torch.allclose(model_images(open_images(x0, model), range(3), "cpu"), x0, atol=1e-5)
    np.save(tmp_path / "a.npy", units.astype(np.float32))
    assert torch.allclose(model_images(open_images(tmp_path / "a.npy", model), range(3), "cpu"), x0, atol=1e-5)


def test_likelihood_of_a_model_in_units_is_that_of_its_levels(tmp_path: Path) -> None:
    write_bands(tmp_path / "m.safetensors", 1)
    write_bands(tmp_path / "l.safetensors", 1, None)
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    units = levels / 255 * 3000 - 1000
    bits = [
        measure(str(tmp_path / name), data, device="cpu", terms=3, progress=False).bits_per_dim
        for name, data in (("m.safetensors", units + 2), ("l.safetensors", levels))
    ]
    assert bits[0] == pytest.approx(bits[1], rel=1e-6)
