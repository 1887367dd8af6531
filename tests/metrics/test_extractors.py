"""Extractors: resizing rules, weights that are refused, the classifier's penultimate layer, functions.

Inception's numbers are checked in test_golden_evaluator.py."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.denoiser import ProcessConfig
from undiffuse.downloads import DownloadError
from undiffuse.metrics import Card, MetricError
from undiffuse.metrics.extractors import (
    ClassifierExtractor,
    DinoV2Extractor,
    EffLiteExtractor,
    FunctionExtractor,
    InceptionExtractor,
    dinov2,
    efflite,
    in_batches,
    inception_features,
    resize,
)
from undiffuse.metrics.extractors.base import load_exactly, tensors_hash
from undiffuse.metrics.extractors.dinov2 import DinoV2
from undiffuse.metrics.extractors.efflite import EfficientNetLite0, SameConv
from undiffuse.models import ClassifierModel
from undiffuse.nets import ClassifierConfig


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def tf1_pixel(image: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    """One output pixel by the rule, in Python: source = j * in / out, edges continued."""
    height, width = image.shape[:2]
    y, x = row * height / size, column * width / size
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    a, b = y - top, x - left
    image = image.astype(np.float64)
    upper = image[top, left] * (1 - b) + image[top, right] * b
    lower = image[bottom, left] * (1 - b) + image[bottom, right] * b
    return upper * (1 - a) + lower * a


@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (17, 64), (304, 299), (500, 7)])
def test_tf1_resize_by_its_rule(height: int, width: int) -> None:
    images = noise(1, height, width, 3)
    out = resize.tf1_bilinear(floats(images), 299)
    assert out.shape == (1, 3, 299, 299)
    for row, column in ((0, 0), (298, 298), (7, 250), (150, 3), (298, 0)):
        np.testing.assert_allclose(out[0, :, row, column], tf1_pixel(images[0], row, column, 299), atol=2e-2)


def test_tf1_resize_is_the_identity_at_its_size() -> None:
    images = floats(noise(1, 299, 299, 3))
    assert torch.equal(resize.tf1_bilinear(images, 299), images)


@pytest.mark.parametrize("size", [24, 80])
def test_clean_resize_is_pillows(size: int) -> None:
    """Pillow's bicubic on floats, one channel at a time, clipped."""
    images = noise(1, 50, 40, 3)
    planes = [Image.fromarray(images[0, :, :, c].astype(np.float32)) for c in range(3)]
    expected = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in planes]).clip(0, 255)
    np.testing.assert_allclose(resize.antialiased_bicubic(floats(images), size)[0], expected, atol=2e-5)


def test_bilinear_rules_differ_where_they_should() -> None:
    images = floats(noise(1, 64, 64, 3))
    half, wide = resize.half_pixel_bilinear(images, 20), resize.antialiased_bilinear(images, 20)
    assert float((half - wide).abs().max()) > 5
    up = resize.half_pixel_bilinear(images, 128)
    torch.testing.assert_close(up, resize.antialiased_bilinear(images, 128), atol=1e-3, rtol=0)
    assert float((up - resize.tf1_bilinear(images, 128)).abs().max()) > 5


# Weights


