"""Doors of results and of what the cache folder keeps: evaluations, references, features, indices, times, grids."""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.containers import inspected
from fuzz.damage import damaged, odd, odd_json
from fuzz.own import Made, Silent

CARD = {"protocol": "p", "distance": "FD", "extractor": "e", "layer": "l", "dimension": 3, "weights_sha256": "0" * 64}


def _altered(data: bytes, honest: bytes) -> Silent:
    return Silent(f"{sum(a != b for a, b in zip(data, honest, strict=False))} other bytes went unnoticed")


class Results:
    """Doors that read results, and the cache, whose files are read without being asked for."""

    folder: Path
    file: Callable[[str, bytes], Path]
    _with_header: Callable[..., bytes]

    def prepare_results(self) -> None:
        from undiffuse.data import index
        from undiffuse.evaluation.cache import FeatureCache
        from undiffuse.evaluation.summary import Summary, write_reference
        from undiffuse.metrics import Card, Statistics

        card = Card(**CARD)  # type: ignore[arg-type]
        features = torch.arange(12.0).reshape(4, 3)
        summary = Summary(
            card=card, statistics=Statistics(torch.zeros(3), torch.eye(3), 4, card), features=features,
            about={"where": "x", "n": 4, "shape": [8, 8, 1], "preparation": "as stored", "sha256": "0" * 64},
        )  # fmt: skip
        self.reference = write_reference(self.folder / "a.reference", [summary]).read_bytes()
        cache = FeatureCache(self.folder / "features")
        cache.put("ab", {"features": features})
        self.features = cache._path("ab").read_bytes()
        index.write(self.folder / "a.npz", {"sizes": np.arange(6), "names": index.joined(["a", "b"])})
        self.index = (self.folder / "a.npz").read_bytes()

    def on_evaluation(self, rng: random.Random) -> Made:
        from undiffuse.evaluation import Report

        estimate = {"name": "FD", "value": 1.5, "stderr": 0.1, "stderr_method": "jackknife", "n": 9, "n_reference": 9,
                    "bias": 0.1, "extra": {"rank": 3.0}, "settings": {"k": 5, "distances": "exact"}, "warnings": ["w"],
                    "card": CARD}  # fmt: skip
        side = {"where": "a", "n": 9, "shape": [8, 8, 1], "record": {"solver": "ddim", "steps": "10"}}
        honest = {"format": 1, "kind": "evaluation", "name": "x", "samples": side, "reference": side,
                  "metrics": [estimate], "skipped": {"a: b": "why"}, "environment": {"torch": "2"},
                  "seconds": {"all": 1.0}}  # fmt: skip
        data = odd_json(rng, honest, 0.1)
        path = self.file("evaluated.json", data)
        door: Callable[[Path], Any] = rng.choice([inspected, lambda file: repr(Report.load(file))])
        return data, lambda: door(path)

    def on_reference(self, rng: random.Random) -> Made:
        from undiffuse.evaluation import read_reference
        from undiffuse.util.hashing import tensors_hash

        data = damaged(rng, self.reference)
        if rng.random() < 0.6:
            data = self._with_header(
                lambda header: {**header, "__metadata__": {"undiffuse": odd_json(rng, json.loads(
                    header["__metadata__"]["undiffuse"]), 0).decode()}}, self.reference)  # fmt: skip
        path = self.file("b.reference", data)

        def call() -> None:
            if rng.random() < 0.3:
                inspected(path)
            (summary,) = read_reference(path)
            if summary.statistics is None or summary.features is None or tensors_hash(
                {"features": summary.features}) != tensors_hash({"features": torch.arange(12.0).reshape(4, 3)}
            ) or summary.statistics.n != 4 or summary.card.to_dict() != {**summary.card.to_dict(), **CARD}:  # fmt: skip
                raise _altered(data, self.reference)

        return data, call

    def on_cached(self, rng: random.Random) -> Made:
        """Features, indices, times and tuned grids in the cache folder: what is damaged is made again."""
        from undiffuse.data import index
        from undiffuse.evaluation.cache import FeatureCache
        from undiffuse.kernels.timing_table import TimingTable
        from undiffuse.tuning import cache as tuned

        kind = rng.choice(["features", "index", "times", "tuned"])
        if kind == "features":
            data = damaged(rng, self.features)
            if rng.random() < 0.5:
                data = self._with_header(lambda header: odd(rng, header), self.features)
            self.file("features/ab/ab.safetensors", data)

            def call() -> None:
                found = FeatureCache(self.folder / "features").get("ab")
                if found is not None and not torch.equal(found["features"], torch.arange(12.0).reshape(4, 3)):
                    raise _altered(data, self.features)

            return data, call
        if kind == "index":
            data = damaged(rng, self.index)
            path = self.file("cached.npz", data)

            def look() -> None:
                found = index.read(path)
                if found is not None and "sizes" in found and not np.array_equal(found["sizes"], np.arange(6)):
                    raise _altered(data, self.index)

            return data, look
        if kind == "times":
            entry = {"way": "packed", "seconds": {"packed": 0.1, "torch": 0.2}}
            data = odd_json(rng, {"machine": {}, "entries": {"conv3x3_packed fp32 64x32x32 batch 8": entry}}, 0.1)
            path = self.file("times.json", data)
            return data, lambda: TimingTable(path).text()
        measured = {"choice": 0.1, "check": 0.1, "stderr": 0.1}
        data = odd_json(rng, {"kind": "tuned-steps", "grid": "at:1,2", "nfe": 2, "tried": {"at:1,2": measured}}, 0.1)

        def read() -> None:
            try:
                tuned.read(json.loads(data))
            except (KeyError, TypeError, AttributeError, RecursionError) as error:  # as its caller
                raise ValueError from error

        return data, read

    def on_sharded(self, rng: random.Random) -> Made:
        """The folder of a checkpoint of several processes."""
        from safetensors.torch import save

        from undiffuse.sharded_checkpoints import ShardedTensors, verify

        folder = self.folder / "sharded.ckpt"
        shutil.rmtree(folder, ignore_errors=True)
        data = b""
        for rank in range(2):
            offsets = odd_json(rng, {"a": {"saved_offsets": [2 * rank, 0]}}, 0) if rng.random() < 0.6 else json.dumps(
                {"a": {"saved_offsets": [2 * rank, 0]}}).encode()  # fmt: skip
            part = save({"a": torch.full((2, 3), float(rank))}, {"DCP_SHARDING_INFO": offsets.decode()})
            part = damaged(rng, part) if rng.random() < 0.3 else part
            data += self.file(f"sharded.ckpt/{rank}.safetensors", part).read_bytes()
        manifest = odd(rng, {f"{k}.safetensors": {"bytes": 100, "sha256": "0" * 64} for k in range(2)})

        def call() -> None:
            verify(folder, manifest)
            tensors = ShardedTensors(folder)
            for name in tensors:
                tensors[name]

        return data + json.dumps(manifest).encode("utf-8", "replace"), call

    def on_arguments(self, rng: random.Random) -> Made:
        """Command lines: options of every command with odd values."""
        from undiffuse.cli.options import settle

        parser, commands = _parser()
        name = rng.choice(list(commands))
        options = [action for action in commands[name]._actions if action.option_strings and action.dest != "help"]
        words = [name, *rng.sample(["a", "b.png", "1"], rng.randint(0, 2))]
        for action in rng.sample(options, min(len(options), rng.randint(1, 3))):
            words.append(action.option_strings[-1])
            plain = rng.choice(["1", "0.5", "8x8", "a,b", "ddim50", "a=1", *map(str, action.choices or ())])
            if action.nargs != 0:
                value = odd(rng, plain) if rng.random() < 0.8 else plain
                words.append(value if isinstance(value, str) else str(value))

        def call() -> None:
            try:
                settle(parser.parse_args(words))
            except SystemExit as stop:
                raise ValueError(f"status {stop.code}") from stop

        return json.dumps(words).encode(), call


@functools.cache
def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all commands, and those of each."""
    from undiffuse.cli.parser import build_parser

    parser = build_parser()
    (group,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return parser, dict(group.choices)
