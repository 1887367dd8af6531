"""undiffuse as a side of the benchmarks: the calls that its own command line and training engine make."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from unets.models import STEPS, STRIDE, Batch, find
from unets.sides import DECAY, LEARNING_RATE, Sampling, Setting, Training

from undiffuse import kernels
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM

GUIDANCE = 1.0
PROCESS = ProcessConfig(schedule="linear", steps=STEPS, target="eps", variance="learned_range")


class Undiffuse:
    """Our own network. `setting.kernels` chooses the kernels for whatever is called.

    What only a training step needs is imported there, as the command line does.
    """

    same = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        kernels.keep_memory()  # as the command line does; it loads weights into pages of their own
        with kernels.own_pages():
            with setting.device:
                self.net = UNetConfig(**setting.model.arguments).build()
            self.net.load_state_dict(load_file(setting.model.weights(setting.folder)))
        self.net.to(setting.device).eval()
        self._forward: Any = None
        self.consume = False  # gives the weights up, as the command line does; nobody can train them then

    def _inference(self) -> Any:
        if self._forward is None:
            with kernels.using(self.setting.kernels):
                self._forward = prepare_for_inference(
                    self.net, self.setting.precision, self.setting.device, compiled=self.setting.compiled,
                    consume=self.consume,
                )  # fmt: skip
        return self._forward

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad(), kernels.using(self.setting.kernels):
            return self._inference()(batch.x, batch.t.float(), y=batch.y)

    def sampling(self) -> Sampling:
        return self._sampler(ChainDenoiser(self._inference(), PROCESS))

    def guided(self) -> Sampling:
        setting = self.setting
        judge = find(f"{setting.model.name}-classifier")
        with setting.device:
            net = ClassifierConfig(**judge.arguments).build()
        net.load_state_dict(load_file(judge.weights(setting.folder)))
        with kernels.using(setting.kernels):
            network = prepare_for_inference(net, setting.precision, setting.device, gradient=True)
        classifier = LevelClassifier(network, PROCESS)
        return self._sampler(ClassifierGuidance(ChainDenoiser(self._inference(), PROCESS), classifier, GUIDANCE))

    def _sampler(self, denoiser: Any) -> Sampling:
        chain = denoiser.chain.respaced(STRIDE)

        def run(batch: Batch) -> Tensor:
            noise = NoiseSource(0, range(len(batch)))
            with kernels.using(self.setting.kernels):
                return generate(
                    denoiser,
                    chain,
                    DDIM(),
                    noise,
                    batch.x.shape[1:],
                    cond={"y": batch.y},
                    x_T=batch.x,
                    device=self.setting.device,
                )

        return run

    def task(self, batch: Batch) -> tuple[Any, Any, Any]:
        """What a training step of the hybrid loss is made of."""
        from undiffuse.objectives import ObjectiveConfig
        from undiffuse.training.tasks import DiffusionTask, Inputs

        kernels.keep_memory()
        self.net.to(memory_format=torch.channels_last)  # as a training run does
        task = DiffusionTask(self.net.train(), PROCESS, ObjectiveConfig(loss="hybrid"))
        with kernels.using(self.setting.kernels):
            forward = NetworkRunner(self.net, self.setting.precision, self.setting.device, self.setting.compiled)
        weights = torch.ones(len(batch), device=batch.x.device)
        positions = torch.arange(len(batch))
        return (
            task,
            forward,
            Inputs(x0=batch.x, labels=batch.y, t=batch.t.cpu(), weights=weights, positions=positions, seed=0),
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the loss, the noise that it was taken with)."""
        task, forward, inputs = self.task(batch)
        with kernels.using(self.setting.kernels):
            return task.losses(forward, inputs)["loss"].mean(), inputs.normal()

    def training(self, batch: Batch) -> Training:
        from undiffuse.distributed import DistContext
        from undiffuse.ema import EMA
        from undiffuse.train_config import TrainConfig
        from undiffuse.training.optim import LossScale, gradient_norm, make_optimizer

        task, forward, inputs = self.task(batch)
        config = TrainConfig(images=1, lr=LEARNING_RATE, ema_decays=(DECAY,), precision=self.setting.precision)
        optimizer, average = make_optimizer(self.net, config), EMA(self.net, config.ema_decays)
        parameters = list(self.net.parameters())
        scale = LossScale(enabled=self.setting.precision == "fp16")
        updates = 0

        def run() -> Tensor:
            nonlocal updates
            with kernels.using(self.setting.kernels):
                loss = (task.losses(forward, inputs)["loss"] * inputs.weights).sum() / len(batch)
                (loss * scale.value).backward()  # type: ignore[no-untyped-call]
                gradients = [p.grad for p in parameters if p.grad is not None]
                scale.unscale_(gradients)
                # The engine looks at the norm before it dares to update.
                if gradient_norm(gradients, DistContext()) < float("inf"):
                    optimizer.step()
                    average.update(updates)
                optimizer.zero_grad(set_to_none=True)
            updates += 1
            return loss.detach()

        return run
