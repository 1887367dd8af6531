#!/bin/sh
# Pillow reads compressed big-endian TIFF pictures of 32-bit floats (and of 16-bit signed integers) with swapped bytes,
# without an error: libtiff already turns the bytes into the machine's order, and Pillow turns them again. The same
# values stored uncompressed, or little-endian, or as unsigned 16-bit integers are read right. Medical and microscopy
# programs write such files.
#
# Seen with Pillow 12.0.0 on a little-endian machine: the value 1.0 comes back as 4.6006e-41.
# Exits with 0 if that is still so, and with 1 otherwise.
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
values = np.full((8, 8), 1.0)


def read(dtype: str, order: str, compression: str | None) -> float:
    file = io.BytesIO()
    tifffile.imwrite(file, values.astype(np.dtype(dtype).newbyteorder(order)), byteorder=order, compression=compression)
    file.seek(0)
    assert (tifffile.imread(file) == 1).all()
    with Image.open(io.BytesIO(file.getvalue())) as picture:
        return float(np.asarray(picture)[0, 0])


wrong = {}
for dtype in ("f4", "i2", "u2"):
    for order in ("<", ">"):
        for compression in (None, "zlib"):
            found = read(dtype, order, compression)
            wrong[dtype, order, compression] = found != 1
            print(f"{dtype} {'big' if order == '>' else 'little'}-endian {compression or 'uncompressed':12} {found:g}")
expected = {key: key in (("f4", ">", "zlib"), ("i2", ">", "zlib")) for key in wrong}
sys.exit(wrong != expected)
PYTHON
