"""The choice among implementations: by planted times, kept in a file, the same for every batch of a run."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from undiffuse import kernels
from undiffuse.kernels import autotune, choice, convolution, products, timing, timing_table
from undiffuse.kernels.attention import _trial as attention_trial
from undiffuse.kernels.autotune import Plan, current_plan, planned, rule
from undiffuse.kernels.convolution import conv_3x3, has_winograd, implementation
from undiffuse.kernels.timing_table import Case, Entry, TimingTable, case_of
from undiffuse.nets import UNetConfig
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference

WAYS = ("winograd", "packed", "torch")  # without the matrix unit
KEY = ("conv3x3_packed", "bf16", 256, 256, 64, 64)
AMX = {(256, 64): {"winograd": 0.088, "packed": 0.014, "torch": 0.016}}
AMX[384, 16] = {"winograd": 0.015, "packed": 0.0022, "torch": 0.0025}
needs_kernel = pytest.mark.skipif(not has_winograd(32, 32, torch.float32), reason="no compiled convolution here")


class Times:
    """Planted times, and the shapes that were timed."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.seconds: Callable[[Case], dict[str, float] | None] = lambda case: {
            "winograd": 3e-3, "packed": 1e-3, "torch": 2e-3
        }  # fmt: skip

    def measure(
        self, case: Case, assumed: str, ways: tuple[str, ...], trial: object, limit: float
    ) -> tuple[str, dict[str, float]] | None:
        self.cases.append(case)
        found = self.seconds(case)
        if found is None:
            return None
        best = min(ways, key=lambda way: found[way])
        return assumed if found[assumed] <= timing.MARGIN * found[best] else best, {way: found[way] for way in ways}


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Times]:
    planted = Times()
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "timed")
    monkeypatch.setattr(timing, "measure", planted.measure)
    monkeypatch.setattr(autotune, "timings", lambda: table)
    table = TimingTable(tmp_path / "timings.json")
    monkeypatch.setattr(autotune, "SHARE", 1e9)
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))  # which has no matrix unit
    for name, value in (("_spent", 0.0), ("_again", set()), ("_untimed", {})):
        monkeypatch.setattr(autotune, name, value)
    yield planted


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process with the same cache."""
    autotune._again.clear()
    autotune._untimed.clear()
    table = TimingTable(autotune.timings().path)
    monkeypatch.setattr(autotune, "timings", lambda: table)


def choose(plan: Plan, key: Any = KEY, batch: int = 8, ways: tuple[str, ...] = WAYS) -> str:
    return plan.choose(key, batch, ways, lambda *given: lambda: None)


@pytest.mark.parametrize("features", ["avx512f avx512_bf16", "avx512f amx_bf16 amx_tile"])
def test_the_times_of_a_processor_with_a_matrix_unit_decide(
    times: Times, monkeypatch: pytest.MonkeyPatch, features: str
) -> None:
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", features))
    times.seconds = lambda case: AMX[384 if case.side == 16 else 256, case.side]
    plan = Plan()
    assert choose(plan) == "packed"
    assert choose(plan, ("conv3x3_packed", "bf16", 384, 384, 16, 16)) == "packed"
    assert choose(plan, ("conv3x3", "bf16", 256, 256, 64, 64), ways=("winograd", "torch")) == "torch"


def test_the_rule_before_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, precision, side, wanted in (
        ("avx512f", "bf16", 64, "winograd"), ("avx512f", "fp32", 64, "winograd"), ("avx512f", "fp32", 4, "packed"),
        ("amx_bf16", "bf16", 64, "packed"), ("amx_bf16", "fp32", 64, "winograd"),
    ):  # fmt: skip
        monkeypatch.setattr(autotune, "processor", lambda features=features: ("a processor", features))
        assert rule(("conv3x3_packed", precision, 64, 64, side, side), 8, WAYS) == wanted
    assert rule(KEY, 8, ("torch",)) == "torch"


def test_a_case_is_timed_once_and_then_read_from_the_file(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    times.seconds = lambda case: {"winograd": 2e-3, "packed": 3e-3, "torch": 1e-3}
    assert [choose(Plan()) for _ in range(3)] == ["torch"] * 3
    assert times.cases == [Case("conv3x3_packed", "bf16", 256, 64, 8)]
    fresh(monkeypatch)
    times.seconds = lambda case: {"winograd": 1e-9, "packed": 1.0, "torch": 1.0}
    assert choose(Plan()) == "torch" and len(times.cases) == 1
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "measure")
    assert [choose(Plan()) for _ in range(2)] == ["winograd"] * 2 and len(times.cases) == 2
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "rule")
    assert choose(Plan()) == rule(KEY, 8, WAYS)
    assert len(times.cases) == 2


def test_a_small_gain_is_no_reason(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))
    times.seconds = lambda case: {"winograd": 1.02e-3, "packed": 1e-3, "torch": 2e-3}
    assert choose(Plan()) == "winograd"
    times.seconds = lambda case: {"winograd": 1.06e-3, "packed": 1e-3, "torch": 2e-3}
    assert choose(Plan(), ("conv3x3_packed", "bf16", 64, 64, 64, 64)) == "packed"


def test_a_run_has_one_choice_for_every_batch(times: Times) -> None:
    """Times under which each batch would have its own."""
    times.seconds = lambda case: {"winograd": 1.0, "packed": 1.0 if case.batch > 4 else 3.0, "torch": 2.0 * case.batch}
    with planned() as plan:
        assert [choose(current_plan(), batch=batch) for batch in (32, 1, 8, 2)] == [choose(plan, batch=32)] * 4
        assert plan.batch == 32 and [case.batch for case in times.cases] == [32]
    assert [choose(Plan(batch=8), batch=batch) for batch in (1, 32)] == [choose(Plan(batch=8), batch=8)] * 2
    with planned(plan), planned(Plan(), outermost=True) as inner:
        assert inner is plan
    assert current_plan().batch == 8  # outside of any run


def test_a_recorded_choice_is_used_again_and_its_absence_said(times: Times) -> None:
    plan = Plan()
    chosen = choose(plan)
    record = json.loads(json.dumps(plan.record()))
    assert record == {"batch": 8, chosen: ["conv3x3_packed bf16 256-256 64x64"]}
    other = {"batch": 8, "torch": record[chosen]}
    again = Plan(recorded=other)
    assert choose(again, batch=1) == "torch" and not again.notes and again.record() == other
    lost = Plan(recorded={"batch": 8, "winograd": record[chosen]})
    assert choose(lost, ways=("packed", "torch")) == "packed"
    assert lost.notes == [
        "winograd for conv3x3_packed bf16 256-256 64x64 is not available here, which changes rounding"
    ]
    for damaged in (
        None,
        3,
        {"batch": "x", "torch": 4},
        {"torch": ["conv3x3 bf16", 7, None]},
        {"fast": record[chosen]},
    ):
        assert choose(Plan(recorded=damaged)) == (chosen if damaged in (None, 3) else rule(KEY, 8, WAYS))


def test_what_an_older_record_does_not_mention_goes_by_the_rule(times: Times) -> None:
    """Runs whose records are older than a choice were made by the rule, and are repeated by it."""
    times.seconds = lambda case: dict.fromkeys(WAYS, 1.0) | {"torch": 0.1, "fused": 0.1, "products": 1.0}
    assert choose(Plan(recorded={})) == rule(KEY, 8, WAYS) == "winograd" and not times.cases
    older = Plan(recorded={"batch": 8, "winograd": ["conv3x3 bf16 32-32 8x8"]})
    attends = ("attention", "bf16", 64, 4, 256, 1)
    assert choose(older, attends, ways=choice.OPERATIONS["attention"]) == "products"
    assert not times.cases and choose(older) == "torch" and len(times.cases) == 1


def test_pins(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "auto, conv3x3_packed=torch")
    assert choose(Plan(recorded={"packed": ["conv3x3_packed bf16 256-256 64x64"]})) == "torch"
    assert choose(Plan(), ways=("packed",)) == "packed"  # where the pinned one is not possible
    with kernels.using("conv3x3_packed=winograd"):
        assert choose(Plan()) == "winograd" and choice.timing() == "timed"
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "rule")
    with kernels.using("pure"):
        assert choice.timing() == "rule"  # what a block does not mention is the environment's
    monkeypatch.delenv("UNDIFFUSE_KERNELS")
    assert choice.timing() == "timed" and choice.setting().library == "auto"
    for wrong in ("conv3x3=packed", "conv5x5=torch", "conv3x3"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]), kernels.using(wrong):
            pass


def test_without_time_the_choice_of_a_near_case_is_taken_over(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(Plan()) == "packed"
    monkeypatch.setattr(autotune, "SHARE", 0.0)
    monkeypatch.setattr(autotune, "_spent", 1.0)
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))
    near, far = ("conv3x3_packed", "bf16", 128, 128, 32, 32), ("conv3x3_packed", "bf16", 32, 32, 8, 8)
    assert choose(Plan(), near) == "packed" and choose(Plan(), far, 64) == "winograd"
    assert choose(Plan(), ("conv3x3_packed", "fp32", 128, 128, 32, 32)) == "winograd"  # another precision
    assert len(times.cases) == 1 and len(autotune.timings().entries) == 1
    times.seconds = lambda case: {"winograd": 3.0, "packed": 2.0, "torch": 1.0}
    assert choose(Plan(seconds=2.0), far, 64) == "winograd" and len(times.cases) == 1  # as in the process's other runs
    assert choose(Plan(seconds=2.0), ("conv3x3_packed", "bf16", 32, 32, 64, 64)) == "torch"  # a run with more time
    monkeypatch.setattr(autotune, "_spent", 0.0)
    fresh(monkeypatch)
    assert choose(Plan(), near) == "torch"  # a later process times it


def test_uncertain_times_are_not_kept(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    times.seconds = lambda case: None
    key = (*KEY[:4], 8, 8)
    assert choose(Plan(), key) == rule(key, 8, WAYS) and not autotune.timings().entries
    times.seconds = lambda case: {"winograd": 1.0, "packed": 1.0, "torch": 0.1}
    assert choose(Plan(), key) == rule(key, 8, WAYS)  # as in the process's other runs
    fresh(monkeypatch)
    assert choose(Plan(), key) == "torch"


def test_a_damaged_file_counts_as_empty(tmp_path: Path) -> None:
    case, path = Case("conv3x3", "fp32", 64, 32, 8), tmp_path / "timings.json"
    sound = Entry("torch", {"winograd": 2e-3, "torch": 1e-3})
    TimingTable(path).add(case, sound)
    assert TimingTable(path).entries == {str(case): sound}
    whole = path.read_text()
    for text in ("", "{", "[]", "null", '{"entries": 3}', '{"entries": {"conv3x3 fp32": {}}}', whole[:-9], "[" * 9999):
        path.write_text(text)
        assert TimingTable(path).entries == {}
    for before, after in (
        ('"torch"', '"fast"'),
        ("0.002", '"quick"'),
        ("0.002", "NaN"),
        ("fp32", "fp8"),
        ("32x32", "32x16"),
    ):
        path.write_text(whole.replace(before, after))
        assert TimingTable(path).entries == {}, after
    path.write_bytes(b"\xff\xfe")
    assert TimingTable(path).add(case, sound) == sound and TimingTable(path).entries == {str(case): sound}
    blocked = tmp_path / "file"
    blocked.write_text("")
    table = TimingTable(blocked / "timings.json")  # cannot be written
    assert table.add(case, sound) == sound and table.entries == {str(case): sound}


def _add(path: Path, start: int) -> None:
    table = TimingTable(path)
    for k in range(12):
        table.add(Case("conv3x3", "fp32", 64, 32, 2**k), Entry("torch", {"torch": float(start)}))
        table.add(Case("conv3x3", "fp32", start, 32, 2**k), Entry("torch", {"torch": 1.0}))


def test_two_processes_lose_nothing_and_agree(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_add, args=(path, start)) for start in (128, 256)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert len(TimingTable(path).entries) == 36
    first = TimingTable(path).entries
    late = Entry("winograd", {"winograd": 1e-9})
    shared = Case("conv3x3", "fp32", 64, 32, 1)
    assert TimingTable(path).add(shared, late) == first[str(shared)]  # the first entry stays


def test_cases() -> None:
    assert Case.of("conv3x3", "fp32", 192, 64, 30, 34, 6) == Case("conv3x3", "fp32", 128, 32, 8)
    case = Case("conv3x3_grad", "bf16", 64, 8, 1)
    assert case_of(str(case)) == case and case_of("conv3x3 bf16 64x8x4 batch 1") is None
    machine = timing_table.machine()
    assert machine["torch"] == torch.__version__ and machine["cpus"] and machine["undiffuse"]


def test_the_limits_of_the_environment_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = timing_table.table_path()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert timing_table.table_path() != before


class Clock:
    """Processor time that calls take, as `cost` says, and readings that are disturbed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: dict[str, tuple[float, float]]) -> None:
        self.now, self.cost, self.units = 0.0, cost, []
        self.noise: Callable[[], float] = lambda: 1.0
        monkeypatch.setattr(timing.time, "thread_time", lambda: self.now)

    def trial(self, way: str, batch: int, channels: int, height: int, width: int) -> Callable[[], object]:
        pixels = batch * height * width
        self.units.append(pixels * channels**2)

        def call() -> None:
            assert torch.get_num_threads() == 1
            fixed, each = self.cost[way]
            self.now += (fixed + pixels * each) * self.noise()

        return call

    def measure(self, case: Case, assumed: str = "winograd") -> tuple[str, dict[str, float]] | None:
        return timing.measure(case, assumed, WAYS, self.trial)


