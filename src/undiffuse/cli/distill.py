"""`undiffuse distill`: trains a student of few network calls."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse import checkpoints
from undiffuse.cli.console import fail, say
from undiffuse.cli.options import given_settings
from undiffuse.cli.train import STOPPED, request_of
from undiffuse.cli.training_options import naming_options
from undiffuse.cli.training_report import finish, forecast
from undiffuse.config import GuidanceConfig
from undiffuse.config.fields import given
from undiffuse.data import ImageDataset, check_trainable
from undiffuse.kernels import keep_memory
from undiffuse.training.distill import settings_without_data, stages, without_data
from undiffuse.training.distillation import Distillation
from undiffuse.training.face import MODEL, run_plan
from undiffuse.training.imageless import NOISE
from undiffuse.training.plan import plan
from undiffuse.training.progress import TrainingProgress
from undiffuse.util.launch import is_main_process
from undiffuse.util.text import count_of


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    keep_memory()
    with naming_options(teacher="MODEL"):
        guidance = GuidanceConfig(**given(GuidanceConfig, given_settings(args)))
        blank, settings = args.data is None, _pairs(args.settings)
        if blank:
            args.data, settings = NOISE, settings_without_data(args.method, settings)
        how = Distillation(
            teacher=args.model, calls=args.calls, method=args.method, settings=settings, guidance=guidance
        )
        student, adapt = args.init_from, args.adapt_images
        del args.init_from  # of every stage its own
        request, source = request_of(args), None
        if blank:
            request, source = without_data(request, how, student)
        for stage in stages(request, how, init_from=student, adapt_images=adapt):
            made = plan(stage.request, source)
            newest = checkpoints.latest(made.out)
            seen = checkpoints.images_of(newest) if newest is not None else 0
            if seen >= made.config.total_images and (made.out / MODEL).is_file():
                say(f"{made.out / MODEL}: {stage.text}, complete")
                continue
            task = made.build_task()
            init = made.init.begin(task.net, task.process, made.labels) if made.init is not None else None
            if isinstance(made.dataset, ImageDataset):
                check_trainable(made.dataset, made.config.batch, conditional=task.labels_count is not None)
            text, expected = forecast(made, task, init)
            say(f"{stage.text}\n{text}")
            progress = TrainingProgress()
            progress.expect(expected)
            outcome = run_plan(made, task, [progress], init=init, stored=source is None)
            if not outcome.complete:
                if is_main_process():
                    fail(
                        f"stopped by {outcome.stopped_by} after {count_of(outcome.images, 'image')}; saved in "
                        f"{made.out}. Repeat the command to resume",
                        prefix="",
                    )
                return STOPPED.get(outcome.stopped_by, 1)
            if is_main_process():
                say(finish(made, outcome))
    return 0


def _pairs(text: str) -> dict[str, Any]:
    """Reads KEY=VALUE,KEY=VALUE."""
    pairs = [piece.partition("=") for piece in text.split(",") if piece.strip()]
    return {key.strip(): value.strip() for key, _, value in pairs}
