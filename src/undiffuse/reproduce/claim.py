"""A published claim and the recipe that tests it, written down before it is run. Imports nothing heavy."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import tokenize
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TIERS = ("arithmetic", "oracle", "cpu", "gpu")
MARKS = {
    "V": "read in the paper",
    "R": "read in the authors' repository",
    "S": "read in secondary notes that transcribe the paper",
    "M": "from memory, not confirmed",
}
EXPECTATIONS = ("greater", "equal")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One prediction of a claim about one measured effect.

    Attributes:
        effect: Name of the effect that the method returns. Its sign is chosen so that the claim predicts a positive
            effect, or none for "equal".
        says: What is predicted, as a sentence.
        smallest: Smallest effect worth claiming, in `unit`; for "equal" the largest one that still counts as equal.
        unit: Unit of the effect, for example "bits/dim" or "log ratio".
        expects: "greater" (the effect is positive) or "equal" (there is none).
    """

    effect: str
    says: str
    smallest: float
    unit: str
    expects: str = "greater"

    def __post_init__(self) -> None:
        if self.expects not in EXPECTATIONS:
            raise ValueError(f"expects must be one of {', '.join(EXPECTATIONS)}; got {self.expects!r}")
        if not self.smallest > 0:
            raise ValueError(f"smallest must be positive, got {self.smallest}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a claim is tested: everything that is decided before the test is run.

    Attributes:
        tier: "arithmetic" (schedules only), "oracle" (exact scores of Gaussian mixtures), "cpu" or "gpu".
        method: Where the function that measures is, "module:function" in `undiffuse.reproduce.methods`.
        parts: The predictions. The claim is reproduced if all of them are.
        seeds: Seeds of the repetitions. With one seed the result is deterministic and has no interval.
        minutes: Budget in minutes of one thread (of one GPU for the tier "gpu"), all seeds together.
        settings: What the method is given besides the seed; the feature network that judges is one of them.
        arms: Names of the networks that are trained for each seed, see `arms`.
        scale: For trained arms, their length and size, see `arms.SCALES`.
        differs: How the test differs from the published set-up.
        untested: What the claim says beyond what is tested here; empty if nothing.
        revised: What was changed after a first run and why; empty if nothing was.
    """

    tier: str
    method: str
    parts: tuple[Part, ...]
    seeds: tuple[int, ...] = (0,)
    minutes: float = 0.1
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    scale: str = ""
    differs: str = ""
    untested: str = ""
    revised: str = ""

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(TIERS)}; got {self.tier!r}")
        if not self.parts or len({part.effect for part in self.parts}) != len(self.parts):
            raise ValueError("a recipe needs at least one part, and one effect for each")
        if self.arms and len(self.seeds) < 3:
            raise ValueError("a claim about training needs at least three seeds")

    @property
    def digest(self) -> str:
        """Hash of all that decides result and verdict: the fields except prose, the method's code, what is trained."""
        from undiffuse.reproduce.arms import ARMS, SCALES

        fields = asdict(self)
        if self.arms:
            fields["arms"] = {name: asdict(ARMS[name]) | {"says": ""} for name in self.arms}
            fields["scale"] = asdict(SCALES[self.scale]) | {"minutes": 0}
        for name in ("minutes", "differs", "untested", "revised"):
            del fields[name]
        for part in fields["parts"]:
            del part["says"]
        text = json.dumps(fields, sort_keys=True) + method_text(self.method)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the literature.

    Attributes:
        id: "C01", "C02" and so on.
        title: The claim, as a sentence.
        source: The paper.
        published: The published figures.
        mark: How they were verified: letters of `MARKS`.
        recipes: Tests, at most one for each tier.
        untestable: Why there is no test here; empty if there is one.
    """

    id: str
    title: str
    source: str
    published: str
    mark: str
    recipes: tuple[Recipe, ...] = ()
    untestable: str = ""

    def __post_init__(self) -> None:
        if bool(self.recipes) == bool(self.untestable):
            raise ValueError(f"{self.id}: give recipes, or the reason why there are none")
        if len({recipe.tier for recipe in self.recipes}) != len(self.recipes):
            raise ValueError(f"{self.id}: there are two recipes of one tier")
        if not self.mark or set(self.mark) - set(MARKS):
            raise ValueError(f"{self.id}: mark must be letters of {''.join(MARKS)}, got {self.mark!r}")

    def recipe(self, tier: str) -> Recipe | None:
        """Returns the recipe of a tier, or None."""
        return next((recipe for recipe in self.recipes if recipe.tier == tier), None)


@cache
def method_text(method: str) -> str:
    """Returns the code of a method without comments, layout and docstring, so that only changes of meaning count.

    The module is read, not imported. Functions that the method calls are not part of it.

    Args:
        method: "module:function".

    Raises:
        ValueError: There is no such function.
    """
    module, _, name = method.partition(":")
    spec = importlib.util.find_spec(f"undiffuse.reproduce.methods.{module}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise ValueError(f"there is no method {method!r}")
    node = found[0]
    lines = source.splitlines()
    first = node.body[0]
    is_text = ast.get_docstring(node) is not None
    skipped = range(first.lineno, (first.end_lineno or first.lineno) + 1) if is_text else range(0)
    kept = [lines[k - 1] for k in range(node.lineno, (node.end_lineno or node.lineno) + 1) if k not in skipped]
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(kept) + "\n").readline)
    text = [token.string for token in tokens if token.type not in layout]
    after = [*text[1:], ""]
    return "".join(now for now, then in zip(text, after, strict=True) if now != "," or then not in (")", "]", "}"))