def test_large_cases_are_timed_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that charges a fixed time and one for each pixel gives the time of the whole case."""
    clock = Clock(monkeypatch, {"winograd": (1e-5, 1e-7), "packed": (1e-6, 1.5e-7), "torch": (1e-2, 1e-6)})
    before = torch.get_num_threads()
    large, small = Case("conv3x3_packed", "fp32", 256, 64, 32), Case("conv3x3_packed", "fp32", 64, 8, 1)
    for case, chosen in ((large, "winograd"), (small, "packed")):
        found = clock.measure(case)
        assert found is not None and found[0] == chosen
        for way in ("winograd", "packed"):
            whole = clock.cost[way][0] + case.batch * case.side**2 * clock.cost[way][1]
            assert found[1][way] == pytest.approx(whole, rel=1e-6)
        assert found[1]["torch"] > 5 * found[1]["packed"]
    assert 18 * max(clock.units) < 1e9 and torch.get_num_threads() == before


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_choose(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Readings of a machine that others use: most are too long, up to five times. None is better than a bad choice."""
    random = Random(seed)
    clock = Clock(monkeypatch, {"winograd": (0.0, 1e-7), "packed": (0.0, 1.5e-7), "torch": (0.0, 1.6e-7)})
    clock.noise = lambda: 1 + random.choice((0.0, 0.02, 0.3, random.random(), 4 * random.random()))
    chosen = [clock.measure(Case("conv3x3_packed", "fp32", 64, side, 1), way) for side in (8, 64) for way in WAYS]
    small, large = [None if one is None else one[0] for one in chosen[:3]], chosen[3:]
    assert set(small) <= {"winograd", None}
    for one, assumed in zip(large, WAYS, strict=True):
        assert one is None or one[0] in {"winograd", assumed}


