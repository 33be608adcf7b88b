#!/bin/bash
# Throughput of the data mover beside `nbdkit file`, same file, same clients, taken in turns: sequential reads (nbdcopy, four
# connections, plain text and TLS), one connection, and 4 KiB reads at depth 32 (qemu-img bench). Prints ratios; > 1: we are faster.
#   SIZE=512M ROUNDS=3
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
b=${B:-build/release}
case $b in /*) ;; *) b=$top/$b ;; esac
for p in nbdkit nbdcopy qemu-img; do command -v "$p" > /dev/null || { echo "mover: needs $p, left out (scripts/setup --bench)"; exit 0; }; done
t=$(mktemp -d /tmp/granary-bench.XXXXXX)
pids=()
finish() { for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done; wait; rm -rf "$t"; }
trap finish EXIT
size=${SIZE:-512M} rounds=${ROUNDS:-3}
head -c "$(numfmt --from=iec "$size")" /dev/urandom > "$t/disk"
"$b/tests/tools/mover_demo" --make-pki "$t/pki"

serve_granary() { # plain|tls
    local how=--plain
    [ "$1" = tls ] && how="--pki $t/pki"
    # shellcheck disable=SC2086
    "$b/tests/tools/mover_demo" $how "d=file:$t/disk" > "$t/log.$1" 2>&1 &
    pids+=($!)
    until grep -q '^port' "$t/log.$1"; do sleep 0.05; done
    port=$(sed -n 's/^port //p' "$t/log.$1")
}
serve_nbdkit() {
    local args=()
    [ "$1" = tls ] && args=(--tls=require --tls-certificates="$t/pki" --tls-verify-peer)
    port=$((20000 + RANDOM % 10000))
    nbdkit -f -p "$port" -i 127.0.0.1 "${args[@]}" file "$t/disk" > "$t/log.nbdkit" 2>&1 &
    pids+=($!)
    until (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.05; done
}
best() { # COMMAND...: shortest of $rounds runs, seconds
    local i best=999999999999 s e
    for i in $(seq "$rounds"); do
        s=$(date +%s%N); "$@" > /dev/null; e=$(date +%s%N)
        [ $((e - s)) -lt $best ] && best=$((e - s))
    done
    : "$i"
    awk "BEGIN { printf \"%.3f\", $best / 1e9 }"
}
row() { awk -v what="$1" -v ours="$2" -v theirs="$3" -v mib="$4" \
    'BEGIN { printf "%-34s granary %8.1f %s  nbdkit %8.1f %s  ratio %.2f\n", what, mib / ours, "MiB/s", mib / theirs, "MiB/s", theirs / ours }'; }

mib=$(($(stat -c %s "$t/disk") / 1048576))
for how in plain tls; do
    serve_granary $how; g=$port
    serve_nbdkit $how; k=$port
    if [ $how = plain ]; then gu=nbd://127.0.0.1:$g/d ku=nbd://127.0.0.1:$k/
    else gu="nbds://127.0.0.1:$g/d?tls-certificates=$t/pki" ku="nbds://127.0.0.1:$k/?tls-certificates=$t/pki"; fi
    row "$how, sequential, 4 connections" "$(best nbdcopy "$gu" null:)" "$(best nbdcopy "$ku" null:)" "$mib"
    row "$how, sequential, 1 connection" "$(best nbdcopy --connections=1 "$gu" null:)" "$(best nbdcopy --connections=1 "$ku" null:)" "$mib"
    if [ $how = plain ]; then
        row "$how, 4 KiB reads, depth 32" "$(best qemu-img bench -f raw -c 50000 -d 32 -s 4096 "$gu")" \
            "$(best qemu-img bench -f raw -c 50000 -d 32 -s 4096 "$ku")" 195
    fi
done
