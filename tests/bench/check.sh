#!/bin/bash
# What memory `datastore check` takes, seen from outside (the most that the process had at once, ru_maxrss) beside what it says itself: a datastore of
# 1 TiB in a sparse file, of which thick disks hold most (so that every walk has units to remember), with thousands of small disks and a snapshot of each.
# Usage: tests/bench/check.sh [DISKS] [GIB of each of four thick disks]. Exits 1 when the process takes more than the manual allows: 256 MiB, 32 MiB for
# each TiB, half a KiB for each object, and 64 MiB for all that does not grow.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
case $B in /*) ;; *) B=$root/$B ;; esac
disks=${1:-2000} thick=${2:-240}
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
export GRANARY_HOME=$dir/home
cleanup() {
    "$B/bin/granary" down > /dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT
"$B/bin/granary" datastore create big "$dir/big.img" --size 1T > /dev/null
for k in 1 2 3 4; do "$B/bin/granary" disk create "big/thick$k" --size "${thick}G" --provision thick > /dev/null; done
"$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null
for ((k = 0; k < disks; k++)); do
    "$B/tests/tools/rpc_call" "$dir/home/run/storaged.sock" disk.create "{\"disk\": \"big/folder$((k / 100))/disk$k\", \"size\": 67108864}" > /dev/null
    "$B/tests/tools/rpc_call" "$dir/home/run/storaged.sock" snapshot.create "{\"disks\": [\"big/folder$((k / 100))/disk$k\"], \"name\": \"one\"}" > /dev/null
done
"$B/bin/granary" down > /dev/null
python3 - "$B/bin/granary" << 'PY'
import json, resource, subprocess, sys, time
def run(*args):
    pid = subprocess.Popen([sys.argv[1], *args, '--json'], stdout=subprocess.PIPE)
    out = pid.stdout.read()
    _, status, usage = __import__('os').wait4(pid.pid, 0)
    assert status == 0, (args, status)
    return json.loads(out), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime
base = run('datastore', 'info', 'big')[1]
began = time.time()
report, peak, cpu = run('datastore', 'check', 'big')
MIB = 1 << 20
bound = 256 * MIB + 32 * MIB + report['objects'] * 512
print('%d objects, %d nodes, %.0f GiB in use: %.0f s, %.1f s of CPU' % (report['objects'], report['nodes'], report['pieces'] / 2**18, time.time() - began, cpu))
print('MiB: %.0f at most seen from outside (%.0f of them any command takes), it says %.0f, the manual %.0f' % (peak / MIB, base / MIB, report['memory'] / MIB, bound / MIB))
assert report['sound'] and report['memory'] <= bound and peak <= bound + 64 * MIB
PY
