"""A run in progress: the parts the loop uses, tied together. The loop itself is in `engine`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import undiffuse
from undiffuse.arithmetic import float32_switches, steady_float32
from undiffuse.checkpoints import checkpoint_path, images_of, write
from undiffuse.data import Batch, ImageDataset, batches
from undiffuse.data.content import ContentIndex, content_index
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.distributed import DistContext, GradientExchange
from undiffuse.distributed.sharding import ShardedGradients
from undiffuse.kernels import Plan, planned
from undiffuse.nets.protocol import memory_format
from undiffuse.nets.runner import NetworkRunner
from undiffuse.noise import NoiseSource
from undiffuse.pictures.plots import PlottingUnavailable, can_plot
from undiffuse.pixels import from_pixels
from undiffuse.train_config import TrainConfig
from undiffuse.training.companions import Trained, companions_of
from undiffuse.training.conditions import condition_tensors
from undiffuse.training.custom import Custom
from undiffuse.training.deadline import Deadline
from undiffuse.training.density import placement
from undiffuse.training.diagnosis import describe, find_broken_parts
from undiffuse.training.evaluation import Evaluator
from undiffuse.training.events import Event, JsonlSink, Listener
from undiffuse.training.folder import LAST_FINITE, Resume, RunFolder, json_plain
from undiffuse.training.kernels import shared_plan
from undiffuse.training.posthoc import remove_after
from undiffuse.training.run_data import check_data, data_card
from undiffuse.training.saving import Saver, state_bytes
from undiffuse.training.signals import StoppableRunner
from undiffuse.training.state import TrainState
from undiffuse.training.tasks import DiffusionTask, Inputs, Task


class Run:
    """One run: task, data, state and folder. A context: inside it the folder is locked and the metrics file is open.

    `ShardedRun` is one whose network is split over the processes.
    """

    is_sharded = False

    def __init__(
        self,
        task: Task,
        dataset: ImageDataset | StreamDataset,
        config: TrainConfig,
        run_dir: Path,
        ranks: DistContext,
        listeners: Sequence[Listener] = (),
        validation: ImageDataset | None = None,
        recipe: str | None = None,
        init: Mapping[str, Any] | None = None,
        evaluator: Evaluator | None = None,
        custom: Custom | None = None,
    ) -> None:
        check_data(task, dataset, config, ranks.world_size)
        self.custom = custom or Custom()
        self.recipe, self.init, self.evaluator = recipe, init, evaluator
        self.task, self.dataset, self.validation_data = task, dataset, validation
        self.config, self.ranks = config, ranks
        if isinstance(task, DiffusionTask):
            task.show_conditions_of(dataset, max(config.preview_count, config.evaluate_images))
        self.device = ranks.device
        exchange = self._place_network()
        task.net.train()
        companions = companions_of(task).to(self.device)
        self.chain_steps = task.process.steps
        place = placement(task.process, self.custom.density or config.density, whole=not task.continuous)
        self.state = TrainState(task.net, config, self.chain_steps, place, self.custom, companions)
        trained = Trained(task.net, companions).parameters()
        self.exchange = exchange or GradientExchange(trained, ranks, config.gradient_dtype)
        self._share = config.batch // ranks.world_size
        self.state.microbatch = min(self.state.microbatch, self._share)
        self.forward = NetworkRunner(task.net, config.precision, self.device, config.compile)
        # Pictures and validation: fp16 runs look at themselves in float32, which cannot overflow.
        self.forward_evaluation = self._make_looker("bf16" if config.precision == "bf16" else "fp32")
        self.deadline = Deadline(None, environ={})  # of the main process, which decides
        self.kernels = Plan()  # of the whole run, see `__enter__`
        self.between_updates = True
        self.folder = RunFolder(run_dir, config)
        self._saver = self._make_saver(lambda images, path: self.log("save", images, text=str(path)))
        self._listeners = list(listeners)
        self._sink: JsonlSink | None = None
        self._saved_at = time.monotonic()
        self._recorded: tuple[int, float] = (0, 0.0)
        self._began: tuple[int, float] = (0, 0.0)
        self._watchers = [listener.update for listener in listeners if hasattr(listener, "update")]
        self._stack = ExitStack()
        self.content: ContentIndex | None = None

    def _place_network(self) -> ShardedGradients | None:
        """Moves the network to the device."""
        self.task.net.to(device=self.device)
        if memory_format(self.task.net) == torch.channels_last:
            self.task.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return None

    def _make_looker(self, precision: str) -> StoppableRunner:
        """Returns what calls the network outside of updates."""
        return StoppableRunner(self.task.net, precision, self.device)

    def _make_saver(self, log: Callable[[int, Path], None]) -> Saver:
        return Saver(self.folder, log)

    def _share_state(self, resumed: Resume | None) -> None:
        """Gives every process the state of the main one."""
        self.state.share(self.ranks)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns whole tensors, given those of the state; needed in the main process only."""
        return tensors

    @contextmanager
    def calling(self) -> Iterator[DistContext]:
        """A block that calls the network outside of updates; yields the processes that share this work."""
        yield self.ranks

    def __enter__(self) -> Run:
        self._stack.enter_context(steady_float32(self.device))
        resumed = None
        failure: ValueError | OSError | None = None
        if self.ranks.is_main:
            try:
                self._stack.enter_context(self.folder)
                if isinstance(self.dataset, ImageDataset):
                    self.content = content_index(self.dataset.source)
                resumed = self.folder.resume(
                    self.identity(),
                    lambda tensors, progress: self.state.load(tensors, progress, self.config),
                    self.content,
                )
                remove_after(self.folder.path, images_of(resumed.path) if resumed is not None else 0)
                self._saver.newest = resumed.path if resumed is not None else None
                size = state_bytes(self.state.tensors(), self.task.net, self.manifest())
                if self.state.images < self.config.total_images:
                    self.folder.check_room(size)
                self.deadline = Deadline(self.config.time_limit, size)
            except (ValueError, OSError) as error:
                failure = error
        # So that every process ends with the reason, and none waits.
        problem = self.ranks.broadcast_json(str(failure) if failure is not None else "")
        if problem:
            self._stack.close()
            raise failure or ValueError(problem)
        self._share_state(resumed)
        self.state.microbatch = min(self.state.microbatch, self._share)
        recorded = self.ranks.broadcast_json(resumed.manifest.get("kernels", {}) if resumed is not None else None)
        self.kernels = shared_plan(
            self.ranks, self.task.net, self.task.spec, self.config.precision, self.state.microbatch, recorded,
            sharded=self.exchange if isinstance(self.exchange, ShardedGradients) else None,
        )  # fmt: skip
        self._stack.enter_context(planned(self.kernels))
        if self.ranks.is_main:
            # A run that is long enough already trains with none of these settings: they are neither kept nor noted.
            complete = self.state.images >= self.config.total_images
            if not complete:
                self.folder.write_config(self.identity(), self.content)
            self._sink = JsonlSink(self.folder.metrics, self.state.images if resumed else None)
            self._stack.callback(self._sink.close)
            for text in resumed.problems if resumed else []:
                self.log("note", text=f"{text}; resuming from the checkpoint before it")
            for text in resumed.notes if resumed and not complete else []:
                self.log("note", text=f"changed setting {text}")
            if not can_plot():
                self.log("note", text=f"no loss curve will be drawn: {PlottingUnavailable()}")
        if self.evaluator is not None:
            self.evaluator.resume(self.folder.path)
        remarks = self.dataset.remarks if isinstance(self.dataset, StreamDataset) else self.dataset.source.remarks
        for text in remarks:
            self.log("note", text=text)
        self._recorded = self._began = (self.state.images, self.state.seconds)
        for listener in self._listeners:
            if hasattr(listener, "close"):
                self._stack.callback(listener.close)
        what = f"resumed from {self.checkpoint}" if self.checkpoint else f"new run in {self.folder.path}"
        parameters = sum(p.numel() for p in self.task.net.parameters())
        self.log(
            "start",
            text=f"{what}: {self.state.images:,} of {self.config.total_images:,} images, batch {self.config.batch}, "
            f"{parameters:,} parameters, {self.ranks.world_size} x {self.device}, {self.config.precision}",
            world_size=self.ranks.world_size,
            device=str(self.device),
        )
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            with suppress(OSError, ValueError):  # reported, or an error ends the run anyway
                self._saver.wait()
        finally:
            self.exchange.close()
            self._stack.close()

    def identity(self) -> dict[str, Any]:
        """Returns all settings, as in config.json and in every manifest."""
        settings = {**self.task.manifest(), "train": self.config.to_dict(), "data": data_card(self.dataset)}
        if self.content is not None:
            settings["data"]["content"] = self.content.hash
        if self.init is not None:
            settings["init"] = self.init
        if names := self.custom.names():
            settings["custom"] = names
        return json_plain(settings)

    def batches(self) -> Iterator[Batch]:
        """This process's share of the training batches that follow, endless."""
        state, batch, ranks = self.state, self.config.batch, self.ranks
        if isinstance(self.dataset, StreamDataset):
            return self.dataset.stream(state.images, batch, ranks.rank, ranks.world_size)
        return batches(self.dataset, state.images, batch, ranks.rank, ranks.world_size, self.config.workers)

    def manifest(self) -> dict[str, Any]:
        """Returns everything a checkpoint holds besides its tensors."""
        return {
            **self.identity(),
            "ema": list(self.state.ema.names),
            "progress": self.state.counters(),
            "recipe": self.recipe,
            **self.kernels.note(),
            "seed": self.config.seed,
            # No generator carries state from step to step, so this is all of it: see `undiffuse.noise`, `randomness`.
            "random": {
                "seed": self.config.seed,
                "images": self.state.images,
                "rule": "functions of (seed, position in the stream)",
            },
            "float32": float32_switches(self.device),  # operations in less than float32; {} if all are plain
            "version": getattr(undiffuse, "__version__", "unknown"),
        }

    def inputs(self, batch: Batch) -> Inputs:
        """This process's share of a batch, with its images' timesteps.

        Timesteps are drawn for the whole global batch in every process (some samplers couple them; it costs nothing).
        """
        start = self.state.images
        everyone = torch.arange(start, start + self.config.batch)
        t, weights = self.state.sampler.sample(NoiseSource(self.config.seed, everyone).uniform(0, "time").numpy())
        positions = torch.as_tensor(batch.positions, dtype=torch.int64)
        mine = (positions - start).numpy()
        labels = None if batch.labels is None else torch.as_tensor(batch.labels, dtype=torch.int64).to(self.device)
        inputs = Inputs(
            x0=from_pixels(batch.images, self.device).contiguous(memory_format=torch.channels_last),
            labels=labels,
            t=torch.from_numpy(t[mine]),
            weights=torch.from_numpy(weights[mine]).float().to(self.device),
            positions=positions,
            seed=self.config.seed,
            cond=condition_tensors(self.task.conditions, batch, self.device),
        )
        return self.task.prepare_batch(inputs)

    def inform_sampler(self, inputs: Inputs, losses: Tensor) -> None:
        """Gives the timestep sampler the losses of the whole global batch, in the same order in every process."""
        if self.config.timesteps != "loss-second-moment":
            return
        mine = torch.stack([inputs.positions.double(), inputs.t.double(), losses.detach().cpu().double()], dim=1)
        everyone = self.ranks.gather(mine.to(self.ranks.device) if self.ranks.world_size > 1 else mine).cpu()
        everyone = everyone[torch.argsort(everyone[:, 0])]
        self.state.sampler.update(everyone[:, 1].numpy().astype(np.int64), everyone[:, 2].numpy())

    def count_bad_update(
        self, inputs: Inputs, terms: dict[str, Tensor], batch: Batch, overflow: bool
    ) -> dict[str, Any] | None:
        """Counts an update that was not finite: its diagnosis, or None for an fp16 overflow.

        That is no error: a smaller loss scale mends it.
        """
        state = self.state
        if overflow and state.scale.can_shrink():
            state.overflows += 1
            return None
        state.skipped += 1
        state.bad_in_a_row += 1
        return find_broken_parts(
            self.task.net, terms, inputs, batch.indices, self.dataset.source, self.ranks, state.bad_in_a_row
        )

    def diagnosis_text(self, problem: dict[str, Any]) -> str:
        """The message of the error that ends a diverging run."""
        with suppress(OSError):  # which is not why the run ends
            self._saver.wait()
        return describe(problem, self.config, self.checkpoint, self._keep_last_finite())

    def _keep_last_finite(self) -> str:
        """Keeps the state of a diverging run beside its checkpoints, and says how it is used; "" if nothing is kept.

        It does not become the newest checkpoint: a run that resumed from it would diverge again at once.
        """
        state, saved = self.state, self.checkpoint
        since = state.images - state.bad_in_a_row * self.config.batch
        if not self.ranks.is_main or self.is_sharded or since <= (images_of(saved) if saved is not None else 0):
            return ""
        if not all(bool(torch.isfinite(p).all()) for p in self.task.net.parameters()):
            return ""
        manifest = self.manifest()
        manifest["progress"] = {**manifest["progress"], "bad_in_a_row": 0}
        path = self.folder.path / LAST_FINITE
        try:
            with self.ranks.saving():
                self.folder.check_present()
                write(path, state.tensors(), manifest)
        except (OSError, ValueError):
            return ""
        return f"the state after the last finite update is kept in {path}; to resume from it, move it to " + str(
            checkpoint_path(self.folder.path, state.images)
        )

    def note_microbatch(self, microbatch: int) -> None:
        """Keeps a smaller micro-batch that memory sufficed for, and notes it."""
        if microbatch != self.state.microbatch:
            if microbatch < self.state.microbatch:
                self.log(
                    "note", text=f"memory did not suffice: micro-batch {microbatch} instead of {self.state.microbatch}"
                )
            self.state.microbatch = microbatch

    def log(self, kind: str, images: int | None = None, **values: Any) -> None:
        """Sends a record, of now or of an earlier moment, to the metrics file and all listeners (main process only)."""
        if not self.ranks.is_main:
            return
        images = self.state.images if images is None else images
        steps = self.state.steps - (self.state.images - images) // self.config.batch
        record = Event(kind=kind, images=images, steps=steps, values=values)
        for listener in ([self._sink] if self._sink else []) + self._listeners:
            listener(record)

    def show(self, lr: float) -> None:
        """Lets listeners that watch the run know how far it is; no record is made unless one wants it."""
        if self.ranks.is_main:
            for watch in self._watchers:
                watch(self.state.images, self.config.total_images, lambda: self._progress(lr, self._began))

    def log_progress(self, lr: float) -> None:
        """The "train" record: means since the last one, learning rate, speed, time left. Starts a new tally."""
        if self.ranks.is_main:
            self.folder.check_present()
        record = self._progress(lr, self._recorded)
        self._recorded = (self.state.images, self.state.seconds)
        self.state.accumulator = type(self.state.accumulator)()
        self.log("train", **record.values)

    def _progress(self, lr: float, since: tuple[int, float]) -> Event:
        """A "train" record of the moment, its speed measured from (images, seconds)."""
        state = self.state
        images, seconds = state.images - since[0], state.seconds - since[1]
        speed = images / seconds if seconds > 0 else float("nan")
        summary = state.accumulator.summary()
        if "vb" in summary:
            summary["bits"] = summary["vb"] * self.chain_steps  # the bound is a sum of T terms; "vb" is the mean term
        scale = {"loss_scale": state.scale.value, "overflows": state.overflows} if state.scale.enabled else {}
        left = max(0, self.config.total_images - state.images)
        values = {
            **summary,
            "lr": lr,
            "skipped": state.skipped,
            "microbatch": state.microbatch,
            **scale,
            "total_images": self.config.total_images,
            "images_per_second": speed,
            "seconds": state.seconds,
            "seconds_left": left / speed if speed > 0 else float("nan"),
        }
        return Event(kind="train", images=state.images, steps=state.steps, values=values)

    def save_after_error(self) -> None:
        """Saves the state after the last whole update, if an error ends the run.

        Only the main process saves, without the others, which may have ended. Older checkpoints stay. If the state
        cannot be saved, the first error is still the one that is raised.
        """
        state = self.state
        if not (self.ranks.is_main and self.between_updates):
            return
        with self.ranks.saving():
            with suppress(OSError, ValueError):
                self._saver.wait()
            saved = images_of(self.checkpoint) if self.checkpoint is not None and self.checkpoint.exists() else 0
            if state.images <= saved or not all(bool(torch.isfinite(p).all()) for p in self.task.net.parameters()):
                return
            try:
                if not self._saver.ready():
                    return
                self.folder.write_config(self.identity(), self.content)
                path = self._saver.now(state.images, state.tensors(), self.manifest())
                text = f"an error ends the run after {state.images:,} images; its state is saved in {path}"
                self.log("note", text=text)
            except (OSError, ValueError) as error:
                with suppress(OSError):
                    self.log("note", text=f"an error ends the run, and its state could not be saved: {error}")

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint on disk; None in processes other than the main one, which writes no files."""
        return self._saver.newest

    def save_by_clock(self) -> bool:
        """True if `save_seconds` have passed since the last checkpoint, as the main process's clock has it."""
        if self.config.save_seconds is None:
            return False
        return self.ranks.any(self.ranks.is_main and time.monotonic() - self._saved_at >= self.config.save_seconds)

    def check_saved(self) -> None:
        """Reports a checkpoint that was finished since; OSError if it could not be written."""
        self._saver.poll()

    def save_reviewed(self) -> None:
        """Saves that a finished run was looked at, which a signal had prevented."""
        self.save(wait=True)

    def save(self, wait: bool) -> None:
        """One checkpoint, by the main process or in parts by all, once the processes are found to agree.

        Args:
            wait: Whether all wait until it is on disk, rather than only until the state is copied.
        """
        self.state.check_agreement(self.ranks)
        if self._sink is not None:
            self._sink.sync()
        if self.ranks.is_main or self.is_sharded:
            self._saver.begin(self.state.images, self.state.tensors(), self.manifest())
            if wait:
                with self.ranks.saving():
                    self._saver.wait()
            for text in self.kernels.notes:
                self.log("note", text=f"the run before used {text}")
            self.kernels.notes.clear()
        self._saved_at = time.monotonic()
        if wait:
            self.ranks.barrier()
