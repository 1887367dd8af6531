"""Describes a sampling step around an exported graph, as lines of Python for the JSON next to it.

of_chain(process)         from step k to step j < k of a chain, with `abar`
of_continuous(process)    from noise s to noise r < s, with x = image + s * noise
"""

from __future__ import annotations

from undiffuse.denoiser import ProcessConfig

# k is the current step, j < k the next one, -1 the clean image; out and v come from "split".
_X0 = {
    "eps": "(x - sqrt(1 - abar[k]) * out) / sqrt(abar[k])",
    "score": "(x + sqrt(1 - abar[k]) * out) / sqrt(abar[k])",
    "x0": "out",
    "v": "sqrt(abar[k]) * x - sqrt(1 - abar[k]) * out",
    "velocity": "(x - sqrt(1 - abar[k]) * out) / (sqrt(abar[k]) + sqrt(1 - abar[k]))",
    "edm": (
        "(d**2 * sqrt(abar[k]) * x + d * sqrt(1 - abar[k]) * sqrt(1 - abar[k] + d**2 * abar[k]) * out)"
        " / (1 - abar[k] + d**2 * abar[k])"
    ),
    "previous_mean": (
        "((1 - abar[k]) * out - sqrt(abar[k] / abar[k - 1]) * (1 - abar[k - 1]) * x)"
        " / (sqrt(abar[k - 1]) * (1 - abar[k] / abar[k - 1]))"
    ),
}
_MEAN = "sqrt(abar[j]) * beta / (1 - abar[k]) * x0 + sqrt(abar[k] / abar[j]) * (1 - abar[j]) / (1 - abar[k]) * x"
_LOG_VARIANCE = {
    "learned_range": "(1 + v) / 2 * log(beta) + (1 - v) / 2 * log(small)",
    "learned": "v",
    "fixed_large": "log(beta)",
    "fixed_small": "log(small)",
}
# s is the noise in x = image + s * noise, r < s the next one, 0 for the clean image.
_CONTINUOUS_X0 = {
    "eps": "x - s * out",
    "score": "x + s * out",
    "x0": "out",
    "v": "x / (1 + s**2) - s / sqrt(1 + s**2) * out",
    "velocity": "(x - s * out) / (1 + s)",
    "edm": "(d**2 * x + s * d * sqrt(s**2 + d**2) * out) / (s**2 + d**2)",
    "consistency": "d**2 / ((s - low)**2 + d**2) * x + d * (s - low) / sqrt(s**2 + d**2) * out",
}


def of_chain(process: ProcessConfig) -> dict[str, str]:
    """Returns lines of Python that go from step k to step j < k, where abar[-1] = 1 is the clean image."""
    mean = f"out if j == k - 1 else {_MEAN}" if process.target == "previous_mean" else _MEAN
    split = "out, v = the first and the second half of output's channels" if process.learns_variance else "out = output"
    adjacent = ", for j == k - 1 only" if process.variance == "learned" else ""
    x0 = (
        _X0[process.target].replace("d**2", f"{process.sigma_data**2:.12g}").replace("d *", f"{process.sigma_data:g} *")
    )
    return {
        "begin": f"x = normal numbers, k = {process.steps - 1}; j = any lower step, in the end -1",
        "split": split,
        "x0": f"x0 = clip({x0}, -1, 1)",
        "ddim": "x = sqrt(abar[j]) * x0 + sqrt(1 - abar[j]) * (x - sqrt(abar[k]) * x0) / sqrt(1 - abar[k])",
        "or ancestral": f"the following{adjacent}",
        "beta": "beta = 1 - abar[k] / abar[j]",
        "small": "small = beta * (1 - abar[j]) / (1 - abar[k])",
        "mean": f"mean = {mean}",
        "ancestral": f"x = mean + exp(({_LOG_VARIANCE[process.variance]}) / 2) * normal() if j >= 0 else mean",
    }


def of_continuous(process: ProcessConfig) -> dict[str, str]:
    """Returns lines of Python that go from noise s to noise r < s, where x = image + s * noise."""
    seen, time = _inputs(process)
    low, high = _ends(process)
    move = "x = x0 + r / s * (x - x0)"
    lines = {
        "begin": f"x = s * normal numbers, s = {high:.9g}; r = any lower noise down to {low:.9g}, in the end 0",
        "constants": f"d = {process.sigma_data:.9g}; low = {process.sigma_min:.9g}",
        "input": f"seen = {seen}; t = {time}",
        "output": "out = the graph's output for the images `seen` and the time t",
        "x0": f"x0 = {_CONTINUOUS_X0[process.target]}",
    }
    if process.target == "consistency":
        return {**lines, "step": "x = x0 + sqrt(max(r**2 - low**2, 0)) * normal() if r else x0"}
    return {**lines, "step": move}


def _inputs(process: ProcessConfig) -> tuple[str, str]:
    """Returns the network's image and time as expressions in x and s."""
    kind = process.preconditioning
    if kind == "edm":
        return "x / sqrt(s**2 + d**2)", f"{process.time_factor:.9g} * log(s)"
    if kind == "flow":
        return "x / (1 + s)", "1000 * s / (1 + s)"
    if kind == "ve":
        return "x", "s / 2"
    low, rise = process.beta_min, process.beta_max - process.beta_min
    wanted = "2 * asinh(s / 2)" if kind == "subvp" else "log(1 + s**2)"
    scale = f"x * exp(-{wanted} / 2)"
    return scale, f"999 * 2 * {wanted} / ({low:.9g} + sqrt({low**2:.12g} + {2 * rise:.12g} * {wanted}))"


def _ends(process: ProcessConfig) -> tuple[float, float]:
    """Returns the lowest and the highest noise; the highest of flow matching, which is infinite, as 1000."""
    chain = process.chain().alphas_cumprod
    low, high = (float(((1 - value) / max(value, 1e-6)) ** 0.5) for value in (chain[0], chain[-1]))
    return low, high
