# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for who sources it
# Sourced by measurements of snapshots, clones and changed blocks (tests/bench), which set NAME first: a private directory $dir, hosts in it, loads, calls
# (tests/bench/calls.c) and a qcow2 file served by QEMU. Everything is ended and removed at the end.
#
#   die TEXT...                      HOST is a number: its GRANARY_HOME is $dir/homeHOST
#   on HOST ARGUMENT...              granary on that host, silently; it must succeed
#   up HOST                          its target; the portal is in ${at[HOST]}
#   load TRACE iscsi_load|nbd_load ARGUMENT...    in the background, its trace in $dir/TRACE           loads_end
#   calls ARGUMENT...                calls make            asked HOST METHOD PARAMS OPTION...   the same of a host, the log is $dir/log
#   qemu FORMAT-OPTIONS              a qcow2 file of 1 GiB with data in its first 256 MiB as node n0; control socket $dir/qmp, NBD: $nbd       qemu_end
#   goal WHAT VALUE min|max GOAL     a line that says whether it is met
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd); B=${B:-$root/build/release}
case $B in /*) ;; *) B=$root/$B ;; esac
WRAP=${WRAP:-}
die() { echo "$NAME: $*"; exit 1; }
command -v jq > /dev/null || { echo "$NAME: jq is not installed"; exit 0; }
dir=$(mktemp -d "${DIR:-/dev/shm}/granary-bench.XXXXXX")
loads=(); daemon=; nbd="nbd+unix:///d?socket=$dir/nbd"; iqn=iqn.2026-11.local.granary
declare -A at
cleanup() {
    local h
    [ ${#loads[@]} = 0 ] || kill "${loads[@]}" 2> /dev/null
    [ -z "$daemon" ] || kill "$daemon" 2> /dev/null
    for h in "$dir"/home*; do [ ! -d "$h" ] || GRANARY_HOME=$h "$B/bin/granary" down > /dev/null 2>&1; done
    wait
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
on() { local n=$1; shift; GRANARY_HOME=$dir/home$n "$B/bin/granary" "$@" > /dev/null || die "granary $* failed"; }
up() {
    GRANARY_HOME=$dir/home$1 $WRAP "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null || die "the target does not start"
    at[$1]=$(GRANARY_HOME=$dir/home$1 "$B/bin/granary" status --json | jq -r .portal)
}
load() {
    $WRAP "$B/tests/bench/$2" "${@:3}" --time 600 --trace "$dir/$1" > "$dir/$1.json" 2> "$dir/$1.err" &
    loads+=($!)
    sleep 0.7 # until its rate is what it is going to be
}
loads_end() {
    local p
    for p in "${loads[@]}"; do kill "$p" 2> /dev/null; wait "$p" || die "a load failed: $(cat "$dir"/*.err "$dir"/*.json)"; done
    loads=()
}
calls() { $WRAP "$B/tests/bench/calls" make "$@" || exit 1; }
asked() { calls rpc "$dir/home$1/run/storaged.sock" "$dir/log" "${@:2}"; }
qemu() {
    qemu-img create -q -f qcow2 -o "cluster_size=64k$1" "$dir/n0.qcow2" 1G
    qemu-img bench -w -c 256 -d 4 -s 1M --pattern=90 -f qcow2 "$dir/n0.qcow2" > /dev/null || die "qemu-img bench failed"
    $WRAP qemu-storage-daemon --nbd-server addr.type=unix,addr.path="$dir/nbd" --chardev socket,id=q,path="$dir/qmp",server=on,wait=off --monitor q \
        --blockdev driver=file,node-name=file,filename="$dir/n0.qcow2" --blockdev driver=qcow2,node-name=n0,file=file \
        --export type=nbd,id=e,node-name=n0,name=d,writable=on > "$dir/qemu.log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do [ -S "$dir/qmp" ] && [ -S "$dir/nbd" ] && return; sleep 0.05; done
    die "qemu-storage-daemon: $(cat "$dir/qemu.log")"
}
qemu_end() {
    kill "$daemon"; wait "$daemon" 2> /dev/null
    daemon=
    rm -f "$dir"/*.qcow2 "$dir/qmp" "$dir/nbd"
}
goal() {
    awk -v w="$1" -v v="$2" -v m="$3" -v g="$4" 'BEGIN { printf "  %-66s %10s   goal: at %s %s   %s\n", w, v, m == "min" ? "least" : "most", g, (m == "min" ? v >= g : v <= g) ? "met" : "missed" }'
}