def test_wrong_weights_are_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = dict(net.state_dict())
    load_exactly(net, {n: t for n, t in state.items() if "num_batches" not in n}, "a test")
    load_exactly(net, state, "a test")
    for change, message in (
        ({"0.bias": None}, "0.bias is missing"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
        ({"0.weight": torch.zeros(2, 2)}, r"shape \[2, 2\] instead of \[3, 2\]"),
        ({"0.weight": "text"}, "shape str"),
        ({"0.bias": torch.full((3,), float("nan"))}, "NaN"),
    ):
        changed = {n: t for n, t in {**state, **change}.items() if t is not None}
        with pytest.raises(MetricError, match=f"a test: .*{message}"):
            load_exactly(net, changed, "a test")


def test_a_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(MetricError, match="not the published file"):
        InceptionExtractor.load(path)
    with pytest.raises(MetricError, match="missing"):
        InceptionExtractor.load(path, verify=False)
    with pytest.raises(MetricError, match="no file"):
        InceptionExtractor.load(tmp_path / "absent.pth")
    with pytest.raises(MetricError, match="does not hold the expected"):
        EffLiteExtractor(path)


class Payload:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", [Payload(), [1, 2], torch.zeros(3)])
def test_files_that_hold_something_else_are_refused(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with the right checksum nothing in a file is executed."""
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_features, "WEIGHTS_SHA256", digest)
    with pytest.raises(MetricError, match="not a plain file|holds a"):
        InceptionExtractor.load(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MetricError, match="not a plain file"):
        InceptionExtractor.load(path, verify=False)


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="by hand"):
        InceptionExtractor.load()


def test_the_hash_of_tensors_depends_on_all_of_them() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert tensors_hash(state) == tensors_hash(dict(reversed(state.items())))
    for other in (
        {"a": torch.zeros(2), "c": torch.ones(2)},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
        {"a": torch.zeros(2)},
    ):
        assert tensors_hash(other) != tensors_hash(state)


# EfficientNet-Lite0


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (7, 5, 2), (8, 5, 1), (6, 1, 1)])
def test_same_padding_puts_the_odd_pixel_last(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) windows; of the missing pixels the smaller half comes first."""
    conv = SameConv(1, 1, kernel, stride, bias=False).requires_grad_(False)
    torch.nn.init.ones_(conv.weight)
    x = torch.arange(float(size * size)).reshape(1, 1, size, size)
    count = -(-size // stride)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    windows = [slice(max(0, i * stride - before), max(0, i * stride - before + kernel)) for i in range(count)]
    expected = torch.tensor([[float(x[0, 0, rows, columns].sum()) for columns in windows] for rows in windows])
    assert torch.equal(conv(x)[0, 0], expected)


def test_efflite_has_the_published_layout() -> None:
    state = EfficientNetLite0().state_dict()
    assert len(state) == 296
    assert sum(t.numel() for n, t in state.items() if "running" not in n and "num_batches" not in n) == 4_652_008
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert "_blocks.0._expand_conv.weight" not in state


def test_efflite_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efflite, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(MetricError, match="pip install"):
        EffLiteExtractor()


@pytest.mark.skipif(importlib.util.find_spec(efflite.PACKAGE) is None, reason="the extra efflite is not installed")
def test_efflite_sees_what_is_shown() -> None:
    extractor = EffLiteExtractor(grey="repeat")
    out = extractor(noise(2, 40, 30, 3))
    assert out.features.shape == (2, 1280) and out.logits is not None and out.logits.shape == (2, 1000)
    assert extractor.card.distance == "FD-efflite"
    # A red disc on white. These numbers were frozen when the network named photographs rightly (tripod 0.95, Egyptian
    # cat 0.77, espresso 0.89): another padding, normalisation or filter moves them.
    y, x = np.mgrid[:224, :224]
    disc = np.full((1, 224, 224, 3), 255, np.uint8)
    disc[0, (y - 112) ** 2 + (x - 112) ** 2 < 80**2] = (200, 30, 30)
    logits = extractor(disc).logits
    assert logits is not None
    found = logits.softmax(dim=1)[0].topk(2)
    assert found.indices.tolist() == [551, 722]  # face powder, ping-pong ball
    assert found.values.tolist() == pytest.approx([0.2843, 0.2613], abs=2e-3)


# DINOv2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (0.889615, -1.709174, -0.719701, 0.964196, 0.194402, 0.509009)),
        ((518, 518), (0.78803, -1.907548, -0.122821, -0.141412, 1.320877, 0.02434)),
        ((112, 140), (1.817417, -1.130985, -0.742897, 0.52918, 0.453633, 0.2971)),
    ],
)
def test_dinov2_gives_the_originals_numbers(size: tuple[int, int], expected: tuple[float, ...]) -> None:
    """A small copy with drawn weights; the numbers are those of the original implementation with the same weights."""

    def draw(name: str, shape: torch.Size) -> torch.Tensor:
        r = 0.3 * np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
        scale = name.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight"))
        return torch.from_numpy((1 + r if scale else r).astype("float32"))

    net = DinoV2(32, 2, 4).requires_grad_(False)
    net.load_state_dict({name: draw(name, tensor.shape) for name, tensor in net.state_dict().items()})
    x = np.random.RandomState(1).standard_normal((2, 3, *size)).astype("float32")
    assert net(torch.from_numpy(x))[0, :6].tolist() == pytest.approx(expected, abs=1e-4)


def test_dinov2_has_the_published_layout() -> None:
    with torch.device("meta"):
        state = DinoV2().state_dict()
    assert len(state) == 343
    # The published file: 304 million float32 numbers and the names.
    assert 0 < 1_217_586_395 - 4 * sum(t.numel() for t in state.values()) < 200_000


def test_dinov2_sees_what_pillow_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preparation, with a small network: resized as a whole to 224, rounded, ImageNet's mean and deviation."""
    monkeypatch.setattr(dinov2, "DinoV2", lambda: DinoV2(32, 1, 4))
    draw = torch.Generator().manual_seed(0)
    extractor = DinoV2Extractor(
        {n: torch.randn(t.shape, generator=draw) for n, t in DinoV2(32, 1, 4).state_dict().items()}
    )
    images = noise(2, 150, 150, 3)
    shown = [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    ready = (floats(np.stack([np.asarray(image) for image in shown])) / 255 - torch.from_numpy(mean)[:, None, None]) / (
        torch.from_numpy(std)[:, None, None]
    )
    torch.testing.assert_close(extractor(images).features, extractor.net(ready), atol=1e-3, rtol=1e-3)
    assert extractor.card.distance == "FD-dinov2-other-weights"


def test_dinov2_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(MetricError, match="does not hold the published"):
        DinoV2Extractor.load(tmp_path / "w.pth")
    with pytest.raises(MetricError, match="no file"):
        DinoV2Extractor.load(tmp_path / "absent.pth")


# A classifier of this library


def classifier(pool: str) -> ClassifierModel:
    config = ClassifierConfig(
        image_size=8,
        in_channels=1,
        out_channels=4,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_head_channels=32,
        use_scale_shift_norm=True,
        pool=pool,
    )
    net = config.build().eval()
    r = np.random.default_rng(0)
    net.load_state_dict(
        {n: torch.from_numpy(0.2 * r.standard_normal(t.shape)).float() for n, t in net.state_dict().items()}
    )
    return ClassifierModel(net=net, process=ProcessConfig(schedule="cosine", steps=20))


@pytest.mark.parametrize(
    ("pool", "dimension"), [("attention", 64), ("adaptive", 64), ("spatial", 2048), ("spatial_v2", 2048)]
)
def test_the_classifiers_last_layer_gives_its_scores(pool: str, dimension: int) -> None:
    """Features and scores agree with the classifier asked about the clean image at its first step."""
    model = classifier(pool)
    images = noise(3, 8, 8, 1)
    extractor = ClassifierExtractor(model, "test")
    out = extractor(images)
    assert out.features.shape == (3, dimension) and out.logits is not None
    x = floats(images) / 127.5 - 1
    with torch.no_grad():
        expected = model.net(x, torch.zeros(3))
        assert not torch.allclose(expected, model.net(x, torch.full((3,), 10.0)), rtol=1e-3)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert extractor.card.distance == "FD-test"
    assert extractor.card.weights_sha256 == model.digest
    assert extractor.card.dimension == dimension


def test_a_classifier_needs_images_of_its_size() -> None:
    extractor = ClassifierExtractor(classifier("adaptive"), "test")
    with pytest.raises(MetricError, match="8x8 images, got 9x8"):
        extractor(noise(2, 9, 8, 1))
    with pytest.raises(MetricError, match="needs 1 channels"):
        extractor(noise(2, 8, 8, 3))


# Functions


def function_card(distance: str = "FD-mean") -> Card:
    return Card(protocol="mean", distance=distance, extractor="mean", layer="mean", dimension=3)


def test_a_function_is_an_extractor() -> None:
    extractor = FunctionExtractor(lambda x: x.float().mean(dim=(1, 2)), function_card())
    images = noise(7, 4, 5, 3)
    parts = [part.features for part in in_batches(extractor, images, 3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_allclose(torch.cat(parts), images.mean(axis=(1, 2)), rtol=1e-6)


def test_a_function_must_keep_its_card() -> None:
    with pytest.raises(MetricError, match="expected features of dimension 3"):
        FunctionExtractor(lambda x: torch.zeros(len(x), 2), function_card())(noise(2, 4, 4, 3))
    with pytest.raises(MetricError, match="1 features for 2 images"):
        FunctionExtractor(lambda x: torch.zeros(1, 3), function_card())(noise(2, 4, 4, 3))
    with pytest.raises(MetricError, match="FD-mean"):
        FunctionExtractor(lambda x: x, function_card("FID"))
    with pytest.raises(MetricError, match="at least 1"):
        list(in_batches(FunctionExtractor(lambda x: x, function_card()), noise(2, 4, 4, 3), 0))
