#!/bin/bash
# The benchmark on one GPU, without a network: correctness, speed and memory in eight minutes; see benchmarks/README.md.
#
#     bash benchmarks/gpu.sh                    # results in build/benchmarks/gpu, or in the folder that OUT names
#     PYTHON=path bash benchmarks/gpu.sh        # with another Python than python3
#     WHEELS=folder bash benchmarks/gpu.sh      # with the other libraries' wheels of that folder
#     bash benchmarks/gpu.sh --dry-run          # on a CPU: does everything run?
set -u
here=$(cd "$(dirname "$0")" && pwd)
export OUT=${OUT:-$here/../build/benchmarks/gpu}
export PYTHONSAFEPATH=1 # nothing of the current folder is imported
export PYTHONPATH=$here/../src:$here${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl ||
        echo "the wheels could not be installed; continuing without them" >&2
    export PYTHONPATH=$PYTHONPATH:$site
fi
"${PYTHON:-python3}" -m gpu.main "$@"
