"""The command line with published models and with files of other code: by name, with their authors' advice."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch

from support.foreign_files import CLASSIFIER, DIFFUSION, Malicious, weights_of, write
from undiffuse.adapters import published
from undiffuse.cli import main
from undiffuse.cli.downloading import downloading
from undiffuse.downloads import report
from undiffuse.pictures import read_record


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two small models among the published ones, their files in a folder; a cache of the test's own; offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    for entry in (DIFFUSION, CLASSIFIER):
        monkeypatch.setitem(published.ENTRIES, entry.name, entry)  # type: ignore[arg-type]
        write(tmp_path / "files" / entry.file, weights_of(entry))
        write(tmp_path / "cache" / "models" / "published" / entry.file, weights_of(entry))
    return tmp_path


def call(*words: object) -> int:
    return main([str(word) for word in words])


def picture_in(folder: str) -> Path:
    """The one sample that a command wrote."""
    (picture,) = (path for path in Path(folder).glob("*.png") if path.name != "grid.png")
    return picture


def test_a_published_model_is_sampled_by_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Class by name, steps and solver as its authors advise, and the classifier that belongs to it."""
    words = ("sample", "tiny_diffusion", "--class", "golden retriever", "--guidance", "1.0", "--count", 1)
    assert call(*words, "--out", "a") == 0, capsys.readouterr().err
    picture = picture_in("a")
    record = read_record(picture)
    assert (record["solver"], record["steps"], record["guidance"], record["class"]) == ("ddpm", "3", 1.0, 207)
    assert (record["model_file"], record["classifier_file"]) == ("tiny_diffusion", "tiny_classifier")
    assert call("sample", "--from-record", picture, "--out", "again.png") == 0
    assert "identical to the original" in capsys.readouterr().out
    assert call(*words, "--steps", "2", "--solver", "ddim", "--out", "b") == 0
    other = read_record(picture_in("b"))
    assert (other["solver"], other["steps"]) == ("ddim", "2")


def test_files_of_other_code_are_sampled_like_any_model(capsys: pytest.CaptureFixture[str]) -> None:
    file = "files/tiny_diffusion.pt"
    assert call("sample", "--model", file, "--guidance", 1, "--class", 3, "--count", 1, "--out", "a") == 0
    record = read_record(picture_in("a"))
    assert (record["model_file"], record["classifier_file"]) == (file, "files/tiny_classifier.pt")
    os.replace(file, "files/other.pt")
    assert call("sample", "files/other.pt", "--like", "tiny_diffusion", "--class", 3, "--count", 1, "--out", "b") == 0
    told = read_record(picture_in("b"))
    assert told["model_file"] == "files/other.pt@tiny_diffusion"
    assert told["model"] == record["model"]
    assert call("sample", "--from-record", picture_in("b"), "--out", "again.png") == 0
    assert "identical to the original" in capsys.readouterr().out


def test_likelihood_and_encoding_take_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", "tiny_diffusion", "--class", 3, "--count", 2, "--out", "a", "--format", "npz") == 0
    data = next(Path("a").glob("*.npz"))
    assert call("nll", data, "--model", "files/tiny_diffusion.pt", "--class", 3, "--terms", 2, "--steps", 4) == 0
    assert call("encode", data, "--model", "tiny_diffusion", "--class", 3, "--steps", 2) == 0, capsys.readouterr().err


@pytest.mark.parametrize("what", ["files/tiny_diffusion.pt", "files/tiny_classifier.pt"])
def test_inspect_tells_who_says_what(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", what) == 0
    text = capsys.readouterr().out
    name = Path(what).stem
    for word in ("published as", name, DIFFUSION.licence, "shapes: ", f"{name}, by its file name: images of 32 pixels",
                 "cosine steps", "order of qkv", "float32"):  # fmt: skip
        assert word in " ".join(text.split())
    assert call("inspect", what, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["source"]["published"] == name
    assert manifest["parameters"] > 100_000


def test_inspect_of_names_pairs_and_strangers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", "tiny_diffusion") == 0
    assert DIFFUSION.licence in capsys.readouterr().out
    assert call("inspect", "files/tiny_diffusion.pt@tiny_diffusion use_new_attention_order=False") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tiny_diffusion, as given: images of 32 pixels, heads of 16 channels, legacy order" in text
    assert "flags: use_new_attention_order False" in text
    write(tmp_path / "unknown.pt", {k: v for k, v in weights_of(DIFFUSION).items() if k != "label_emb.weight"})
    assert call("inspect", "unknown.pt") == 2
    error = capsys.readouterr().err
    assert "do not show image_size" in error
    assert "@tiny_diffusion" in error
    write(tmp_path / "evil.pt", Malicious(tmp_path / "executed"))
    assert call("inspect", "evil.pt") == 2
    assert "is refused" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    torch.save(weights_of(DIFFUSION), tmp_path / "a.bin")
    assert call("inspect", "a.bin") == 0


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("sample", "tiny_classifier"): "is a classifier; a diffusion model is needed",
        ("sample", "tiny_diffusion", "--classifier", "tiny_diffusion"): "a noisy-image classifier is needed",
        ("sample", "lsun_cat", "--guidance", "1"): "needs a classifier of noisy images",
        ("sample", "tiny_diffusion", "--low-res", "files"): "this model does not enlarge images",
        ("sample", "--like", "tiny_diffusion"): "add --model FILE",
        ("sample", "tiny_diffusion", "--model", "lsun_cat"): "two models were given, tiny_diffusion and lsun_cat",
        ("sample", "--model", "tiny_difusion"): "did you mean tiny_diffusion",
        ("sample", "tiny_diffusion", "--class", "unicorn"): "is none of ImageNet's",
        (
            "sample",
            "files/tiny_diffusion.pt",
            "--like",
            "64x64_diffusion",
        ): "its shapes give model_channels 32 (not 192)",
    }
    for words, told in cases.items():
        assert call(*words) == 2, words
        assert told in capsys.readouterr().err, words


def test_offline_downloads_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("UNDIFFUSE_OFFLINE")
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **more: pytest.fail("a connection was made"))
    for words in (("sample", "lsun_cat", "--offline"), ("nll", "files", "--model", "lsun_cat", "--offline"),
                  ("export", "lsun_cat", "--to", "safetensors", "--offline")):  # fmt: skip
        assert call(*words) == 2
        assert "could not download" in (error := capsys.readouterr().err)
        assert "downloads are disabled" in error
        assert "lsun_cat.pt" in error
    assert "UNDIFFUSE_OFFLINE" not in os.environ
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "0")
    assert call("sample", "lsun_cat", "--offline") == 2
    assert os.environ["UNDIFFUSE_OFFLINE"] == "0"


def test_progress_of_files_is_a_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with downloading():
        for done in (0, 10**6, 2 * 10**6):
            report("downloading a.pt", done, 2 * 10**6)
        report("converting a.pt", 0, 10**6)
    text = screen.getvalue()
    assert "downloading a.pt" in text
    assert "converting a.pt" in text
    assert text.split("\r")[-1] == ""
    assert text.split("\r")[-2].strip() == ""


class Screen(io.StringIO):
    """A terminal, as far as a program can tell."""

    def isatty(self) -> bool:
        return True
