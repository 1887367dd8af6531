#!/bin/sh
# The package tfrecord reads damaged TFRecords without a word: it skips the checksums that every record has.
#
# One bit of a stored value is flipped. The masked CRC-32C behind the record no longer fits, TensorFlow refuses such a
# record ("corrupted record"), and tfrecord returns the damaged value.
# Seen with tfrecord 1.14.6: "b'hello vorld'".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tfrecord==1.14.6 protobuf==7.36.2 crc32c==2.9.post0 numpy==2.4.6
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import sys
from importlib.metadata import version

import tfrecord
from tfrecord.reader import tfrecord_loader

writer = tfrecord.TFRecordWriter("a.tfrecord")
writer.write({"text": (b"hello world", "byte")})
writer.close()
with open("a.tfrecord", "rb") as file:
    content = bytearray(file.read())
content[bytes(content).index(b"world")] ^= 1
with open("a.tfrecord", "wb") as file:
    file.write(content)
values = [bytes(record["text"]) for record in tfrecord_loader("a.tfrecord", None)]
print(f"tfrecord {version('tfrecord')}: {values}")
sys.exit(0 if values == [b"hello vorld"] else 1)
EOF
