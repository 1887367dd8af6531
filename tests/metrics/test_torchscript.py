"""TorchScript archives read as data: the same tensors as torch's own reader, and nothing that is in a file is run."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import torchscript
from undiffuse.metrics.extractors.torchscript import is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Inner(nn.Module):
    """What may be in a module: shared and viewed storages, half precision, buffers, lists, attributes."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(24.0)
        self.first = nn.Parameter(whole[:12].view(3, 4))
        self.second = nn.Parameter(whole[12:].view(4, 3).T)
        self.small = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).half())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.sizes = [1, 300, 70000]
        self.big = 1 << 40
        self.scale = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first @ self.second.T.reshape(4, 3) * self.scale + self.sizes[0] + self.small.float().sum()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.ModuleList([Inner(), nn.LayerNorm(3), nn.MultiheadAttention(3, 1)])
        self.text = Inner()
        self.empty = nn.Parameter(torch.zeros(0, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.visual[1](self.visual[0](x))
        return self.visual[2](y, y, y)[0] + self.text(x)


def archive(path: Path, how: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Outer().eval()
        made = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.zeros(2, 3))
        torch.jit.save(made, str(path))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("archive") / "good.pt", "script")


@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_tensors_are_those_of_torchs_reader(how: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt", how)
    assert is_torchscript(path)
    expected = torch.jit.load(str(path)).state_dict()
    found = read_torchscript(path)
    assert found.keys() >= expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()
    part = read_torchscript(path, "visual.")
    assert part.keys() == {name for name in found if name.startswith("visual.")}


def test_a_plain_file_of_torch_is_told_from_an_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert not is_torchscript(tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "text.pt")


# Files that were made by hand. All of them are laid out like the good one, with another program or other records.


def written(path: Path, program: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as out:
        for name, content in {"data.pkl": program, "constants.pkl": b"N.", **(records or {})}.items():
            out.writestr(f"model/{name}", content)
    return path


NUMBERS = np.arange(6, dtype="<f4").tobytes()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(
    size: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1), offset: int = 0, count: int = 6, last: bytes = b""
) -> bytes:
    """The instructions for one float tensor over the record data/0."""
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + last + b"tQ"
    )
    parts = storage + number(offset) + numbers(*size) + numbers(*stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"


def module(**attributes: bytes) -> bytes:
    """The instructions for an object of a class of the file with these attributes."""
    state = b"".join(text(name) + value for name, value in attributes.items())
    return b"c__torch__.a\nModel\n)\x81}(" + state + b"ub"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def test_an_archive_by_hand(tmp_path: Path) -> None:
    """The instructions that torch wrote until 2020 are read too; objects met twice, or in a circle, count once."""
    for last in (b"", b"N"):
        typed = b"ctorch.jit._pickle\nrestore_type_tag\nctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R" + text(
            "List[int]"
        )
        rest = {"note": text("x"), "n": b"N", "lists": typed + b"\x86R", "options": b"}K\x01Ns"}
        content = module(w=tensor(last=last), inner=module(w=tensor((3,), (2,), 1)), **rest)
        found = read_torchscript(written(tmp_path / f"{len(last)}.pt", program(content), {"data/0": NUMBERS}))
        assert found.keys() == {"w", "inner.w"}
        assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["inner.w"].tolist() == [1, 3, 5]
    circle = b"c__torch__.a\nModel\n)\x81q\x00}(" + text("me") + b"h\x00" + text("w") + tensor() + b"ub"
    assert read_torchscript(written(tmp_path / "c.pt", program(circle), {"data/0": NUMBERS})).keys() == {"w"}


class Payload:
    """Makes a file when a pickle that holds it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def global_call(path: Path, name: bytes, argument: bytes) -> bytes:
    return program(module(a=b"c" + name + b"(" + argument + b"tR"))


INSTRUCTION = "uses the instruction"
MEETS = "meets a"
HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    **{
        f"pickled, protocol {p}": (
            "wants to call|uses the instruction",
            lambda path, p=p: pickle.dumps(Payload(path), protocol=p),
        )
        for p in range(6)
    },  # type: ignore[dict-item]
    "a call inside a module": (
        "call 'os system'",
        lambda path: global_call(path, b"os\nsystem\n", text(f"touch {path}")),
    ),
    "eval": ("call", lambda path: global_call(path, b"builtins\neval\n", text(f"open({str(path)!r}, 'w')"))),
    "a method of torch": ("call 'torch load'", lambda path: global_call(path, b"torch\nload\n", text(str(path)))),
    "another helper of torch": (
        "call",
        lambda path: global_call(path, b"torch._utils\n_rebuild_parameter\n", text("x")),
    ),
    "a dotted name": ("call", lambda path: global_call(path, b"__torch__\nos.system\n", text(f"touch {path}"))),
    "a call of a module's class": ("call", lambda path: global_call(path, b"__torch__.a\nModel\n", text("x"))),
    "a tensor of one argument": ("call", lambda path: global_call(path, b"torch._utils\n_rebuild_tensor_v2\n", b"N")),
    "a new object": ("make a 'cpathlib Path'|make", lambda path: program(b"cpathlib\nPath\n)\x81}b")),
    "a new object with arguments": ("make", lambda path: program(b"c__torch__.a\nModel\n(" + text("x") + b"t\x81}b")),
    "an object of an old class": (INSTRUCTION, lambda path: program(b"(ios\nsystem\n")),
    "an object by the stack": (
        INSTRUCTION,
        lambda path: program(module() + b"(cos\nsystem\n" + text(f"touch {path}") + b"o0"),
    ),
    "a name from the stack": (INSTRUCTION, lambda path: program(module() + text("os") + text("system") + b"\x9300")),
    "a registered extension": (INSTRUCTION, lambda path: program(module() + b"\x82\x01")),
    "a text reference": (INSTRUCTION, lambda path: program(b"Pdata/0\n")),
    "a set": (INSTRUCTION, lambda path: program(module() + b"\x8f")),
    "a reference to anything": ("not a record", lambda path: program(text("file:///etc/passwd") + b"Q")),
    "a storage of an unknown kind": (
        "not a record",
        lambda path: program(module(w=tensor().replace(b"FloatStorage", b"WeirdStorage"))),
    ),
    "state of a text": (MEETS, lambda path: program(text("x") + b"}b")),
    "state that is no dictionary": (MEETS, lambda path: program(b"c__torch__.a\nModel\n)\x81]b")),
    "a key that is a list": (MEETS, lambda path: program(module()[:-2] + b"]Nub")),
    "a key that is deep": (MEETS, lambda path: program(module()[:-2] + b"N" + b"\x85" * 100_000 + b"Nub")),
    "appending to a module": (MEETS, lambda path: program(module() + b"Na")),
    "no module": (MEETS, lambda path: program(b"}")),
    "an end before the beginning": ("damaged", lambda path: b"."),
    "an unknown instruction": ("damaged", lambda path: b"\x80\x02\xff."),
    "no end": ("damaged", lambda path: b"\x80\x02N"),
    "nothing": ("damaged", lambda path: b""),
    "a pop of nothing": ("damaged", lambda path: program(b"R")),
    "an unknown memory": ("damaged", lambda path: program(b"h\x07")),
    "broken text": ("damaged", lambda path: program(b"X\x02\x00\x00\x00\xff\xfe")),
    "a text longer than the file": ("damaged", lambda path: program(b"X\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    message, make = HOSTILE[name]
    path = written(tmp_path / "model.pt", make(mark), {"data/0": NUMBERS})
    with pytest.raises(MetricError, match=rf"({message}).* of it was run"):
        read_torchscript(path)
    assert not mark.exists()


def test_deep_values_do_no_harm(tmp_path: Path) -> None:
    deep = program(module(a=b"N" + b"\x85" * 100_000, w=tensor()))
    assert read_torchscript(written(tmp_path / "model.pt", deep, {"data/0": NUMBERS})).keys() == {"w"}


def test_too_many_instructions_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = program(module(w=tensor()))
    path = written(tmp_path / "model.pt", content, {"data/0": NUMBERS})
    monkeypatch.setattr(torchscript, "LIMIT", len(content))
    read_torchscript(path)
    monkeypatch.setattr(torchscript, "LIMIT", len(content) - 1)
    with pytest.raises(MetricError, match=r"data\.pkl has .* at most"):
        read_torchscript(path)


def test_the_payload_works_where_pickles_are_run(tmp_path: Path) -> None:
    """The payload above would have left its mark in a reader that runs pickles."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (3, 3)}, "reaches outside"),
        ({"offset": 1}, "reaches outside"),
        ({"stride": (4, 1)}, "reaches outside"),
        ({"size": (1 << 40,), "stride": (0,)}, "reaches outside"),
        ({"size": (7,), "stride": (0,)}, "reaches outside"),
        ({"size": (2,), "stride": (1 << 62,)}, "reaches outside"),
        ({"count": 5}, "reaches outside"),
        ({"count": -6}, "reaches outside"),
        ({"offset": -1}, "described wrongly"),
        ({"size": (2, -3)}, "described wrongly"),
        ({"stride": (-3, 1)}, "described wrongly"),
        ({"stride": (1,)}, "described wrongly"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "described wrongly"),
        ({"count": 7}, "24 bytes instead of 28"),
        ({"count": 1 << 60}, "24 bytes instead of"),
        ({"size": (2, 2), "stride": (2, 1), "count": 4}, "24 bytes, at most 16"),
    ],
)
def test_tensors_outside_their_records_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.pt", program(module(w=tensor(**wrong))), {"data/0": NUMBERS})
    with pytest.raises(MetricError, match=message):
        read_torchscript(path)


