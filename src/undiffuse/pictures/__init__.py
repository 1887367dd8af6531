"""Pictures and files for people: grids, plots, animations, PNG with provenance, and long streams of samples.

Images here are uint8 [N, H, W, C] (``undiffuse.pixels.to_uint8`` makes them); nothing here knows of diffusion.
"""

from __future__ import annotations

from undiffuse.pictures.animation import save_animation
from undiffuse.pictures.arrays import spaced
from undiffuse.pictures.grid import draw_grid, stack, tile
from undiffuse.pictures.output_folder import claim_output, foreign_files
from undiffuse.pictures.plots import Panel, PlottingUnavailable, draw_plot
from undiffuse.pictures.png import save_png
from undiffuse.pictures.stored import Samples, read_samples, sample_files
from undiffuse.pictures.units import load_image, preview, read_record, save_image
from undiffuse.pictures.writer import SampleWriter

__all__ = [
    "Panel",
    "PlottingUnavailable",
    "SampleWriter",
    "Samples",
    "draw_grid",
    "draw_plot",
    "claim_output",
    "foreign_files",
    "load_image",
    "preview",
    "read_record",
    "read_samples",
    "sample_files",
    "save_animation",
    "save_image",
    "save_png",
    "spaced",
    "stack",
    "tile",
]
