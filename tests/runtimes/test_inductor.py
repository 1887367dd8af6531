"""torch.compile as a runtime: it computes what this package's kernels do, and records say that it made a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.export_models import SMALL, model
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.pipelines import Pipeline
from undiffuse.runtimes import load_runner

TINY: dict[str, Any] = {**SMALL, "image_size": 8, "channel_mult": (1,), "attention_resolutions": ()}
PROCESS = ProcessConfig(variance="fixed_large", schedule="cosine", steps=50)


@pytest.mark.slow
def test_inductor(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    given = model(UNetConfig(**TINY), PROCESS)
    run = load_runner(given, "inductor", "fp32", torch.device("cpu"))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 30.0])
    with torch.no_grad():
        expected = given.net(x, t)
        assert float((run(x, t) - expected).abs().max()) <= 2e-4 * float(expected.abs().max())
    assert any((tmp_path / "runtimes" / "inductor").iterdir())
    pipeline = Pipeline.from_pretrained(given, runtime="inductor", steps=2, solver="ddim")
    ours = pipeline.replace(runtime="torch").sample(2, progress=False)
    theirs = pipeline.sample(2, progress=False)
    assert np.abs(theirs.images.astype(int) - ours.images.astype(int)).max() <= 1
    assert pipeline.record["runtime"] == "inductor"
    assert "runtime_version" not in pipeline.notes
