"""The documentation's page and figures of the ledger, made from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.reproduce.claim import MARKS
from undiffuse.reproduce.ledger import CLAIMS
from undiffuse.reproduce.store import Key
from undiffuse.reproduce.text import counts, effect_text, outcome_row
from undiffuse.reproduce.verdict import NULL, OPEN, REFUTED, REPRODUCED, UNTESTABLE, Verdict, overall
from undiffuse.util.tables import markdown
from undiffuse.util.text import shorten

if TYPE_CHECKING:
    from undiffuse.pictures import Panel

CURVES = {
    "C01": ("length of the chain", "nats"),
    "C05": ("steps", "Wasserstein-1"),
    "C17": ("start of the reverse chain, share of its length", "Wasserstein-1"),
    "C22": ("steps", "FD"),
    "C34": ("steps", "mean square error"),
    "C48": ("scale of guidance", "metric"),
    "C69": ("length of the step", "distance in deviations"),
    "C78": ("network calls", "mean distance"),
}
"""Claims whose curves are drawn if they have a record, with the names of the axes."""
MOST = 10.0  # multiples of the smallest effect, beyond which the figure cuts
_HEAD = """\
# The claims of the papers

Diffusion models rest on published claims. This page says which of them this library reproduces. It is made by

    undiffuse reproduce --page docs/claims.md

from the records in `src/undiffuse/reproduce/records`; nothing on it is typed by hand, and a test fails if page and
records disagree. `undiffuse reproduce --list` prints the same ledger, `undiffuse reproduce C17` runs one claim,
`undiffuse reproduce --tier oracle` all of a tier, and `--plan` shows what a run will take.

- Every recipe (what is predicted, the smallest effect worth claiming, seeds, budget) was committed before it was
  run. A record names the hash of its recipe; if the recipe or its method changes, the verdict is "not run" until it
  is run again.
- An effect is signed so that the claim predicts a positive one, or none where it says that two things are equal.
  The interval is Student's 95 % interval over the seeds. *Reproduced*: the interval excludes 0 and the mean reaches
  the smallest effect worth claiming. *Refuted*: the same on the other side. *Null*: anything else.
- A claim with several parts is reproduced if all parts are. The verdict is about the claim's direction at this
  scale, never about its published size.
- Tiers: *arithmetic* needs schedules only; *oracle* has exact scores of Gaussian mixtures in place of a network;
  *cpu* is Fashion-MNIST with the shipped model or with small networks that are trained for minutes; *gpu* is the
  same with larger networks, in pieces of ten minutes (`undiffuse reproduce --tier gpu --plan`).
- Distances (FD), precision, recall and accuracy are by the features of a classifier of clean images, which has guided
  nothing; each entry names the hash of its weights (the one that ships now may be a later one). With 100 to 200 samples
  they are coarse; arms share data, noise and seeds, and only differences count.
- "In part" means that the claim says more than what is tested; its entry names what is left open.
- Pilot runs with another seed served to find mistakes in the code of the oracle recipes before they were
  registered.
