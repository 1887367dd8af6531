#!/bin/sh
# A metadata.csv beside class folders makes Hugging Face's imagefolder drop the labels, and every picture that it does not
# list, without a word.
#
# cat/ and dog/ hold 4 pictures each: 8 rows with the labels cat and dog. A metadata.csv with a caption for the 4
# pictures of cat/ leaves 4 rows, and no label column.
# Seen with datasets 5.2.0: "without: 8 pictures, ['image', 'label']; with: 4 pictures, ['image', 'text']".
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
for name in ("cat", "dog"):
    os.makedirs(f"data/{name}")
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(f"data/{name}/{i}.png")


def load():
    loaded = datasets.load_dataset("imagefolder", data_dir="data", split="train")
    return len(loaded), loaded.column_names


without = load()
with open("data/metadata.csv", "w") as file:
    file.write("file_name,text\n" + "".join(f"cat/{i}.png,a cat\n" for i in range(4)))
with_table = load()
print(f"datasets {datasets.__version__}: without: {without[0]} pictures, {without[1]}; "
      f"with: {with_table[0]} pictures, {with_table[1]}")
sys.exit(0 if without == (8, ["image", "label"]) and with_table == (4, ["image", "text"]) else 1)
EOF
