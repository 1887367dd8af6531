#!/bin/sh
# Pillow reads two kinds of valid 16-bit TIFF files wrongly, without an error:
# - grey with PhotometricInterpretation 0 (white is zero) comes as the stored numbers, a negative. The same picture of
#   8 bits is turned round, so that one data set of both kinds has pictures and negatives.
# - RGB in separate planes (PlanarConfiguration 2), uncompressed, comes as scrambled pixels. With 8 bits, with Deflate,
#   or interleaved, it is right.
#
# Seen with Pillow 12.0.0. Exits with 0 if that is still so, and with 1 otherwise.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.0.0 tifffile==2025.10.16 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)


def read(values: np.ndarray, **keywords: object) -> np.ndarray:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **keywords)
    with Image.open(io.BytesIO(file.getvalue())) as picture:
        return np.asarray(picture).astype(int)


ramp8 = np.arange(64, dtype=np.uint8).reshape(8, 8)
ramp16 = ramp8.astype(np.uint16) * 257
turned8 = np.array_equal(read(ramp8, photometric="miniswhite"), 255 - ramp8.astype(int))
turned16 = np.array_equal(read(ramp16, photometric="miniswhite"), 65535 - ramp16.astype(int))
print(f"white is zero turned round: 8 bits {turned8}, 16 bits {turned16}")
colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
right = {}
for bits, values in ((8, colours), (16, colours.astype(np.uint16) * 257)):
    together = read(values, photometric="rgb", planarconfig="contig")
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    for compression in (None, "zlib"):
        apart = read(planes, photometric="rgb", planarconfig="separate", compression=compression)
        right[bits, compression] = np.array_equal(apart, colours)
        largest = np.abs(apart - colours).max()
        print(f"RGB of {bits} bits in planes, {compression or 'uncompressed'}: right {right[bits, compression]}, "
              f"largest error {largest} of 255; interleaved: right {np.array_equal(together, colours)}")
as_seen = turned8 and not turned16 and right[8, None] and not right[16, None]
sys.exit(not as_seen)
PYTHON
