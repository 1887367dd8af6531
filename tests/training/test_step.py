"""One update: micro-batches, memory, precision, and numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.training_runs import Recorder, run, tiny_config, tiny_data, tiny_task
from support.variants import few
from undiffuse import checkpoints
from undiffuse.data import batches
from undiffuse.distributed import DistContext, GradientExchange
from undiffuse.nets.memory import is_out_of_memory
from undiffuse.nets.runner import NetworkRunner
from undiffuse.training import NonFiniteError, read_events
from undiffuse.training.run import Run
from undiffuse.training.step import accumulate, accumulate_within_memory


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    path = checkpoints.latest(folder)
    assert path is not None
    return checkpoints.read(path)[0]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def gradients(microbatch: int, timesteps: str = "uniform", **options: Any) -> list[torch.Tensor]:
    """The gradient of the first update of eight images."""
    task, config = tiny_task(dropout=0.0), tiny_config(batch=8, timesteps=timesteps)
    one = Run(task, tiny_data(), config, Path("unused"), DistContext())
    if timesteps == "loss-second-moment":  # a history that makes the importance weights differ
        for _ in range(10):
            one.state.sampler.update(torch.arange(20).numpy(), torch.linspace(0.1, 3, 20).double().numpy())
    inputs = one.inputs(next(batches(tiny_data(), 0, 8, workers=0)))
    if timesteps == "loss-second-moment":
        assert float(inputs.weights.max() / inputs.weights.min()) > 2
    accumulate(task, one.forward, inputs, config, one.exchange, 0, microbatch, 1.0)
    return [p.grad for p in task.net.parameters() if p.grad is not None]


@pytest.mark.parametrize("timesteps", ["uniform", "loss-second-moment"])
@pytest.mark.parametrize("microbatch", [1, 3, 4])
def test_accumulation_equals_the_full_batch(microbatch: int, timesteps: str) -> None:
    """Also for sizes that do not divide the batch (3 + 3 + 2), and with importance weights."""
    whole, parts = gradients(8, timesteps), gradients(microbatch, timesteps)
    scale = max(float(g.abs().max()) for g in whole)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=3e-6 * scale, rtol=1e-4)


def test_gradient_is_that_of_the_weighted_mean() -> None:
    task, config = tiny_task(dropout=0.0), tiny_config(batch=8)
    one = Run(task, tiny_data(), config, Path("unused"), DistContext())
    inputs = one.inputs(next(batches(tiny_data(), 0, 8, workers=0)))
    loss = (task.losses(one.forward, inputs)["loss"] * inputs.weights).mean()
    expected = torch.autograd.grad(loss, list(task.net.parameters()))
    for a, b in zip(expected, gradients(8), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_masks_are_a_function_of_the_counters() -> None:
    """And the caller's generator is left alone."""
    task, config = tiny_task(dropout=0.5), tiny_config()
    one = Run(task, tiny_data(), config, Path("unused"), DistContext())
    inputs = one.inputs(next(batches(tiny_data(), 0, 4, workers=0)))

    def loss(images: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())
        state = torch.get_rng_state()
        terms = accumulate(task, one.forward, inputs, config, one.exchange, images, 2, 1.0)
        assert torch.equal(torch.get_rng_state(), state)
        return terms["loss"]

    assert torch.equal(loss(0), loss(0))
    assert not torch.equal(loss(0), loss(4))


