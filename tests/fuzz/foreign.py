"""Doors of other programs' weights: torch.save, TorchScript, network pickles, safetensors, folders of diffusers."""

from __future__ import annotations

import io
import json
import pickle
import random
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from fuzz.containers import inspected
from fuzz.damage import damaged, odd_json
from fuzz.own import Made
from undiffuse.adapters import foreign, pickled

LIKE = "guided-diffusion --image_size 8 --num_channels 8 --num_res_blocks 1 --channel_mult 1 --noise_schedule cosine"


class EDMPrecond(nn.Module):
    """What a network pickle of EDM holds; only the name counts."""


class SongUNet(EDMPrecond):
    """The network within it."""


class ForeignFiles:
    """Doors that read weights of other programs."""

    folder: Path
    file: Callable[[str, bytes], Path]

    def prepare_foreign(self) -> None:
        from support.foreign_files import layout_of
        from support.unet2d_cases import BASE
        from undiffuse.adapters.diffusers_unet import network_config
        from undiffuse.nets import UNetConfig

        config = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,), num_res_blocks=1,
            attention_resolutions=(),
        )  # fmt: skip
        state = config.build().state_dict()
        small = {name: value[:1].clone() for name, value in list(state.items())[:6]}
        outer, inner = EDMPrecond(), SongUNet()
        inner._init_kwargs = {"img_resolution": 8, "in_channels": 1, "out_channels": 1}  # type: ignore[assignment]
        outer.model = inner
        inner.register_parameter("w", nn.Parameter(torch.zeros(2, 2)))
        script = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
        self.saved = {
            "state.pt": self._saved(state),
            "trainer.pt": self._saved({"state_dict": OrderedDict(small), "step": 3, "args": {"lr": 0.1, "name": "x"}}),
            "legacy.pt": self._saved(small, zipped=False),
            "network.pkl": pickle.dumps({"ema": outer, "loss_fn": None}),
            "script.pt": script.getvalue(),
        }
        self.unet2d = {
            **BASE, "block_out_channels": [8], "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"], "norm_num_groups": 4, "_class_name": "UNet2DModel",
            "_diffusers_version": "0.30.0",
        }  # fmt: skip
        layout = layout_of(network_config(self.unet2d))
        self.unet2d_weights = save({name: torch.zeros(shape) for name, shape in layout.items()})
        self.scheduler = {
            "_class_name": "DDPMScheduler", "_diffusers_version": "0.30.0", "beta_schedule": "linear",
            "num_train_timesteps": 100, "prediction_type": "epsilon", "variance_type": "fixed_small",
        }  # fmt: skip

    def _saved(self, content: Any, zipped: bool = True) -> bytes:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        return file.getvalue()

    def _pickled(self, rng: random.Random, name: str) -> bytes:
        """A file of weights with damage inside the pickle, so that an outer checksum does not hide it."""
        data = self.saved[name]
        if rng.random() < 0.1:
            return data
        if not zipfile.is_zipfile(io.BytesIO(data)) or rng.random() < 0.3:
            return damaged(rng, data)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                content = old.read(info)
                hit = info.filename.endswith("data.pkl") or rng.random() < 0.05
                new.writestr(info.filename, damaged(rng, content) if hit else content)
        return out.getvalue()

    def on_weights(self, rng: random.Random) -> Made:
        """Files of torch.save and pickles, read as data."""
        name = rng.choice(list(self.saved))
        data = self._pickled(rng, name)
        path = self.file(f"weights/{name}", data)
        door: Callable[[Path], Any] = rng.choice([pickled.read, foreign.read, foreign.tensors, inspected])
        return data, lambda: door(path)

    def on_torchscript(self, rng: random.Random) -> Made:
        from undiffuse.metrics import MetricError
        from undiffuse.metrics.extractors.torchscript import is_torchscript, read_torchscript

        data = self._pickled(rng, "script.pt")
        path = self.file("script.pt", data)

        def call() -> None:
            is_torchscript(path)
            try:
                read_torchscript(path)
            except MetricError as error:
                raise ValueError(str(error)) from error

        return data, call

    def on_like(self, rng: random.Random) -> Made:
        """Weights of guided-diffusion by a reference with flags."""
        from undiffuse.models import load_model

        words = LIKE.split(" ")
        at = rng.randrange(len(words))
        if rng.random() < 0.9:
            words[at] = rng.choice(["", "x", "-1", "99999999999", "0", "1,,2", "--a", "True", "1e9", words[at] + "0"])
        data = self._pickled(rng, "state.pt") if rng.random() < 0.3 else self.saved["state.pt"]
        path = self.file("like.pt", data)
        return " ".join(words).encode() + data, lambda: load_model(f"{path}@{' '.join(words)}")

    def on_diffusers(self, rng: random.Random) -> Made:
        """A folder of diffusers: its settings are read before its weights."""
        from undiffuse.adapters.importing import identify

        which = rng.choice("nsb")
        data = json.dumps(self.unet2d).encode() if which == "s" else odd_json(rng, self.unet2d, 0.1)
        folder = self.file("pipe/config.json", data).parent
        scheduler = json.dumps(self.scheduler).encode() if which == "n" else odd_json(rng, self.scheduler, 0.1)
        self.file("pipe/scheduler_config.json", scheduler)
        self.file("pipe/diffusion_pytorch_model.safetensors", self.unet2d_weights)
        return data + scheduler, (lambda: identify(folder)) if rng.random() < 0.8 else lambda: inspected(folder)

    def on_safetensors(self, rng: random.Random) -> Made:
        """A safetensors file of somebody else's weights."""
        header = {"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"x": "y"}}
        text = odd_json(rng, header, 0.2)
        data = len(text).to_bytes(8, "little") + text + bytes(16)
        data = damaged(rng, data) if rng.random() < 0.3 else data
        path = self.file("other.safetensors", data)
        door: Callable[[Path], Any] = rng.choice([foreign.read, foreign.tensors, inspected])
        return data, lambda: door(path)
