"""Claims about samplers on a one-dimensional Gaussian mixture, whose denoiser is exact: no network is involved."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from undiffuse.grids import Grid, NoisePath, grid
from undiffuse.noise_levels import DiscreteSchedule, Level, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.sampling import encode, generate
from undiffuse.solvers import build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, wasserstein1

DATA = Mixture.scalar([0.2, 0.5, 0.3], [-1, 0.1, 0.8], [0.02, 0.25, 0.05])
"""A narrow, a broad and a medium mode, the mixture of docs/solvers.md."""


@cache
def data_quantiles(count: int) -> Tensor:
    """Returns `count` evenly spaced quantiles of the mixture, by bisection."""
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    low, high = torch.full_like(wanted, -3.0), torch.full_like(wanted, 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = DATA.weights * torch.special.ndtr((middle[:, None] - DATA.means[:, 0]) / DATA.variances[:, 0].sqrt())
        low, high = torch.where(below.sum(1) < wanted, middle, low), torch.where(below.sum(1) < wanted, high, middle)
    return low


def even_noise(count: int) -> Tensor:
    """Returns the quantiles of the standard normal as noise [count, 1, 1, 1], which halves the sampling error."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).reshape(-1, 1, 1, 1)


def by_x(points: list[list[float]]) -> dict[float, float]:
    """Returns the points [x, y] of a line as a mapping."""
    return {point[0]: point[1] for point in points}


def distance(
    chain: DiscreteSchedule,
    path: NoisePath,
    solver: str,
    seed: int,
    count: int,
    variance: str = "fixed_small",
    **given: Any,
) -> float:
    """Returns the Wasserstein-1 distance of samples to the mixture."""
    made = generate(
        OracleDenoiser(DATA, chain, variance), path, build_solver(solver, **given), Noise64(seed, count), (1, 1, 1),
        x_T=even_noise(count),
    )  # fmt: skip
    return wasserstein1(made, data_quantiles(count))


