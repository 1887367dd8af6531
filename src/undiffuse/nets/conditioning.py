"""Embeds conditions beside the class: several labels, numbers, a picture. NaN means "not given" everywhere.

Labels and numbers are added to the time embedding, as the class is (ADM, section 3). A picture is concatenated to the
noisy image (Saharia et al. 2022, Palette), with one more plane that says whether it is given, so that an all-grey
picture differs from none. What is not given has an embedding of its own, which is learned when conditions are
dropped in training; classifier-free guidance (Ho & Salimans 2022) contrasts with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OCTAVES = 4
"""Periods of 8, 4, 2 and 1 standard deviations in the features of a number."""


class TagEmbedding(nn.Module):
    """Sums the embeddings of a picture's labels.

    Args:
        count: Number of labels L.
        width: Channels of the embedding.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.empty(count + 1, width))
        nn.init.normal_(self.weight)

    def forward(self, tags: Tensor) -> Tensor:
        """Returns embeddings [B, width] of tags [B, L] of 0 and 1; a row with NaN is not given."""
        given = torch.isfinite(tags).all(dim=1, keepdim=True)
        found = torch.nan_to_num(tags.float()) @ self.weight[: self.count].float()
        return torch.where(given, found, self.weight[self.count].float())


class NumberEmbedding(nn.Module):
    """Sums the embeddings of K normalised numbers, each by a small network of its own.

    A number v is seen as v and as sines and cosines of four periods, so that smooth and quick dependence are both easy.

    Args:
        count: K.
        width: Channels of the embedding.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        features = 1 + 2 * _OCTAVES
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(count)
        )
        self.null = nn.Parameter(torch.zeros(count, width))

    def forward(self, numbers: Tensor) -> Tensor:
        """Returns embeddings [B, width] of numbers [B, K]; each NaN is replaced by its number's null embedding."""
        given = torch.isfinite(numbers)
        values = torch.where(given, numbers.float(), 0.0)
        rates = 2 * math.pi * 2.0 ** torch.arange(-3, _OCTAVES - 3, device=numbers.device, dtype=torch.float32)
        out = torch.zeros(1, device=numbers.device)
        for k, embed in enumerate(self.embed):
            v = values[:, k : k + 1]
            features = torch.cat([v, torch.sin(v * rates), torch.cos(v * rates)], dim=1)
            out = out + torch.where(given[:, k : k + 1], embed(features), self.null[k].float())
        return out


def with_picture(x: Tensor, picture: Tensor | None, planes: int) -> Tensor:
    """Concatenates a condition picture to noisy images.

    Args:
        x: Noisy images [B, C, H, W].
        picture: Condition pictures [B, planes, H, W]; None, or NaN throughout for one image, is not given.
        planes: Channels of a condition picture.

    Returns:
        [B, C + planes + 1, H, W]; the last plane is 1 where the picture is given, else 0.

    Raises:
        ValueError: The picture has another shape.
    """
    expected = (x.shape[0], planes, *x.shape[2:])
    if picture is None:
        return torch.cat([x, x.new_zeros(x.shape[0], planes + 1, *x.shape[2:])], dim=1)
    if picture.shape != expected:
        raise ValueError(f"expected condition pictures {list(expected)}, got {list(picture.shape)}")
    given = torch.isfinite(picture).flatten(1).all(dim=1).reshape(-1, 1, 1, 1)
    shown = torch.where(given, picture, 0.0).to(x.dtype)
    return torch.cat([x, shown, given.to(x.dtype).expand(-1, 1, *x.shape[2:])], dim=1)


def check_rows(name: str, value: Tensor, batch: int, count: int) -> None:
    """Raises ValueError unless a condition is [batch, count]."""
    if value.shape != (batch, count):
        raise ValueError(f"expected {name} [{batch}, {count}], got {list(value.shape)}")


def enlarged(low_res: Tensor, x: Tensor) -> Tensor:
    """Returns noisy images [B, C, H, W] with enlarged low-resolution images beside them, [B, 2C, H, W] (ADM, 4.3)."""
    return torch.cat([x, F.interpolate(low_res.to(x.dtype), size=x.shape[2:], mode="bilinear")], dim=1)
