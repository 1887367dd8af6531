"""Every row of the table of programs in docs/models.md: a file as that program writes it, read or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.adapters.test_ddp_weights as ddp
import tests.adapters.test_edm2_weights as karras
import tests.adapters.test_edm_weights as nvidia
import tests.adapters.test_score_sde_weights as song
from support.cli_runs import call, write_model
from support.foreign_files import DIFFUSION, weights_of, with_planes, write
from tests.adapters.test_diffusers_folders import SETTINGS, holds, pipeline
from tests.adapters.test_export_images import table
from tests.adapters.test_foreign_files import SMALL, ddpm_weights
from tests.adapters.test_openai_args import FLAGS, LONG, right
from undiffuse.adapters import exporting, pickled
from undiffuse.adapters.export_graph import export_torch
from undiffuse.adapters.export_openai import export_openai
from undiffuse.checkpoints import CheckpointError
from undiffuse.models import load_diffusion, load_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def ours(folder: Path) -> None:
    (folder / "run").mkdir()
    file = write_model(folder / "run" / "model.safetensors")
    assert load_diffusion(folder / "run").digest == load_diffusion(file).digest


def exported(folder: Path) -> None:
    given = load_diffusion(f"{write(folder / 'w.pt', weights_of(DIFFUSION))}@{LONG}")
    for name, export in (("m.pt", export_openai), ("m.pt2", export_torch)):
        export(given, folder / name)
        again = load_diffusion(folder / name)
        assert (again.net.config, again.process, again.digest) == (given.net.config, given.process, given.digest), name
        assert again.labels == given.labels
        beside = exporting.about_path(folder / name)
        other = {"sha256": "0" * 64, "written_sha256": "0" * 64}
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **other}))
        with pytest.raises(CheckpointError, match="do not show|does not contain the weights"):
            load_diffusion(folder / name)


def openai(folder: Path) -> None:
    assert right(load_diffusion(f"{write(folder / 'w.pt', weights_of(DIFFUSION))}@{LONG}"))


def consistency(folder: Path) -> None:
    file = write(folder / "w.pt", with_planes(weights_of(DIFFUSION) | {
        name: value[:3] for name, value in weights_of(DIFFUSION).items() if name.startswith("out.2.")
    }))  # fmt: skip
    with pytest.raises(CheckpointError, match="do not show .*training_mode"):
        load_diffusion(file)
    said = "consistency_models --image_size 32 --num_head_channels 16 --training_mode"
    for mode, target in (("edm", "edm"), ("consistency_training", "consistency")):
        model = load_diffusion(f"{file}@{said} {mode}")
        assert (model.process.target, model.net.config.use_new_attention_order) == (target, True)


def forks(folder: Path) -> None:
    weights = {f"module.{name}": value for name, value in weights_of(DIFFUSION).items()}
    assert right(load_diffusion(f"{write(folder / 'w.pt', {'model': weights, 'optimizer': {}, 'epoch': 3})}@{LONG}"))


def arguments(folder: Path) -> None:
    assert right(load_diffusion(write(folder / "w.pt", {"model": weights_of(DIFFUSION), "args": dict(FLAGS)})))


def ddpm(folder: Path) -> None:
    assert load_diffusion(write(folder / "model-1.ckpt", ddpm_weights())).net.config == SMALL


def unet2d(folder: Path) -> None:
    assert holds(pipeline(folder / "p"))


def other_diffusers(folder: Path) -> None:
    path = pipeline(folder / "p") / "unet" / "config.json"
    path.write_text(json.dumps({**SETTINGS, "_class_name": "UNet2DConditionModel"}))
    refused(folder / "p", "is a UNet2DConditionModel.*conditional on text")
    (folder / "q").mkdir()
    (folder / "q" / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    with pytest.raises(ValueError, match="DiTPipeline.*has no pixel-space U-Net"):
        load_model(folder / "q")


def lucidrains(folder: Path) -> None:
    ddp.test_a_trainers_file_tells_all_but_the_size(folder, "pred_v", 1e30, "sigmoid")


def refused(path: Path, told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def score_sde(folder: Path) -> None:
    song.test_noise_is_that_of_its_score_function("vp ddpmpp", folder)


def k_diffusion(folder: Path) -> None:
    names = ("inner_model.patch_in.proj.weight", "inner_model.mapping.blocks.0.up.weight")
    weights = {name: torch.zeros(2, 2) for name in names}
    content = {"model": weights, "model_ema": weights, "opt": {}, "sched": {}, "ema_sched": {}, "epoch": 1, "step": 5}
    refused(write(folder / "00000500.pth", content), "k-diffusion.*image transformer is not supported. Use a model of")


class EDMPrecond(torch.nn.Module):
    """Named like NVIDIA's; what counts is the name in the pickle."""

    def __init__(self) -> None:
        super().__init__()
        self.img_channels = 3
        self.model = SongUNet()


class SongUNet(torch.nn.Module):
    """Named like NVIDIA's."""


def edm(folder: Path) -> None:
    nvidia.test_a_pickle_is_sampled_as_edm_does(folder, CAPTURED[0])