def reverse_variances(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Compares reverse variances and DDIM at several numbers of steps of the linear chain.

    Args:
        run: Not used.
        seed: Of the samplers' noise.
        steps: Numbers of steps.
        count: Samples.
    """
    chain = named_schedule("linear", 1000)
    lines: dict[str, list[list[float]]] = {}
    for name in ("optimal", "fixed_small", "fixed_large", "ddim"):
        for k in steps:
            path = chain.respaced(str(k))
            found = (
                distance(chain, path, "ddim", seed, count) if name == "ddim"
                else distance(chain, path, "ddpm", seed, count, name)
            )  # fmt: skip
            lines.setdefault(name, []).append([k, found])
    at = {name: by_x(points) for name, points in lines.items()}
    few, many = min(steps), max(steps)
    best_fixed = {k: min(at["fixed_small"][k], at["fixed_large"][k]) for k in steps}
    return {
        "effects": {
            "optimal best": min(math.log(best_fixed[k] / at["optimal"][k]) for k in steps),
            "fixed differ, few": abs(math.log(at["fixed_small"][few] / at["fixed_large"][few])),
            "fixed differ, many": at["fixed_small"][many] - at["fixed_large"][many],
            "ddim ahead, few": math.log(at["optimal"][few] / at["ddim"][few]),
            "ddim over beta, few": math.log(at["fixed_large"][few] / at["ddim"][few]),
        },
        "numbers": {"series": lines},
    }


def skipped_steps(run: Any, seed: int, fractions: list[float], solver: str, count: int) -> dict[str, Any]:
    """Starts the reverse chain late, from pure noise, and counts the steps that are nearly pure noise.

    Args:
        run: Not used.
        seed: Of the samplers' noise.
        fractions: Where the chain starts, as a share of its length, largest first.
        solver: The solver.
        count: Samples.
    """
    lines: dict[str, list[list[float]]] = {}
    dead = {}
    for name in ("linear", "cosine"):
        chain = named_schedule(name, 1000)
        dead[name] = float((chain.alphas_cumprod < 1e-3).mean())
        for fraction in fractions:
            kept = list(range(0, max(2, int(1000 * fraction)), 4))
            found = distance(chain, chain.respaced(kept), solver, seed, count, "optimal")
            lines.setdefault(name, []).append([fraction, found])
    at = {name: by_x(points) for name, points in lines.items()}
    last = fractions[-1]
    return {
        "effects": {
            "steps without image": dead["linear"] - dead["cosine"],
            "linear loses nothing": at["linear"][0.8] - at["linear"][1.0],
            "cosine loses more": (at["cosine"][last] - at["cosine"][1.0]) - (at["linear"][last] - at["linear"][1.0]),
        },
        "numbers": {"share of steps with abar < 0.001": dead, "series": lines},
    }


def linear_against_cosine(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Compares the schedules at few steps of DDIM and of ancestral sampling."""
    lines: dict[str, list[list[float]]] = {}
    for name in ("linear", "cosine"):
        chain = named_schedule(name, 1000)
        for k in steps:
            path = chain.respaced(str(k))
            lines.setdefault(f"{name}, ddim", []).append([k, distance(chain, path, "ddim", seed, count)])
            lines.setdefault(f"{name}, ddpm", []).append([k, distance(chain, path, "ddpm", seed, count, "optimal")])
    gains = {}
    for solver in ("ddim", "ddpm"):
        pairs = zip(lines[f"linear, {solver}"], lines[f"cosine, {solver}"], strict=True)
        gains[solver] = min(math.log(a[1] / b[1]) for a, b in pairs)
    # fmt: skip
    return {"effects": gains, "numbers": {"series": lines}}


def noise_of_ddim(run: Any, seed: int, steps: list[int], etas: list[float], count: int) -> dict[str, Any]:
    """Compares DDIM's eta at several numbers of steps."""
    chain = named_schedule("linear", 1000)
    lines: dict[str, list[list[float]]] = {}
    for eta in etas:
        for k in steps:
            found = distance(chain, chain.respaced(str(k)), "ddim", seed, count, eta=eta)
            lines.setdefault(f"eta {eta:g}", []).append([k, found])
    at = {name: by_x(points) for name, points in lines.items()}
    few = min(steps)
    return {
        "effects": {"few": math.log(at["eta 1"][few] / at["eta 0"][few])},
        "numbers": {"series": lines},
    }


def round_trip(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Encodes data to latents by DDIM and decodes them, at several numbers of steps.

    The error is the mean square in units where pixels are in [0, 1].
    """
    chain = named_schedule("linear", 1000)
    x0 = DATA.sample(count, seed)
    points = []
    for k in steps:
        path = chain.respaced(f"ddim{k}" if 1000 % k == 0 and k > 1 else str(k))
        denoiser = OracleDenoiser(DATA, chain)
        latent = encode(denoiser, path, x0)
        back = generate(denoiser, path, build_solver("ddim"), Noise64(seed, count), (1, 1, 1), x_T=latent)
        points.append([k, float(((back - x0) ** 2).mean()) / 4])
    errors = [error for _, error in points]
    slopes = [math.log(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    return {
        "effects": {"falls": min(slopes), "total": math.log10(errors[0] / errors[-1])},
        "numbers": {"series": {"mean square error": points}},
    }


def solver_errors(run: Any, seed: int, calls: list[int], count: int) -> dict[str, Any]:
    """Compares solvers at equal numbers of calls, on EDM's grid from sigma / alpha = 20 to 0.01.

    The error is the mean distance from the images of 400 steps of Heun's method from the same noise.

    Args:
        run: Not used.
        seed: Not used, as the solvers draw nothing.
        calls: Odd numbers of network calls.
        count: Samples.
    """
    chain = named_schedule("linear", 1000)
    start = even_noise(count)
    spec = f"karras:rho=7,from={-2 * math.log(20)},to={-2 * math.log(0.01)}"

    def made(solver: str, steps: int, **given: Any) -> Tensor:
        path = grid(chain, str(steps), spec)
        denoiser = OracleDenoiser(DATA, chain)
        return generate(denoiser, path, build_solver(solver, **given), Noise64(seed, count), (1, 1, 1), x_T=start)

    exact = made("heun", 400)
    lines: dict[str, list[list[float]]] = {}
    for k in calls:
        for name, x in (
            ("euler", made("euler", k)),
            ("heun", made("heun", (k + 1) // 2)),
            ("dpmpp-2m", made("dpmpp-2m", k)),
            ("unipc", made("unipc", k, order=2)),
        ):
            lines.setdefault(name, []).append([k, float((x - exact).abs().mean())])
    at = {name: [error for _, error in points] for name, points in lines.items()}
    gain = lambda a, b: min(math.log(x / y) for x, y in zip(at[a], at[b], strict=True))  # noqa: E731
    return {
        "effects": {
            "heun over euler": gain("euler", "heun"),
            "2m over euler": gain("euler", "dpmpp-2m"),
            "unipc over 2m": gain("dpmpp-2m", "unipc"),
        },
        "numbers": {"series": lines},
    }


def straight_paths(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Compares few Euler steps along the path of rectified flow, even in t, with DDIM's, even in the linear chain."""
    chain = named_schedule("linear", 1000)
    lines: dict[str, list[list[float]]] = {}
    for k in steps:
        t = torch.linspace(1 - 1e-4, 0, k + 1, dtype=torch.float64)
        norm = ((1 - t) ** 2 + t**2).sqrt()
        path = Grid(((1 - t) / norm).numpy(), (t / norm).numpy())
        lines.setdefault("rectified flow", []).append([k, distance(chain, path, "ddim", seed, count)])
        lines.setdefault("DDIM", []).append([k, distance(chain, chain.respaced(str(k)), "ddim", seed, count)])
    gains = [math.log(b[1] / a[1]) for a, b in zip(lines["rectified flow"], lines["DDIM"], strict=True)]
    return {"effects": {"few": min(gains)}, "numbers": {"series": lines}}


def brightness_range(run: Any, seed: int, side: int, steps: int, count: int) -> dict[str, Any]:
    """Samples images of constant brightness with chains that end above and at zero signal.

    The data are images of side x side pixels, all pixels of an image equal up to slight noise, brightness of mean 0.3
    and standard deviation 0.5. Sampling starts from pure noise, whose mean brightness is 0.

    Args:
        run: Not used.
        seed: Of the noise.
        side: Side of the images.
        steps: Sampling steps, spaced as DDIM's ("leading") and trailing.
        count: Samples.
    """
    d = side * side
    basis = torch.linalg.qr(
        torch.cat([torch.ones(d, 1), torch.randn(d, d - 1, generator=torch.Generator().manual_seed(0))], 1).double()
    )[0]
    variances = torch.full((1, d), 1e-3, dtype=torch.float64)
    variances[0, 0] = 0.25 * d
    data = Mixture(
        (1, side, side), torch.ones(1, dtype=torch.float64), torch.full((1, d), 0.3, dtype=torch.float64),
        variances, basis[None],
    )  # fmt: skip
    found = {}
    for name, schedule, spec in (
        ("linear, leading", "linear", f"leading{steps}"),
        ("zero terminal SNR, trailing", "linear+zero-terminal", f"trailing{steps}"),
    ):
        chain = named_schedule(schedule, 1000)
        path = chain.respaced(spec)
        noise = Noise64(seed, count)
        made = generate(_Denoised(data, chain), path, build_solver("ddim"), noise, (1, side, side))
        brightness = made.flatten(1).mean(1)
        found[name] = [float(brightness.mean()), float(brightness.std())]
    off = {name: abs(mean - 0.3) for name, (mean, _) in found.items()}
    first, second = off.values()
    return {"effects": {"mean": first - second}, "numbers": {"brightness, mean and deviation": found}}


class _Denoised(OracleDenoiser):
    """The exact denoiser as a prediction of x0, which is defined at pure noise as well."""

    def __call__(self, x: Tensor, level: Level, cond: Any = None) -> Prediction:
        return Prediction(x, level, "x0", self.mixture.denoised(x, level.alpha, level.sigma))
