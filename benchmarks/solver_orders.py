"""Orders and errors of every solver on problems with known answers, for docs/solvers.md; tuned grids, for frontier.md.

    python benchmarks/solver_orders.py                   # print the tables
    python benchmarks/solver_orders.py --write docs      # fill docs/solvers.md and frontier.md, write docs/solvers.json

From a checkout with the package importable; about a minute on one core. The problems and measures are those of the
tests (src/undiffuse/testing/orders.py), which hold every solver to its order.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.planted import half_bend  # noqa: E402
from undiffuse.grids import grid  # noqa: E402
from undiffuse.noise_levels import named_schedule  # noqa: E402
from undiffuse.sampling import sample  # noqa: E402
from undiffuse.solvers import Bosh3, DPMpp, Restart, Solver, build_solver  # noqa: E402
from undiffuse.solvers.registry import SOLVERS  # noqa: E402
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser  # noqa: E402
from undiffuse.testing.orders import of, slope, smooth_grid, strong_error, strong_order, tolerance_order, weak_order  # noqa: E402
from undiffuse.tuning import Batch, tune  # noqa: E402

CALLS = (5, 10, 20, 50)
COUNT = 4_000
HARD = Mixture.scalar([0.2, 0.5, 0.3], [-1, 0.1, 0.8], [0.02, 0.25, 0.05])
CHAIN = named_schedule("linear", 1000)
TUNED = (
    *(("ddim", 10), ("dpmpp-2m", 5), ("dpmpp-2m", 10), ("dpmpp-2m", 20), ("dpmpp-3m", 10)),
    *(("unipc", 5), ("unipc", 10), ("unipc", 20), ("deis", 10), ("heun", 10)),
)
CHOSEN_BY, CHECKED_BY = 64, 512
NAMED = ("logsnr", "karras", "quadratic")
DRAWN = ("ddim", "heun", "dpmpp-2s", "dpmpp-2m", "deis", "dpmpp-3m", "unipc")


def measured_order(name: str) -> float:
    """As the tests measure it, with more steps."""
    if name == "bosh3":
        return tolerance_order(lambda tol: Bosh3(tol=tol), (1e-5, 1e-6, 1e-7, 1e-8))
    if name == "restart":
        return weak_order(lambda steps: Restart(inner=steps, s_min=0.15, s_max=1.0), (32, 64))
    if SOLVERS[name].kind == "ode":
        return strong_order(of(name), (48, 72, 108))
    return weak_order(of(name), (48, 72, 108))


def published_3m_order() -> float:
    """Of 3M with the parabola's weight that implementations publish, half of the exact one."""

    class Published(DPMpp):
        _correction = half_bend(DPMpp._correction)

    return strong_order(lambda steps: Published(order=3), (48, 72, 108))


def orders() -> str:
    """The first table."""
    rows = ["| method | what converges | order | measured | network calls |", "|---|---|---|---|---|"]
    for name, method in SOLVERS.items():
        what = "the image (strong)" if method.kind == "ode" else "mean and variance (weak)"
        each = [method.nfe(n, method.settings()) for n in (10, 20)]
        calls = "as needed" if each[0] is None else f"{each[0]} for 10 steps, {each[1]} for 20"
        rows.append(f"| `{name}` | {what} | {method.order} | {measured_order(name):.2f} | {calls} |")
    rows.append(f"| 3M as published | the image (strong) | | {published_3m_order():.2f} | |")
    return "\n".join(rows)


