"""The metrics against OpenAI's evaluator, run with random weights: features, statistics, scores; and what they would
be without each quirk of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from support.evaluator_files import (
    FEATURES,
    FULL_RANK,
    HALF_PRECISION,
    SCORE,
    SINGULAR,
    STATISTICS,
    EvaluatorFiles,
    difference,
    folder,
)
from undiffuse.evaluation import Features, MetricOptions, Summary, compute_metrics
from undiffuse.metrics import InceptionScore, Moments, Statistics, frechet_distance, manifold_metrics
from undiffuse.metrics.extractors import INCEPTION_PROTOCOLS, InceptionExtractor, inception, resize
from undiffuse.metrics.extractors.inception import InceptionV3

pytestmark = pytest.mark.skipif(not folder().is_dir(), reason="this golden directory has no evaluation/")

FILES = EvaluatorFiles() if folder().is_dir() else None
SETS = FILES.names("images") if FILES else []
FULL = [name for name in SETS if FILES and f"{name}.mu" in FILES.arrays]
FRECHET = sorted({name.rpartition(".")[0] for name in FILES.arrays if name.startswith("frechet_")} if FILES else [])


@pytest.fixture(scope="module")
def files() -> EvaluatorFiles:
    assert FILES is not None
    return FILES


@pytest.fixture(scope="module")
def extractor(files: EvaluatorFiles) -> InceptionExtractor:
    return InceptionExtractor(files.weights)


@pytest.fixture(scope="module")
def passes(files: EvaluatorFiles, extractor: InceptionExtractor) -> dict[str, dict[str, Any]]:
    """Every set of images through the network once."""
    results = {}
    for name in SETS:
        parts = [extractor(batch) for batch in torch.from_numpy(files.arrays[f"{name}.images"]).split(16)]
        results[name] = {
            output: torch.cat([getattr(part, output) for part in parts]) for output in ("features", "spatial", "logits")
        }
    return results


def statistics(features: torch.Tensor) -> Statistics:
    return Moments().update(features).statistics()


def test_golden_evaluator_layout(files: EvaluatorFiles) -> None:
    own = {n: list(t.shape) for n, t in InceptionV3().state_dict().items() if not n.endswith("num_batches_tracked")}
    assert own == files.layout


@pytest.mark.parametrize("name", SETS)
def test_golden_evaluator_features(name: str, files: EvaluatorFiles, extractor: InceptionExtractor) -> None:
    found = errors(extractor, files, name, len(files.arrays[f"{name}.pool"]))
    assert max(found.values()) < FEATURES, found


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_golden_evaluator_statistics(name: str, files: EvaluatorFiles, passes: dict[str, dict[str, Any]]) -> None:
    for output, suffix in (("features", ""), ("spatial", "_s")):
        found = statistics(passes[name][output])
        assert difference(found.mean, files.arrays[f"{name}.mu{suffix}"]) < STATISTICS
        assert difference(found.covariance.diagonal(), files.arrays[f"{name}.sigma{suffix}_diag"]) < STATISTICS


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "output"), [("fid", "features"), ("sfid", "spatial")])
def test_golden_evaluator_distances(
    metric: str, output: str, files: EvaluatorFiles, passes: dict[str, dict[str, Any]]
) -> None:
    distance = frechet_distance(statistics(passes["samp"][output]), statistics(passes["ref"][output]))
    assert distance == pytest.approx(files.metrics[metric], rel=SINGULAR)


@pytest.mark.parametrize("name", FRECHET)
def test_golden_evaluator_frechet_at_full_rank(name: str, files: EvaluatorFiles) -> None:
    x, y = (statistics(torch.from_numpy(files.arrays[f"{name}.{side}"]).float()) for side in "xy")
    for distance in (frechet_distance(x, y), frechet_distance(y, x)):
        assert distance == pytest.approx(files.metrics[name], rel=FULL_RANK)


@pytest.mark.slow
def test_golden_evaluator_inception_score(files: EvaluatorFiles, passes: dict[str, dict[str, Any]]) -> None:
    for chunk, expected in files.with_chunk("inception_score", 5000).values():
        assert InceptionScore(chunk).update(passes["samp"]["logits"]).compute().value == pytest.approx(
            expected, rel=SCORE
        )


def test_golden_evaluator_synthetic_inception_score(files: EvaluatorFiles, extractor: InceptionExtractor) -> None:
    logits = extractor.net.logits(files.synthetic)
    scores = files.with_chunk("inception_score_synthetic", 5000)
    assert len(scores) > 1
    for chunk, expected in scores.values():
        assert InceptionScore(chunk).update(logits).compute().value == pytest.approx(expected, rel=SCORE)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32", "float16-emulated"])
def test_golden_evaluator_precision_and_recall(
    precision: Any, files: EvaluatorFiles, passes: dict[str, dict[str, Any]]
) -> None:
    samples, reference = passes["samp"]["features"], passes["ref"]["features"]
    found = manifold_metrics(samples, reference, precision=precision, tile=64)
    half = precision == "float16-emulated"
    for name, count in (("precision", len(samples)), ("recall", len(reference))):
        # One image may lie on the edge of a ball within the rounding of its features.
        tolerance = HALF_PRECISION if half else 1.01 / count
        expected = files.metrics[f"{name}_fp{16 if half else 64}"]
        assert found[name].value == pytest.approx(expected, abs=tolerance), name


@pytest.mark.slow
def test_golden_evaluator_from_end_to_end(
    files: EvaluatorFiles, extractor: InceptionExtractor, passes: dict[str, dict[str, Any]]
) -> None:
    """The whole evaluation of what one pass keeps: statistics, class scores from kept features, all metrics."""
    sides = [
        Summary.of(
            Features(
                features=passes[name]["features"],
                spatial=passes[name]["spatial"],
                card=extractor.card,
                spatial_card=extractor.spatial_card,
                scores=extractor.scores,
            )
        )
        for name in ("samp", "ref")
    ]
    (chunk, score), *_ = files.with_chunk("inception_score", 5000).values()
    found = compute_metrics(*sides, ["fd", "sfd", "is", "pr"], MetricOptions(distances="float64", chunk=chunk))
    fd, spatial, inception_score, precision, recall = (estimate.value for estimate in found.estimates)
    assert fd == pytest.approx(files.metrics["fid"], rel=SINGULAR)
    assert spatial == pytest.approx(files.metrics["sfid"], rel=SINGULAR)
    assert inception_score == pytest.approx(score, rel=SCORE)
    counts = [len(side.features) for side in sides if side.features is not None]
    assert precision == pytest.approx(files.metrics["precision_fp64"], abs=1.01 / counts[0])
    assert recall == pytest.approx(files.metrics["recall_fp64"], abs=1.01 / counts[1])


# The quirks, one removed at a time: the same comparison as above must then fail.


def padded(extractor: InceptionExtractor, block: str) -> None:
    """Average pools of one block that count the padding."""
    mixed = extractor.net.get_submodule(block)
    mixed.branches = [["padded" if step == "average" else step for step in steps] for steps in mixed.branches]  # type: ignore[assignment]


def other_pool(extractor: InceptionExtractor) -> None:
    branches = extractor.net.Mixed_7c.branches
    extractor.net.Mixed_7c.branches = [["average" if s == "maximum" else s for s in steps] for steps in branches]


def epsilon(extractor: InceptionExtractor) -> None:
    for module in extractor.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    extractor.net.fold()


def no_relu(extractor: InceptionExtractor) -> None:
    """The spatial features before the ReLU."""
    branch = extractor.net.Mixed_6d.branch1x1
    branch.forward = lambda x: torch.nn.functional.conv2d(x, branch.folded_weight, branch.folded_bias)


def later_block(extractor: InceptionExtractor) -> None:
    """The spatial features of Mixed_6e, as if it were the one before."""
    net = extractor.net
    net.Mixed_6d = torch.nn.Sequential(net.Mixed_6d, net.Mixed_6e)  # type: ignore[assignment]
    net.Mixed_6e = torch.nn.Identity()  # type: ignore[assignment]


def preparation(**changes: Any) -> Callable[[InceptionExtractor], None]:
    def change(extractor: InceptionExtractor) -> None:
        extractor.protocol = replace(extractor.protocol, **changes)

    return change


QUIRKS: dict[str, tuple[str, Callable[[InceptionExtractor], None]]] = {
    **{
        f"padding counts in {block}": ("pool", lambda e, b=block: padded(e, b))
        for block in ("Mixed_5b", "Mixed_6c", "Mixed_7b")
    },  # type: ignore[misc]
    "mean instead of maximum in Mixed_7c": ("pool", other_pool),
    "batch norm with 1e-5": ("pool", epsilon),
    "centred on 127.5": ("pool", preparation(centre=127.5)),
    "scaled by 127.5": ("pool", preparation(scale=127.5)),
    "half-pixel resize": ("pool", preparation(resize=resize.half_pixel_bilinear)),
    "bicubic resize": ("pool", preparation(resize=resize.antialiased_bicubic)),
    "spatial features before the ReLU": ("spatial", no_relu),
    "spatial features of Mixed_6e": ("spatial", later_block),
}


def errors(extractor: InceptionExtractor, files: EvaluatorFiles, name: str, count: int = 2) -> dict[str, float]:
    found = extractor(files.arrays[f"{name}.images"][:count])
    assert found.spatial is not None
    pairs = (("pool", found.features), ("spatial", found.spatial))
    expected = {key: files.arrays[f"{name}.{key}"][:count] for key, _ in pairs}
    return {key: difference(value[: len(expected[key])], expected[key]) for key, value in pairs}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_golden_evaluator_notices_a_missing_quirk(
    quirk: str, files: EvaluatorFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inception.POOLS, "padded", lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1))
    key, change = QUIRKS[quirk]
    extractor = InceptionExtractor(files.weights)
    change(extractor)
    assert (
        errors(extractor, files, min(SETS, key=lambda name: files.arrays[f"{name}.images"].shape[1]))[key]
        > 10 * FEATURES
    )


def test_golden_evaluator_protocols_differ(files: EvaluatorFiles) -> None:
    """Only the protocol `adm` gives OpenAI's features."""
    found = {}
    for name, protocol in INCEPTION_PROTOCOLS.items():
        extractor = InceptionExtractor(files.weights, protocol)
        found[name] = max(errors(extractor, files, SETS[0], 1).values())
    assert [name for name, error in found.items() if error < FEATURES] == ["adm"]


