"""Networks that run out of memory or give NaN: work is done in smaller batches, or ends with one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from faults.commands import COMMANDS, results
from faults.injection import Fault, run
from faults.outcomes import Lab, temporary
from faults.page import record
from undiffuse import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
TRAININGS = ("train", "train-classifier", "distill", "rerun")
SMALLER = (*TRAININGS, "sample", "sample npz", "sample gif", "sweep")
"""Commands that take smaller batches where memory does not suffice; the others end with advice."""
READING = [name for name, c in COMMANDS.items() if "model.safetensors" in c.begin and name != "train-classifier"]
"""Commands that compute with the weights of a model."""
NETWORKS = (
    *TRAININGS, "sample", "sample npz", "sample gif", "encode", "decode", "interpolate", "inpaint", "restore", "vary",
    "translate", "nll", "evaluate model", "sweep", "tune-steps",
)  # fmt: skip


def disturb(lab: Lab, name: str, kind: str) -> None:
    """Once: the work is done, or refused. From then on: refused, and repeated without the fault as usual."""
    command, made = COMMANDS[name], 0
    usual = lab.reference(command).results
    for lasts in (False, True):
        place = lab.place(f"{name}-{kind}", command)
        code, said = run(command.words, place, Fault(kind, call=2, lasts=lasts))
        where = f"{name}, {kind}, {'from then on' if lasts else 'once'}: exit {code}\n{said[-3000:]}"
        made += 1
        assert "Traceback" not in said and code in (0, 1, 2), where
        assert code == 0 or sum("error: " in line for line in said.splitlines()) == 1, where
        if kind == "network memory":
            assert code == 0 or lasts or name not in SMALLER, where
            assert code or not lasts, where
        else:
            assert code or "nan" in said.lower() or "finite" in said, f"{where}\nnothing was said"
        assert not [file for file in place.rglob("*") if temporary(file)], where
        if code:
            code, said = run(lab.words(command, place), place)
            assert code == 0, f"{where}\nand then:\n{said}"
            # A training keeps the smaller batch that memory sufficed for, which rounds differently.
            found = results(place, command)
            same = found.keys() == usual.keys() if name in TRAININGS else found == usual
            assert same, f"{where}\n{[key for key in {*found, *usual} if found.get(key) != usual.get(key)]}"
        elif name not in TRAININGS:  # which draw and save less while their numbers are not finite
            assert results(place, command).keys() == usual.keys(), where
    record(kind, name, {"moments": made})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("sample", "network memory"), ("sample", "NaN")])
def test_some(lab: Lab, name: str, kind: str) -> None:
    disturb(lab, name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network memory", "NaN"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_command(lab: Lab, name: str, kind: str) -> None:
    disturb(lab, name, kind)


def spoil(model: Path) -> None:
    """Puts one NaN into a model file, whose hashes fit."""
    tensors, manifest = checkpoints.read(model)
    name = max((name for name in tensors if name.startswith("net.")), key=lambda name: tensors[name].numel())
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors[name].view(-1)[0] = torch.nan
    checkpoints.write(model, tensors, {k: v for k, v in manifest.items() if k != checkpoints.MANIFEST_HASH})


@pytest.mark.slow
@pytest.mark.parametrize("name", READING)
def test_weights_that_are_not_finite(lab: Lab, name: str) -> None:
    command = COMMANDS[name]
    place = lab.place(f"{name}-NaN", command)
    spoil(place / "model.safetensors")
    code, said = run(command.words, place)
    assert "Traceback" not in said, said
    assert "NaN" in said or "finite" in said, f"exit {code}: nothing was said\n{said}"
    record("NaN weights", name, {"moments": 1})
