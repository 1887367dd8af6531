"""The metrics against other projects' packages on drawn weights and features (development only, see peers.py).

A tolerance is what the peer's own arithmetic explains: sums in float32, or the root of a matrix that is not symmetric.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.evaluator_files import EvaluatorFiles, folder
from support.peers import peer
from undiffuse.metrics import InceptionScore, Moments, VendiScore, frechet_distance, kid, manifold_metrics
from undiffuse.metrics.extractors import InceptionExtractor, resize

FLOAT64 = 1e-9  # relative, of arithmetic in float64
LAST_DIGIT = 2e-5  # grey levels: half a unit of float32's last place near 255, twice


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """uint8 [B, H, W, 3]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def planes(batch: torch.Tensor) -> torch.Tensor:
    return batch.permute(0, 3, 1, 2)


def features(n: int, dimension: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((dimension, dimension)) / dimension**0.5
    return torch.from_numpy(draw.standard_normal((n, dimension)) @ (mixing + shift * np.eye(dimension)) + 0.5 + shift)


X, Y = features(400, 24, 1, 0.2), features(400, 24, 2)


def statistics(x: torch.Tensor) -> Any:
    return Moments().update(x).statistics()


FRECHET = frechet_distance(statistics(X), statistics(Y))
SUMMARY = [(z.numpy().mean(axis=0), np.cov(z.numpy(), rowvar=False)) for z in (X, Y)]


# The network and the ways to its size


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    if not folder().is_dir():
        pytest.skip("this golden directory has no layout of the Inception network")
    return EvaluatorFiles().weights


@pytest.fixture(scope="module")
def weights_file(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return path


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (299, 299), (310, 420)])
def test_torch_fidelitys_resize(shape: tuple[int, int]) -> None:
    other = peer("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    x = planes(images(2, *shape)).float()
    expected = other(x, size=(299, 299), align_corners=False)
    assert torch.equal(resize.tf1_bilinear(x, 299), expected)


@pytest.mark.parametrize("shape", [(299, 299), (64, 80)])
def test_torch_fidelitys_inception(
    shape: tuple[int, int], weights: dict[str, torch.Tensor], weights_file: Path
) -> None:
    """Protocol adm. At 299 nothing is resized: what is left is the order of the network's sums."""
    net = peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights_file)
    )
    batch = images(2, *shape)
    pool, logits = net(planes(batch).contiguous())
    for fold, tolerance in ((False, 1e-6), (True, 2e-6)):
        found = InceptionExtractor(weights, "adm", fold=fold)(batch)
        assert found.logits is not None
        assert relative(found.features, pool) < tolerance
        assert relative(found.logits, logits) < 2 * tolerance
    if shape != (299, 299):
        assert relative(InceptionExtractor(weights, "torchmetrics")(batch).features, pool) > 5e-3


def test_torchmetrics_inception(weights: dict[str, torch.Tensor], weights_file: Path) -> None:
    """Without antialiasing it is the protocol adm; its default is our protocol torchmetrics."""
    fid = peer("torchmetrics.image.fid")
    batch = images(2, 64, 80)
    for antialias, protocol in ((False, "adm"), (True, "torchmetrics")):
        metric = fid.FrechetInceptionDistance(
            feature=2048, feature_extractor_weights_path=str(weights_file), antialias=antialias
        )
        expected = metric.inception(planes(batch).contiguous())
        assert relative(InceptionExtractor(weights, protocol)(batch).features, expected) < 2e-6


