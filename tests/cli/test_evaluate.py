"""evaluate, reference, compare, sweep and train --evaluate-every, as a user types them, on tiny models and images."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import call, write_classifier, write_images, write_model
from support.evaluation_sets import images, save_npz
from undiffuse import checkpoints
from undiffuse.evaluation import Report, read_reference
from undiffuse.models import load_diffusion


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a classifier (which is the extractor) and two sets of grey 8x8 images; an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "model.safetensors")
    write_classifier(tmp_path / "judge.safetensors")
    save_npz(tmp_path / "a.npz", images(40, 1, channels=1), arr_1=np.arange(40) % 3)
    save_npz(tmp_path / "b.npz", images(50, 2, channels=1), arr_1=np.arange(50) % 3)
    return tmp_path


JUDGE = ("--extractor", "judge.safetensors")
MODEL = ("model.safetensors", "b.npz", *JUDGE, "--steps", "3", "--count", "12")


def run(*words: str, fails: int = 0) -> str:
    """What a command says on stdout, or where it `fails` with this status, its error."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        status = call(*words)
    assert status == fails, error.getvalue() + out.getvalue()
    return error.getvalue() if fails else out.getvalue()


def evaluate(*words: str) -> tuple[Report, str]:
    out = run("evaluate", *words, "--out", "result.json", "--overwrite")
    return Report.load("result.json"), out


def test_two_sets_are_compared_and_saved_with_their_cards(place: Path) -> None:
    report, out = evaluate("a.npz", "b.npz", *JUDGE)
    names = [e.name for e in report.estimates]
    assert names[:4] == ["FD-judge", "IS-judge", "precision", "recall"]
    for word in ("FD-judge", "a.npz", "b.npz", "40 images 8x8x1", "50 images 8x8x1", "result.json written"):
        assert word in out
    assert report.samples["n"] == 40
    estimate = report.get("FD-judge")
    assert estimate is not None
    assert estimate.card is not None
    assert estimate.card.weights_sha256
    assert all(len(line) <= 100 for line in out.splitlines())


def test_the_features_are_cached_and_the_numbers_stay(place: Path) -> None:
    first, _ = evaluate("a.npz", "b.npz", *JUDGE)
    entries = sorted((place / "cache").rglob("*.safetensors"))
    assert entries
    times = [entry.read_bytes() for entry in entries]
    second, _ = evaluate("a.npz", "b.npz", *JUDGE)
    assert [e.value for e in first.estimates] == [e.value for e in second.estimates]
    assert [entry.read_bytes() for entry in entries] == times
    third, _ = evaluate("a.npz", "b.npz", *JUDGE, "--no-cache")
    assert [e.value for e in third.estimates] == [e.value for e in first.estimates]


def test_a_model_is_evaluated_like_the_samples_it_writes(place: Path) -> None:
    report, _ = evaluate(*MODEL)
    run("sample", "--model", "model.safetensors", "--steps", "3", "--count", "12", "--format", "npz", "--out", "s")
    stored, _ = evaluate("s", "b.npz", *JUDGE)
    for ours, theirs in zip(report.estimates, stored.estimates, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-5), ours.name
    assert report.samples["kind"] == "made"
    assert report.samples["solver"] == "ddpm"
    assert report.samples["seed"] == 0
    assert stored.samples["record"]["solver"] == "ddpm"
    assert report.samples["model"] == load_diffusion("model.safetensors").digest


def test_a_guided_model_and_its_seed_are_told(place: Path) -> None:
    report, out = evaluate(*MODEL, "--classifier", "judge.safetensors", "--guidance", "3", "--seed", "5")
    assert report.samples["guidance"] == 3
    assert report.samples["seed"] == 5
    assert "guidance 3" in out
    plain, _ = evaluate(*MODEL)
    assert report.estimates[0].value != plain.estimates[0].value


