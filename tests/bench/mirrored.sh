#!/bin/bash
# What it costs that a datastore of two devices keeps each journal twice: latency of a write and of its flush, device bytes and flushes, beside a datastore that
# does not. Usage: tests/bench/mirrored.sh [COUNT [TURNS]]. SHM, FILE_DIR: where the devices' files go, in memory and on a disk.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
for where in "${SHM:-/dev/shm}" "${FILE_DIR:-${TMPDIR:-/tmp}}"; do
    dir=$(mktemp -d "$where/granary-bench.XXXXXX")
    trap 'rm -rf "$dir"' EXIT
    echo "  $where"
    "$B/tests/bench/mirrored" "$dir" "$@" | sed 's/^/    /'
    rm -rf "$dir"
done
