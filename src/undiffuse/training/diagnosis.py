"""What to say when numbers are not finite: which images, which noise levels, which terms, which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.distributed import DistContext
from undiffuse.distributed.sharding import rows_of
from undiffuse.train_config import TrainConfig
from undiffuse.training.tasks import Inputs

MOST = 8  # names listed in a message


def find_broken_parts(
    net: nn.Module,
    terms: Mapping[str, Tensor],
    inputs: Inputs,
    indices: Tensor,
    source: Any,
    ranks: DistContext,
    bad_in_a_row: int,
) -> dict[str, Any]:
    """The diagnosis of one update, the same in every process (collective), JSON-ready:

    first, last          positions of the whole batch in the stream
    positions, t, files  of the images with a term that is not finite
    terms                names of the terms that are not finite somewhere
    gradients, weights   names of the parameters whose gradient or value is not finite
    bad_in_a_row         updates skipped in a row, this one included
    """
    names = sorted(terms)
    bad = torch.stack([~torch.isfinite(terms[name].detach().cpu()) for name in names])  # [terms, b]
    images = bad.any(dim=0)
    where = torch.stack([inputs.positions[images], inputs.t[images].round().long(), indices[images]], dim=1)
    where = ranks.gather(where.to(ranks.device)).cpu()
    counts = ranks.sum_(bad.sum(dim=1).float().to(ranks.device)).cpu()
    gradients = _broken({n: p.grad for n, p in net.named_parameters() if p.grad is not None}, ranks)
    every = ranks.gather(inputs.positions.to(ranks.device)).cpu()
    return {
        "first": int(every.min()),
        "last": int(every.max()),
        "positions": where[:, 0].tolist(),
        "t": where[:, 1].tolist(),
        "files": [source.name(i) for i in where[:, 2].tolist()],
        "terms": [name for name, count in zip(names, counts.tolist(), strict=True) if count > 0],
        "gradients": gradients,
        "weights": _broken(dict(net.named_parameters()), ranks),
        "bad_in_a_row": bad_in_a_row,
    }


def _broken(tensors: Mapping[str, Tensor], ranks: DistContext) -> list[str]:
    """The names of tensors that are not finite in some process; each may hold only some rows of them."""
    if not tensors:
        return []
    flags = torch.stack([~torch.isfinite(rows_of(t).local).all() for t in tensors.values()])
    flags = ranks.sum_(flags.float().to(ranks.device))
    return [name for name, flag in zip(tensors, flags.tolist(), strict=True) if flag]


def describe(problem: Mapping[str, Any], config: TrainConfig, checkpoint: Path | None, kept: str = "") -> str:
    """The diagnosis in words, with what to do; `kept` says where the state is kept."""
    bad = problem["bad_in_a_row"]
    lines = [
        f"training stopped: {bad} updates in a row had a loss or gradient that is not finite "
        f"(the limit is max_bad_updates={config.max_bad_updates}); none of them was applied."
        if bad > config.max_bad_updates
        else f"nothing was trained: all {bad} updates had a loss or gradient that is not finite, and none was applied.",
        f"last batch: images {problem['first']} to {problem['last']} of the stream",
    ]
    if problem["positions"]:
        pairs = [f"{p} (t={t})" for p, t in zip(problem["positions"], problem["t"], strict=True)]
        lines.append(f"not finite in: {_some(problem['terms'])}; at images {_some(pairs)}")
    else:
        lines.append("all losses were finite, the gradient was not")
    if problem["files"]:
        lines.append(f"files: {_some(problem['files'])}")
    if problem["gradients"]:
        lines.append(f"gradients that are not finite ({len(problem['gradients'])}): {_some(problem['gradients'])}")
    if problem["weights"]:
        lines.append(f"weights that are not finite ({len(problem['weights'])}): {_some(problem['weights'])}")
    lines.append(f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet")
    lines += [kept] if kept else []
    advice = ["lower the learning rate (or warm up longer)", "clip gradients (grad_clip=1.0)"]
    if config.precision == "fp16":
        advice.append("use bf16 or fp32")
    lines.append("what may help: " + ", ".join(advice) + ", look at the images named above")
    return "\n  ".join(lines)


def brief(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The diagnosis for a record: at most eight names of each kind, and how many there are of each."""
    lists = {key: value for key, value in problem.items() if isinstance(value, list)}
    return {**problem, **{k: v[:MOST] for k, v in lists.items()}, "counts": {k: len(v) for k, v in lists.items()}}


def _some(names: list[Any]) -> str:
    shown = ", ".join(str(n) for n in names[:MOST])
    return shown + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
