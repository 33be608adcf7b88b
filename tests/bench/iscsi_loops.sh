#!/bin/bash
# One LUN, two sessions, one event loop of the target or two of them: 4 KiB at depth 32 on memory, medians of ROUNDS rounds.
#   1 each loop's thread held to 0.35 of a core (cgroup v1), so that the client always has the rest      goal: two at least 1.5 times one
#   2 nothing held: what a machine of this size gains when clients run on it too; server CPU time per operation
# Two daemons, one with each number of loops, take turns in each round.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-5}; SECONDS_EACH=${SECONDS_EACH:-2}; SIZE=${SIZE:-256M}; SHARE=${SHARE:-35000} # µs of 100,000
command -v jq > /dev/null || { echo "iscsi_loops: jq is not installed"; exit 0; }
shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX); cpu=/sys/fs/cgroup/cpu; held=()
cleanup() {
    local t d
    for d in "${held[@]}"; do
        for t in $(cat "$d/tasks"); do echo "$t" > $cpu/tasks; done 2> /dev/null
        rmdir "$d"
    done
    for n in 1 2; do GRANARY_HOME=$shm/home$n "$B/bin/granary" down > /dev/null 2>&1; done
    rm -rf "$shm"
}
trap cleanup EXIT
declare -A pid at
for n in 1 2; do
    export GRANARY_HOME=$shm/home$n
    mkdir "$GRANARY_HOME"
    "$B/bin/granary" datastore create m "$shm/ds$n" --size $(($(numfmt --from=iec "$SIZE") + (1 << 30))) > /dev/null &&
        "$B/bin/granary" disk create m/disk --size "$SIZE" --provision eager > /dev/null &&
        "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --loops $n > /dev/null || { echo "iscsi_loops: the target does not start"; exit 1; }
    at[$n]=$("$B/bin/granary" status --json | jq -r .portal)
    pid[$n]=$(cat "$GRANARY_HOME/run/storaged.pid")
done
hold() { # every thread of both daemons, each by itself
    local n t d
    [ -w $cpu/cpu.cfs_quota_us ] || [ -d $cpu ] || return 1
    for n in 1 2; do
        for t in /proc/"${pid[$n]}"/task/*; do
            d=$cpu/granary-bench-$$-${t##*/}
            mkdir "$d" 2> /dev/null && held+=("$d") && echo 100000 > "$d/cpu.cfs_period_us" && echo "$SHARE" > "$d/cpu.cfs_quota_us" &&
                echo "${t##*/}" > "$d/tasks" || return 1
        done
    done
}
load() { # LOOPS RW: "iops µs-per-operation"
    "$B/tests/bench/iscsi_load" "${at[$1]}" iqn.2026-11.local.granary:m:disk --rw "$2" --bs 4096 --depth 32 --conns 2 --time "$SECONDS_EACH" \
        --size "$SIZE" --pid "${pid[$1]}" | jq -r '"\(.iops) \(."target-cpu" / .iops * 1000000)"'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
table() { # GOAL or nothing
    local rw n
    for rw in randread randwrite; do
        rm -f "$shm"/m.*
        for _ in $(seq "$ROUNDS"); do for n in 1 2; do load $n $rw >> "$shm/m.$n" || exit 1; done; done
        for n in 1 2; do
            printf '  %-10s %s loop%s %9.0f IOPS  %5.2f us CPU/op\n' $rw $n "$([ $n = 1 ] && echo ' ' || echo s)" "$(cut -d' ' -f1 "$shm/m.$n" | median)" "$(cut -d' ' -f2 "$shm/m.$n" | median)"
        done
        awk -v a="$(cut -d' ' -f1 "$shm/m.2" | median)" -v b="$(cut -d' ' -f1 "$shm/m.1" | median)" -v g="$1" \
            'BEGIN { printf "  two over one: %.2f", a / b; if (g) printf("   goal: at least %s   %s", g, (a / b >= g ? "met" : "missed")); print "" }'
    done
}
echo "iscsi_loops: $(nproc) CPUs, Linux $(uname -r), $ROUNDS rounds of $SECONDS_EACH s, 4 KiB, 2 sessions at depth 32 on one LUN in memory"
echo "2. nothing held"
table ""
if hold; then
    echo "1. each thread of the target held to $((SHARE / 1000)) % of a core"
    table 1.5
else
    echo "1. left out: no cgroup v1 cpu controller that can be written"
fi
