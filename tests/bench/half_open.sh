#!/bin/bash
# An authenticated session beside ten thousand connections that never log in (tests/tools/half_open: from 200 addresses, a byte a second
# each, dropped ones made anew): its p99 at a modest load, alternating with and without them; and what the login process holds.
# Exits 1 when the p99 beside them is over twice the one without, in the median of ROUNDS rounds.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-3}; SECONDS_EACH=${SECONDS_EACH:-5}; COUNT=${COUNT:-10000}; RATE=${RATE:-500}
dir=$(mktemp -d "${TMPDIR:-/tmp}/granary-bench.XXXXXX"); flood=
export GRANARY_HOME=$dir/home
cleanup() {
    [ -z "$flood" ] || kill "$flood" 2> /dev/null
    "$B/bin/granary" down > /dev/null 2>&1
    rm -rf "$dir"
}
trap cleanup EXIT
mkdir -p "$GRANARY_HOME"
"$B/bin/granary" datastore create ds "$dir/ds" --size 512M > /dev/null && "$B/bin/granary" disk create ds/disk --size 128M --provision eager > /dev/null &&
    "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null || { echo "half_open: the datastore cannot be served"; exit 1; }
at=$("$B/bin/granary" lun list --json | sed -n 's|.*iscsi://\([^/]*\)/.*|\1|p' | head -1)
daemon=$(cat "$GRANARY_HOME/run/storaged.pid"); login=$(pgrep -P "$daemon" -x granary-login)
p99() {
    "$B/tests/bench/iscsi_load" "$at" iqn.2026-11.local.granary:ds:disk --rw randread --bs 4K --depth 1 --conns 1 --time "$SECONDS_EACH" --size 128M |
        sed 's/.*"p99-us":\([0-9.]*\).*/\1/'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
for _ in $(seq "$ROUNDS"); do
    p99 >> "$dir/idle"
    "$B/tests/tools/half_open" "${at##*:}" "$COUNT" "$RATE" $((SECONDS_EACH + COUNT / RATE + 2)) > "$dir/flood.$_" &
    flood=$!
    sleep $((COUNT / RATE + 1)) # until so many were made
    p99 >> "$dir/beside"
    awk '/^VmRSS|^VmHWM/ { print }' "/proc/$login/status" | tr '\n' ' ' >> "$dir/rss"
    wait "$flood"; flood=
done
a=$(median < "$dir/idle"); b=$(median < "$dir/beside")
ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", a ? b / a : 0 }')
cat "$dir"/flood.*
echo "login process: $(tail -n 1 "$dir/rss")"
printf '%-40s %10s %10s %7s\n' "p99 of 4 KiB reads, depth 1 (us)" alone beside ratio
printf '%-40s %10s %10s %7s   (goal: below 2)\n' "" "$a" "$b" "$ratio"
awk -v r="$ratio" 'BEGIN { exit !(r < 2) }'
