"""Everything that changes during a run: weights, averages, optimiser, loss scale, timestep sampler, counters.

`TrainState.tensors()` and `TrainState.counters()` are the whole of it: what they return is what a checkpoint holds,
and loading them back gives a run that continues as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.distributed import DistContext
from undiffuse.distributed.sharding import copy_rows_, is_sharded
from undiffuse.ema import EMA, PowerEMA
from undiffuse.timesteps import Place, TimestepSampler, make_timestep_sampler
from undiffuse.train_config import TrainConfig, learning_rate
from undiffuse.training.accumulator import MetricAccumulator
from undiffuse.training.companions import Companions, Trained
from undiffuse.training.custom import Custom, plain_state, restored
from undiffuse.training.optim import (
    LossScale,
    load_groups,
    load_optimizer,
    make_optimizer,
    optimizer_state,
    optimizer_tensors,
)


class TrainState:
    """The changing state of a run; every process holds the same.

    images, steps  seen and done, bad updates included
    updates        updates that were applied (the EMA's clock)
    skipped        updates skipped because something was not finite
    bad_in_a_row   those of them since the last good update
    overflows      fp16 updates skipped only because the loss scale was too large
    microbatch     images at once in one process
    seconds        time spent training, over all resumes
    pending        what the run was to show of itself when it was stopped: names of methods of `Run`
    """

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        steps_of_chain: int,
        placement: Place | None = None,
        custom: Custom | None = None,
        companions: Companions | None = None,
    ) -> None:
        """Makes the state at the start of a run.

        Args:
            net: The network.
            config: The settings of the training.
            steps_of_chain: Steps of the process.
            placement: Where among the levels a number of (0, 1) lies; None: evenly over the steps of the chain.
            custom: A user's own optimizer and schedule.
            companions: Networks that are trained with it or follow it.
        """
        self.net, self.config = net, config
        self.companions = companions or Companions()
        self.trained = Trained(net, self.companions)
        custom = custom or Custom()
        self._own_optimizer = custom.optimizer is not None
        self.optimizer: torch.optim.Optimizer = (
            custom.make_optimizer(self.trained) if self._own_optimizer else make_optimizer(self.trained, config)
        )
        self._base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.schedule = custom.make_schedule(self.optimizer)
        self.ema = EMA(net, config.ema_decays, config.ema_warmup)
        self.powers = PowerEMA(net, config.posthoc_widths)
        self.sampler: TimestepSampler = make_timestep_sampler(config.timesteps, steps_of_chain, placement)
        self.scale = LossScale(enabled=config.precision == "fp16")
        self.accumulator = MetricAccumulator()
        self.images = self.steps = self.updates = self.skipped = self.bad_in_a_row = self.overflows = 0
        self.microbatch = config.microbatch or config.batch
        self.seconds = 0.0
        self.pending: list[str] = []

    def set_learning_rate(self) -> float:
        """Sets the learning rate of the next update and returns it (that of the first parameter group).

        An optimizer of the user's own keeps its learning rates, times warm-up and decay; a schedule of the user's own
        decides alone.
        """
        groups = self.optimizer.param_groups
        if self.schedule is None:
            lr = learning_rate(self.config, self.images)
            for group, base in zip(groups, self._base_lrs, strict=True):
                group["lr"] = base * (lr / self.config.lr) if self._own_optimizer else lr
        return float(groups[0]["lr"])

    def apply_update(self) -> None:
        """Applies the gradients: optimizer, schedule and averages."""
        self.optimizer.step()
        self.companions.follow(self.net)
        if self.schedule is not None:
            self.schedule.step()
        self.ema.update(self.updates)
        self.powers.update(self.updates)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a checkpoint; weights, averages and optimiser state are the live ones."""
        named = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        named |= self.ema.tensors() | self.powers.tensors() | self.companions.tensors()
        named |= optimizer_tensors(self.trained, self.optimizer)
        for name, array in self.sampler.state_dict().items():
            named[f"sampler.{name}"] = torch.from_numpy(array)
        return named

    def counters(self) -> dict[str, Any]:
        """All numbers, JSON-ready: the manifest's "progress"."""
        own: dict[str, Any] = {}
        if self._own_optimizer or self.schedule is not None:
            own["optimizer"] = optimizer_state(self.trained, self.optimizer)
        if self.schedule is not None:
            own["lr_schedule"] = self._changing(self.schedule.state_dict())
        return {
            "images": self.images,
            "steps": self.steps,
            "updates": self.updates,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "overflows": self.overflows,
            "microbatch": self.microbatch,
            "seconds": self.seconds,
            **({"pending": self.pending} if self.pending else {}),
            "loss_scale": self.scale.state(),
            "tally": self.accumulator.state(),
            **own,
        }

    @staticmethod
    def _changing(state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a schedule without its functions, which are made anew."""
        return plain_state({key: value for key, value in state.items() if not callable(value)}, "lr_schedule")

    def _load_own(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Restores an optimizer and a schedule of the user's own."""
        if self._own_optimizer:
            load_optimizer(self.trained, self.optimizer, tensors, progress["optimizer"])
        elif self.schedule is not None:
            load_groups(self.optimizer.param_groups, progress["optimizer"]["groups"])
        if self.schedule is not None and "lr_schedule" in progress:
            now = self.schedule.state_dict()
            kept = {key: restored(value, now.get(key)) for key, value in progress["lr_schedule"].items()}
            self.schedule.load_state_dict({**now, **kept})

    def load(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], config: TrainConfig) -> None:
        """Takes over the state in a checkpoint. ValueError if its tensors are not this network's."""
        apart = ("sampler.", "optimizer.") if self._own_optimizer else ("sampler.",)
        mine = {name: t for name, t in self.tensors().items() if not name.startswith(apart)}
        theirs = {name for name in tensors if not name.startswith(apart)}
        if theirs != set(mine):
            odd = sorted(theirs ^ set(mine))
            raise ValueError(
                f"the checkpoint's tensors are not those of this network: {len(odd)} differ, for instance {odd[0]}"
            )
        for name, tensor in mine.items():
            if tensor.shape != tensors[name].shape:  # copy_ would broadcast
                shapes = f"{list(tensors[name].shape)} in the checkpoint, {list(tensor.shape)} in this network"
                raise ValueError(f"{name} has the shape {shapes}")
        with torch.no_grad():
            for name, tensor in mine.items():
                # Into place: memory formats and devices stay as the optimiser expects them.
                copy_rows_(tensor, tensors[name])
        self._load_own(tensors, progress)
        prefix = "sampler."
        self.sampler.load_state_dict({k[len(prefix) :]: t.numpy() for k, t in tensors.items() if k.startswith(prefix)})
        for key in ("images", "steps", "updates", "skipped", "bad_in_a_row", "overflows"):
            setattr(self, key, int(progress[key]))
        # A micro-batch that was found to fit is kept: the resumed run must add up in the same portions.
        self.microbatch = config.microbatch or int(progress["microbatch"])
        self.seconds = float(progress["seconds"])
        self.pending = [str(name) for name in progress.get("pending", [])]
        self.scale.load(progress["loss_scale"])
        self.accumulator = MetricAccumulator.from_state(progress["tally"])

    def share(self, ranks: DistContext) -> None:
        """Gives every process the state of rank 0, the only one that reads files."""
        if ranks.world_size == 1:
            return
        progress = ranks.broadcast_json(self.counters())
        if self._own_optimizer:  # whose tensors appear with its first update
            self._share_optimizer(ranks, progress)
        elif not ranks.is_main:
            self._load_own(self.tensors(), progress)
        ranks.broadcast_([t for name, t in self.tensors().items() if not name.startswith("sampler.")])
        self.share_counters(ranks)

    def share_counters(self, ranks: DistContext) -> None:
        """Gives every process all that is not split over processes: the sampler and the counters."""
        progress, tensors = ranks.broadcast_json(self.counters()), self.tensors()
        sampler = list(self.sampler.state_dict())
        arrays = [tensors[f"sampler.{name}"] for name in sampler]
        ranks.broadcast_(arrays)
        self.sampler.load_state_dict({name: a.numpy() for name, a in zip(sampler, arrays, strict=True)})
        for key in ("images", "steps", "updates", "skipped", "bad_in_a_row", "overflows", "microbatch"):
            setattr(self, key, progress[key])
        self.seconds, self.pending = progress["seconds"], list(progress.get("pending", []))
        self.scale.load(progress["loss_scale"])
        self.accumulator = MetricAccumulator.from_state(progress["tally"])

    def _share_optimizer(self, ranks: DistContext, progress: Mapping[str, Any]) -> None:
        """Gives the optimizers of the other processes tensors to receive those of rank 0."""
        mine = optimizer_tensors(self.trained, self.optimizer)
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in mine.items()}
        shapes = ranks.broadcast_json(shapes)
        if not ranks.is_main:
            empty = {name: torch.zeros(shape, dtype=getattr(torch, kind)) for name, (kind, shape) in shapes.items()}
            self._load_own(empty, progress)

    def check_agreement(self, ranks: DistContext) -> None:
        """RuntimeError if the processes' weights differ: they apply the same updates, so this means a fault.

        Weights that are split exist once, so there is nothing to compare.
        """
        if ranks.world_size == 1 or any(map(is_sharded, self.trained.parameters())):
            return
        total = torch.stack([p.detach().double().sum().cpu() for p in self.trained.parameters()]).sum()
        sums = ranks.gather(total.reshape(1).to(ranks.device)).tolist()
        if any(s != sums[0] for s in sums):
            raise RuntimeError(
                f"the weights of the processes differ (sums {sums}): the last checkpoint is sound, resume from it"
            )
