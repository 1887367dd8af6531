"""`evaluate` from Python: everything that can stand on either side, own metrics, reports, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import write_classifier, write_model
from support.evaluation_sets import Toy, images, save_folder, save_npz
from undiffuse.config import SamplerConfig
from undiffuse.evaluation import (
    METRICS,
    Report,
    Sides,
    compare,
    compute_metrics,
    evaluate,
    higher_is_better,
    inputs,
    make_reference,
    open_images,
    register_metric,
)
from undiffuse.evaluation.images import StoredImages
from undiffuse.evaluation.inputs import is_model, pipeline_of
from undiffuse.metrics import Estimate, MetricError
from undiffuse.metrics.extractors import build_extractor, default_extractors, register_extractor, registry
from undiffuse.models import load_diffusion
from undiffuse.pipelines import Pipeline
from undiffuse.util.progress import NoProgress

LABELS = np.arange(40) % 3
NAMES = ["x", "y", "z"]
SAMPLES, REAL = images(40, 1), images(50, 2)
QUIET: dict[str, Any] = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all tests: kernels are compiled into it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def values(report: Report) -> dict[str, float]:
    return {estimate.name: estimate.value for estimate in report.estimates}


class Items(torch.utils.data.Dataset[Any]):
    """A torch dataset of the samples, its items made by a function of image and label."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, i: int) -> Any:
        return self.item(SAMPLES[i], int(LABELS[i]))


def test_every_kind_of_set_gives_the_same_numbers(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", SAMPLES, arr_1=LABELS, label_names=np.array(NAMES))
    save_npz(tmp_path / "b.npz", REAL)
    usual = evaluate(tmp_path / "a.npz", str(tmp_path / "b.npz"), Toy(), **QUIET)
    assert {"FD-toy", "sFD-toy", "IS-toy", "precision", "recall", "KD-toy", "accuracy (toy)"} <= set(values(usual))
    dataset = Items(lambda image, label: (Image.fromarray(image), label))
    folder = save_folder(tmp_path / "f", SAMPLES, labels=[NAMES[k] for k in LABELS])
    make_reference(REAL, tmp_path / "r.safetensors", Toy(), **{"device": "cpu"})
    sides: list[tuple[Any, Any, dict[str, Any]]] = [
        (SAMPLES, REAL, {"labels": LABELS, "label_names": NAMES}),
        (torch.from_numpy(SAMPLES), torch.from_numpy(REAL), {"labels": torch.from_numpy(LABELS)}),
        (dataset, REAL, {"label_names": NAMES}),
        (Items(lambda image, label: {"image": image, "label": label}), REAL, {}),
        (Items(lambda image, label: (torch.from_numpy(image).permute(2, 0, 1), torch.tensor(label))), REAL, {}),
        (open_images(tmp_path / "a.npz"), open_images(tmp_path / "b.npz"), {}),
        (SAMPLES, tmp_path / "r.safetensors", {"labels": LABELS}),
    ]
    for samples, reference, more in sides:
        assert values(evaluate(samples, reference, Toy(), **QUIET, **more)) == values(usual), samples
    by_folder = evaluate(folder, REAL, Toy(), metrics="fd", **QUIET)  # in another order
    assert by_folder.get("FD-toy").value == pytest.approx(values(usual)["FD-toy"])  # type: ignore[union-attr]


def test_splits_and_formats_of_training_data_are_evaluated(tmp_path: Path) -> None:
    """What `train` opens can stand on either side; everything else is a model."""
    home = tmp_path / "photos"
    for split, pictures in (("train", SAMPLES), ("test", REAL)):
        for name in "ab":
            save_folder(home / split / name, pictures[ord(name) - 97 :: 2])
    settings: dict[str, Any] = {"extractor": Toy(), "metrics": ["fd"], **QUIET}
    report = evaluate(f"{home}:train", f"{home}:test", **settings)
    value = report.get("FD-toy")
    assert value is not None and (value.n, value.n_reference) == (40, 50)
    archive = shutil.make_archive(str(tmp_path / "shards"), "tar", home / "test")
    assert evaluate(f"{home}:train", archive, **settings).get("FD-toy") is not None
    with pytest.raises(ValueError, match="no part 'tset': expected one of test, train"):
        evaluate(home, f"{home}:tset", **settings)
    weights = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(2)}, weights)
    for name in (weights, write_model(tmp_path / "model.safetensors"), f"{tmp_path / 'absent'}:test", "hf:x/y"):
        assert is_model(name), name
    for name in (home, f"{home}:test", archive, "fashion-mnist:test", "s3://bucket/shard-{0..3}.tar"):
        assert not is_model(name), name


