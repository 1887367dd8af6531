"""History on disk, views, drawings, data to look through, and trainings that are started and stopped."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import write_images
from undiffuse.cli import main
from undiffuse.pictures import save_png
from undiffuse.pipelines import Pipeline
from undiffuse.studio import views
from undiffuse.studio.datasets import look
from undiffuse.studio.drawing import canvas, drawn_map, drawn_mask, map_colours, png_bytes
from undiffuse.studio.jobs import EDITS, Job
from undiffuse.studio.paths import Path as StepPath
from undiffuse.studio.processes import Event, ModelProcesses
from undiffuse.studio.runs import RunView, Trainings
from undiffuse.studio.sessions import Entry, Studio, describe_picture, read_entries
from undiffuse.studio.settings import Settings
from undiffuse.studio.work import Workshop
from undiffuse.util.errors import ConfigError


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(ModelProcesses(1), tmp_path / "out", "fashion-mnist-32")


def test_entries_outlive_the_program(tmp_path: Path) -> None:
    file = save_png(tmp_path / "0001-vary" / "a.png", np.zeros((4, 4, 1), np.uint8), {"command": "vary"})
    settings = Settings(classes=("Bag",), sampler={"guidance": (2.0,)})
    job = Job(task="vary", settings=settings, inputs={"images": [tmp_path / "x.png"], "strength": 0.5})
    entry = Entry(job, file.parent, (file,), 12.0, 3.0)
    entry.save()
    (tmp_path / "0002-broken").mkdir()
    (tmp_path / "0002-broken" / "studio.json").write_text("{}")
    found = read_entries(tmp_path)
    assert len(found) == 1
    assert found[0].job.settings == settings
    assert found[0].job.inputs == {"images": [str(tmp_path / "x.png")], "strength": 0.5}
    assert found[0].files == (file,)
    file.unlink()
    assert read_entries(tmp_path)[0].files == ()
    assert read_entries(tmp_path / "nothing") == []


def test_a_picture_tells_its_recipe(tmp_path: Path) -> None:
    Pipeline.from_pretrained("fashion-mnist-32", device="cpu", solver="ddim", steps=2).sample(
        1, classes="Bag", seed=4, progress=False
    ).save(tmp_path / "s")
    file = next((tmp_path / "s").glob("*-000000.png"))
    found = describe_picture(file)
    assert found["settings"].seed == 4
    assert found["command"] == f"undiffuse sample --from-record {file}"
    again = tmp_path / "again.png"
    words = found["command"].split()[1:]
    assert main([*words, "--out", str(again)]) == 0
    assert (np.asarray(Image.open(again)) == np.asarray(Image.open(file))).all()
    grid = describe_picture(tmp_path / "s" / "grid.png")
    assert grid["command"].startswith("undiffuse inspect")
    bare = tmp_path / "bare.png"
    Image.new("L", (4, 4)).save(bare)
    with pytest.raises(ValueError, match="carries no undiffuse record"):
        describe_picture(bare)


def test_states_say_what_happens() -> None:
    assert "1 other job before" in str(views.status(Event("waiting", {"ahead": 1})))
    assert "50%" in str(views.status(Event("progress", {"done": 0.5, "left": 3.0})))
    assert 'value="0.5000"' in str(views.status(Event("progress", {"done": 0.5, "left": 3.0})))
    died = str(views.status(Event("died", {"why": "killed by signal 9"})))
    assert "killed by signal 9" in died
    assert 'role="alert"' in died
    wrong = views.status(Event("error", {"text": "needs `classifier` <b>", "field": "guidance", "bug": False}))
    assert wrong is not None
    assert "Classifier guidance scale needs “Classifier” &lt;b&gt;" in wrong
    assert "fault of undiffuse" in str(views.status(Event("error", {"text": "x", "field": None, "bug": True})))
    assert views.status(Event("step", {})) is None


def test_a_path_is_drawn_with_its_opinion() -> None:
    image = np.zeros((2, 8, 8, 1), np.uint8)
    step = {"index": 3, "total": 9, "logsnr": -1.234, "nfe": 4, "x": image, "x0": image,
            "opinion": np.array([[0.2, 0.8], [0.9, 0.1]])}  # fmt: skip
    path = StepPath()
    assert (path.html(), path.charts(), len(path), path.count) == ("", "", 0, 0)
    path.take("begin", {"names": ["cat", "<dog>"], "wanted": [1, 1], "part": ""})
    path.take("step", step)
    path.take("progress", {"done": 0.5})
    page = path.html()
    assert page.count("<img") == 4
    assert "Step 4 of 9, log-SNR -1.23, 4 network calls" in page
    assert "&lt;dog&gt; 80%" in page
    assert "cat 90%" in page
    path.take("step", {**step, "index": 4, "logsnr": float("inf")})
    assert "Step 5 of 9, clean" in path.html()
    assert "Step 4 of 9" in path.html(1)
    assert path.html(99) == path.html(2) == path.html()
    chart = path.charts()
    assert '"points": [[4.0, -1.234]]' in chart
    assert '"points": [[4.0, 0.1], [5.0, 0.1]]' in chart


def test_paths_of_a_comparison_are_drawn_at_the_same_share_of_the_way() -> None:
    image, path = np.zeros((1, 8, 8, 1), np.uint8), StepPath()
    for part, total in (("A", 9), ("B", 3)):
        path.take("begin", {"names": [], "wanted": [], "part": part})
        for k in range(total):
            path.take("step", {"index": k, "total": total, "logsnr": k - 3.0, "nfe": k + 1, "x": image, "x0": image,
                               "opinion": None, "part": part})  # fmt: skip
    assert (len(path), path.count) == (9, 12)
    middle = path.html(5)
    assert "A: Step 5 of 9" in middle
    assert "B: Step 2 of 3" in middle
    assert "A: Step 1 of 9" in path.html(1)
    assert "B: Step 3 of 3" in path.html()
    assert path.charts().count('class="chart"') == 1
    assert '"name": "B"' in path.charts()


WATCHED_JOBS = {
    "compare": ({"other": Settings(count=2, sampler={"solver": "ddim", "steps": "2"})}, {"A": 4, "B": 2}),
    "interpolate": ({"inputs": {"seeds": [0, 1], "frames": 2}}, {"": 4}),
    "inpaint": ({"inputs": {"hole": (4, 4, 8, 8), "method": "repaint", "resamples": 2, "jump": 2}}, {"": 8}),
    "restore": ({"inputs": {"upscale": 2, "degrade": True, "method": "pigdm"}}, {"": 4}),
    "vary": ({"inputs": {"strength": 0.5, "variants": 2}}, {"": 2}),
    "translate": ({"inputs": {"to": "Coat", "strength": 1.0}}, {"": 4}),
}


@pytest.mark.parametrize("task", WATCHED_JOBS)
def test_every_way_to_make_pictures_is_watched(task: str, tmp_path: Path) -> None:
    more, counts = WATCHED_JOBS[task]
    settings = Settings(classes=("Bag",), count=2, sampler={"steps": "4"})
    if task in EDITS:
        picture = save_png(tmp_path / "picture.png", np.full((32, 32, 1), 90, np.uint8))
        more = {"inputs": {**more["inputs"], "images": [str(picture)]}}
    path, folder = StepPath(), tmp_path / "out"
    folder.mkdir()
    Workshop("cpu").do(Job(task=task, settings=settings, **more), str(folder), path.take)
    assert {title: len(part.steps) for title, part in path.parts.items()} == counts
    for part in path.parts.values():
        assert [step["index"] for step in part.steps] == list(range(len(part.steps)))
        assert np.isinf(part.steps[-1]["logsnr"])
        assert not np.isinf(part.steps[-2]["logsnr"])
        assert part.name_of(0) == "T-shirt/top"
        np.testing.assert_allclose(part.steps[0]["opinion"].sum(axis=1), 1, rtol=1e-5)
    if task == "inpaint":  # back and forth
        levels = [step["logsnr"] for step in path.parts[""].steps]
        assert levels[1] == levels[3]
        assert levels[2] < levels[1]


def test_a_mask_is_read_from_a_brush() -> None:
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[16:32, 0:32] = (255, 0, 0, 200)
    mask = drawn_mask({"background": None, "layers": [layer]}, (8, 8))
    expected = np.zeros((8, 8), np.uint8)
    expected[2:4, 0:4] = 255
    assert (mask == expected).all()
    with pytest.raises(ConfigError, match="mask"):
        drawn_mask({"layers": [np.zeros((8, 8, 4), np.uint8)]}, (8, 8))
    with pytest.raises(ConfigError, match="mask"):
        drawn_mask(None, (8, 8))
    assert canvas(np.zeros((32, 16, 1), np.uint8)).shape == (512, 256, 3)


def test_a_map_is_read_from_its_colours(studio: Studio) -> None:
    values = [0, 7, 255]
    picture = {"kind": "map", "values": values, "size": (4, 4)}
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in map_colours(values)]
    drawing = np.zeros((16, 16, 3), np.uint8)
    drawing[:8], drawing[8:, :8], drawing[8:, 8:] = colours[0], colours[1], colours[2]
    drawing[8:, :8] -= 3  # the browser's colours are not exact
    file = drawn_map(studio, {"composite": drawing}, picture)
    read = np.asarray(Image.open(file))
    assert (read[:2] == 0).all()
    assert (read[2:, :2] == 7).all()
    assert (read[2:, 2:] == 255).all()
    assert len(set(map_colours(range(40)))) == 40
    with pytest.raises(ConfigError, match="condition"):
        drawn_map(studio, {"composite": drawing}, None)


def test_a_data_set_is_paged_by_class(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", each=30)
    (tmp_path / "photos" / "left" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    page = look(str(tmp_path / "photos"))
    assert page["count"] == 30 * len(page["classes"]) + 1
    assert len(page["images"]) + len(page["broken"]) == 48
    first = next(iter(page["classes"]))
    some = look(str(tmp_path / "photos"), first)
    assert all(name.endswith(f"({first})") for name in some["names"])
    assert not some["findings"]
    last = look(str(tmp_path / "photos"), None, 10_000)
    assert last["first"] == (page["count"] - 1) // 48 * 48
    assert any(severity == "problem" for severity, _, _ in page["findings"])
    assert any("bad.png" in name for part in (page, some) for name, _ in part["broken"])
    with pytest.raises((FileNotFoundError, ValueError)):
        look(str(tmp_path / "nothing"))


def test_uploads_are_kept_by_content(studio: Studio) -> None:
    one, same, other = (studio.keep(content, ".PNG") for content in (b"a", b"a", b"b"))
    assert one == same != other
    assert one.suffix == ".png"
    assert one.read_bytes() == b"a"


def wait(trainings: Trainings, folder: Path, states: tuple[str, ...], seconds: float = 400) -> str:
    end = time.monotonic() + seconds
    while (state := trainings.view(folder).state) not in states and time.monotonic() < end:
        time.sleep(0.1)
    return state


def progressed(trainings: Trainings, folder: Path, seen: tuple[int, int] | None, seconds: float = 400) -> RunView:
    """Waits until a run is further than `seen`, or has ended."""
    end = time.monotonic() + seconds
    while (view := trainings.view(folder)).progress == seen and view.state == "running" and time.monotonic() < end:
        time.sleep(0.1)
    return view


def test_trainings_start_stop_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the command line: the page stops one, which saves, and resumes it."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", each=4)
    trainings = Trainings(offline=True)
    try:
        with pytest.raises(ConfigError, match="data"):
            trainings.start("", "runs/a")
        tiny = ["--size", "8", "--width", "8", "--batch", "4", "--device", "cpu", "--set", "train.log_every=4"]
        tiny += ["--set", "train.preview_every=4000000", "--workers", "0"]
        folder = trainings.start("photos", "runs/a", "tiny", [*tiny, "--images", "4000000"])
        with pytest.raises(ConfigError, match=r"runs/a (is running|holds a run)"):
            trainings.start("photos", "runs/a", "tiny", tiny)
        view = progressed(trainings, folder, None)
        assert view.state == "running", view.output
        assert view.speed
        assert view.left
        assert [panel.title for panel in view.panels][:2] == ["mean squared error", "mean squared error by noise level"]
        assert "images/s" in view.line
        trainings.stop(folder)
        assert wait(trainings, folder, ("stopped", "failed")) == "stopped", trainings.view(folder).output
        seen = trainings.view(folder).progress
        with pytest.raises(ConfigError, match="not running here"):
            trainings.stop(folder)
        assert trainings.known() == ["runs/a"]
        trainings.resume(folder)
        later = progressed(trainings, folder, seen).progress
        assert seen is not None
        assert later is not None
        assert later[0] > seen[0]
    finally:
        trainings.close()
    assert trainings.view(folder).state == "stopped"  # closing the page saves the runs that it started
    failed = trainings.start("nothing/here", "runs/b")
    assert wait(trainings, failed, ("failed",)) == "failed"
    assert "nothing/here" in trainings.view(failed).output


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_pictures_of_any_number_of_channels_become_files(shape: tuple[int, ...]) -> None:
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(image))))
    assert np.array_equal(read, image.squeeze())
