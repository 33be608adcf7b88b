#!/bin/bash
# An encrypted disk beside a plain one, reading and overwriting, on memory and on a file. Usage: tests/bench/encrypted.sh [seconds per cell]
set -euo pipefail
B=${B:-$(cd "$(dirname "$0")/../.." && pwd)/build/release}
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
"$B/tests/bench/encrypted" "$dir" "${1:-2}"
