"""The other libraries, each used as its own documentation and scripts use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from common.installing import stand_in
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from unets.models import STEPS, STRIDE, Batch, find
from unets.sides import DECAY, DTYPES, LEARNING_RATE, Sampling, Setting, Training

GUIDANCE = 1.0


def adamw(net: nn.Module) -> torch.optim.AdamW:
    """With torch's defaults, as the other libraries' trainers make it."""
    return torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.0)


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, average: Callable[[], Any]) -> Training:
    """A training step of these parts."""

    def run() -> Tensor:
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average()
        optimizer.zero_grad()  # now rather than before: while others have their turn no gradients need be held
        return value.detach()

    return run


class Guided:
    """OpenAI's guided-diffusion. At bf16 under autocast; at fp16 converted by its own `convert_to_fp16`.

    Its attention blocks recompute their forward pass in the backward one, whatever `use_checkpoint` says. That does not
    know of autocast, so it is taken out of the bf16 row, which is the better for it.
    """

    same = True

    def __init__(self, setting: Setting) -> None:
        from guided_diffusion import script_util, unet

        self.setting, self.script, self.unet = setting, script_util, unet
        self.net = self._built(setting.model.name, unet.UNetModel)

    def _built(self, name: str, kind: Any) -> Any:
        half = self.setting.precision == "fp16"
        with self.setting.device:
            net = kind(**find(name).arguments, use_fp16=half)
        net.load_state_dict(load_file(find(name).weights(self.setting.folder)))
        if half:
            net.convert_to_fp16()
        if self.setting.precision == "bf16":
            for module in net.modules():
                if isinstance(module, self.unet.AttentionBlock):
                    module.forward = module._forward
        return net.to(self.setting.device).eval()

    def _autocast(self) -> Any:
        from contextlib import nullcontext

        return nullcontext() if self.setting.precision == "fp16" else self.setting.autocast()

    def process(self, respacing: str) -> Any:
        """The original's diffusion object: learned range, hybrid loss."""
        return self.script.create_gaussian_diffusion(
            steps=STEPS, learn_sigma=True, rescale_learned_sigmas=True, timestep_respacing=respacing
        )

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.net(batch.x, batch.t, batch.y).float()

    def sampling(self) -> Sampling:
        return self._loop(None)

    def guided(self) -> Sampling:
        classifier = self._built(f"{self.setting.model.name}-classifier", self.unet.EncoderUNetModel)

        def gradient(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                scores = F.log_softmax(classifier(x, t).float(), dim=-1)
                chosen = scores[torch.arange(len(x)), y].sum()
                return torch.autograd.grad(chosen, x)[0] * GUIDANCE

        return self._loop(gradient)

    def _loop(self, gradient: Callable[..., Tensor] | None) -> Sampling:
        process = self.process(STRIDE)

        def run(batch: Batch) -> Tensor:
            with self._autocast():
                return process.ddim_sample_loop(
                    self.net,
                    batch.x.shape,
                    noise=batch.x,
                    cond_fn=gradient,
                    model_kwargs={"y": batch.y},
                    device=self.setting.device,
                )

        return run

    def loss(self, batch: Batch, process: Any, noise: Tensor | None = None) -> Tensor:
        """The hybrid loss as its trainer takes it."""
        with self._autocast():
            terms = process.training_losses(self.net, batch.x, batch.t, model_kwargs={"y": batch.y}, noise=noise)
        return terms["loss"].mean()

    def training(self, batch: Batch) -> Training:
        from guided_diffusion.nn import update_ema

        self.net.train()
        process, parameters = self.process(""), list(self.net.parameters())
        if self.setting.precision == "fp16":
            return self._half_training(batch, process)
        averages = [p.detach().clone() for p in parameters]
        return step(
            lambda: self.loss(batch, process), adamw(self.net), lambda: update_ema(averages, parameters, rate=DECAY)
        )

    def _half_training(self, batch: Batch, process: Any) -> Training:
        """With its own trainer of 16-bit weights, which keeps them in 32 bits as well and scales the loss."""
        from guided_diffusion.fp16_util import MixedPrecisionTrainer
        from guided_diffusion.nn import update_ema

        trainer = MixedPrecisionTrainer(model=self.net, use_fp16=True)
        optimizer = torch.optim.AdamW(trainer.master_params, lr=LEARNING_RATE, weight_decay=0.0)
        averages = [p.detach().clone() for p in trainer.master_params]

        def run() -> Tensor:
            trainer.zero_grad()
            loss = self.loss(batch, process)
            trainer.backward(loss)
            trainer.optimize(optimizer)
            update_ema(averages, trainer.master_params, rate=DECAY)
            return loss.detach()

        return run


class Azula:
    """azula's ADM plugin: the original's network, azula's sampler and times. Its training step is ours to choose: the
    mean squared error of the noise, and the average of the original, whose function it carries along.
    """

    same = True

    def __init__(self, setting: Setting) -> None:
        from azula.plugins.adm._src import unet

        self.setting = setting
        self.net = unet.UNetModel(**setting.model.arguments)
        self.net.load_state_dict(load_file(setting.model.weights(setting.folder)))
        self.net.to(setting.device).eval()

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.net(batch.x, batch.t, batch.y)

    def sampling(self) -> Sampling:
        from azula.plugins.adm import AblatedDenoiser
        from azula.sample import DDIMSampler

        denoiser = AblatedDenoiser(self.net, clip_mean=True, learn_var=True).to(self.setting.device).eval()
        sampler = DDIMSampler(denoiser, steps=25)

        def run(batch: Batch) -> Tensor:
            with torch.no_grad():
                return sampler(batch.x, label=batch.y)

        return run

    def guided(self) -> None:
        return None

    def training(self, batch: Batch) -> Training:
        from azula.plugins.adm._src.nn import update_ema

        self.net.train()
        averages = [p.detach().clone() for p in self.net.parameters()]
        return step(
            lambda: noise_loss(batch, lambda x: self.net(x, batch.t, batch.y)),
            adamw(self.net),
            lambda: update_ema(averages, self.net.parameters(), rate=DECAY),
        )


class Diffusers:
    """diffusers' UNet2DModel with the same parameters, converted, and its DDIMScheduler that clips as the original."""

    same = True

    def __init__(self, setting: Setting) -> None:
        import diffusers

        self.setting, self.diffusers = setting, diffusers
        model = setting.model
        settings = json.loads((setting.folder / f"{model.name}.diffusers.json").read_text())
        with setting.device:
            self.net = diffusers.UNet2DModel(**settings)
        self.net.load_state_dict(load_file(model.weights(setting.folder, "diffusers")))
        self.net.to(setting.device).eval()
        if setting.precision != "fp32" or setting.compiled:
            self.net.to(memory_format=torch.channels_last)
        self._call: Any = torch.compile(self.net) if setting.compiled else self.net

    def _infer(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """In 16 bits throughout where the precision says so, as its pipelines are loaded."""
        dtype = DTYPES[self.setting.precision]
        if self.net.dtype != dtype:
            self.net.to(dtype)
        return self._call(x.to(dtype), t, y).sample.float()

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self._infer(batch.x, batch.t, batch.y)

    def sampling(self) -> Sampling:
        scheduler = self.diffusers.DDIMScheduler(num_train_timesteps=STEPS)

        def run(batch: Batch) -> Tensor:
            scheduler.set_timesteps(25)
            x = batch.x
            with torch.no_grad():
                for t in scheduler.timesteps:
                    noise = self._infer(x, t, batch.y)[:, :3]
                    x = scheduler.step(noise, t, x, use_clipped_model_output=True).prev_sample
            return x

        return run

    def guided(self) -> None:
        return None

    def training(self, batch: Batch) -> Training:
        from diffusers.training_utils import EMAModel

        self.net.train()
        average = EMAModel(self.net.parameters(), decay=DECAY)

        def loss() -> Tensor:
            with self.setting.autocast():
                return noise_loss(batch, lambda x: self._call(x, batch.t, batch.y).sample)

        return step(loss, adamw(self.net), lambda: average.step(self.net.parameters()))


class Lucidrains:
    """denoising-diffusion-pytorch: a network of its own kind and weights, as near in size as its arguments allow, which
    takes no classes; its learned-variance loss, its sampler, the average of ema-pytorch at every step.
    """

    same = False

    def __init__(self, setting: Setting) -> None:
        stand_in()
        import denoising_diffusion_pytorch as package

        torch.manual_seed(0)
        self.setting, self.package = setting, package
        self.net = self._built(learned_variance=True)

    def _built(self, learned_variance: bool) -> nn.Module:
        model = self.setting.model
        levels = [model.size >> level for level in range(len(model.mult))]
        net = self.package.Unet(
            dim=model.channels,
            dim_mults=model.mult,
            full_attn=tuple(side in model.attention for side in levels),
            attn_dim_head=64,
            learned_variance=learned_variance,
        )
        return net.to(self.setting.device).eval()

    def _process(self, kind: Any, net: nn.Module) -> Any:
        settings = {"timesteps": STEPS, "sampling_timesteps": 25, "beta_schedule": "linear", "objective": "pred_noise"}
        return kind(net, image_size=self.setting.model.size, **settings).to(self.setting.device)

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.net(batch.x, batch.t)

    def sampling(self) -> Sampling:
        # Not with its learned variance, whose DDIM in 2.3.4 ends in a NameError.
        process = self._process(self.package.GaussianDiffusion, self._built(learned_variance=False)).eval()
        return lambda batch: process.sample(batch_size=len(batch))

    def guided(self) -> None:
        return None

    def training(self, batch: Batch) -> Training:
        from ema_pytorch import EMA

        process = self._process(self.package.LearnedGaussianDiffusion, self.net).train()
        average = EMA(process, beta=DECAY, update_after_step=0, update_every=1)
        images = (batch.x + 1) / 2
        return step(lambda: process(images), adamw(process), average.update)


def noise_loss(batch: Batch, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean squared error of the noise, by diffusers' and azula's users alike written by hand."""
    kept = _signal(batch.t.tolist()).to(batch.x.device)
    noise = torch.randn_like(batch.x)
    predicted = predict(kept.sqrt() * batch.x + (1 - kept).sqrt() * noise)
    return F.mse_loss(predicted[:, :3].float(), noise)


def _signal(steps: Iterable[int]) -> Tensor:
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)[list(steps)].float()[:, None, None, None]


def float64(setting: Setting, batch: Batch) -> Tensor:
    """The output that exact arithmetic gives, [B, 6, H, W] float64: diffusers' network, wholly in float64.

    diffusers' because its code takes float64 throughout, where the original's norms and softmax go through float32; and
    because what it computes is written independently of the others. The sines and cosines of the time stay float32, as
    everywhere.
    """
    library = Diffusers(setting)
    library.net.double()
    with torch.no_grad():
        return library.net(batch.x.double(), batch.t, batch.y).sample
