"""Conditions given to a sampler: numbers, labels, pictures, or a table of them; image i of a run has row i mod n."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.conditions import ModelConditions, NumberCondition, target_key
from undiffuse.models import DiffusionModel
from undiffuse.util.errors import ConfigError

__all__ = ["GivenConditions"]


@dataclass(frozen=True, kw_only=True)
class GivenConditions:
    """The conditions of the images of a run.

    Attributes:
        declared: What the model is conditioned on.
        rows: n, the number of rows.
        numbers: float64 [n, K] in the units of the training data; NaN where one is not given. None without numbers.
        tags: float32 [n, L] of 0 and 1; a row of NaN is not given. None without.
        picture: Returns the prepared picture of a row, see `data.conditions.prepare_partner`; None without.
        picture_names: The name of each row's picture.
        classes: The class of each row, where the conditions tell it.
        names: What the images are called, one name a row; None for names made of seed and index.
        targets: float64 [n, K] for each regressor that guides, in the units of its training data; NaN where a number
            does not guide.
        guides: The numbers of these regressors.
        where: Where the pictures are, for records.
        remarks: What is good to know, a sentence each.
    """

    declared: ModelConditions
    rows: int
    numbers: NDArray[np.float64] | None = None
    tags: NDArray[np.float32] | None = None
    picture: Callable[[int], NDArray[Any]] | None = None
    picture_names: tuple[str, ...] = ()
    classes: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    targets: tuple[NDArray[np.float64], ...] = ()
    guides: tuple[NumberCondition, ...] = ()
    where: str = ""
    remarks: tuple[str, ...] = ()
    _kept: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.rows

    def row(self, index: int) -> int:
        """The row of image number `index`."""
        return index % self.rows

    def tensors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Returns the conditions of some images as the network takes them, on the CPU.

        Args:
            indices: Numbers of B images.

        Returns:
            By keyword: "tags" [B, L], "numbers" [B, K], "cond_image" [B, planes, H, W], those that are given; and
            by `target_key` what each regressor guides towards, [B, K].
        """
        rows = [self.row(i) for i in indices]
        out: dict[str, Tensor] = {}
        if self.tags is not None:
            out["tags"] = torch.from_numpy(self.tags[rows])
        if self.numbers is not None and self.declared.numbers is not None:
            out["numbers"] = self.declared.numbers.normalised(self.numbers[rows])
        if self.picture is not None and self.declared.image is not None:
            pixels = np.stack([self.picture(row) for row in rows])
            out["cond_image"] = self.declared.image.tensor(pixels)
        for k, (numbers, values) in enumerate(zip(self.guides, self.targets, strict=True)):
            out[target_key(k)] = numbers.normalised(values[rows])
        return out

    def entry(self, index: int) -> dict[str, Any]:
        """Returns what the record of image number `index` says of its conditions, enough to make it again."""
        row, out = self.row(index), {}  # type: int, dict[str, Any]
        if self.numbers is not None and self.declared.numbers is not None:
            values = zip(self.declared.numbers.names, self.numbers[row].tolist(), strict=True)
            out["numbers"] = {name: value for name, value in values if not math.isnan(value)}
        for guide, aims in zip(self.guides, self.targets, strict=True):
            aimed = {name: v for name, v in zip(guide.names, aims[row].tolist(), strict=True) if not math.isnan(v)}
            out["numbers"] = {**out.get("numbers", {}), **aimed}
        if self.tags is not None and not np.isnan(self.tags[row]).any():
            out["labels"] = [name for name, has in zip(self.declared.tags, self.tags[row], strict=True) if has]
        if self.picture is not None:
            out["image"] = self.picture_names[row]
            out["image_sha256"] = hashlib.sha256(np.ascontiguousarray(self.picture(row)).tobytes()).hexdigest()[:16]
        return {name: value for name, value in out.items() if value or name == "labels"}

    @property
    def digest(self) -> str:
        """The identity of all rows, for the settings of a run."""
        if "digest" not in self._kept:
            sha = hashlib.sha256()
            for values in (self.numbers, self.tags, *self.targets):
                sha.update(b"none" if values is None else np.ascontiguousarray(values, dtype="<f8").tobytes())
            for row in range(self.rows if self.picture is not None else 0):
                assert self.picture is not None
                sha.update(np.ascontiguousarray(self.picture(row)).tobytes())
            self._kept["digest"] = sha.hexdigest()
        return self._kept["digest"]

    def record(self) -> dict[str, Any]:
        """Returns what the settings of a run say of its conditions."""
        return {"conditions": {"rows": self.rows, "sha256": self.digest}}

    def text(self) -> str:
        """Names the conditions for a caption: "age 30, hat" for one row, "12 conditions" for more."""
        if self.rows > 1:
            return f"{self.rows} conditions"
        entry = self.entry(0)
        parts = [f"{name} {value:g}" for name, value in entry.get("numbers", {}).items()]
        return ", ".join([*parts, *entry.get("labels", []), *([entry["image"]] if "image" in entry else [])])


def checked(
    given: GivenConditions | None, model: DiffusionModel, guides: Sequence[NumberCondition] = ()
) -> GivenConditions | None:
    """Returns the conditions if the model can do with them; conditions that were left out become remarks.

    Args:
        given: The conditions; None without.
        model: The model that is sampled.
        guides: The numbers of the regressors that guide.

    Raises:
        ConfigError: The model needs a condition that is not given, or a regressor has nothing to guide towards
            ("condition").
    """
    declared = model.conditions
    for k, guide in enumerate(guides):
        if given is None or bool(np.isnan(given.targets[k]).all(axis=1).any()):
            names = " or ".join(f"{name}=VALUE" for name in guide.names)
            raise ConfigError("condition", f"is missing: the regressor guides towards numbers, so give {names}")
    if not declared:
        return given
    lacking = []
    if declared.numbers is not None:
        values = None if given is None else given.numbers
        for k, name in enumerate(declared.numbers.names):
            if values is None or bool(np.isnan(values[:, k]).any()):
                lacking.append(f"the number {name!r}")
    if declared.tags and (given is None or given.tags is None or bool(np.isnan(given.tags).any())):
        lacking.append(f"labels (of {', '.join(declared.tags[:6])}{', ...' if len(declared.tags) > 6 else ''})")
    if declared.image is not None and (given is None or given.picture is None):
        lacking.append(f"a picture ({declared.image.kind})")
    if lacking and not model.conditions_dropped:
        raise ConfigError(
            "condition",
            f"is missing: the model needs {', '.join(lacking)}, because it was never trained without (label_dropout=0)",
        )
    if given is None or not lacking:
        return given
    return replace(given, remarks=(*given.remarks, f"not given: {', '.join(lacking)}; the model chooses"))