def test_golden_evaluator_without_folding(files: EvaluatorFiles) -> None:
    """The batch norms as they are, and weights with the ports' counters, give the same features."""
    counters = {n: t for n, t in InceptionV3().state_dict().items() if n.endswith("num_batches_tracked")}
    assert counters
    extractor = InceptionExtractor({**files.weights, **counters}, fold=False)
    assert max(errors(extractor, files, SETS[0]).values()) < FEATURES


def test_golden_evaluator_notices_the_wrong_channels(files: EvaluatorFiles, extractor: InceptionExtractor) -> None:
    """The first seven columns instead of channels, the mistake of a port: as many numbers, another metric."""
    seen: list[torch.Tensor] = []
    hook = extractor.net.Mixed_6d.register_forward_hook(lambda module, args, output: seen.append(output))
    extractor(files.arrays[f"{SETS[0]}.images"][:2])
    hook.remove()
    wrong = seen[0][:, : seen[0].shape[3], :, :7].permute(0, 2, 3, 1).flatten(1)
    expected = files.arrays[f"{SETS[0]}.spatial"][:2]
    assert wrong.shape == expected.shape
    assert difference(wrong, expected) > 10 * FEATURES


def test_golden_evaluator_notices_changes_of_the_score(files: EvaluatorFiles, extractor: InceptionExtractor) -> None:
    """The bias, the last eight classes and the chunks each count in the synthetic score."""
    net, features = extractor.net, files.synthetic
    expected = files.metrics["inception_score_synthetic"]
    for logits in (net.fc(features), net.logits(features)[:, :1000], net.logits(features).double() * 1.001):
        assert abs(InceptionScore().update(logits).compute().value / expected - 1) > 10 * SCORE
    chunked = InceptionScore(299).update(net.logits(features)).compute().value
    assert abs(chunked / expected - 1) > 10 * SCORE


@pytest.mark.slow
def test_golden_evaluator_notices_another_k(files: EvaluatorFiles, passes: dict[str, dict[str, Any]]) -> None:
    """More neighbours make larger balls: with another k the numbers are others."""
    samples, reference = passes["samp"]["features"], passes["ref"]["features"]
    expected = files.metrics["precision_fp64"] + files.metrics["recall_fp64"]

    def both(k: int) -> float:
        found = manifold_metrics(samples, reference, k=k, precision="float64")
        return found["precision"].value + found["recall"].value

    assert both(2) < expected < both(4)
