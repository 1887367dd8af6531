"""From the events of a profile to named parts, each with the reason why it takes time.

An event's own time (without that of events inside it) belongs to a part by the scope around it (see
`profiling.scopes`), by the node of the backward pass around it, or by its name. What no rule knows is a part of its
own, called "unexplained".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LARGEST = 0.03  # share of a step that may go unexplained
UNEXPLAINED = "unexplained: "
PYTHON = "Python: "

FORWARD = (
    (r"[cC]onv", "convolutions, forward"),
    (r"addmm|::mm\b|linear|matmul|baddbmm", "linear layers, forward"),
    (r"::cat\b", "skips joined, forward"),
    (r"group_norm|silu|sigmoid", "norm blocks, forward"),
    (r"upsample|avg_pool", "resampling, forward"),
    (r"copy|::to\b|clone|contiguous|empty|as_strided|resize|zeros|fill|detach", "copies and casts, forward"),
    (r"::add|::mul\b|::sub\b", "sums, forward"),
    (r"sin|cos|exp|arange|embedding|index_select|::t\b", "embedding, forward"),
    (
        r"view|reshape|permute|transpose|chunk|split|slice|select|expand|flatten|narrow|alias|size|item|is_",
        "views, forward",
    ),
)
BACKWARD = (
    (r"Conv", "convolutions, backward"),
    (r"NormAct|GroupNorm|Silu", "norm blocks, backward"),
    (r"[Bb]mm|Softmax|ScaledDotProduct", "attention products, backward"),
    (r"Addmm|^Mm|Linear|TBackward", "linear layers, backward"),
    (r"AccumulateGrad", "gradients kept, backward"),
    (r"Cat|Slice|Split|Narrow|Chunk|Index|Select", "skips and parts put together, backward"),
    (r"Upsample|AvgPool", "resampling, backward"),
    (r"Copy|Clone|Contiguous", "copies and casts, backward"),
    (r"View|Permute|Transpose|Expand|Unsqueeze|Reshape|Alias|Squeeze|Unflatten", "views, backward"),
    (r"Embedding", "embedding, backward"),
    (r"Add|Mul|Sub|Div|Neg|Pow|Exp|Log|Mean|Sum|Where|Abs|Sqrt|Erf|Masked|Clamp", "sums and the loss, backward"),
)
REASONS = {
    "convolutions, forward": "nearly all of the network's arithmetic",
    "convolutions, backward": "twice the arithmetic of the forward pass: for inputs and for weights",
    "norm blocks, forward": "each reads its activation twice (moments, result) and writes it: bound by memory",
    "norm blocks, backward": "each reads activation and gradient twice and writes a gradient: bound by memory",
    "attention products, forward": "queries with keys and weights with values; grows with the square of the tokens",
    "attention products, backward": "the same products for three gradients, and the softmax's",
    "linear layers, forward": "qkv and output of attention, and the projections of the embedding",
    "linear layers, backward": "two products for each of those of the forward pass",
    "skips joined, forward": "encoder outputs are copied beside the decoder's: bound by memory",
    "skips and parts put together, backward": "gradients of joined tensors are cut apart or put together: memory",
    "sums, forward": "residual sums that no convolution took along: bound by memory",
    "sums and the loss, backward": "gradients that meet at a skip are added; the loss's own formulas: bound by memory",
    "gradients kept, backward": "each parameter's gradient is stored",
    "resampling, forward": "2x2 means and repeated pixels, in the blocks that resample",
    "resampling, backward": "the same for gradients",
    "copies and casts, forward": "weights and activations cast to 16 bits or laid out for the processor",
    "copies and casts, backward": "gradients cast back to the precision of what they belong to",
    "optimiser": "AdamW reads weights, gradients and two moments and writes three: bound by memory",
    "average": "reads weights and averages and writes averages: bound by memory",
    "gradient norm": "reads all gradients, for the check that they are finite",
    "noise": "Philox and Box-Muller in integer arithmetic: a function of seed, image and step",
    "data": "images from memory, flipped, put into a batch",
    "inputs": "timesteps drawn, bytes to floats",
    "objective": "diffusing the images, loss and variational bound",
    "statistics": "losses by noise level, for the log",
    "sampler": "prediction, clipping, the step of DDIM: a few passes over an image",
    "embedding, forward": "sines, cosines and the class table",
    "embedding, backward": "the class table's gradient",
    "views, forward": "no data is moved: the calls themselves",
    "views, backward": "no data is moved: the calls themselves",
}
_SCOPED = frozenset(
    ("optimiser", "average", "gradient norm", "noise", "data", "inputs", "objective", "statistics", "sampler")
)
_INNER = {
    "norm blocks": "norm blocks, forward",
    "attention": "attention products, forward",
    "convolutions": "convolutions, forward",
}
_NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Part:
    """`seconds` a step, `share` of it, the reason; `nfe` a step, the operations that cost the most with ms."""

    name: str
    seconds: float
    share: float
    calls: float
    most: tuple[str, ...]

    @property
    def reason(self) -> str:
        if self.name.startswith(PYTHON):
            return (
                "the interpreter, module calls and dispatch between operations, and the profiler's own records of them"
            )
        return REASONS.get(self.name, "")

    @property
    def unexplained(self) -> bool:
        """Whether it is more than may go without a reason."""
        return self.share > LARGEST and not self.reason


def part_of(event: Any) -> str:
    """The part of one event."""
    from profiling.scopes import PREFIX

    names = [event.name]
    above = event.cpu_parent
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    scope = next((n.removeprefix(PREFIX) for n in names if n.startswith(PREFIX)), "step")
    if event.name.startswith(PREFIX):  # its own time is what is between the operations
        return _INNER.get(scope, scope if scope in _SCOPED and scope != "objective" else PYTHON + scope)
    if scope in _SCOPED:
        return scope
    if scope in _INNER:
        return _INNER[scope]
    if scope == "backward":
        node = next((n.removeprefix(_NODE) for n in reversed(names) if n.startswith(_NODE)), "")
        if not node:  # between the nodes
            return (
                _by_rule(event.name, FORWARD).replace("forward", "backward") if "::" in event.name else PYTHON + scope
            )
        return _by_rule(node, BACKWARD, f"{node} in the backward pass")
    return _by_rule(event.name, FORWARD)


def _by_rule(name: str, rules: Iterable[tuple[str, str]], called: str = "") -> str:
    known = next((part for pattern, part in rules if re.search(pattern, name)), None)
    return known or UNEXPLAINED + (called or name)


def parts(events: Iterable[Any], steps: int) -> list[Part]:
    """All parts of `steps` steps, the largest first."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    inside: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        own = event.self_cpu_time_total / 1e6 / steps
        part = part_of(event)
        seconds[part] += own
        calls[part] += 1
        inside[part][event.name.removeprefix(_NODE)] += own
    whole = sum(seconds.values())
    found = []
    for name, own in sorted(seconds.items(), key=lambda item: -item[1]):
        most = sorted(inside[name].items(), key=lambda item: -item[1])[:3]
        named = tuple(f"{operation} {1000 * time:.1f}" for operation, time in most if time > 0.05 * own)
        found.append(Part(name, own, own / whole, calls[name] / steps, named))
    return found
