"""Students of a Gaussian mixture: small networks that methods of distillation train, and what they should become.

Images are single numbers. The teacher is the exact denoiser, so the exact trajectory of the probability flow is known
to any accuracy: it is integrated here by a Runge-Kutta method that shares no code with the library's solvers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.distillation import Batch, Networks
from undiffuse.noise_levels import Level
from undiffuse.testing.oracles import Mixture, OracleDenoiser

MIXTURE = Mixture.scalar([0.35, 0.65], [-0.6, 0.5], [0.12, 0.2])
PROCESS = ProcessConfig(schedule="cosine", steps=64, target="v", variance="fixed_small")


class SmallNet(nn.Module):
    """A network of images of one number: v from x and the step number."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width),
                nn.SiLU(), nn.Linear(width, 1),
            )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = (t[:, None] / PROCESS.steps) * math.pi
        waves = [f(k * phase) for k in (0.5, 1, 2, 4) for f in (torch.sin, torch.cos)]
        flat = x.flatten(1)
        return self.layers(torch.cat([flat, flat**2, *waves], dim=1)).reshape(x.shape)


def oracle() -> OracleDenoiser:
    """The exact denoiser of the mixture."""
    return OracleDenoiser(MIXTURE, PROCESS.chain())


def denoiser(net: nn.Module) -> ChainDenoiser:
    return ChainDenoiser(net, PROCESS, "none")


def regression_start(seed: int = 0, updates: int = 600) -> SmallNet:
    """A network that predicts the exact denoiser: what a student starts from."""
    net, exact = SmallNet(seed), oracle()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(seed)
    for number in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - number / updates)
        x0 = MIXTURE.sample(256, seed * 10_000 + number).float()
        level = PROCESS.chain().level(torch.randint(0, PROCESS.steps, (256,), generator=g))
        x = _column(level.alpha) * x0 + _column(level.sigma) * torch.randn(x0.shape, generator=g)
        with torch.no_grad():
            aim = exact(x, level).v
        optimizer.zero_grad()
        (denoiser(net)(x, level).v - aim).square().mean().backward()
        optimizer.step()
    return net


def distil(
    method: Any,
    start: SmallNet,
    *,
    updates: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    batch: int = 256,
    teacher: Any = None,
    auxiliary: SmallNet | None = None,
    discriminator: nn.Module | None = None,
    blank: bool = False,
    seed: int = 1,
) -> SmallNet:
    """Trains a student as the engine does, by the losses of a method; returns the average of its last half.

    `blank` gives the method images that say nothing, as a training without data does.
    """
    student = SmallNet(0)
    student.load_state_dict(start.state_dict())
    beside = [net for net in (auxiliary, discriminator) if net is not None]
    trained = [*student.parameters(), *(p for net in beside for p in net.parameters())]
    optimizer = torch.optim.Adam(trained, lr=lr, betas=betas)
    average = {name: value.clone() for name, value in student.state_dict().items()}
    target = SmallNet(0)
    target.load_state_dict(start.state_dict())
    networks = Networks(
        student=denoiser(student), teacher=teacher or oracle(),
        target=denoiser(target) if method.target_decay else None,
        auxiliary=denoiser(auxiliary) if auxiliary is not None else None, discriminator=discriminator,
    )  # fmt: skip
    for number in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - number / updates)
        g = torch.Generator().manual_seed(seed * 1_000_003 + number)
        x0 = torch.zeros(batch, 1, 1, 1) if blank else MIXTURE.sample(batch, seed * 50_000 + number).float()
        u = (torch.randperm(batch, generator=g) + torch.rand(batch, generator=g, dtype=torch.float64)) / batch
        draws: dict[str, Tensor] = {}

        def draw(purpose: str, g: torch.Generator = g, x0: Tensor = x0, draws: dict[str, Tensor] = draws) -> Tensor:
            return draws.setdefault(purpose, torch.randn(x0.shape, generator=g))

        optimizer.zero_grad()
        terms = method.losses(networks, Batch(x0=x0, u=u, progress=number / updates, draw=draw, update=number))
        terms["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in student.state_dict().items():
                average[name].lerp_(value, 0.02)
            for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
                ours.lerp_(theirs, 1 - method.target_decay)
    student.load_state_dict(average)
    return student


def trajectory(x: Tensor, source: Level, target: Level, steps: int = 400, mixture: Mixture = MIXTURE) -> Tensor:
    """Follows the exact probability flow from one level to a cleaner one, in float64.

    d(x / alpha) = eps d(sigma / alpha), integrated in the logarithm of sigma / alpha by the classical fourth-order
    Runge-Kutta method; sigma / alpha = 1e-4 stands for the clean image.
    """
    begin = float(source.sigma / source.alpha)
    end = max(float(target.sigma / target.alpha), 1e-4)
    points = torch.linspace(math.log(begin), math.log(end), steps + 1, dtype=torch.float64).tolist()
    y = x.double() / float(source.alpha)

    def slope(y: Tensor, log_s: float) -> Tensor:
        s = math.exp(log_s)
        alpha = torch.tensor([1.0], dtype=torch.float64)
        return mixture.eps(y, alpha, alpha * s) * s

    for a, b in zip(points[:-1], points[1:], strict=True):
        h, middle = b - a, (a + b) / 2
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, middle)
        k3 = slope(y + h / 2 * k2, middle)
        k4 = slope(y + h * k3, b)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * float(target.alpha)


def noisy(level: Level, count: int = 400, seed: int = 9) -> Tensor:
    """Images of the mixture at a level [count, 1, 1, 1]."""
    g = torch.Generator().manual_seed(seed)
    x0 = MIXTURE.sample(count, seed)
    return (float(level.alpha) * x0 + float(level.sigma) * torch.randn(x0.shape, generator=g).double()).float()


def jump_error(net: nn.Module, source: Level, target: Level) -> float:
    """Root mean square distance between the student's single step over a segment and the exact trajectory's end."""
    x = noisy(source)
    with torch.no_grad():
        x0 = denoiser(net)(x, source).x0.double()
    kept = float(target.sigma / source.sigma)
    reached = kept * x.double() + (float(target.alpha) - kept * float(source.alpha)) * x0
    return float((reached - trajectory(x, source, target)).square().mean().sqrt())


def samples(net: nn.Module, calls: int, count: int = 4000) -> Tensor:
    """Samples of a student by ancestral steps on the trailing grid."""
    from undiffuse.grids import grid
    from undiffuse.noise import NoiseSource
    from undiffuse.sampling import generate
    from undiffuse.solvers import build_solver

    made = denoiser(net)
    path = grid(made.chain, calls, "trailing")
    return generate(made, path, build_solver("ddpm"), NoiseSource(3, range(count)), (1, 1, 1))


def _column(values: Tensor) -> Tensor:
    return values.float().reshape(-1, 1, 1, 1)
