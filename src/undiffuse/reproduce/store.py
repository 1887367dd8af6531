"""Where results are kept: a record for each claim and tier, and measurements that several claims share."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from undiffuse.util.files import atomic_file
from undiffuse.util.records import read_json

SHIPPED = Path(__file__).parent / "records"
"""The records of this project's own runs, from which docs/claims.md is made."""
Key = tuple[str, str]
"""A claim's id and a tier."""


def read_records(*folders: str | Path) -> dict[Key, dict[str, Any]]:
    """Returns records by claim and tier; later folders replace earlier ones.

    Args:
        *folders: Folders with files "C01-oracle.json"; folders that do not exist have no records.
    """
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("C*-*.json")):
            claim, _, tier = path.stem.partition("-")
            found[claim, tier] = read_json(path.read_text(encoding="utf-8"), str(path))
    return found


class Records:
    """The folder of a reproduction: `records/`, `measured/` and `trained/`. Every file is written whole.

    Args:
        folder: The folder, which is made when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.folder / "records"

    def record(self, claim: str, tier: str, digest: str) -> dict[str, Any]:
        """Returns the record of a claim, or an empty one if there is none or it is of another recipe."""
        path = self.records / f"{claim}-{tier}.json"
        if path.is_file():
            record = read_json(path.read_text(encoding="utf-8"), str(path))
            if record.get("recipe") == digest:
                return record
        return {"claim": claim, "tier": tier, "recipe": digest, "seeds": {}}

    def add(self, claim: str, tier: str, digest: str, seed: int, row: Mapping[str, Any]) -> None:
        """Adds the result of a seed to a record.

        Args:
            claim: Id of the claim.
            tier: Tier of the recipe.
            digest: Digest of the recipe that was run.
            seed: The seed.
            row: "effects" by name, "numbers" and "seconds".
        """
        record = self.record(claim, tier, digest)
        record["seeds"][str(seed)] = rounded(dict(row))
        record["seeds"] = dict(sorted(record["seeds"].items(), key=lambda item: int(item[0])))
        self._write(self.records / f"{claim}-{tier}.json", record)

    def measured(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Returns a measurement, which is made once for the same name and settings.

        Args:
            name: Name of the measurement, part of its file's name.
            settings: Everything that decides the result.
            measure: Makes it; the result must be JSON.
        """
        text = json.dumps(settings, sort_keys=True)
        path = self.folder / "measured" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            return read_json(path.read_text(encoding="utf-8"), str(path))["result"]
        result = rounded(measure())
        self._write(path, {"settings": settings, "result": result})
        return result

    def _write(self, path: Path, value: Any) -> None:
        with atomic_file(path, overwrite=True) as file:
            file.write((json.dumps(value, indent=1) + "\n").encode())


def rounded(value: Any) -> Any:
    """Returns a JSON value with its numbers rounded to seven digits; what is not finite becomes None."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): rounded(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return value
