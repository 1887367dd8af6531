#!/bin/sh
# Of a turned TIFF, Pillow reports the upright size before it has turned the picture; of a JPEG, the stored size.
#
# Code that reads headers only and swaps width and height where the EXIF orientation is 5 to 8 is right for JPEG and
# WebP and wrong for TIFF: until load() the size is turned, and the orientation still says that it is not.
# Seen with Pillow 13.0.0: "stored 40x20, orientation 6: JPEG (40, 20), TIFF (20, 40), both still 6".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pillow==13.0.0
venv/bin/python - <<'EOF'
import sys

import PIL
from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6
found = {}
for name in ("a.jpg", "a.tif"):
    Image.new("RGB", (40, 20)).save(name, exif=exif)
    with Image.open(name) as image:
        found[image.format] = (image.size, image.getexif().get(0x0112))
print(f"Pillow {PIL.__version__}: (size, orientation) before load(): {found}")
sys.exit(0 if found == {"JPEG": ((40, 20), 6), "TIFF": ((20, 40), 6)} else 1)
EOF
