"""Models in files of 16-bit weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.cli_runs import write_model
from undiffuse.models import load_diffusion, save_model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_16_bits_is_half_as_large_and_loads_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_diffusion(write_model(tmp_path / "model.safetensors"))
    for name, kind in (("whole", None), ("half", dtype)):
        save_model(tmp_path / f"{name}.safetensors", model, dtype=kind)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    parameters = sum(p.numel() for p in model.net.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * parameters, rel=0.02)
    half = load_diffusion(tmp_path / "half.safetensors")
    assert half.digest != model.digest
    for mine, whole in zip(half.net.parameters(), model.net.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, whole.to(dtype).float())
    save_model(tmp_path / "again.safetensors", half, dtype=dtype)
    assert load_diffusion(tmp_path / "again.safetensors").digest == half.digest


def test_a_weight_too_large_for_float16_is_an_error(tmp_path: Path) -> None:
    model = load_diffusion(write_model(tmp_path / "model.safetensors"))
    next(model.net.parameters()).data[0] = 1e6
    with pytest.raises(ValueError, match=r"1e\+06 cannot be written as torch.float16: use bfloat16"):
        save_model(tmp_path / "half.safetensors", model, dtype=torch.float16)
    assert not (tmp_path / "half.safetensors").exists()
