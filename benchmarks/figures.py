"""Every figure of the README and the docs: what it is drawn from, by which command, and whether it is current.

    python benchmarks/figures.py                      # lists figures that do not agree with their sources
    python benchmarks/figures.py draw sweep.png       # draws a figure from its records, and notes the hashes
    python benchmarks/figures.py note quickstart.png  # notes the hashes after its own command has made it

docs/figures.json names the command and the sources of every figure, with the SHA-256 of both as they were when the
figure was made. A test (tests/benchmarks/test_figures.py) fails if a figure is not listed, or if a source or figure has
changed. Charts are drawn from records in docs/. Pictures of samples have the weights that ship with the package as
their source. An entry without sources gives the reason why there are none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TABLE = DOCS / "figures.json"


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    if path.is_dir():
        text = "".join(f"{file.name} {hash_of(file)}\n" for file in sorted(path.iterdir()) if file.is_file())
        return hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table() -> dict[str, Any]:
    """The figures by name."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def faults() -> list[str]:
    """What is wrong, a line each: figures that are not there, and hashes that differ from those noted."""
    found = []
    for name, entry in table().items():
        again = f"draw it again: {entry['command']}"
        path = DOCS / name
        if not path.is_file():
            found.append(f"docs/{name} is missing; {again}")
        elif hash_of(path) != entry["sha256"]:
            found.append(f"docs/{name} is not the figure that was noted; {again}")
        for source, known in entry["sources"].items():
            if not (ROOT / source).exists():
                found.append(f"docs/{name}: its source {source} is missing")
            elif hash_of(ROOT / source) != known:
                found.append(f"docs/{name} is older than its source {source}; {again}")
    return found


def note(name: str) -> None:
    """Notes the hashes of a figure and its sources as they are now."""
    entries = table()
    entry = entries[name]
    entry["sources"] = {source: hash_of(ROOT / source) for source in entry["sources"]}
    entry["sha256"] = hash_of(DOCS / name)
    TABLE.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def growth(path: Path) -> None:
    """A chart of docs/benchmarks-growth.json."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from growth import plots

    records = json.loads((DOCS / "benchmarks-growth.json").read_text(encoding="utf-8"))
    for axis, of in records.items():
        if path.name in of.get("pictures", {}).values():
            plots(DOCS / "benchmarks-growth", axis, of)


def solvers(path: Path) -> None:
    """The errors of docs/solvers.json against network calls."""
    from undiffuse.pictures import Panel, draw_plot, save_png

    lines = json.loads((DOCS / "solvers.json").read_text(encoding="utf-8"))
    panel = Panel(
        lines=lines, title="Solvers of the probability flow", x_label="network calls",
        y_label="mean distance from the exact flow", log_x=True, log_y=True,
    )  # fmt: skip
    save_png(path, draw_plot(panel), {"command": "figures"}, overwrite=True)


def frontier(path: Path) -> None:
    """The frontier that ships with the model, as `undiffuse sweep` draws it."""
    from undiffuse.evaluation import FrontierSweep
    from undiffuse.frontiers import Frontier
    from undiffuse.pictures import draw_plot, save_png

    known = Frontier.load(ROOT / "src/undiffuse/assets/fashion-mnist-32.frontier.json")
    records = json.loads((DOCS / "sweep.json").read_text(encoding="utf-8"))
    settings = {"model": "fashion-mnist-32", "count": records["count"]}
    panel = FrontierSweep(frontier=known, reports=(), floor=None, settings=settings).panel()
    real = records["metrics"]["FD-fashion"]["real images"][0]
    object.__setattr__(panel, "hlines", {**panel.hlines, "real images": real})
    save_png(path, draw_plot(panel), {"command": "figures"}, overwrite=True)


def sweep(path: Path) -> None:
    """The metrics of a table beside the figure over the scale of guidance, as `undiffuse sweep` draws them."""
    from undiffuse.pictures import Panel, draw_plot, save_png

    records = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    scales, metrics = records["scales"], records["metrics"]
    groups = [["FD-fashion"], ["IS-fashion"], ["KD-fashion"], ["accuracy (fashion)"], ["FD-efflite"], ["IS-efflite"]]
    groups += [["KD-efflite"], ["precision", "recall"], ["density", "coverage"]]
    groups += [["precision (efflite)", "recall (efflite)"], ["density (efflite)", "coverage (efflite)"]]
    judge = "emoji-judge"
    groups += [[f"FD-{judge}"], [f"IS-{judge}"], [f"KD-{judge}"], [f"accuracy ({judge})"]]
    groups = [names for names in groups if set(names) <= set(metrics)]
    panels = []
    for names in groups:
        label = {name: f"{name} of real images" if len(names) > 1 else "real images" for name in names}
        panels.append(
            Panel(
                lines={n: [(s, v) for s, (v, _) in zip(scales, metrics[n]["samples"], strict=True)] for n in names},
                errors={name: [error for _, error in metrics[name]["samples"]] for name in names},
                hlines={label[name]: metrics[name]["real images"][0] for name in names},
                title=" and ".join(names), x_label="guidance scale", y_label=", ".join(names),
            )
        )  # fmt: skip
    pairs = list(zip(metrics["recall"]["samples"], metrics["precision"]["samples"], strict=True))
    panels.append(
        Panel(
            lines={"guidance scale": [(a[0], b[0]) for a, b in pairs]},
            errors={"guidance scale": [b[1] for _, b in pairs]},
            notes={"guidance scale": [f"{scale:g}" for scale in scales]},
            title="fidelity against diversity", x_label="recall", y_label="precision",
        )
    )  # fmt: skip
    title = f"{records.get('model', 'fashion-mnist-32')}: {records['count']:,} samples at each strength of guidance"
    save_png(path, draw_plot(panels, title), {"command": "figures"}, overwrite=True)


def claims(path: Path) -> None:
    """The figures of docs/claims.md, with the page."""
    from undiffuse.reproduce.page import write_page
    from undiffuse.reproduce.store import SHIPPED, read_records

    write_page(DOCS / "claims.md", read_records(SHIPPED))


def of_page(path: Path) -> None:
    """A figure that the Python blocks of a page save: runs them in docs/ up to the one that names the figure."""
    for page in sorted(DOCS.glob("*.md")):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        wanted = next((i for i, block in enumerate(blocks) if f'"{path.name}"' in block), None)
        if wanted is not None:
            os.chdir(DOCS)
            scope: dict[str, Any] = {}
            for block in blocks[: wanted + 1]:
                exec(compile(block, str(page), "exec"), scope)
            return
    raise SystemExit(f"no page has code that saves {path.name}")


CHARTS: dict[str, Callable[[Path], None]] = {
    "solvers.png": solvers,
    "frontier.png": frontier,
    "sweep.png": sweep,
    "emoji-sweep.png": sweep,
    "claims.png": claims,
    "claims-curves.png": claims,
    "emoji-guidance.png": of_page,
    "emoji-edited.png": of_page,
    "guidance-scales.png": of_page,
    "guidance-interval.png": of_page,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["check", "draw", "note"], default="check")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="names in docs/figures.json")
    args = parser.parse_args()
    for name in args.figures:
        if name not in table():
            parser.error(f"docs/figures.json has no figure {name}")
        if args.action == "draw":
            draw = growth if name.startswith("benchmarks-growth-") else CHARTS.get(name)
            if draw is None:
                parser.error(f"{name} shows samples; its command is: {table()[name]['command']}")
            draw(DOCS / name)
        if args.action != "check":
            note(name)
    found = faults()
    print("\n".join(found) or "every figure agrees with its sources")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
