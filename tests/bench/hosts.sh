#!/bin/bash
# Two hosts on one datastore, a disk each, against one of them alone: 64 KiB writes to new blocks, and 4 KiB writes over blocks that are there, at depth
# 16. Every thread of each target is held to SHARE of a core (cgroup v1), so that the clients always have the rest and the machine is not what is
# measured. Medians of ROUNDS rounds in which the hosts take turns, and then work together.      goal: two at least 1.8 times one
# What allocation asks of other hosts is counted by tests/unit/vmfs_alloc_locks.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-5}; SECONDS_EACH=${SECONDS_EACH:-2}; SIZE=${SIZE:-512M}; SHARE=${SHARE:-35000} # µs of 100,000
command -v jq > /dev/null || { echo "hosts: jq is not installed"; exit 0; }
cpu=/sys/fs/cgroup/cpu
[ -e $cpu/cgroup.procs ] && [ "$(id -u)" = 0 ] || { echo "hosts: left out: no cgroup v1 cpu controller that can be written"; exit 0; }
shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX); held=()
cleanup() {
    local t d n
    for d in "${held[@]}"; do
        for t in $(cat "$d/tasks"); do echo "$t" > $cpu/tasks; done 2> /dev/null
        rmdir "$d"
    done
    for n in 1 2; do GRANARY_HOME=$shm/home$n "$B/bin/granary" down > /dev/null 2>&1; done
    rm -rf "$shm"
}
trap cleanup EXIT
declare -A at
on() { local n=$1; shift; GRANARY_HOME=$shm/home$n "$B/bin/granary" "$@"; }
mkdir "$shm/home1" "$shm/home2"
on 1 datastore create m "$shm/ds" --size 4G > /dev/null && on 2 datastore join m "$shm/ds" > /dev/null || exit 1
for n in 1 2; do
    on $n up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --loops 1 > /dev/null || { echo "hosts: the target does not start"; exit 1; }
    at[$n]=$(on $n status --json | jq -r .portal)
    for t in /proc/"$(cat "$shm/home$n/run/storaged.pid")"/task/*; do
        d=$cpu/granary-bench-$$-${t##*/}
        mkdir "$d" && held+=("$d") && echo 20000 > "$d/cpu.cfs_period_us" && echo $((SHARE / 5)) > "$d/cpu.cfs_quota_us" && echo "${t##*/}" > "$d/tasks" || exit 1
    done
done
fresh() { # a new disk each, which its host owns
    local n
    for n in 1 2; do
        [ "$1" = 0 ] || on $n disk delete "m/d$n" > /dev/null || exit 1
        on $n disk create "m/d$n" --size "$SIZE" > /dev/null || exit 1
    done
}
load() { # HOST RW BYTES: commands a second
    "$B/tests/bench/iscsi_load" "${at[$1]}" "iqn.2026-11.local.granary:m:d$1" --rw "$2" --bs "$3" --depth 16 --time "$SECONDS_EACH" --size "$SIZE" | jq -r .iops
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
table() { # RW BYTES NEW?
    local n k
    rm -f "$shm"/m.*
    for k in $(seq "$ROUNDS"); do
        for n in 1 2; do
            [ "$3" = 0 ] || fresh 1
            load $n "$1" "$2" >> "$shm/m.one" || exit 1
        done
        [ "$3" = 0 ] || fresh 1
        load 1 "$1" "$2" > "$shm/m.a" & # together
        load 2 "$1" "$2" > "$shm/m.b" || exit 1
        wait $! || exit 1
        paste "$shm/m.a" "$shm/m.b" | awk '{ print $1 + $2 }' >> "$shm/m.two"
    done
    : "$k"
    awk -v one="$(median < "$shm/m.one")" -v two="$(median < "$shm/m.two")" -v bs="$2" -v what="$([ "$3" = 0 ] && echo 'blocks that are there' || echo 'new blocks')" 'BEGIN {
        printf "  %4d KiB writes to %-22s one host %7.0f IOPS, two %7.0f   two over one: %.2f   goal: at least 1.8   %s\n", bs / 1024, what, one, two, two / one, (two / one >= 1.8 ? "met" : "missed") }'
}
echo "hosts: $(nproc) CPUs, Linux $(uname -r), $ROUNDS rounds of $SECONDS_EACH s, each thread of the targets held to $((SHARE / 1000)) % of a core"
fresh 0
table write 65536 1
table randwrite 4096 0
