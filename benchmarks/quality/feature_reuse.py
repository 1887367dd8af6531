"""Does it pay to reuse the deep features of the U-Net in every second step? (Ma et al. 2024, "DeepCache")

    python benchmarks/quality/feature_reuse.py --count 1024 --extractors fashion efflite

Neighbouring steps see nearly the same image, so their deep features are alike. At a reused step only the `outer` first
stages of the encoder and the last stages of the decoder run; what comes from below is that of the step before. The
shipped model is sampled by 10 steps of DPM-Solver++(2M) with noise, with and without reuse, and by fewer whole steps,
which save time as well: reuse pays only if it is better than these at equal time. The reference are images of the
training split. Time is CPU time of one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser
from undiffuse.evaluation import evaluate, open_images
from undiffuse.grids import grid
from undiffuse.models import load_diffusion
from undiffuse.nets.blocks import channels_last
from undiffuse.noise import NoiseSource
from undiffuse.pixels import to_uint8
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver

SOLVER, GRID, BATCH = "dpmpp-2m-sde", "logsnr", 32


class Reusing:
    """A U-Net that keeps the deep features of a call for the next `every` - 1 calls.

    Args:
        net: The network.
        outer: Stages of the encoder, and of the decoder, that run at every call.
        every: 1 reuses nothing, 2 reuses the features at every second call.
    """

    conditions = frozenset({"y"})

    def __init__(self, net: torch.nn.Module, outer: int, every: int) -> None:
        self.net, self.outer, self.every = net, outer, every
        self.calls, self.deep = 0, torch.zeros(0)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        net = self.net
        emb = F.silu(net._embed(x, t, y, None, None))
        if self.calls % self.every == 0:
            h, skips = net.encode(x, emb)
            for stage in net.output_blocks[: -self.outer]:
                h = stage(torch.cat([h, skips.pop()], dim=1), emb)
            self.deep = h
        else:
            h, skips = x, []
            for n, stage in enumerate(net.input_blocks[: self.outer]):
                h = stage(h, emb) if n else channels_last(stage(h, emb))
                skips.append(h)
            h = self.deep
        for stage in net.output_blocks[-self.outer :]:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        self.calls += 1
        norm, _, conv = net.out
        return conv(norm(h, act=True))


def samples(steps: int, outer: int, every: int, count: int) -> tuple[np.ndarray, float]:
    """Images uint8 [N, H, W, C] and CPU seconds for an image."""
    model = load_diffusion("fashion-mnist-32")
    begin, made = time.process_time(), []
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        denoiser = ChainDenoiser(Reusing(model.net, outer, every), model.process, "static")
        path = grid(denoiser.chain, steps, GRID)
        y = torch.tensor([n % 10 for n in numbers])
        with torch.inference_mode():
            x = generate(
                denoiser, path, build_solver(SOLVER), NoiseSource(0, numbers), model.image_shape, cond={"y": y}
            )
        made.append(to_uint8(x).numpy())
    return np.concatenate(made), (time.process_time() - begin) / count


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1024, help="samples of each setting")
    parser.add_argument("--extractors", nargs="+", default=["fashion"], help="as for `undiffuse evaluate`")
    parser.add_argument(
        "--settings", nargs="+", default=["10:0:1", "10:2:2", "10:4:2", "5:0:1", "7:0:1"], metavar="STEPS:OUTER:EVERY"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = open_images("fashion-mnist", size=32, channels=1, fit="pad", count=5000)
    reference = stored.batch(0, len(stored)).numpy()
    for text in args.settings:
        steps, outer, every = map(int, text.split(":"))
        pixels, seconds = samples(steps, outer or 4, every, args.count)
        report = evaluate(
            pixels, reference, extractor=args.extractors, grey="repeat", metrics=["fd", "pr"], progress=False
        )
        values = ", ".join(
            f"{e.name} {e.value:.3f}" + (f" +- {e.stderr:.3f}" if e.stderr else "") for e in report.estimates
        )
        print(f"{steps} steps, every {every}, outer {outer}: {1000 * seconds:.1f} ms an image; {values}", flush=True)


if __name__ == "__main__":
    main()