def test_pytorch_fids_inception(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    module = peer("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: weights)
    batch = images(2, 64, 80)
    expected = module.InceptionV3([3]).eval()(planes(batch) / 255)[0].flatten(1)
    assert relative(InceptionExtractor(weights, "pytorch-fid")(batch).features, expected) < 2e-6
    assert relative(InceptionExtractor(weights, "adm")(batch).features, expected) > 1e-3


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (299, 299), (420, 310)])
def test_clean_fids_resize(shape: tuple[int, int]) -> None:
    resizer = peer("cleanfid.resize").build_resizer("clean")
    batch = images(1, *shape)
    expected = torch.from_numpy(resizer(batch[0].numpy())).permute(2, 0, 1)
    found = resize.antialiased_bicubic(planes(batch).float(), 299)[0]
    assert float((found - expected).abs().max()) <= LAST_DIGIT


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (300, 401), (401, 300)])
def test_clean_fids_preparation_for_clip(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; but Pillow from 13 on may round tall images in another order, by two grey levels at most."""
    peer("cleanfid.fid")
    monkeypatch.setitem(sys.modules, "clip", types.ModuleType("clip"))
    prepare = peer("cleanfid.clip_features").img_preprocess_clip
    image = images(1, *shape)[0]
    expected = prepare(image.numpy()).astype(np.int64)
    found = resize.pillow_bicubic_crop(image.permute(2, 0, 1)[None].float(), 224)[0].permute(1, 2, 0)
    difference = np.abs(found.numpy().astype(np.int64) - expected)
    assert difference.max() <= (2 if shape[0] > shape[1] else 0)
    assert (difference == 0).mean() > 0.5


# Frechet distances. Means and covariances are given to the peers in float64.


def test_frechet_distances_agree() -> None:
    given = SUMMARY[0] + SUMMARY[1]
    fidelity = peer("torch_fidelity.metric_fid")
    stats = [fidelity.fid_features_to_statistics(z) for z in (X, Y)]
    theirs = {
        "torch-fidelity": fidelity.fid_statistics_to_metric(*stats, False)[fidelity.KEY_METRIC_FID],
        "pytorch-fid": peer("pytorch_fid.fid_score").calculate_frechet_distance(*given),
        "clean-fid": peer("cleanfid.fid").frechet_distance(*given),
    }
    assert theirs == {name: pytest.approx(FRECHET, rel=FLOAT64) for name in theirs}


class Given(torch.nn.Module):
    """In the place of a network: the images are the features."""

    num_features = 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_torchmetrics_frechet_distance_agrees() -> None:
    metric = peer("torchmetrics.image.fid").FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    for part in Y.split(130):
        metric.update(part, real=True)
    for part in X.split(130):
        metric.update(part, real=False)
    assert float(metric.compute()) == pytest.approx(FRECHET, rel=FLOAT64)


# Kernel distances: one subset of all images is the distance over all pairs.


def test_kernel_distances_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    own = kid(X, Y).value
    fidelity = peer("torch_fidelity.metric_kid")
    options = {"kid_subsets": 1, "kid_subset_size": 400, "verbose": False}
    theirs = {
        "torch-fidelity": fidelity.kid_features_to_metric(X, Y, **options)[fidelity.KEY_METRIC_KID_MEAN],
        "clean-fid": peer("cleanfid.fid").kernel_distance(X.numpy(), Y.numpy(), 1, 400),
    }
    metric = peer("torchmetrics.image.kid").KernelInceptionDistance(feature=Given(), subsets=1, subset_size=400)
    metric.update(X, real=False)
    metric.update(Y, real=True)
    theirs["torchmetrics"] = float(metric.compute()[0])
    assert theirs == {name: pytest.approx(own, rel=FLOAT64) for name in theirs}
    rbf = fidelity.kid_features_to_metric(X, Y, kid_kernel="rbf", kid_kernel_rbf_sigma=10.0, **options)
    assert rbf[fidelity.KEY_METRIC_KID_MEAN] == pytest.approx(unbiased_gaussian(), rel=1e-6)


def unbiased_gaussian() -> float:
    from undiffuse.metrics import kernel_distance

    return kernel_distance._discrepancy(X, Y, kernel_distance.gaussian_kernel(10.0), None)[0]


# Scores


def test_inception_scores_agree() -> None:
    logits = 2 * features(500, 12, 5)
    own = InceptionScore(100).update(logits).compute()
    fidelity = peer("torch_fidelity.metric_isc")
    theirs = fidelity.isc_features_to_metric(logits, splits=5, shuffle=False)
    assert theirs[fidelity.KEY_METRIC_ISC_MEAN] == pytest.approx(own.value, rel=FLOAT64)
    assert theirs[fidelity.KEY_METRIC_ISC_STD] == pytest.approx(own.extra["std"], rel=FLOAT64)

    metric = peer("torchmetrics.image.inception").InceptionScore(feature=Given(), splits=5)
    metric.update(logits)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        order = torch.randperm(500)
        torch.manual_seed(3)
        mean, spread = metric.compute()
    own = InceptionScore(100).update(logits[order]).compute()
    assert float(mean) == pytest.approx(own.value, rel=FLOAT64)
    assert float(spread) == pytest.approx(own.extra["std"] * (5 / 4) ** 0.5, rel=FLOAT64)


def test_precision_and_recall_agree() -> None:
    """Shares of images: equal, since no two distances of drawn features tie."""
    fidelity = peer("torch_fidelity.metric_prc")
    theirs = fidelity.prc_features_to_metric(
        X, Y, prc_neighborhood=3, prc_batch_size=150, save_cpu_ram=True, verbose=False
    )
    own = manifold_metrics(X, Y, k=3, precision="float64", tile=150)
    assert 0 < own["precision"].value < 1 and 0 < own["recall"].value < 1
    assert own["precision"].value == pytest.approx(theirs[fidelity.KEY_METRIC_PRECISION], rel=1e-6)
    assert own["recall"].value == pytest.approx(theirs[fidelity.KEY_METRIC_RECALL], rel=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_agree(k: int) -> None:
    theirs = peer("prdc").compute_prdc(real_features=Y.numpy(), fake_features=X.numpy(), nearest_k=k)
    own = manifold_metrics(X, Y, k=k, k_density=k, precision="float64", tile=150)
    assert {name: estimate.value for name, estimate in own.items()} == {
        name: pytest.approx(float(theirs[name]), rel=1e-12) for name in own
    }


@pytest.mark.parametrize(("q", "order"), [(1, 1.0), (2, 2.0), (0.5, 0.5), ("inf", float("inf"))])
def test_vendi_scores_agree(q: Any, order: float) -> None:
    """Their dual form is our way; of their primal one with q = 1 the 376 zero eigenvalues are rounding."""
    module = peer("vendi_score.vendi")
    own = VendiScore(order).update(X).compute().value
    assert own == pytest.approx(float(module.score_dual(X.numpy(), q=q)), rel=FLOAT64)
    if q == 1:
        assert own == pytest.approx(float(module.score_X(X.numpy())), rel=1e-6)
