"""The options of `evaluate`, `reference`, `compare` and `sweep`. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from undiffuse.cli import options, values

GREY = "grey images with an RGB extractor: stop with an error (refuse, default) or convert to RGB (repeat)"
EXTRACTORS = (
    "feature extractors: inception (OpenAI's FID; other protocols: inception:clean, :pytorch-fid, :torchmetrics), "
    "efflite, fashion, dinov2, clip, cmmd, or the FILE of a classifier"
)
_SETS = """\
a folder, .zip, .npz (arr_0; memory-mapped) or any other data of docs/formats.md (DATA:test selects the test split),
fashion-mnist[:test], or the folder of `undiffuse sample`"""


def evaluate(add: Any, commands: Any) -> None:
    """Adds `undiffuse evaluate`."""
    parser = add(commands, "evaluate", "SAMPLES REFERENCE ", f"""\
Evaluates samples against a reference: FID, sFID, Inception Score, precision, recall, density, coverage, KID and more,
as OpenAI's evaluator defines them, with standard errors. Prints the values and saves them as JSON together with all
settings that affect them.

SAMPLES is {_SETS};
or a model (file, run folder or name), which is sampled now without writing the samples to disk.

REFERENCE is one of these sets, a file of `undiffuse reference`, or an .npz with mu and sigma.""")  # fmt: skip
    parser.add_argument("samples", metavar="SAMPLES", help="images or a model")
    parser.add_argument("reference", metavar="REFERENCE", help="images or a reference file")
    what = _measured(parser)
    what.add_argument("--training", metavar="DATA", help="search the samples for copies of these training images")
    what.add_argument(
        "--reference-protocol",
        metavar="NAME",
        help="protocol with which the statistics of an .npz were made (default: adm for OpenAI's files)",
    )
    _images(parser, "number of samples: the first N of a set (default all), or N made by a model (default 2000)")
    _model(parser)
    _run(parser, "JSON file to write (default evaluations/NAME.json)")
    parser.add_argument("--name", metavar="TEXT", help="name in tables (default: the samples and the sampler)")


def reference(add: Any, commands: Any) -> None:
    """Adds `undiffuse reference`."""
    parser = add(commands, "reference", "DATA ", f"""\
Makes a reference file from a set of images: statistics of all images, features of some, and the protocol, counts and
hashes. An evaluation against the file does not read the images again.

DATA is {_SETS}.""")  # fmt: skip
    parser.add_argument("data", metavar="DATA", help="reference images")
    _measured(parser, metrics=False)
    group = _images(parser, None)
    keep = "keep the features of N images for precision, recall and KID (default 10000)"
    group.add_argument("--keep", type=values.natural, default=10_000, metavar="N", help=keep)
    _run(parser, "file to write (default NAME.reference.safetensors)")


def compare(add: Any, commands: Any) -> None:
    """Adds `undiffuse compare`."""
    parser = add(commands, "compare", "FILE ... ", """\
Shows evaluations side by side, one per row. Evaluations with different references or extractors go into separate
tables, because their numbers are not comparable.""")  # fmt: skip
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON files of `undiffuse evaluate`, or folders of them"
    )
    metrics = "show only these metrics, each given by a part of its name (default all)"
    parser.add_argument("--metrics", metavar="M[,M]", help=metrics)
    parser.add_argument("--sort", metavar="M", help="sort by this metric, best first")
    options.pick(parser, "--format", ("text", "markdown"), "format of the tables (default text)", "text")


def report(add: Any, commands: Any) -> None:
    """Adds `undiffuse report`."""
    parser = add(commands, "report", "PATH ... ", """\