"""


def page(records: Mapping[Key, Mapping[str, Any]], figures: Sequence[str] = ()) -> str:
    """Returns the page in Markdown.

    Args:
        records: Records by claim and tier.
        figures: Names of the figures' files.
    """
    verdicts = [overall(claim, records) for claim in CLAIMS]
    marks = "; ".join(f"[{mark}] {text}" for mark, text in MARKS.items())
    parts = [_HEAD, f"**{counts(verdicts)}**\n"]
    parts += [f"![{_says(name)}]({name})\n" for name in figures]
    parts.append(f"Marks of the published figures: {marks}.\n\n## All claims\n")
    heads = ("claim", "what is claimed", "published", "effect here", "tier", "verdict")
    parts.append(_table(heads, [outcome_row(verdict) for verdict in verdicts]))
    for title, wanted in (
        ("Reproduced", REPRODUCED), ("Refuted", REFUTED), ("Null", NULL), ("Untestable here", UNTESTABLE),
        ("Not run yet", OPEN),
    ):  # fmt: skip
        chosen = [verdict for verdict in verdicts if verdict.verdict == wanted]
        if chosen:
            parts.append(f"\n## {title}\n")
            parts += [_entry(verdict, records) for verdict in chosen]
    return "\n".join(parts).rstrip() + "\n"


def _says(name: str) -> str:
    return "Curves of some claims" if "curves" in name else "Effects over the smallest effect worth claiming"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = markdown(heads, rows)
    first, _, rest = text.partition("\n")
    _, _, body = rest.partition("\n")
    return f"{first}\n|{'---|' * len(heads)}\n{body}"


def _entry(verdict: Verdict, records: Mapping[Key, Mapping[str, Any]]) -> str:
    claim, recipe = verdict.claim, verdict.recipe
    lines = [f"**{claim.id}. {claim.title}** {claim.source}. Published: {claim.published} [{claim.mark}]."]
    if recipe is None:
        return f"{lines[0]} Not testable here: {verdict.reason}.\n"
    if verdict.verdict == OPEN:
        return f"{lines[0]} `undiffuse reproduce {claim.id} --tier {recipe.tier}`: {verdict.reason}.\n"
    record = records[claim.id, recipe.tier]
    seconds = sum(row.get("seconds", 0.0) for row in record["seeds"].values())
    setting = f" {recipe.differs[0].upper()}{recipe.differs[1:]}." if recipe.differs else ""
    judges = sorted({row["judge"] for row in record["seeds"].values() if "judge" in row})
    by = f", judge {', '.join(judges)}" if judges else ""
    seeds = f"seeds {', '.join(record['seeds'])}" if len(record["seeds"]) > 1 else "deterministic"
    lines.append(f"`undiffuse reproduce {claim.id} --tier {recipe.tier}` ({seeds}, {seconds:.0f} s, recipe "
                 f"{recipe.digest}{by}).{setting}")  # fmt: skip
    lines += [f"Not tested: {recipe.untested}."] if recipe.untested else []
    lines += [f"Revised: {recipe.revised}."] if recipe.revised else []
    lines.append("")
    for found in verdict.parts:
        least = f"at {'most' if found.part.expects == 'equal' else 'least'} {found.part.smallest:g}"
        lines.append(
            f"- {found.part.says} {effect_text(found)} (worth claiming: {least}): **{found.verdict}**, {found.reason}."
        )
    series = record["seeds"][next(iter(record["seeds"]))].get("numbers", {})
    shown = [f"{name}: {_short(value)}" for name, value in series.items() if name != "series"]
    if shown:
        lines.append(f"\nMeasured with the first seed: {'; '.join(shown)}.")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_short(inner) for inner in value)
    return str(value)


def forest(records: Mapping[Key, Mapping[str, Any]]) -> list[Panel]:
    """Returns panels with the effect of each part over the smallest effect worth claiming, with intervals."""
    from undiffuse.pictures import Panel

    panels = []
    for expects, title in (
        ("greater", f"Predicted effects (beyond 1: worth claiming; below 0: the opposite; cut at {MOST:g})"),
        ("equal", f"Predicted equalities (within -1 to 1: equal; cut at {MOST:g})"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        errors: dict[str, list[tuple[float, float]]] = {}
        for claim in CLAIMS:
            found = [p for p in overall(claim, records).parts if p.part.expects == expects and p.interval is not None]
            for k, part in enumerate(found):
                assert part.interval is not None
                ends = (part.interval.low, part.interval.mean, part.interval.high)
                low, middle, high = (max(-MOST, min(MOST, value / part.part.smallest)) for value in ends)
                lines.setdefault(part.verdict, []).append((int(claim.id[1:]) + 0.18 * k, middle))
                errors.setdefault(part.verdict, []).append((middle - low, high - middle))
        if lines:
            # A line of its own for each point would be drawn as a line: separate points by gaps.
            spaced = {
                name: [p for point in points for p in (point, (float("nan"), 0.0))] for name, points in lines.items()
            }
            bars = {name: [v for value in values for v in (value, (0.0, 0.0))] for name, values in errors.items()}
            marks = (
                {"no effect": 0.0, "smallest effect worth claiming": 1.0}
                if expects == "greater"
                else {"lower limit of equality": -1.0, "upper limit of equality": 1.0}
            )
            panels.append(
                Panel(lines=spaced, errors=bars, title=title, x_label="number of the claim",
                      y_label="effect / smallest effect", hlines=marks)
            )  # fmt: skip
    return panels


def curves(records: Mapping[Key, Mapping[str, Any]]) -> list[Panel]:
    """Returns panels with the measured curves of `CURVES`, means over the seeds."""
    from undiffuse.pictures import Panel

    panels = []
    for claim in CLAIMS:
        verdict = overall(claim, records)
        record = None if verdict.recipe is None else records.get((claim.id, verdict.recipe.tier))
        if claim.id not in CURVES or record is None:
            continue
        rows = [row["numbers"].get("series", {}) for row in record["seeds"].values()]
        lines = {
            name: [(x, sum(row[name][i][1] for row in rows) / len(rows)) for i, (x, _) in enumerate(points)]
            for name, points in rows[0].items()
        }
        if lines:
            positive = all(y > 0 for points in lines.values() for _, y in points)
            wide = all(x > 0 for points in lines.values() for x, _ in points)
            x_label, y_label = CURVES[claim.id]
            title = shorten(f"{claim.id}: {claim.title}", 72)
            panels.append(Panel(lines=lines, title=title, x_label=x_label, y_label=y_label, log_x=wide, log_y=positive))
    return panels


def write_page(path: str | Path, records: Mapping[Key, Mapping[str, Any]]) -> list[Path]:
    """Writes the page and its figures, NAME.png and NAME-curves.png, and returns the files.

    Args:
        path: The page, NAME.md.
        records: Records by claim and tier.

    Raises:
        PlottingUnavailable: matplotlib is not installed.
    """
    from undiffuse.pictures import draw_plot, save_png
    from undiffuse.util.files import atomic_file

    path = Path(path)
    written, names = [], []
    for name, panels in ((path.stem, forest(records)), (f"{path.stem}-curves", curves(records))):
        if panels:
            file = path.with_name(f"{name}.png")
            columns = 1 if name == path.stem else 2
            save_png(file, draw_plot(panels, columns=columns), {"command": "reproduce"}, overwrite=True)
            written.append(file)
            names.append(file.name)
    with atomic_file(path, overwrite=True) as out:
        out.write(page(records, names).encode())
    return [path, *written]