def test_counts_are_taken_of_every_kind_of_set(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", SAMPLES)
    few = values(evaluate(tmp_path / "a.npz", REAL, Toy(), "fd", count=20, reference_count=25, **QUIET))
    plain = Items(lambda image, label: image)
    assert values(evaluate(SAMPLES, REAL, Toy(), "fd", count=20, reference_count=25, **QUIET)) == few
    assert values(evaluate(plain, REAL, Toy(), "fd", count=20, reference_count=25, **QUIET)) == few
    assert values(evaluate(SAMPLES[:20], REAL[::2], Toy(), "fd", **QUIET)) == few
    with pytest.raises(ValueError, match="^count: there are 40 images, fewer than 41"):
        evaluate(SAMPLES, REAL, Toy(), count=41, **QUIET)


def test_a_model_is_evaluated_by_name_loaded_and_as_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.safetensors")
    write_classifier(tmp_path / "judge.safetensors")
    real = images(50, 2, channels=1)
    config = SamplerConfig(solver="ddim", steps="3")
    judge = str(tmp_path / "judge.safetensors")
    given: dict[str, Any] = {"extractor": judge, "metrics": "fd", "count": 12, "cache": False, **QUIET}
    by_name = evaluate(str(path), real, config=config, **given)
    assert (by_name.samples["kind"], by_name.samples["n"], by_name.samples["solver"]) == ("made", 12, "ddim")
    assert by_name.name == "model, ddim 3, seed 0, 12"
    loaded = load_diffusion(path)
    before = loaded.digest
    report = evaluate(loaded, real, config=config, **given)
    assert (values(report), report.name) == (values(by_name), "a model, ddim 3, seed 0, 12")
    assert report.samples["model"] == before
    assert loaded.digest == before
    assert values(evaluate(pipeline_of(path, config, "cpu"), real, **given)) == values(by_name)
    other = evaluate(path, real, config=config, seed=1, classes=["1"], **given)
    assert values(other) != values(by_name)
    assert other.samples["class_counts"] == [0, 12, 0]


class Counted(NoProgress):
    def __init__(self) -> None:
        super().__init__()
        self.amounts: list[float] = []

    def advance(self, amount: float) -> None:
        self.amounts.append(amount)


def test_progress_moves_while_a_model_makes_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples here are one shard; nothing would move until its end if only finished shards counted."""
    bars: list[Counted] = []

    def bar(*_: object) -> Counted:
        bars.append(Counted())
        return bars[-1]

    monkeypatch.setattr(inputs, "Progress", bar)
    pipeline = Pipeline.from_pretrained(write_model(tmp_path / "model.safetensors"), steps=4, solver="ddim")
    judge = str(write_classifier(tmp_path / "judge.safetensors"))
    real = images(8, 3, channels=1)
    evaluate(pipeline, real, judge, metrics="fd", count=6, batch=3, device="cpu", cache=False)
    moved = next(bar.amounts for bar in bars if len(bar.amounts) > 1)
    assert sum(moved) == pytest.approx(6) and max(moved) < 2 and len(moved) >= 8


def test_a_report_is_saved_shown_and_never_overwritten(tmp_path: Path) -> None:
    report = evaluate(SAMPLES, REAL, Toy(), "fd", name="mine", folder=tmp_path / "e", **QUIET)
    assert values(Report.load(tmp_path / "e" / "mine.json")) == values(report)
    for shown in (repr(report), report._repr_html_()):
        assert "mine" in shown
        assert "FD-toy" in shown
        assert f"{report.estimates[0].value:.2f}"[:4] in shown
    assert report._repr_html_().count("<table>") == 1
    seen = Toy()
    with pytest.raises(FileExistsError, match="exists already"):
        evaluate(SAMPLES, REAL, seen, "fd", name="mine", folder=tmp_path / "e", **QUIET)
    assert seen.calls == 0  # refused before the work
    evaluate(SAMPLES, REAL, Toy(), "fd", out=tmp_path / "e" / "mine.json", overwrite=True, **QUIET)


def test_the_two_sample_test_is_shown_with_its_interval_and_p() -> None:
    for real, p in ((REAL, r"p = 0\.\d+|p = 1"), (255 - REAL // 4, "p < 0.0001")):
        report = evaluate(SAMPLES, real, Toy(), "c2st", **QUIET)
        (found,) = report.estimates
        low, high = (f"{100 * found.extra[name]:.1f}" for name in ("low", "high"))
        for shown in (str(report), report._repr_html_()):
            assert f"95 % interval {low} to {high} %; " in shown
            assert re.search(p, shown.replace("&lt;", "<"))


def test_html_shows_names_as_text() -> None:
    report = evaluate(SAMPLES, REAL, Toy(), "fd", name="<script>", **QUIET)
    assert "<script>" not in report._repr_html_()


@pytest.mark.parametrize(
    ("samples", "more", "message"),
    [
        (SAMPLES.astype(np.float32) / 255, {}, "expected uint8 images .* got float32"),
        (SAMPLES.transpose(0, 3, 1, 2), {}, r"expected uint8 images .* got uint8 \[40, 3, 8, 8\]"),
        (SAMPLES, {"labels": LABELS[:-1]}, "^labels: expected 40 numbers"),
        (SAMPLES, {"labels": LABELS, "label_names": NAMES[:2]}, "^labels: got class 2"),
        (SAMPLES, {"metrics": ["fid2"]}, "there is no metric fid2"),
        (SAMPLES, {"batch": 0}, "^batch: got 0"),
        (Items(lambda image, label: torch.from_numpy(image).permute(2, 0, 1) / 255), {}, "item 0 is Tensor float32"),
        (iter([1]), {}, "has no length: give a map-style dataset"),
    ],
)
def test_what_is_refused(samples: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(samples, REAL, Toy(), **QUIET, **more)


def test_items_of_another_size_are_named() -> None:
    items = Items(lambda image, label: image)
    items.item = lambda image, label: image[:7] if image is not SAMPLES[0] and (image == SAMPLES[3]).all() else image
    with pytest.raises(MetricError, match=r"image 3 is \[7, 8, 3\], image 0 is \[8, 8, 3\]"):
        evaluate(items, REAL, Toy(), **QUIET)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


@pytest.mark.parametrize("form", ["folder", "run"])
def test_broken_images_are_left_out_on_either_side(tmp_path: Path, form: str) -> None:
    """As in training: a file that was cut short has a good header, and fails only when it is decoded."""
    big, more = images(12, 3, size=32), images(12, 4, size=32)
    for name, pictures in (("a", big), ("b", more)):
        folder = save_folder(tmp_path / name, pictures)
        if form == "run":
            (folder / "run.json").write_text('{"command": "sample"}')
            for k, file in enumerate(sorted(folder.glob("*.png"))):
                file.rename(folder / f"seed0-{k:06d}.png")
        cut(sorted((tmp_path / name).glob("*.png"))[5])
    keep = [k for k in range(12) if k != 5]
    toy = {"extractor": Toy(size=32), "metrics": ["fd", "pr"], **QUIET}
    report = evaluate(tmp_path / "a", tmp_path / "b", on_broken="skip", **toy)
    assert values(report) == values(evaluate(big[keep], more[keep], **toy))
    assert {f"{side}: 1 unreadable image was left out" for side in ("samples", "reference")} <= set(report.warnings)
    with pytest.raises(ValueError, match="5"):
        evaluate(tmp_path / "a", more, **toy)


def test_a_broken_reference_is_found_before_samples_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "b", images(12, 4, size=32))
    cut(sorted(folder.glob("*.png"))[5])
    samples, toy = images(12, 3, size=32), Toy(size=32)
    with pytest.raises(ValueError, match="0005"):
        evaluate(samples, folder, toy, **QUIET)
    assert toy.calls == 0


def test_a_prepared_data_set_that_skips_leaves_broken_images_out(tmp_path: Path) -> None:
    """The reference of a training run: its data set replaces broken images, its evaluation leaves them out."""
    from undiffuse.data import DataConfig, ImageDataset, open_data

    folder = save_folder(tmp_path / "b", images(12, 4, size=32))
    cut(sorted(folder.glob("*.png"))[5])
    config = DataConfig(path=str(folder), size=(32, 32), channels=3, on_broken="skip")
    found = StoredImages(ImageDataset(open_data(folder, check="none"), config))
    assert found.batch(0, len(found)).shape == (11, 32, 32, 3)
    assert "1 unreadable image was left out" in found.warnings


@pytest.fixture
def brightness() -> Any:
    """A metric of the user's own, until the end of the test."""

    def compute(sides: Sides) -> float:
        assert sides.samples.features is not None
        return float(sides.samples.features.mean())

    yield register_metric("brightness", compute, description="mean of the features", higher_is_better=True)
    del METRICS["brightness"]


def test_an_own_metric_is_used_by_name(brightness: Any, tmp_path: Path) -> None:
    reports = [evaluate(x, REAL, Toy(), ["fd", "brightness"], name=n, out=tmp_path / f"{n}.json", **QUIET)
               for n, x in (("a", SAMPLES), ("b", SAMPLES // 2))]  # fmt: skip
    estimate = reports[0].get("brightness")
    assert estimate is not None
    assert (estimate.n, estimate.n_reference) == (40, 50)
    assert estimate.value == pytest.approx(
        float((torch.from_numpy(SAMPLES).flatten(1) / 255 @ Toy().to_features).mean())
    )
    best = max(reports, key=lambda r: r.get("brightness").value)  # type: ignore[union-attr]
    (table,) = compare([tmp_path], sort="brightness")
    assert table.reports[0].name == best.name
    assert "brightness" in repr(table)
    assert "brightness" not in values(evaluate(SAMPLES, REAL, Toy(), **QUIET))  # unless it is a default metric


def test_which_way_is_better_survives_in_the_file(brightness: Any, tmp_path: Path) -> None:
    evaluate(SAMPLES, REAL, Toy(), "brightness", out=tmp_path / "r.json", **QUIET)
    kept = METRICS.pop("brightness")
    try:  # as in a process that does not know the metric
        assert higher_is_better(Report.load(tmp_path / "r.json").estimates[0])
    finally:
        METRICS["brightness"] = kept
    names = ("precision", "recall", "density", "coverage", "IS", "accuracy (fashion)", "Vendi")
    assert all(map(higher_is_better, names))
    assert not any(map(higher_is_better, ("FID", "sFID", "clean-FID", "KID", "KD-x", "CMMD", "MMD-x", "copies")))


def test_a_metric_may_return_estimates_and_names_are_not_taken_twice(brightness: Any) -> None:
    with pytest.raises(ValueError, match="^name: 'brightness' is empty, contains a comma, or"):
        register_metric("brightness", lambda sides: 0.0)
    with pytest.raises(ValueError, match="^name: 'fd'"):
        register_metric("fd", lambda sides: 0.0)
    register_metric("two", lambda sides: [Estimate(name="one", value=1.0, n=1), Estimate(name="other", value=2.0, n=1)])
    try:
        assert values(evaluate(SAMPLES, REAL, Toy(), "two", **QUIET)) == {"one": 1.0, "other": 2.0}
    finally:
        del METRICS["two"]


def test_a_metric_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the entry-point group undiffuse.metrics; the package is imported only when its metric is named."""
    (tmp_path / "others.py").write_text("def spread(sides):\n    return float(sides.samples.features.std())\n")
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[undiffuse.metrics]\nspread = others:spread\n")
    monkeypatch.syspath_prepend(tmp_path)
    evaluate(SAMPLES, REAL, Toy(), "fd", **QUIET)
    assert "others" not in sys.modules
    try:
        assert list(values(evaluate(SAMPLES, REAL, Toy(), ["fd", "spread"], **QUIET))) == ["FD-toy", "spread"]
        assert METRICS["spread"].compute is sys.modules["others"].spread
    finally:
        METRICS.pop("spread", None)
        sys.modules.pop("others", None)


def test_an_own_extractor_is_used_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register_extractor("toy", lambda device, grey: Toy())
    report = evaluate(SAMPLES, REAL, "toy", "fd", **QUIET)
    assert values(report) == values(evaluate(SAMPLES, REAL, Toy(), "fd", **QUIET))
    make_reference(REAL, tmp_path / "r.safetensors", "toy", device="cpu", progress=False)
    assert values(evaluate(SAMPLES, tmp_path / "r.safetensors", metrics="fd", **QUIET)) == values(report)
    for name in ("inception", "a/b", "a:b", ""):
        with pytest.raises(ValueError, match="choose another name"):
            register_extractor(name, lambda device, grey: Toy())
    with pytest.raises(MetricError, match="there is no extractor 'vgg'; choose some of inception.*toy"):
        build_extractor("vgg")


def test_the_default_extractor_depends_on_the_data() -> None:
    assert default_extractors(["x", "fashion-mnist:test"]) == ["fashion"]
    assert default_extractors([SAMPLES, "x"]) == ["inception"]


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    save_npz(tmp_path / "samples.npz", images(20, 1, size=32, channels=1))
    save_npz(tmp_path / "real.npz", images(20, 2, size=32, channels=1))
    try:
        for block in blocks:
            exec(compile(block, "docs/evaluation.md", "exec"), {})
    finally:
        METRICS.pop("brightness", None)
    assert "FD-fashion" in capsys.readouterr().out
    assert Report.load(tmp_path / "report.json").get("FD-fashion") is not None


def test_compute_metrics_is_what_evaluate_reports(tmp_path: Path) -> None:
    written = make_reference(REAL, tmp_path / "r.safetensors", Toy(), device="cpu", progress=False)
    ours = make_reference(SAMPLES, tmp_path / "s.safetensors", Toy(), device="cpu", progress=False)
    found = compute_metrics(ours[0], written[0], ["fd", "kid"])
    assert {e.name: e.value for e in found.estimates} == values(evaluate(SAMPLES, REAL, Toy(), ["fd", "kid"], **QUIET))