Writes one HTML file that opens in a browser without a network: curves that can be zoomed, previews over time, samples
by class, values with errors, settings, and what to do next.""")  # fmt: skip
    parser.add_argument(
        "paths", nargs="+", metavar="PATH",
        help="run folders, JSON files of `undiffuse evaluate`, folders of `undiffuse sweep`, folders of samples",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", default="report.html", help="file to write (default report.html)")
    parser.add_argument("--title", metavar="TEXT", help="title of the page")
    training = "show samples beside their nearest images of this training data"
    parser.add_argument("--training", metavar="DATA", help=training)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def sweep(add: Any, commands: Any) -> None:
    """Adds `undiffuse sweep`."""
    parser = add(commands, "sweep", "REFERENCE ", """\
Evaluates a model at several guidance scales and shows the trade-off between fidelity and diversity as a table and a
plot (pip install "undiffuse[plot]"). With --solvers, --nfe, --grids or --students it measures a frontier instead: the
quality of several solvers within several budgets of network calls. It reports which settings match a long run within
the errors, and `undiffuse sample --budget` then chooses from them. The same command again resumes a stopped sweep.\
""")  # fmt: skip
    parser.add_argument("reference", metavar="REFERENCE", help="images or a reference file")
    group = parser.add_argument_group("what to sweep")
    scales = "guidance scales (default 0,0.5,1,2,4,8; with --over cfg or autoguide 1,1.5,2,3,5; for a frontier 0)"
    group.add_argument("--scales", type=values.scales, metavar="S,S", help=scales)
    over = "kind of guidance to sweep: by a classifier (default), --cfg or --autoguide; the others stay fixed"
    options.pick(group, "--over", ("guidance", "cfg", "autoguide"), over, "guidance")
    solvers = "frontier: solvers (default ddpm,dpmpp-2m,dpmpp-2m-sde,unipc)"
    group.add_argument("--solvers", type=values.words, metavar="NAME,NAME", help=solvers)
    nfe = "frontier: network calls per image; each solver makes as many steps as fit (default 5,10,20,50)"
    group.add_argument("--nfe", type=values.counts, metavar="N,N", help=nfe)
    grids = (
        "frontier: spacings of the steps; own is each solver's default (default own), tuned or tuned:images=N "
        "optimizes the levels for the model on 32 or N images"
    )
    group.add_argument("--grids", nargs="+", metavar="SPEC", help=grids)
    students = "frontier: models distilled from the model, each sampled as its file says, without guidance"
    group.add_argument("--students", nargs="+", metavar="FILE", help=students)
    against = "frontier: long run to compare with, as SOLVER:STEPS, or none (default ddpm:250)"
    group.add_argument("--against", metavar="S:N", help=against)
    by = "frontier: metric to choose by (default: the first Frechet distance)"
    group.add_argument("--by", metavar="M", help=by)
    floor = "also measure real images, for example the training data, as if they were samples"
    group.add_argument("--floor", metavar="DATA", help=floor)
    _measured(parser)
    _images(parser, "samples per setting (default 2000)")
    _model(parser, swept=True)
    _run(parser, "output folder (default sweep)")


def while_training(parser: Any) -> None:
    """Adds the options of `undiffuse train` that evaluate samples during the training."""
    group = parser.add_argument_group("evaluation during training (few samples: compare within one run only)")
    every = "evaluate samples of the EMA weights every N images; the best weights are kept in best.safetensors"
    group.add_argument("--evaluate-every", type=values.positive, metavar="N", help=every)
    count = "samples per evaluation (default 1000)"
    group.add_argument("--evaluate-images", type=values.positive, metavar="N", help=count)
    against = "images or a reference file to evaluate against (default: the held-out images, else DATA)"
    group.add_argument("--evaluate-against", metavar="DATA", help=against)
    extractor = "feature extractors, as for `undiffuse evaluate`"
    group.add_argument("--extractor", type=values.words, metavar="E[,E]", help=extractor)
    weights = "weights file of the extractor, if they cannot be downloaded"
    group.add_argument("--extractor-weights", metavar="FILE", help=weights)
    options.pick(group, "--grey", ("refuse", "repeat"), GREY, "refuse")
    best = "metric to choose the best weights by (default: the first Frechet distance)"
    group.add_argument("--best-by", metavar="M", help=best)
    parser.set_defaults(grey=None)  # leaves an option that is not given to the resumed run


def _measured(parser: Any, metrics: bool = True) -> Any:
    group = parser.add_argument_group("metrics")
    default = "that of the reference file; fashion for Fashion-MNIST; else inception"
    group.add_argument(
        "--extractor",
        type=values.words,
        metavar="E[,E]",
        help=f"{EXTRACTORS} (default: {default})",
    )
    weights = "weights file of the extractor, if they cannot be downloaded"
    group.add_argument("--weights", metavar="FILE", help=weights)
    options.pick(group, "--grey", ("refuse", "repeat"), GREY, "refuse")
    if metrics:
        names = (
            "metrics to compute: fd, sfd, is, pr, dc, kid, accuracy (default: those that apply), c2st, cmmd, vendi, "
            "fd-infinity, memorisation, or a metric of an installed package"
        )
        group.add_argument("--metrics", type=values.words, metavar="M[,M]", help=names)
        distances = "arithmetic of precision and recall: exact (default), float32, float64, or float16-emulated, which "
        distances += "rounds as OpenAI's evaluator does"
        group.add_argument(
            "--distances", type=values.choice("exact", "float32", "float64", "float16-emulated"), default="exact",
            metavar="TYPE", help=distances,
        )  # fmt: skip
        chunk = "images per chunk of the Inception Score (default 5000)"
        group.add_argument("--chunk", type=values.positive, default=5000, metavar="N", help=chunk)
    return group


def _images(parser: Any, count: str | None) -> Any:
    group = parser.add_argument_group("images")
    if count is not None:
        group.add_argument("--count", type=values.positive, metavar="N", help=count)
        thinned = "use N evenly spaced reference images (default all)"
        group.add_argument("--reference-count", type=values.positive, metavar="N", help=thinned)
    else:
        group.add_argument(
            "--count", type=values.positive, metavar="N", help="use N evenly spaced images of the set (default all)"
        )
    size = "resize and crop stored images to this size, as for training (default: the model's size, else unchanged)"
    group.add_argument("--size", type=values.size, metavar="S|HxW", help=size)
    options.data_options(group)
    given = "values of stored images that become 0 and 255, if they are not 8-bit (default: the model's)"
    group.add_argument("--range", dest="value_range", type=values.pair, metavar="LOW,HIGH", help=given)
    return group


def _model(parser: Any, swept: bool = False) -> None:
    group = parser.add_argument_group("model" if swept else "sampling, if SAMPLES is a model")
    if swept:
        what = f"model file, run folder, or a name from `undiffuse models` (default {options.SHIPPED})"
        group.add_argument("--model", default=options.SHIPPED, metavar="M", help=what)
    which = "weights to use: net (no EMA) or an EMA decay, for example 0.999 (default: the largest decay)"
    group.add_argument("--model-weights", metavar="W", help=which)
    options.class_option(group, 'classes to cycle through, comma-separated (default "all")')
    options.seed_option(group)
    if not swept:
        condition = (
            "conditions of the REFERENCE images that the samples get: labels, numbers:COLUMN[,COLUMN], image:PATH or "
            "map:PATH; repeatable (default: the model's numbers and labels, from the table of REFERENCE)"
        )
        group.add_argument("--condition", action="append", metavar="KIND[:WHERE]", help=condition)
        edges = "the condition picture shows edges: compare them with those of the samples"
        group.add_argument("--edges", action="store_true", help=edges)
    options.guidance_options(parser)
    options.sampler_options(parser)


def _run(parser: Any, out: str) -> None:
    group = parser.add_argument_group("run and output")
    options.output_options(group, out)
    kept = "cache the samples of a model, so that other extractors can reuse them"
    group.add_argument("--keep-samples", action="store_true", help=kept)
    group.add_argument("--no-cache", dest="cache", action="store_false", help="do not read or write cached features")
    options.offline_option(group)
    options.device_options(parser)