@cache
def quantiles(count: int) -> torch.Tensor:
    """What `count` perfect images of one number would be, sorted: the mixture's quantiles, by bisection."""
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    low, high = torch.full_like(wanted, -3.0), torch.full_like(wanted, 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        z = (middle[:, None] - HARD.means[:, 0]) / HARD.variances[:, 0].sqrt()
        below = (HARD.weights * torch.special.ndtr(z)).sum(1) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def distance(name: str, calls: int, grid_name: str | None = None) -> tuple[int, float] | None:
    """(calls used, Wasserstein-1 distance to the data) of the longest run of at most `nfe` calls; None: too few."""
    method = SOLVERS[name]
    settings = method.settings()
    if name == "bosh3":
        return max((found for found in adaptive_runs() if found[0] <= calls), default=None)
    fits = [n for n in range(2, calls + 1) if (method.nfe(n, settings) or 0) <= calls]
    return run(build_solver(name), max(fits), grid_name or method.grid) if fits else None


@cache
def adaptive_runs() -> tuple[tuple[int, float], ...]:
    """One for each of several tolerances."""
    return tuple(run(build_solver("bosh3", tol=0.5 * 10 ** (-k / 4)), 2, SOLVERS["bosh3"].grid) for k in range(10))


def run(solver: Solver, steps: int, spec: str) -> tuple[int, float]:
    """(network calls, distance)."""
    path = grid(CHAIN, str(steps), spec)
    start = torch.special.ndtri((torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT).reshape(-1, 1, 1, 1)
    *_, last = sample(OracleDenoiser(HARD, CHAIN, "fixed_small"), path, solver, Noise64(1, COUNT), (1, 1, 1), x_T=start)
    return last.nfe, (last.x.flatten().sort().values - quantiles(COUNT)).abs().mean().item()


def errors() -> str:
    """The second table."""
    rows = [f"| method | grid | {' | '.join(f'{n} calls' for n in CALLS)} |", "|---|---|" + "---|" * len(CALLS)]
    for name, method in SOLVERS.items():
        for spec in dict.fromkeys((method.grid, "chain")) if name in ("dpmpp-2m", "unipc") else (method.grid,):
            cells = []
            for calls in CALLS:
                found = distance(name, calls, spec)
                cells.append(
                    "-" if found is None else f"{found[1]:.3f}" + (f" ({found[0]})" if found[0] < calls else "")
                )
            rows.append(f"| `{name}` | {spec} | {' | '.join(cells)} |")
    return "\n".join(rows)


def tuned() -> str:
    """The table of docs/frontier.md: how far grids by name and optimised ones are from the fine solution."""
    heads = ["solver", "steps", "even in log-SNR", "Karras", "quadratic", "optimised, first order", "second order"]
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, steps in TUNED:
        found = tune(OracleDenoiser(HARD, CHAIN), build_solver(name), steps, Batch(Noise64(0, CHOSEN_BY)),
                     Batch(Noise64(1, CHECKED_BY)), (1, 1, 1))  # fmt: skip
        optimised = [spec for spec in found.tried if spec.startswith("at:")]
        cells = []
        for spec in (*NAMED, *optimised, *optimised)[: len(heads) - 2]:  # both ways may find the same levels
            error, stderr = found.tried[spec].check, found.tried[spec].stderr
            text = f"{error:.3f} ± {stderr:.3f}"
            cells.append(f"**{text}**" if spec == found.spec else text)
        rows.append(f"| `{name}` | {steps} | {' | '.join(cells)} |")
    return "\n".join(rows)


def curves(path: Path) -> None:
    """Writes strong errors against network calls as JSON, of which benchmarks/figures.py draws solvers.png."""
    series = {}
    for name in DRAWN:
        steps = [4, 6, 9, 13, 20, 30, 45, 68, 100]
        series[name] = [strong_error(build_solver(name), smooth_grid(n)) for n in steps]
        print(f"{name}: slope {slope(series[name][-4:]):.2f}", flush=True)
    path.write_text(json.dumps(series, indent=1) + "\n", encoding="utf-8")


def filled(text: str, name: str, table: str) -> str:
    """The text with what stands between two markers replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    if not re.search(pattern, text, re.DOTALL):
        sys.exit(f"no place for {name} in the page")
    return re.sub(pattern, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text, count=1, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "fill DIR/solvers.md and DIR/frontier.md, write DIR/solvers.json"
    parser.add_argument("--write", metavar="DIR", help=what)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pages = {
        "solvers.md": {"orders": orders(), "errors": errors()},
        "frontier.md": {"tuned": tuned()},
    }
    for tables in pages.values():
        for table in tables.values():
            print(table, end="\n\n", flush=True)
    if args.write:
        for name, tables in pages.items():
            page = Path(args.write) / name
            text = page.read_text(encoding="utf-8")
            for place, table in tables.items():
                text = filled(text, place, table)
            page.write_text(text, encoding="utf-8")
        curves(Path(args.write) / "solvers.json")
        print("now: python benchmarks/figures.py draw solvers.png")


if __name__ == "__main__":
    main()
