"""examples/emoji.py makes the colour data set from packages as `npm pack` saves them."""

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "emoji.py"
CODES = [f"1f{number:03x}" for number in range(0x600, 0x60C)]


def _picture(ending: str) -> bytes:
    picture = Image.new("RGBA", (64, 64) if ending == "PNG" else (48, 48), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (16, 16, 32, 32))
    data = io.BytesIO()
    picture.save(data, ending, lossless=True)
    return data.getvalue()


def _package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    groups = ("Flags", "Food & Drink")
    table = [{"unified": code.upper(), "category": groups[n % 2]} for n, code in enumerate(CODES)]
    table.append({"unified": "1F3FB", "category": "Component"})
    noto = {"package/emoji.json": json.dumps(table).encode()}
    noto |= {f"package/img/google/64/{code}.png": _picture("PNG") for code in [*CODES, "1f3fb", f"{CODES[0]}-1f3fb"]}
    fluent = {f"package/assets/{code}.webp": _picture("WEBP") for code in CODES}
    return [
        _package(tmp_path / "emoji-datasource-google-16.0.0.tgz", noto),
        _package(tmp_path / "lobehub-fluent-emoji-3d-1.1.0.tgz", fluent),
    ]


def _run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_folders_of_classes_on_white(packages, tmp_path, monkeypatch):
    out = tmp_path / "emoji"
    _run(monkeypatch, *packages, "--out", out)
    files = sorted(out.glob("*/*/*.png"))
    assert len(files) == 2 * len(CODES)  # neither the component nor the skin tone
    assert {file.parent.name for file in files} == {"flags", "food-drink"}
    splits = {code: {file.parts[-3] for file in files if file.name.startswith(code)} for code in CODES}
    assert all(len(parts) == 1 for parts in splits.values())  # all styles of an emoji are on one side
    for file in files:
        with Image.open(file) as picture:
            assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (64, 64), (255, 255, 255))
            assert picture.getpixel((24, 24)) == (0, 0, 255)


def test_a_new_folder_is_required(packages, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="exists"):
        _run(monkeypatch, *packages, "--out", tmp_path)


def test_other_packages_are_named(packages, tmp_path, monkeypatch):
    other = _package(tmp_path / "left-pad-1.0.0.tgz", {})
    with pytest.raises(SystemExit, match="left-pad"):
        _run(monkeypatch, packages[0], other, "--out", tmp_path / "emoji")
