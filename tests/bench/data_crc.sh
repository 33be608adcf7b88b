#!/bin/bash
# What data CRCs cost: a disk of a datastore without and with them, 4 KiB and 1 MiB. Usage: tests/bench/data_crc.sh [seconds per cell]
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
"${B:-$top/build/release}/tests/bench/disk" "$dir" "${1:-3}" crc