def edm_others(folder: Path) -> None:
    nvidia.test_baselines_denoise_as_in_edm("ve ncsnpp", folder)


def edm2(folder: Path) -> None:
    karras.test_denoised_images_are_those_that_edm2_gave("classes", folder)


def dumped(content: Any) -> bytes:
    import pickle

    return pickle.dumps(content)


def latent(folder: Path) -> None:
    names = ("first_stage_model.encoder.conv_in.weight", "model.diffusion_model.out.2.bias")
    weights = {name: torch.zeros(2) for name in names}
    refused(write(folder / "sd.ckpt", {"state_dict": weights, "epoch": 1}), "latents of an autoencoder")


def dit(folder: Path) -> None:
    weights = {"x_embedder.proj.weight": torch.zeros(2), "blocks.0.adaLN_modulation.1.weight": torch.zeros(2)}
    refused(write(folder / "DiT-XL-2-256x256.pt", weights), "is a DiT")


def onnx(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x062.13.0:\x01")
    refused(folder / "m.onnx", "is an ONNX graph")


def script(folder: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Identity()), folder / "m.pt")
    refused(folder / "m.pt", "TorchScript program")


CAPTURED: list[Any] = []

ROWS: dict[str, Callable[[Path], None]] = {
    "undiffuse: checkpoint": ours,
    "undiffuse: exported": exported,
    "guided-diffusion, improved-diffusion": openai,
    "consistency_models": consistency,
    "forks of these with a prefix": forks,
    "forks that save": arguments,
    "DDPM's and DDIM's": ddpm,
    "diffusers: `UNet2DModel": unet2d,
    "diffusers: models of latents": other_diffusers,
    "denoising-diffusion-pytorch": lucidrains,
    "score_sde_pytorch": score_sde,
    "k-diffusion": k_diffusion,
    "EDM: network pickle of another": edm_others,
    "EDM: network pickle": edm,
    "EDM2:": edm2,
    "latent-diffusion": latent,
    "DiT": dit,
    "any: ONNX": onnx,
    "any: TorchScript": script,
}


def test_every_row_has_a_test() -> None:
    for row in table("programs"):
        assert any(row[0].startswith(name) for name in ROWS), row[0]
    assert len(table("programs")) == len(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_row_is_true(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CAPTURED[:] = [capsys]
    row = next(row for row in table("programs") if row[0].startswith(name))
    unread = (other_diffusers, k_diffusion, latent, dit, onnx, script)
    assert row[2].startswith("refused") == (ROWS[name] in unread)
    ROWS[name](tmp_path)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    """Neither a known program nor an unknown one; the mark would be there."""
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(mark)!r}, 'w')",)

    class Sly:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    for number, evil in enumerate((Evil(), Sly(), {"ema": Sly()}, [Sly()])):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(dumped(evil))
        with pytest.raises(CheckpointError):
            load_model(path)
        torch.save({"model": weights_of(DIFFUSION), "extra": evil}, tmp_path / f"{number}.pt")
        try:
            load_model(f"{tmp_path}/{number}.pt@{LONG}")
        except CheckpointError as error:
            assert "could execute code" in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("cut", [1, 10, 100, -1, -30])
def test_damaged_pickles_are_refused(tmp_path: Path, cut: int) -> None:
    content = dumped({"ema": EDMPrecond(), "list": [1, 2.5, "x", None, True, b"y"], "t": torch.ones(3)})
    path = tmp_path / "m.pkl"
    path.write_bytes(content[:cut])
    with pytest.raises((CheckpointError, pickled.Refused)):
        pickled.read(path)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_values_of_pickles(tmp_path: Path) -> None:
    import numpy as np

    state = torch.nn.Linear(3, 2).state_dict()
    base = torch.arange(12.0).reshape(3, 4)
    given = {
        "state": state, "view": base[:, 1:3].t(), "half": torch.ones(2).half(), "set": {1}, "n": np.float32(2.5),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3), "big": 10**30, "nested": [(1, {"a": ()})],
    }  # fmt: skip
    ways: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.write_bytes(dumped(given)),
        lambda path: torch.save(given, path),
        lambda path: torch.save(given, path, _use_new_zipfile_serialization=False),
    )
    for number, write_it in enumerate(ways):
        path = tmp_path / f"{number}.pt"
        write_it(path)
        read = pickled.read(path)
        assert all(read["state"][name].equal(value) for name, value in state.items())
        assert read["view"].equal(given["view"]) and read["half"].equal(given["half"])
        assert (read["set"], read["n"], read["big"], read["nested"]) == ([1], 2.5, 10**30, [(1, {"a": ()})])
        assert read["array"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_inspect_names_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x062.13.0:\x01")
    assert call("inspect", tmp_path / "m.onnx") != 0
    assert "is an ONNX graph" in capsys.readouterr().err
    given = load_diffusion(f"{write(tmp_path / 'w.pt', weights_of(DIFFUSION))}@{LONG}")
    export_torch(given, tmp_path / "m.pt2")
    assert call("inspect", tmp_path / "m.pt2") == 0
    assert "a model exported by undiffuse" in capsys.readouterr().out
