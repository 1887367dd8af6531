"""Two predictions of the same image, one better than the other: going on in the direction of the better one.

    D = D_ref + S (D_main - D_ref)

S = 1 is the main prediction alone (no guidance), S = 0 the reference, S > 1 guides. x0, noise, v and score are affine
in one another with coefficients that the two predictions share, so the same S in any of them is the same guidance, as
long as nothing is clipped in between: predictions are combined as they were before clipping, and the result is clipped.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from undiffuse.noise_levels import Level, expand
from undiffuse.prediction import Guide, Prediction


def extrapolate(main: Prediction, reference: Prediction, scale: Tensor, rescale: float = 0.0) -> Prediction:
    """D_ref + S (D_main - D_ref) with S = `scale` [B] or [1], at the one x and level that both belong to.

    `rescale`  phi from 0 to 1: the result y becomes phi y std(main) / std(y) + (1 - phi) y, image by image, in what the
               network predicts (a predicted mean: in x0), against too strong contrasts (Lin et al. 2023, section 3.4)

    The variance of the reverse step is that of `main`; guides are combined as the scores are.
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
    """How the main prediction's noise differs from the reference's [B, C, H, W], before clipping."""
    return ((main.raw or main).eps - (reference.raw or reference).eps).detach()


def shifted_back(main: Prediction, shift: Tensor) -> Prediction:
    """The reference from which the main prediction's noise differs by `shift`: x0_ref = x0 + (sigma / alpha) shift."""
    a = main.raw or main
    ratio = expand(a.level.sigma / a.level.alpha, a.x)
    return replace(a.with_x0(a.x0 + ratio * shift), guides=(), direct_mean=None)


def _common(a: Prediction, b: Prediction, rescale: float) -> str:
    """What to combine in: what was predicted, where both can be had as that; else x0."""
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
    """Standard deviation of each image's values [B, 1, 1, 1]."""
    return value.flatten(1).std(dim=1).reshape(-1, *[1] * (value.ndim - 1))


def _weighted(guides: tuple[Guide, ...], weight: Tensor) -> tuple[Guide, ...]:
    if bool((weight == 1).all()):
        return guides

    def scaled(guide: Guide) -> Guide:
        def gradient(x: Tensor, level: Level) -> Tensor:
            return expand(weight, x) * guide.gradient(x, level)

        return replace(guide, gradient=gradient)

    return tuple(scaled(guide) for guide in guides)
