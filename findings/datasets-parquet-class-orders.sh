#!/bin/sh
# Parquet shards that list the same classes in different orders are mixed by load_dataset("parquet"), without a word.
#
# Each shard names the classes of its numbers in its schema, and each is right alone. load_dataset takes the names of the
# first shard for the numbers of all: ["zebra", "ant"] of the second shard become ["ant", "zebra"].
# concatenate_datasets of the same two files refuses them.
# Seen with datasets 5.2.0: "['zebra', 'ant', 'ant', 'zebra'], concatenate_datasets: ValueError".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import sys

import datasets
from datasets import ClassLabel, Dataset, Features

datasets.disable_progress_bars()
for file, names in (("a.parquet", ["zebra", "ant"]), ("b.parquet", ["ant", "zebra"])):
    numbers = [names.index(label) for label in ("zebra", "ant")]
    Dataset.from_dict({"label": numbers}, features=Features({"label": ClassLabel(names=names)})).to_parquet(file)
loaded = datasets.load_dataset("parquet", data_files=["a.parquet", "b.parquet"], split="train")
found = loaded.features["label"].int2str(list(loaded["label"]))
try:
    datasets.concatenate_datasets([Dataset.from_parquet("a.parquet"), Dataset.from_parquet("b.parquet")])
    joined = "accepted"
except ValueError as error:
    joined = type(error).__name__
print(f"datasets {datasets.__version__}: {found}, concatenate_datasets: {joined}")
sys.exit(0 if found == ["zebra", "ant", "ant", "zebra"] and joined == "ValueError" else 1)
EOF