def test_a_reference_file_gives_the_same_numbers(place: Path) -> None:
    out = run("reference", "b.npz", *JUDGE)
    assert "b.reference.safetensors" in out
    direct, _ = evaluate("a.npz", "b.npz", *JUDGE)
    through, _ = evaluate("a.npz", "b.reference.safetensors", *JUDGE)
    assert [e.value for e in direct.estimates] == [e.value for e in through.estimates]
    assert direct.comparable == through.comparable
    assert read_reference("b.reference.safetensors")[0].about["n"] == 50
    assert "exists already" in run("reference", "b.npz", *JUDGE, fails=2)


def test_another_extractor_than_the_references_is_refused(place: Path) -> None:
    run("reference", "b.npz", *JUDGE, "--out", "r.safetensors")
    write_classifier(place / "second.safetensors")
    model = place / "second.safetensors"
    tensors, manifest = checkpoints.read(model)
    checkpoints.write(model, {name: 1.1 * tensor for name, tensor in tensors.items()}, manifest)
    message = run("evaluate", "a.npz", "r.safetensors", "--extractor", "second.safetensors", fails=2)
    assert "none of classifier second" in message


def test_default_file_names_do_not_collide_and_are_never_overwritten(place: Path) -> None:
    run("evaluate", "a.npz", "b.npz", *JUDGE)
    assert len(list((place / "evaluations").glob("*.json"))) == 1
    assert "exists already" in run("evaluate", "a.npz", "b.npz", *JUDGE, fails=2)
    run("evaluate", "a.npz", "b.npz", *JUDGE, "--count", "20")
    assert len(list((place / "evaluations").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.npz", "nothing", *JUDGE), "no folder or file nothing"),
        (("nothing", "b.npz", *JUDGE), "nothing"),
        (("a.npz", "b.npz", "--extractor", "vgg"), "no extractor 'vgg'; choose some of inception"),
        (("a.npz", "b.npz", *JUDGE, "--metrics", "fid"), "there is no metric fid"),
        (("a.npz", "b.npz", *JUDGE, "--metrics", "sfd"), "no spatial features"),
        (("a.npz", "b.npz", *JUDGE, "--count", "41"), "has 40 images, fewer than the 41 to take"),
        (("a.npz", "b.npz", *JUDGE, "--weights", "x.pth"), "--weights: expected exactly one of the extractors"),
        (("a.npz", "b.npz", "--extractor", "efflite"), "efflite|grey"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(place: Path, words: tuple[str, ...], message: str) -> None:
    assert re.search(message, run("evaluate", *words, fails=2))


def test_inception_without_a_network_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    message = run("evaluate", "a.npz", "b.npz", fails=2)
    assert message.count("--weights: ") == 1
    assert "efflite" in message
    (place / "wrong.pth").write_bytes(b"no weights")
    assert "is not the published file" in run("evaluate", "a.npz", "b.npz", "--weights", "wrong.pth", fails=2)


def test_bad_pixels_give_no_number(place: Path) -> None:
    np.savez("f.npz", arr_0=np.random.default_rng(0).normal(size=(20, 8, 8, 1)))
    assert "float64" in run("evaluate", "f.npz", "b.npz", *JUDGE, fails=2)
    save_npz(place / "rgb.npz", images(20))
    assert (place / "rgb.npz").exists()
    np.savez("mu.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "--reference-protocol: mu.npz" in run("evaluate", "a.npz", "mu.npz", *JUDGE, fails=2)
    assert not (place / "result.json").exists()


def test_compare_puts_in_one_table_what_compares(place: Path) -> None:
    for name, words in (("one", ("a.npz", "b.npz")), ("two", ("b.npz", "b.npz")), ("far", ("a.npz", "a.npz"))):
        run("evaluate", *words, *JUDGE, "--name", name, "--out", f"e/{name}.json")
    out = run("compare", "e")
    assert "2 tables" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    out = run("compare", "e/one.json", "e/two.json", "--metrics", "fd,precision", "--sort", "fd")
    lines = [line for line in out.splitlines() if line.startswith(("one", "two"))]
    assert [line.split()[0] for line in lines] == ["two", "one"]
    assert "FD-judge" in out
    assert "recall" not in out.splitlines()[1]
    table = run("compare", "e/one.json", "--format", "markdown")
    assert "| one | 40 |" in table
    assert "no run has a metric 'xyz'" in run("compare", "e/one.json", "--metrics", "xyz", fails=2)
    (place / "e" / "junk.json").write_text("{}")
    assert "junk.json is no evaluation" in run("compare", "e", fails=2)


def test_sweep_makes_table_plot_and_reports(place: Path) -> None:
    words = ("sweep", "b.npz", "--model", "model.safetensors", "--classifier", "judge.safetensors", *JUDGE, "--metrics",
             "fd,pr", "--steps", "3", "--count", "12", "--scales", "0,2", "--out", "sw")  # fmt: skip
    out = run(*words)
    table = (place / "sw" / "table.md").read_text()
    assert "| metric | guidance 0 | guidance 2 |" in table
    assert "| metric | guidance 0 | guidance 2 |" in out
    assert (place / "sw" / "plot.png").is_file()
    assert Report.load(place / "sw" / "guidance-2.json").samples["guidance"] == 2
    assert "another sweep" in run(*words, "--seed", "1", fails=2)


def test_training_measures_itself_and_keeps_the_best_weights(place: Path) -> None:
    write_images(place / "data", each=20)
    words = (
        "train", "data", "--out", "run", "--images", "96", "--batch", "16", "--size", "8", "--channels", "1",
        "--set", "net.model_channels=8", "--set", "net.channel_mult=1,2", "--set", "net.num_res_blocks=1",
        "--set", "net.attention_resolutions=2", "--set", "net.num_head_channels=8", "--set", "train.preview_every=none",
        "--evaluate-every", "32", "--evaluate-images", "24", "--set", "train.evaluate_steps=2", *JUDGE,
        "--device", "cpu", "--ema", "0.9",
    )  # fmt: skip
    out = run(*words)
    assert "24 samples against 60 images" in out
    records = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [record for record in records if record["kind"] == "evaluation"]
    assert [record["images"] for record in found] == [32, 64, 96]
    assert all(record["small_sample"] and record["weights"] == "0.9" for record in found)
    best = min(found, key=lambda record: record["FD-judge"])
    manifest = checkpoints.read_manifest(place / "run" / "best.safetensors")
    assert manifest["evaluation"]["metric"] == "FD-judge"
    assert manifest["evaluation"]["value"] == best["FD-judge"]
    assert manifest["progress"]["images"] == best["images"]
    model = load_diffusion(place / "run" / "best.safetensors")
    assert torch.isfinite(model.net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))).all()


def test_the_best_metric_may_rise_and_must_exist(place: Path) -> None:
    from undiffuse.metrics import MetricError
    from undiffuse.training.evaluation import Evaluator

    higher_is_better = Evaluator(extractors=(), references=(), best_by="precision")
    values: list[dict[str, Any]] = [{"FD-x": 3.0 - p, "precision": p, "precision error": 9.0} for p in (0.4, 0.6, 0.5)]
    assert [higher_is_better.is_best(v) is not None for v in values] == [True, True, False]
    assert higher_is_better.best is not None
    assert higher_is_better.best["value"] == 0.6
    falling = Evaluator(extractors=(), references=())
    assert [falling.is_best(v) is not None for v in values] == [True, True, False]
    with pytest.raises(MetricError, match="no metric 'nope'"):
        Evaluator(extractors=(), references=(), best_by="nope").is_best(values[0])


def test_inspect_tells_references_and_evaluations(place: Path) -> None:
    run("reference", "b.npz", *JUDGE, "--out", "r.safetensors")
    out = run("inspect", "r.safetensors")
    assert "50 of 8x8x1" in out
    assert "FD-judge" in out
    assert json.loads(run("inspect", "r.safetensors", "--json"))[0]["about"]["n"] == 50
    report, shown = evaluate("a.npz", "b.npz", *JUDGE)
    assert run("inspect", "result.json").strip() in shown
    assert json.loads(run("inspect", "result.json", "--json"))["name"] == report.name
