#!/bin/sh
# A class called "train" makes Hugging Face's imagefolder drop every other class, without a word.
#
# The folders bus/, car/ and train/ hold 4 pictures each. datasets takes "train" for a split by its name, and the other
# folders then belong to no split: 4 of 12 pictures are loaded, and there is no label column.
# Seen with datasets 5.2.0: "4 of 12 pictures, columns ['image']".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import os
import sys

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()
for name in ("bus", "car", "train"):
    os.makedirs(f"data/{name}")
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(f"data/{name}/{i}.png")
loaded = datasets.load_dataset("imagefolder", data_dir="data")
rows, columns = sum(map(len, loaded.values())), loaded["train"].column_names
print(f"datasets {datasets.__version__}: {rows} of 12 pictures, columns {columns}")
sys.exit(0 if rows == 4 and columns == ["image"] else 1)
EOF