@pytest.mark.parametrize("kind", few([torch.OutOfMemoryError, MemoryError, RuntimeError], count=1))
def test_out_of_memory_halves_the_micro_batch_and_repeats_the_update(tmp_path: Path, kind: type[Exception]) -> None:
    failures = iter([4, 2])  # the first attempts with four images and with two fail, in the second half of the step
    pending = [next(failures)]

    def hungry(task: Any) -> Any:
        original = task.losses

        def terms(forward: Any, inputs: Any) -> Any:
            out = original(forward, inputs)
            if pending and len(inputs) == pending[0]:
                out["loss"].sum().backward()  # gradients of the failed attempt must not survive
                pending[:] = [size for size in [next(failures, None)] if size]
                raise kind("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")
            return out

        task.losses = terms
        return task

    recorder = Recorder()
    run(tmp_path / "small", hungry(tiny_task(dropout=0.0)), steps=2, ema_decays=(), listeners=[recorder])
    run(tmp_path / "set", tiny_task(dropout=0.0), steps=2, ema_decays=(), microbatch=1)
    run(tmp_path / "whole", tiny_task(dropout=0.0), steps=2, ema_decays=())
    assert largest_difference(weights_of(tmp_path / "small"), weights_of(tmp_path / "set")) == 0
    net = {n: t for n, t in weights_of(tmp_path / "whole").items() if n.startswith("optimizer.") and "avg_sq" not in n}
    small = {n: t for n, t in weights_of(tmp_path / "small").items() if n in net}
    assert largest_difference(small, net) < 2e-5
    assert "micro-batch 1 instead of 4" in recorder.of("note")[0].values["text"]
    progress = checkpoints.read_manifest(checkpoints.latest(tmp_path / "small"))["progress"]  # type: ignore[arg-type]
    assert progress["microbatch"] == 1, "a resumed run adds up in the same portions"


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    task = tiny_task()

    def terms(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    task.losses = terms  # type: ignore
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(tmp_path, task)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"))


def test_no_memory_for_one_image_is_an_error_that_helps(tmp_path: Path) -> None:
    task = tiny_task()

    def terms(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    task.losses = terms  # type: ignore
    with pytest.raises(MemoryError, match=r"not even one image of shape \[1, 8, 8\](.|\n)*use_checkpoint"):
        run(tmp_path, task)


def spoiled(positions: set[int], value: float = float("nan")) -> Any:
    """A task whose loss is `value` at some positions of the stream."""
    task = tiny_task()
    original = task.losses

    def terms(forward: Any, inputs: Any) -> Any:
        out = original(forward, inputs)
        bad = torch.tensor([int(p) in positions for p in inputs.positions])
        return {**out, "loss": out["loss"] * torch.where(bad, value, 1.0)}

    task.losses = terms  # type: ignore
    return task


@pytest.mark.parametrize("timesteps", ["uniform", "loss-second-moment"])
def test_a_bad_update_is_skipped_counted_and_named(tmp_path: Path, timesteps: str) -> None:
    recorder = Recorder()
    outcome = run(tmp_path / "a", spoiled({5, 22}), listeners=[recorder], timesteps=timesteps)
    assert outcome.complete
    skipped = recorder.of("skipped")
    assert [(r.values["first"], r.values["last"]) for r in skipped] == [(4, 7), (20, 23)]
    assert [r.values["positions"] for r in skipped] == [[5], [22]]
    assert skipped[0].values["terms"] == ["loss"]
    assert skipped[0].values["files"][0].startswith("image[")
    assert skipped[0].values["counts"]["gradients"] > 8
    assert skipped[0].values["weights"] == []
    assert [r.values["skipped"] for r in recorder.of("train")] == [1, 1, 2, 2]
    tensors, manifest = checkpoints.read(checkpoints.latest(tmp_path / "a"))  # type: ignore[arg-type]
    assert (manifest["progress"]["updates"], manifest["progress"]["steps"]) == (6, 8)
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())
    steps = {float(t) for name, t in tensors.items() if name.endswith(".step")}
    assert steps == {6.0}
    if timesteps == "loss-second-moment":
        assert int(tensors["sampler.counts"].sum()) == 24
    assert all(isinstance(r["loss"], float) for r in read_events(tmp_path / "a" / "metrics.jsonl") if "loss" in r)


def test_too_many_bad_updates_stop_with_a_diagnosis(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, spoiled(set(range(17, 32)), float("inf")), max_bad_updates=2)
    text, diagnosis = str(caught.value), caught.value.diagnosis
    assert "3 updates in a row" in text
    assert "max_bad_updates=2" in text
    assert "images 24 to 27" in text
    assert "25 (t=" in text
    assert "0000000012.safetensors" in text
    assert "learning rate" in text
    assert diagnosis["positions"] == [24, 25, 26, 27]
    assert len(diagnosis["t"]) == 4
    left = [checkpoints.images_of(p) for p in checkpoints.checkpoints(tmp_path)]
    assert left == [12], "the last good checkpoint stays the newest"
    weights, _ = checkpoints.read(checkpoints.checkpoints(tmp_path)[-1], "net")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    kept, there = tmp_path / "last-finite.safetensors", tmp_path / "checkpoints" / "0000000028.safetensors"
    assert f"kept in {kept}; to resume from it, move it to {there}" in text
    kept.rename(there)
    recorder = Recorder()
    assert run(tmp_path, listeners=[recorder]).complete
    assert recorder.of("start")[0].images == 28
    tensors, manifest = checkpoints.read(there)
    assert (manifest["progress"]["updates"], manifest["progress"]["skipped"]) == (4, 3)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_run_without_one_finite_update_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="nothing was trained: all 8 updates"):
        run(tmp_path, spoiled(set(range(32)), float("nan")), max_bad_updates=20)
    recorder = Recorder()
    run(tmp_path / "end", spoiled(set(range(24, 32)), float("nan")), listeners=[recorder])
    assert recorder.of("end")[0].values["text"].endswith("the last 2 updates were not finite, and were skipped")


def test_a_run_that_diverges_at_once_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, spoiled(set(range(32)), float("nan")), max_bad_updates=2)
    assert "last-finite" not in str(caught.value)
    assert not (tmp_path / "last-finite.safetensors").exists()


