"""Everything that changes while a run goes on: weights, averages, optimiser, loss scale, timestep sampler, counters.

`TrainState.tensors()` and `TrainState.counters()` are the whole of it: what they return is what a checkpoint holds,
and loading them back gives a run that goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.distributed import Ranks
from undiffuse.ema import EMA, PowerEMA
from undiffuse.timesteps import Place, TimestepSampler, make_timestep_sampler
from undiffuse.training.config import TrainConfig
from undiffuse.training.optim import LossScale, make_optimizer, optimizer_tensors
from undiffuse.training.tally import Tally


class TrainState:
    """The changing state of a run; every process holds the same.

    images, steps  seen and done, bad updates included
    updates        updates that were applied (the EMA's clock)
    skipped        updates skipped because something was not finite
    bad_in_a_row   those of them since the last good update
    overflows      fp16 updates skipped only because the loss scale was too large
    microbatch     images at once in one process
    seconds        time spent training, over all resumes
    """

    def __init__(
        self, net: nn.Module, config: TrainConfig, steps_of_chain: int, placement: Place | None = None
    ) -> None:
        """`placement`: where in the process's levels a number of (0, 1) lies, None: evenly over the chain's steps."""
        self.net = net
        self.optimizer = make_optimizer(net, config)
        self.ema = EMA(net, config.ema_decays, config.ema_warmup)
        self.powers = PowerEMA(net, config.posthoc_widths)
        self.sampler: TimestepSampler = make_timestep_sampler(config.timesteps, steps_of_chain, placement)
        self.scale = LossScale(enabled=config.precision == "fp16")
        self.tally = Tally()
        self.images = self.steps = self.updates = self.skipped = self.bad_in_a_row = self.overflows = 0
        self.microbatch = config.microbatch or config.batch
        self.seconds = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a checkpoint; weights, averages and optimiser state are the live ones."""
        named = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        named |= self.ema.tensors() | self.powers.tensors() | optimizer_tensors(self.net, self.optimizer)
        for name, array in self.sampler.state_dict().items():
            named[f"sampler.{name}"] = torch.from_numpy(array)
        return named

    def counters(self) -> dict[str, Any]:
        """All numbers, JSON-ready: the manifest's "progress"."""
        return {
            "images": self.images,
            "steps": self.steps,
            "updates": self.updates,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "overflows": self.overflows,
            "microbatch": self.microbatch,
            "seconds": self.seconds,
            "loss_scale": self.scale.state(),
            "tally": self.tally.state(),
        }

    def load(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], config: TrainConfig) -> None:
        """Takes over the state in a checkpoint. ValueError if its tensors are not this network's."""
        mine = {name: t for name, t in self.tensors().items() if not name.startswith("sampler.")}
        theirs = {name for name in tensors if not name.startswith("sampler.")}
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
                tensor.copy_(tensors[name])  # into place: memory formats and devices stay as the optimiser expects them
        prefix = "sampler."
        self.sampler.load_state_dict({k[len(prefix) :]: t.numpy() for k, t in tensors.items() if k.startswith(prefix)})
        for key in ("images", "steps", "updates", "skipped", "bad_in_a_row", "overflows"):
            setattr(self, key, int(progress[key]))
        # A micro-batch that was found to fit is kept: the resumed run must add up in the same portions.
        self.microbatch = config.microbatch or int(progress["microbatch"])
        self.seconds = float(progress["seconds"])
        self.scale.load(progress["loss_scale"])
        self.tally = Tally.from_state(progress["tally"])

    def share(self, ranks: Ranks) -> None:
        """Gives every process the state of rank 0, the only one that reads files."""
        if ranks.world == 1:
            return
        tensors = self.tensors()
        ranks.broadcast_([t for name, t in tensors.items() if not name.startswith("sampler.")])
        sampler = list(self.sampler.state_dict())
        arrays = [tensors[f"sampler.{name}"] for name in sampler]
        ranks.broadcast_(arrays)
        self.sampler.load_state_dict({name: a.numpy() for name, a in zip(sampler, arrays, strict=True)})
        progress = ranks.broadcast_json(self.counters())
        for key in ("images", "steps", "updates", "skipped", "bad_in_a_row", "overflows", "microbatch"):
            setattr(self, key, progress[key])
        self.seconds = progress["seconds"]
        self.scale.load(progress["loss_scale"])
        self.tally = Tally.from_state(progress["tally"])

    def check_agreement(self, ranks: Ranks) -> None:
        """RuntimeError if the processes' weights differ: they apply the same updates, so this means a fault."""
        if ranks.world == 1:
            return
        total = torch.stack([p.detach().double().sum().cpu() for p in self.net.parameters()]).sum()
        sums = ranks.gather(total.reshape(1).to(ranks.device)).tolist()
        if any(s != sums[0] for s in sums):
            raise RuntimeError(
                f"the weights of the processes differ (sums {sums}): the last checkpoint is sound, resume from it"
            )
