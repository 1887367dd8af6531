"""ONNX Runtime and OpenVINO compute what this package's kernels do, in samples and their records too."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.export_models import SMALL, model
from tests.adapters.test_export_graph import PROCESSES
from tests.nets.test_prepared_networks import CONFIGS
from undiffuse import cli
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import save_model
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline
from undiffuse.runtime_specs import RUNTIMES
from undiffuse.runtimes import graphs, load_runner
from undiffuse.util.errors import ConfigError

TINY: dict[str, Any] = {**SMALL, "image_size": 8, "channel_mult": (1,), "attention_resolutions": ()}
PROCESS = ProcessConfig(variance="fixed_large", schedule="cosine", steps=50)
CPU = torch.device("cpu")
INSTALLED = [
    name
    for name, info in RUNTIMES.items()
    if info.package and all(importlib.util.find_spec(each) for each in (info.package, *graphs.PACKAGES))
]
pytestmark = pytest.mark.skipif(not INSTALLED, reason="extras: undiffuse[onnxruntime], undiffuse[openvino]")
by_runtime = pytest.mark.parametrize("runtime", INSTALLED)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this module's own, so that runtimes share the exported graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def assert_near(output: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-4) -> None:
    assert output.shape == expected.shape
    assert output.dtype == torch.float32
    assert float((output - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_in_every_runtime(name: str) -> None:
    """For batches of several sizes from one graph."""
    given = model(CONFIGS[name], PROCESSES.get(name, PROCESS))
    for runtime in INSTALLED:
        run = load_runner(given, runtime, "fp32", CPU)
        for count in (3, 1, 2):
            x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
            t = torch.linspace(1, 40, count)
            with torch.no_grad():
                assert_near(run(x, t), given.net(x, t))
        assert run.footprint.parameters == sum(p.numel() for p in given.net.parameters())


def test_conditions_of_every_kind() -> None:
    """Also those that are not given, and images to enlarge of another size than the export's."""
    config = UNetConfig(
        **TINY, num_classes=3, null_class=True, num_tags=4, num_numbers=2, cond_channels=1, super_resolution=True
    )
    given = model(config, PROCESS)
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x, t, y, low = draw(2, 3, 8, 8), torch.tensor([1.0, 30.0]), torch.tensor([3, 1]), draw(2, 3, 3, 3)
    more = {"tags": draw(2, 4).gt(0).float(), "numbers": draw(2, 2), "cond_image": draw(2, 1, 8, 8)}
    for runtime in INSTALLED:
        run = load_runner(given, runtime, "fp32", CPU)
        for some in ({}, more, {**more, "numbers": torch.full((2, 2), torch.nan)}):
            with torch.no_grad():
                assert_near(run(x, t, y=y, low_res=low, **some), given.net(x, t, y=y, low_res=low, **some))


@pytest.mark.skipif("openvino" not in INSTALLED, reason="an extra: undiffuse[openvino]")
def test_openvino_takes_bfloat16_only_on_request() -> None:
    """By default it computes float32 graphs in bfloat16 where the processor can."""
    given = model(CONFIGS["adm"], PROCESS)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 30.0])
    with torch.no_grad():
        expected = given.net(x, t)
        assert_near(load_runner(given, "openvino", "fp32", CPU)(x, t), expected, 2e-5)
        rounded = load_runner(given, "openvino", "bf16", CPU)(x, t)
    assert_near(rounded, expected, 0.05)
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        assert float((rounded - expected).abs().max()) > 2e-4 * float(expected.abs().max())


@pytest.mark.skipif("openvino" not in INSTALLED, reason="an extra: undiffuse[openvino]")
@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_openvino_in_bfloat16_sees_the_right_time(name: str) -> None:
    """Left to itself it rounds the angles of the time embedding too, which findings/ shows."""
    given = model(CONFIGS[name], PROCESSES.get(name, PROCESS))
    x, t = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 300, 700, 999])
    runner = load_runner(given, "openvino", "bf16", CPU)
    with torch.no_grad():
        expected, found = given.net(x, t), runner(x, t)
        assert_near(found, expected, 0.03)
        assert_near(runner(x[2:], t[2:]), found[2:], 0.02)  # of another size, which is compiled anew


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A class-conditional model and a classifier of its noisy images, as files."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "model.safetensors", model(UNetConfig(**TINY), PROCESS))
    config = ClassifierConfig(**{**TINY, "out_channels": 3}, num_head_channels=16)
    save_model(folder / "classifier.safetensors", model(config, PROCESS, labels="abc"))
    return str(folder / "model.safetensors"), str(folder / "classifier.safetensors")


@by_runtime
def test_samples_are_ours(runtime: str, files: tuple[str, str]) -> None:
    """With classifier guidance, whose gradient PyTorch computes, and with a second model that guides."""
    plain = Pipeline.from_pretrained(
        files[0], classifier=files[1], guidance=2.0, autoguide=files[0], autoguide_scale=1.5, steps=5, solver="ddim"
    )
    other = plain.replace(runtime=runtime)
    ours, theirs = (pipeline.sample(3, seed=1, progress=False) for pipeline in (plain, other))
    assert np.abs(ours.images.astype(int) - theirs.images.astype(int)).max() <= 1
    assert ours.images.std() > 10
    assert runtime in other.text()
    assert other.notes["runtime_version"].startswith(f"{runtime} ")
    assert {"runtime", "runtime_version"}.isdisjoint({**plain.record, **plain.notes})


@by_runtime
def test_records_remember_the_runtime(
    runtime: str, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", files[0], "--runtime", runtime, "--count", "2", "--steps", "3", "--out", "made"]) == 0
    picture = min(path for path in Path("made").glob("*.png") if path.name != "grid.png")
    record = read_record(picture)
    assert record["runtime"] == runtime
    assert record["runtime_version"].startswith(runtime)
    assert cli.main(["sample", "--from-record", str(picture), "--out", "again.png"]) == 0
    assert read_record("again.png")["runtime"] == runtime
    assert runtime in capsys.readouterr().out


@by_runtime
def test_what_needs_gradients_says_so(runtime: str, files: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{runtime} has no gradients .* guidance at x0"):
        Pipeline.from_pretrained(files[0], classifier=files[1], guidance=2.0, guidance_at="x0", runtime=runtime)
    with pytest.raises(ConfigError, match=f"{runtime} has no gradients"):
        Pipeline.from_pretrained(files[0], runtime=runtime, solver="ddim").load(
            Pipeline.from_pretrained(files[0], runtime=runtime).config, gradient=True
        )