def test_most_choices_are_certain_in_spite_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(1)
    clock = Clock(monkeypatch, {"winograd": (0.0, 8.8e-7), "packed": (0.0, 1.4e-7), "torch": (0.0, 1.6e-7)})
    clock.noise = lambda: 1 + random.choice((0.0, 0.02, random.random(), 4 * random.random()))
    found = [clock.measure(Case("conv3x3_packed", "bf16", 256, 16, 1)) for _ in range(50)]
    assert sum(one is not None and one[0] == "packed" for one in found) > 40
    assert not any(one is not None and one[0] == "winograd" for one in found)


def test_a_coarse_clock_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = type("Info", (), {"resolution": 0.015})
    monkeypatch.setattr(timing.time, "get_clock_info", lambda name: coarse)
    assert timing.measure(Case("conv3x3", "fp32", 64, 8, 1), "torch", ("torch",), lambda *given: lambda: None) is None


def test_the_times_measured_with_a_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two shapes of an Intel Xeon with AMX, through the clock, whatever is assumed."""
    for (channels, side), times in AMX.items():
        pixels = 8 * side * side
        clock = Clock(monkeypatch, {way: (0.0, seconds / pixels) for way, seconds in times.items()})
        for assumed in WAYS:
            found = clock.measure(Case.of("conv3x3_packed", "bf16", channels, channels, side, side, 8), assumed)
            assert found is not None and found[0] != "winograd"
            assert found[1]["winograd"] == pytest.approx(times["winograd"], rel=1e-6)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", list(choice.OPERATIONS))
def test_every_implementation_can_be_timed(operation: str, dtype: torch.dtype) -> None:
    if operation == "conv3x3_packed" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    attends = operation.startswith("attention")
    if not attends and not has_winograd(32, 32, dtype):
        pytest.skip(f"no compiled convolution in {dtype} here")
    if attends:
        trial, ways = attention_trial(operation), choice.OPERATIONS[operation]
    elif operation == "conv1x1_packed":
        trial, ways = products._trial(dtype), products.possible(64, 32, 32, dtype)
    else:
        trial, ways = convolution._trial(operation, dtype), convolution.possible(operation, 32, 32, dtype)
    for way in ways:
        trial(way, 1, 32, 8, 8)()


@needs_kernel
@torch.no_grad()
def test_a_network_in_every_way(times: Times) -> None:
    """A prepared network gives the same numbers by each implementation, and uses the one with the best time."""
    net = UNetConfig(
        image_size=16, in_channels=3, model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=()
    ).build()
    for parameter in net.parameters():
        parameter.copy_(torch.linspace(-0.2, 0.2, parameter.numel()).view_as(parameter))
    x = torch.linspace(-1, 1, 4 * 3 * 256).view(4, 3, 16, 16)
    t = torch.arange(4).float()
    outs = []
    for best in WAYS:
        ways = (*WAYS, "blocked")
        times.seconds = lambda case, ways=ways, best=best: {way: 1.0 if way == best else 2.0 for way in ways}
        with kernels.using("measure"), planned() as plan:
            autotune._again.clear()
            runner = prepare_for_inference(net, "fp32", "cpu")
            outs.append(runner(x, t))
            assert set(plan.record()) - {"blocked"} == {"batch", best}
            largest = float(outs[-1].abs().max())
            assert float((runner(x[1:2], t[1:2]) - outs[-1][1:2]).abs().max()) < 1e-5 * largest
            assert plan.record()["batch"] == 4
    for out in outs[1:]:
        assert float((out - outs[0]).abs().max()) < 3e-5 * float(outs[0].abs().max())


@needs_kernel
def test_gradients_keep_the_plan_of_their_forward_pass(times: Times) -> None:
    x = torch.ones(1, 32, 8, 8, requires_grad=True)
    weight = torch.full((32, 32, 3, 3), 0.1)
    with planned(Plan(recorded={"winograd": ["conv3x3 fp32 32-32 8x8", "conv3x3_grad fp32 32-32 8x8"]})) as plan:
        y = conv_3x3(x, weight, None)
    y.sum().backward()
    assert not times.cases and list(plan.record()) == ["batch", "winograd"]
    assert x.grad is not None and torch.allclose(x.grad[0, 0, 1:-1, 1:-1], torch.tensor(28.8))


def test_a_runner_keeps_its_first_batch() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            plans.append(current_plan())
            implementation("conv3x3", current_plan(), (len(x), 32, 8, 8), 32, torch.float32)
            return x

    plans: list[Plan] = []
    runner = NetworkRunner(Net(), "fp32", torch.device("cpu"))
    for batch in (4, 1):
        runner(torch.zeros(batch, 3, 8, 8), torch.zeros(batch))
    with planned() as own:
        runner(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    assert plans[0] is plans[1] and plans[2] is own
    if has_winograd(32, 32, torch.float32):
        assert plans[0].batch == 4 and own.batch == 2


@needs_kernel
def test_the_table_is_shown(tmp_path: Path) -> None:
    import os

    table = TimingTable(tmp_path / "timings.json")
    assert "none yet" in table.text()
    table.add(Case("conv3x3", "fp32", 64, 32, 8), Entry("torch", {"winograd": 2e-3, "torch": 1e-3}))
    assert "conv3x3 fp32 64x32x32 batch 8: torch (winograd 2, torch 1)" in table.text()
    done = subprocess.run(
        [sys.executable, "-m", "undiffuse", "inspect"], capture_output=True, text=True, check=True,
        env={**os.environ, "UNDIFFUSE_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert "timings" in done.stdout and "none yet" in done.stdout
