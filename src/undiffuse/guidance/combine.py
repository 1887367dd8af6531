"""Extrapolation from a weaker to a stronger prediction of the same image.

    D = D_ref + S (D_main - D_ref)

S = 1 is the main prediction alone (no guidance), S = 0 the reference, S > 1 guides. x0, noise, v and score are affine
functions of each other, with coefficients that both predictions share, so the same S in any of them is the same
guidance, as long as nothing is clipped in between. Predictions are therefore combined unclipped, and the result is
clipped.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from undiffuse.noise_levels import Level, expand
from undiffuse.prediction import Guide, Prediction


def extrapolate(main: Prediction, reference: Prediction, scale: Tensor, rescale: float = 0.0) -> Prediction:
    """Combines two predictions: D_ref + S (D_main - D_ref).

    The variance of the reverse step is that of `main`; guides are combined like scores.

    Args:
        main: The stronger prediction.
        reference: The weaker prediction at the same x and level.
        scale: S, [B] or [1].
        rescale: phi from 0 to 1. The result y becomes phi y std(main) / std(y) + (1 - phi) y for each image, against
            too strong contrast (Lin et al. 2023, section 3.4). It applies to the predicted quantity, or to x0 if that
            is a mean.
    """
    a, b = main.raw or main, reference.raw or reference
    s = expand(scale, a.x)
    kind = _common(a, b, rescale)
    ours, theirs = _as(a, kind), _as(b, kind)
    value = theirs + s * (ours - theirs)
    mean = None
    if a.direct_mean is not None and b.direct_mean is not None and not rescale:
        mean = b.direct_mean + s * (a.direct_mean - b.direct_mean)
    if rescale:
        ratio = _deviation(ours) / _deviation(value).clamp(min=1e-12)
        value = value * (rescale * ratio + (1 - rescale))
    guides = (*_weighted(main.guides, scale), *_weighted(reference.guides, 1 - scale))
    result = replace(a, kind=kind, value=value, noise=None, direct_mean=mean, guides=guides)
    return result if main.clip is None else replace(result.with_x0(main.clip(result.x0)), raw=result)


def noise_shift(main: Prediction, reference: Prediction) -> Tensor:
    """Returns the difference of the predicted noises [B, C, H, W], main - reference, before clipping."""
    return ((main.raw or main).eps - (reference.raw or reference).eps).detach()


def shifted_back(main: Prediction, shift: Tensor) -> Prediction:
    """Returns the reference from the main prediction and `noise_shift`: x0_ref = x0 + (sigma / alpha) shift."""
    a = main.raw or main
    ratio = expand(a.level.sigma / a.level.alpha, a.x)
    return replace(a.with_x0(a.x0 + ratio * shift), guides=(), direct_mean=None)


def _common(a: Prediction, b: Prediction, rescale: float) -> str:
    """Chooses the quantity to combine: the predicted one if both predictions can be converted to it, otherwise x0."""
    if a.kind == b.kind and a.sigma_data == b.sigma_data and not (rescale and a.kind == "previous_mean"):
        return a.kind
    return a.kind if a.kind in ("eps", "v") else "x0"


def _as(prediction: Prediction, kind: str) -> Tensor:
    if prediction.kind == kind:
        return prediction.value
    if kind == "eps":
        return prediction.eps
    return prediction.v if kind == "v" else prediction.x0


def _deviation(value: Tensor) -> Tensor:
    """Returns the standard deviation of each image's values [B, 1, 1, 1]."""
    return value.flatten(1).std(dim=1).reshape(-1, *[1] * (value.ndim - 1))


def _weighted(guides: tuple[Guide, ...], weight: Tensor) -> tuple[Guide, ...]:
    if bool((weight == 1).all()):
        return guides

    def scaled(guide: Guide) -> Guide:
        def gradient(x: Tensor, level: Level) -> Tensor:
            return expand(weight, x) * guide.gradient(x, level)

        return replace(guide, gradient=gradient)

    return tuple(scaled(guide) for guide in guides)