def test_many_views_of_one_record_do_not_grow_beyond_the_file(tmp_path: Path) -> None:
    numbers = np.zeros(100_000, "<f4").tobytes()
    views = {f"w{i}": tensor((100_000,), (1,), 0, 100_000) for i in range(5)}
    path = written(tmp_path / "model.pt", program(module(**views)), {"data/0": numbers})
    with pytest.raises(MetricError, match="larger than the file"):
        read_torchscript(path)


def test_records_must_be_stored_and_there(tmp_path: Path) -> None:
    content = program(module(w=tensor()))
    squeezed = written(tmp_path / "z.pt", content, {"data/0": NUMBERS}, compression=zipfile.ZIP_DEFLATED)
    for path, message in (
        (squeezed, "compressed"),
        (written(tmp_path / "a.pt", content), "no item named"),
        (written(tmp_path / "b.pt", content, {"data/0": NUMBERS, "byteorder": b"big"}), "little-endian"),
        (written(tmp_path / "c.pt", content, {"data/0": NUMBERS, "data/data.pkl": b"N."}), "2 records data.pkl"),
    ):
        with pytest.raises(MetricError, match=message):
            read_torchscript(path)
    encrypted = bytearray(written(tmp_path / "d.pt", content, {"data/0": NUMBERS}).read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = encrypted.find(mark)
        while place >= 0:
            encrypted[place + flags] |= 1
            place = encrypted.find(mark, place + 1)
    (tmp_path / "d.pt").write_bytes(encrypted)
    with pytest.raises(MetricError, match="encrypted"):
        read_torchscript(tmp_path / "d.pt")


def test_damaged_archives_are_refused(good: Path, tmp_path: Path) -> None:
    """Cut off anywhere, or with any byte changed: the right tensors or a MetricError, never another error."""
    content = good.read_bytes()
    expected = read_torchscript(good)
    draw = np.random.default_rng(0)
    cuts = [content[:length] for length in (0, 10, len(content) // 2, len(content) - 30)]
    start = content.index(b"\x80\x02c__torch__")
    flips = []
    for place in [*draw.integers(start, start + 3000, 100), *draw.integers(0, len(content), 100)]:
        flips.append(content[:place] + bytes([content[place] ^ int(draw.integers(1, 256))]) + content[place + 1 :])
    # The same changes with right checksums of the zip, so that the machine meets them.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    instructions = names["data.pkl"]
    path = tmp_path / "model.pt"
    refused = 0
    for number, damaged in enumerate([*cuts, *flips, *[None] * 200]):
        if damaged is not None:
            path.write_bytes(damaged)
        else:
            place = int(draw.integers(0, len(instructions)))
            names["data.pkl"] = instructions[:place] + bytes([int(draw.integers(0, 256))]) + instructions[place + 1 :]
            with zipfile.ZipFile(path, "w") as out:
                for name, record in names.items():
                    out.writestr(f"good/{name}", record)
        try:
            found = read_torchscript(path)
        except MetricError:
            refused += 1
        else:
            same = found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
            assert same or damaged is None, f"change {number} was not noticed"
    assert refused > 200
