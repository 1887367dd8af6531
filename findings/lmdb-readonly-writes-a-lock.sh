#!/bin/sh
# Opening an LMDB with readonly=True writes a file lock.mdb into the data set's folder.
#
# So a data set on read-only media (a mounted image, another user's folder) cannot be opened by what looks like the right
# way, and a copied data set grows a file that was not there. lock=False opens it without.
# Seen with lmdb 3.0.0: "readonly=True: ['data.mdb', 'lock.mdb']; with lock=False: ['data.mdb']".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lmdb==3.0.0
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import os
import sys

import lmdb

environment = lmdb.open("data")
with environment.begin(write=True) as transaction:
    transaction.put(b"key", b"value")
environment.close()


def files_after(**options):
    if os.path.exists("data/lock.mdb"):
        os.remove("data/lock.mdb")
    lmdb.open("data", readonly=True, **options).close()
    return sorted(os.listdir("data"))


locked, unlocked = files_after(), files_after(lock=False)
print(f"lmdb {lmdb.__version__}: readonly=True: {locked}; with lock=False: {unlocked}")
sys.exit(0 if locked == ["data.mdb", "lock.mdb"] and unlocked == ["data.mdb"] else 1)
EOF
