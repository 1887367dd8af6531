"""The extractors' ways to a size that are Pillow's, bit for bit. The others are in test_metrics_extractors.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.metrics.extractors import resize


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 63, 224])
@pytest.mark.parametrize("shape", [(64, 64), (63, 63), (200, 31), (31, 200), (1, 1), (7, 300)])
def test_pillow_bicubic_is_pillows_bit_for_bit(shape: tuple[int, int], size: int) -> None:
    """One axis at a time, which is how Pillow up to 12 works; from 13 on the order of the two depends on the shape."""
    hard = (noise(*shape, 3) > 127).astype(np.uint8) * 255
    for image in (noise(*shape, 3, seed=1), hard):
        bicubic = Image.Resampling.BICUBIC
        expected = Image.fromarray(image).resize((size, shape[0]), bicubic).resize((size, size), bicubic)
        if shape[0] == shape[1]:
            assert expected == Image.fromarray(image).resize((size, size), bicubic)
        found = resize.pillow_bicubic(torch.from_numpy(image).permute(2, 0, 1)[None].float(), size)
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("shape", [(40, 40), (41, 64), (64, 41), (100, 33), (20, 55), (32, 35), (33, 32)])
def test_the_two_ways_to_a_square(shape: tuple[int, int]) -> None:
    """Crop, then resize (CMMD); resize the shorter side, then crop (CLIP). The crops by hand."""
    image = noise(*shape, 3)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    height, width = shape
    side = min(shape)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    found = resize.crop_pillow_bicubic(pixels, 32)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)

    size = (32, int(32 * width / height)) if height <= width else (int(32 * height / width), 32)
    across = Image.fromarray(image).resize((size[1], height), Image.Resampling.BICUBIC)
    resized = np.asarray(across.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    top, left = round((size[0] - 32) / 2.0), round((size[1] - 32) / 2.0)
    expected = resized[top : top + 32, left : left + 32]
    found = resize.pillow_bicubic_crop(pixels, 32)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)
    assert found.shape == (32, 32, 3)
