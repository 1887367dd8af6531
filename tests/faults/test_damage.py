"""Files of unfinished and finished work are damaged, changed or taken away: the same results, or one clear message."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from faults.commands import COMMANDS, Command, results
from faults.injection import Fault, run
from faults.outcomes import Lab, moments
from faults.page import record
from undiffuse import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed")
STORES = ("train", "sample", "sample npz", "encode", "nll", "inpaint", "rerun", "sweep")


def half_done(lab: Lab, command: Command) -> Path:
    """A place where the command was killed in the middle of its work."""
    events = lab.reference(command).events
    place = lab.place(f"{command.name}-half", command)
    run(command.words, place, Fault("kill", at=2 * len(events) // 3))
    return place


def damage(file: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if kind == "cut":
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))


def damaged_model(file: Path) -> bool:
    """Whether a file of tensors is there and not sound, which every reader of it sees."""
    try:
        checkpoints.read(file)
    except checkpoints.CheckpointError:
        return file.suffix == ".safetensors" and file.exists()
    return False


def check(lab: Lab, name: str, kind: str, count: int) -> None:
    command, rng = COMMANDS[name], random.Random(f"{name} {kind}")
    half, refused = half_done(lab, command), 0
    files = [file for file in sorted(half.rglob(f"{command.out}*/**/*")) if file.is_file() and file.stat().st_size]
    files = [file for file in files if file.suffix != ".tmp" and file.name not in (".lock", "loss_curve.png")]
    assert files, f"{name}: nothing was written before the kill"
    for _ in range(count):
        place = lab.root / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(half, place)
        file = place / rng.choice(files).relative_to(half)
        damage(file, kind, rng)
        code, said = run(command.words, place)
        where = f"{name}, {kind} of {file.relative_to(place)}: exit {code}\n{said[-2000:]}"
        assert "Traceback" not in said, where
        assert code in (0, 1, 2), where
        if code:
            assert "error: " in said, where
            refused += 1
            continue
        try:
            found = results(place, command)
        except (OSError, ValueError, SyntaxError):  # a finished picture: every reader of it sees the damage
            continue
        usual = lab.references[name].results
        found = {key: value for key, value in found.items() if not key.endswith(".damaged")}
        different = [key for key in {*found, *usual} if found.get(key) != usual.get(key)]
        different = [key for key in different if not damaged_model(place / key)]
        # The log and the request of a training are read by people, who see that they are damaged.
        assert not [key for key in different if Path(key).suffix not in (".jsonl", ".json")], f"{where}\n{different}"
    record(kind, name, {"moments": count, "refused": refused})


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_some(lab: Lab, kind: str) -> None:
    check(lab, "sample npz", kind, moments(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut"])
@pytest.mark.parametrize("name", STORES)
def test_damage_to_unfinished_work(lab: Lab, name: str, kind: str) -> None:
    check(lab, name, kind, moments(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "nll", "encode", "evaluate", "convert folder", "inpaint"])
@pytest.mark.parametrize("how", ["vanish", "turn corrupt"])
def test_images_that_vanish_or_turn_corrupt_under_a_command(lab: Lab, name: str, how: str) -> None:
    command = COMMANDS[name]
    place = lab.place(f"{name}-{how}", command)
    source = place / command.begin[1]
    files = [source] if source.is_file() else sorted(source.rglob("*.png"))
    for file in files[len(files) // 2 :]:
        file.unlink() if how == "vanish" else file.write_bytes(file.read_bytes()[:60])
    code, said = run(command.words, place)
    assert "Traceback" not in said, said
    if how == "turn corrupt" or source.is_file() or not source.exists():
        assert code == 2 and "error: " in said, said
    record(how, name, {"moments": 1})