def test_gradients_that_are_not_finite_are_found_too(tmp_path: Path) -> None:
    """Finite losses with an infinite gradient: only the norm shows it."""
    task = tiny_task()
    original = task.losses

    def terms(forward: Any, inputs: Any) -> Any:
        out = original(forward, inputs)
        weight: Any = task.net.out[2].bias
        return {**out, "loss": out["loss"] + 0.0 * (weight - weight.detach()).sum().sqrt()}

    task.losses = terms  # type: ignore
    with pytest.raises(NonFiniteError, match=r"all losses were finite, the gradient was not(.|\n)*out.2.bias"):
        run(tmp_path, task, max_bad_updates=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_training_follows_float32(tmp_path: Path, precision: str) -> None:
    recorders = {p: Recorder() for p in ("fp32", precision)}
    for name, recorder in recorders.items():
        run(tmp_path / name, precision=name, listeners=[recorder], steps=6, lr=2e-3)
    full, half = ([r.values["loss"] for r in recorders[p].of("train")] for p in ("fp32", precision))
    assert half == pytest.approx(full, rel=0.05)
    assert half != full
    tensors, manifest = checkpoints.read(checkpoints.latest(tmp_path / precision))  # type: ignore[arg-type]
    assert all(t.dtype == torch.float32 for n, t in tensors.items() if n.startswith(("net.", "ema.")))
    assert manifest["progress"]["loss_scale"]["value"] == (65536.0 if precision == "fp16" else 1.0)


def test_fp16_overflow_shrinks_the_scale_and_is_no_error(tmp_path: Path) -> None:
    task = tiny_task()
    original = task.losses

    def terms(forward: Any, inputs: Any) -> Any:
        out = original(forward, inputs)
        # A float16 value whose gradient, times the loss scale, overflows until the scale is 2^13.
        bias: Any = task.net.out[2].bias
        return {**out, "loss": out["loss"] + ((bias - bias.detach()).half() * 6.0).float().sum()}

    task.losses = terms  # type: ignore
    recorder = Recorder()
    run(tmp_path, task, precision="fp16", max_bad_updates=0, listeners=[recorder])
    last = recorder.of("train")[-1].values
    assert last["overflows"] > 0
    assert last["skipped"] == 0
    assert last["loss_scale"] < 65536
    progress = checkpoints.read_manifest(checkpoints.latest(tmp_path))["progress"]  # type: ignore[arg-type]
    assert progress["loss_scale"]["value"] == last["loss_scale"]
    assert progress["updates"] == 8 - last["overflows"]


def test_clipping_bounds_the_update_and_logs_the_norm_before(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, steps=1, grad_clip=1e-3, log_every=4, ema_decays=(), listeners=[recorder])
    assert recorder.of("train")[0].values["grad_norm"] > 0.01
    moments = [t for n, t in weights_of(tmp_path).items() if n.endswith("exp_avg")]
    norm = torch.stack([t.double().norm() for t in moments]).norm() / 0.1  # exp_avg = (1 - beta1) g after one update
    assert float(norm) == pytest.approx(1e-3, rel=1e-4)


def test_update_is_adamw(tmp_path: Path) -> None:
    """One update of the engine against AdamW's formula (Loshchilov & Hutter 2019, algorithm 2)."""
    run(tmp_path, steps=1, weight_decay=0.1, lr=0.01, ema_decays=(0.5,), ema_warmup=False)
    after = weights_of(tmp_path)
    for name, before in tiny_task().net.state_dict().items():
        m, v = after[f"optimizer.{name}.exp_avg"] / 0.1, after[f"optimizer.{name}.exp_avg_sq"] / 0.001
        expected = before * (1 - 0.01 * 0.1) - 0.01 * m / (v.sqrt() + 1e-8)
        torch.testing.assert_close(after[f"net.{name}"], expected, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(after[f"ema.0.5.{name}"], (before + after[f"net.{name}"]) / 2)


def test_memory_is_agreed_on_before_gradients_are_exchanged() -> None:
    """If only another process ran out of memory, this one repeats the step too."""
    task, config = tiny_task(dropout=0.0), tiny_config(batch=4)
    one = Run(task, tiny_data(), config, Path("unused"), DistContext())
    inputs = one.inputs(next(batches(tiny_data(), 0, 4, workers=0)))
    answers = [True, False]

    class Other(GradientExchange):
        def finish(self, failed: bool = False) -> bool:
            assert not failed
            return answers.pop(0)

    exchange = Other(task.net.parameters(), DistContext())
    terms, microbatch = accumulate_within_memory(task, one.forward, inputs, config, exchange, 0, 4, 1.0)
    assert microbatch == 2
    assert len(terms["loss"]) == 4
    assert not answers


def test_compiled_forward_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def compile_(net: Any) -> Any:
        called.append(net)
        return net

    monkeypatch.setattr(torch, "compile", compile_)
    task = tiny_task()
    NetworkRunner(task.net, "fp32", torch.device("cpu"), compiled=True)
    NetworkRunner(task.net, "fp32", torch.device("cpu"))
    assert called == [task.net]
