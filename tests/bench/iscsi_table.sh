#!/bin/bash
# The target's speed beside its peers on one machine: in one run, servers in turn, medians of ROUNDS rounds of SECONDS_EACH seconds.
#   1 4 KiB at depth 32 on memory: IOPS and the server's CPU time per operation, beside tgt (aio, rdwr), nbdkit and QEMU's NBD server
#   2 the median latency at depth 1 on memory, server and client on one core and on two: left to itself the scheduler chooses one or
#     the other for each server, which makes more difference (waking another core) than the servers do
#   3 1 MiB on memory: rate and the server's CPU time per GiB
#   4 4 KiB on the disk with O_DIRECT as a share of the raw file's (fio, io_uring), 32 outstanding through one connection or four;
#     write and flush at depth 1, in place and in blocks redirected because of a snapshot (a new one each round)
#   5 p99 at an offered load of 20,000 a second, counted from when each was due
#   6 what digests cost (thrice the rounds)           7 system calls per I/O (perf, else strace), and CPU when idle
# Ours is always a fully allocated disk of a datastore, never a bare file; peers serve bare files, on the disk with O_DIRECT (nbdkit has
# no such option: cache=none). iSCSI is driven by tests/bench/iscsi_load, NBD by tests/bench/nbd_load. "client" is the client's share
# of a core: above 0.95 the cell says nothing of the server, "client-bound" stands beside it and what is derived from it is void.
# The server's CPU time is that of its process, what the kernel does on its behalf included. Peers that are not installed are named
# and left out. Goals are the project's; a missed one is no failure of this script: machines differ. Exits 1 when ours cannot be run.
# tgt's aio answers SYNCHRONIZE CACHE without a sync: write and flush is measured with its rdwr, also O_DIRECT. There, and only there,
# the latencies of the raw file are of the write alone; its IOPS are of both.
# ONLY: a pattern of the points ("[13]"). WRAP: put in front of all servers and clients ("chrt -f 10" on a machine that others use at
# the same time: without it they decide point 5). FILE_DIR: where the disk's files go (default: a directory under TMPDIR).
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-3}; SECONDS_EACH=${SECONDS_EACH:-2}; SIZE=${SIZE:-512M}; ONLY=${ONLY:-.}; WRAP=${WRAP:-}
command -v jq > /dev/null || { echo "iscsi_table: jq is not installed"; exit 0; }
declare -A have=()
for p in tgtd nbdkit qemu-storage-daemon fio perf strace; do command -v $p > /dev/null && have[$p]=1; done
[ "$(id -u)" = 0 ] || { unset "have[tgtd]"; echo "iscsi_table: tgt needs root, it is left out"; }
for p in tgtd nbdkit qemu-storage-daemon fio; do
    [ "${have[$p]:-}" ] || echo "iscsi_table: $p is left out (scripts/setup --bench)"
done
dir=$(mktemp -d "${FILE_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX"); shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX); pids=()
export GRANARY_HOME=$dir/home
mkdir "$GRANARY_HOME"
cleanup() {
    "$B/bin/granary" down > /dev/null 2>&1
    for p in "${pids[@]}"; do kill -KILL "$p" 2> /dev/null; wait "$p" 2> /dev/null; done
    rm -rf "$dir" "$shm"
}
trap cleanup EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
up() { for _ in $(seq 100); do (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return; sleep 0.05; done; echo "iscsi_table: nobody listens on port $1"; exit 1; }
filled() { # FILE...: allocated and written once, so that nobody pays for the file system's first writes
    local f
    for f in "$@"; do fallocate -l "$SIZE" "$f" && dd if=/dev/zero of="$f" bs=4M count=$(($(stat -c %s "$f") >> 22)) conv=notrunc status=none; done
    sync -f "$@"
}

# --- servers
start_ours() {
    local bytes
    bytes=$(numfmt --from=iec "$SIZE")
    "$B/bin/granary" datastore create disk "$dir/ds" --size $((2 * bytes + (2 << 30))) > /dev/null &&
        "$B/bin/granary" datastore create memory "$shm/ds" --size $((bytes + (1 << 30))) > /dev/null &&
        "$B/bin/granary" disk create disk/disk --size "$SIZE" --provision eager > /dev/null &&
        "$B/bin/granary" disk create disk/snap --size "$SIZE" --provision eager > /dev/null &&
        "$B/bin/granary" disk create memory/disk --size "$SIZE" --provision eager > /dev/null &&
        $WRAP "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null
    ours=$("$B/bin/granary" status --json | jq -r .portal) && ours_pid=$(cat "$GRANARY_HOME/run/storaged.pid") && return
    echo "iscsi_table: the datastores cannot be served"
    exit 1
}
tgt_add() { # TID NAME FILE TYPE [FLAGS]
    tgtadm -C $control --lld iscsi --op new --mode target --tid "$1" -T "iqn.peer:$2" &&
        tgtadm -C $control --lld iscsi --op new --mode logicalunit --tid "$1" --lun 1 -b "$3" --bstype "$4" ${5:+--bsoflags "$5"} &&
        tgtadm -C $control --lld iscsi --op bind --mode target --tid "$1" -I ALL && return
    echo "iscsi_table: tgt does not take $3"
    exit 1
}
start_tgt() {
    filled "$shm/tgt" "$dir/tgt"
    tgt_port=$(free_port) control=$((RANDOM % 10000 + 20000))
    $WRAP tgtd -f -C $control --iscsi portal=127.0.0.1:"$tgt_port" > "$dir/tgtd.log" 2>&1 &
    tgt_pid=$!; pids+=("$tgt_pid")
    up "$tgt_port"
    tgt_add 1 aio "$shm/tgt" aio; tgt_add 2 rdwr "$shm/tgt" rdwr; tgt_add 3 disk "$dir/tgt" aio # always O_DIRECT
    tgt_add 4 sync "$dir/tgt" rdwr direct
}
start_nbdkit() {
    filled "$shm/nbdkit" "$dir/nbdkit"
    nbdkit_port=$(free_port)
    $WRAP nbdkit -f -p "$nbdkit_port" -i 127.0.0.1 file "$shm/nbdkit" > "$dir/nbdkit.log" 2>&1 &
    nbdkit_pid=$!; pids+=("$nbdkit_pid")
    up "$nbdkit_port"
    nbdkit_disk_port=$(free_port)
    $WRAP nbdkit -f -p "$nbdkit_disk_port" -i 127.0.0.1 file "$dir/nbdkit" cache=none > "$dir/nbdkit-disk.log" 2>&1 &
    nbdkit_disk_pid=$!; pids+=("$nbdkit_disk_pid")
    up "$nbdkit_disk_port"
}
start_qemu() {
    filled "$shm/qemu" "$dir/qemu"
    qemu_port=$(free_port)
    $WRAP qemu-storage-daemon --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port="$qemu_port" \
        --blockdev driver=file,node-name=m,filename="$shm/qemu" --export type=nbd,id=m,node-name=m,name=m,writable=on \
        --blockdev driver=file,node-name=d,filename="$dir/qemu",cache.direct=on,aio=io_uring --export type=nbd,id=d,node-name=d,name=d,writable=on > "$dir/qemu.log" 2>&1 &
    qemu_pid=$!; pids+=("$qemu_pid")
    up "$qemu_port"
}
start_ours
[ "${have[tgtd]:-}" ] && start_tgt
[ "${have[nbdkit]:-}" ] && start_nbdkit
[ "${have[qemu-storage-daemon]:-}" ] && start_qemu
[ "${have[fio]:-}" ] && filled "$dir/raw"
present() { # SERVER...: those that can be measured
    local s
    for s in "$@"; do
        case $s in
        tgt-*) [ "${have[tgtd]:-}" ] ;;
        nbdkit*) [ "${have[nbdkit]:-}" ] ;;
        qemu*) [ "${have[qemu-storage-daemon]:-}" ] ;;
        raw) [ "${have[fio]:-}" ] ;;
        esac && printf '%s ' "$s"
    done
}

# --- one measurement: "iops p50-us p99-us mib-s client-cpu server-cpu"
client= # what puts the client onto a core
pin() { local p; for p in "$ours_pid" "${pids[@]}"; do taskset -apc "$1" "$p" > /dev/null 2>&1 || return 1; done; } # CPUS: where all servers run
load() { # iscsi_load|nbd_load ARGUMENT...
    local program=$1
    shift
    $WRAP $client "$B/tests/bench/$program" "$@" --time "$SECONDS_EACH" --size "$SIZE" > "$dir/json" 2> "$dir/err" || return 1
    jq -r '"\(.iops) \(."p50-us") \(."p99-us") \(."mib-s") \(."client-cpu") \(."target-cpu")"' "$dir/json"
}
iscsi() { load iscsi_load "$2" "$3" --lun "$4" --pid "$1" "${@:5}"; } # PID AT TARGET LUN OPTION...
nbd() { load nbd_load "nbd://127.0.0.1:$2" --pid "$1" "${@:3}"; }     # PID PORT/EXPORT OPTION...
raw() { # RW BS DEPTH OPTION...
    $WRAP fio --name=x --filename="$dir/raw" --ioengine=io_uring --direct=1 --size="$SIZE" --time_based --runtime="$SECONDS_EACH" --norandommap --randrepeat=0 \
        --output-format=json --output="$dir/json" --rw="$1" --bs="$2" --iodepth="$3" "${@:4}" > "$dir/err" 2>&1 || return 1
    jq -r '.jobs[0] as $j | (if $j.read.total_ios > 0 then $j.read else $j.write end) as $d | def r: . * 100 | round / 100;
        "\($d.iops | r) \($d.clat_ns.percentile."50.000000" / 1000 | r) \($d.clat_ns.percentile."99.000000" / 1000 | r) \($d.bw / 1024 | r) \(($j.usr_cpu + $j.sys_cpu) / 100 | r) 0"' "$dir/json"
}
try() { # SERVER RW BS DEPTH CONNS OPTION...
    local s=$1 rw=$2 bs=$3 depth=$4 conns=$5 iqn=iqn.2026-11.local.granary
    set -- "${@:6}"
    if [ "$s" = raw ]; then
        [ "${1:-}" = --flush ] && set -- --fdatasync=1
        raw "$rw" "$bs" $((depth * conns)) "$@"
        return
    fi
    set -- --rw "$rw" --bs "$bs" --depth "$depth" --conns "$conns" "$@"
    case $s in
    ours) iscsi "$ours_pid" "$ours" $iqn:memory:disk 0 "$@" ;;
    ours-disk) iscsi "$ours_pid" "$ours" $iqn:disk:disk 0 "$@" ;;
    ours-snap) "$B/bin/granary" snapshot create disk/snap --name "n$RANDOM$RANDOM" > /dev/null && iscsi "$ours_pid" "$ours" $iqn:disk:snap 0 "$@" ;;
    tgt-*) iscsi "$tgt_pid" "127.0.0.1:$tgt_port" "iqn.peer:${s#tgt-}" 1 "$@" ;;
    nbdkit) nbd "$nbdkit_pid" "$nbdkit_port" "$@" ;;
    nbdkit-disk) nbd "$nbdkit_disk_pid" "$nbdkit_disk_port" "$@" ;;
    qemu) nbd "$qemu_pid" "$qemu_port/m" "$@" ;;
    qemu-disk) nbd "$qemu_pid" "$qemu_port/d" "$@" ;;
    esac
}
status=0
measure() { # FILE SERVER RW BS DEPTH CONNS OPTION...: one more line in m.FILE
    try "${@:2}" >> "$dir/m.$1" && return
    echo "iscsi_table: $2 failed at ${*:3}: $(tail -1 "$dir/err")$(jq -r '" errors: \(.errors)"' "$dir/json" 2> /dev/null)" >&2
    case $2 in ours*) status=1 ;; esac
}
turns() { # "SERVERS" RW BS DEPTH CONNS OPTION...: fills m.SERVER, one line a round
    local servers=$1 s
    shift
    for s in $servers; do : > "$dir/m.$s"; done
    for _ in $(seq "$ROUNDS"); do for s in $servers; do measure "$s" "$s" "$@"; done; done
}

# --- figures
median() { sort -g | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'; }
of() { if [ -e "$dir/m.$1" ]; then cut -d' ' -f"$2" "$dir/m.$1" | median; else echo 0; fi; } # SERVER COLUMN
per_op() { [ -e "$dir/m.$1" ] && awk -v f="$2" '$1 > 0 { print $6 / $1 * f }' "$dir/m.$1" | median; } # SERVER FACTOR: CPU seconds per operation, times FACTOR
bound() { awk -v c="$(of "$1" 5)" 'BEGIN { exit !(c > 0.95) }'; }
ratio() { awk -v a="${1:-0}" -v b="${2:-0}" 'BEGIN { if (a && b) printf "%.2f", a / b; else print "-" }'; }
goals=0; met=0
goal() { # WHAT VALUE min|max GOAL SERVER...: the servers it is derived from
    local verdict s
    verdict=$(awk -v v="$2" -v g="$4" -v m="$3" 'BEGIN { print (m == "min" ? v >= g : v <= g) ? "met" : "missed" }')
    for s in "${@:5}"; do bound "$s" && verdict="void ($s is client-bound)"; done
    [ "$2" = - ] && verdict="not measured"
    case $verdict in met | missed) goals=$((goals + 1)) ;; esac
    [ "$verdict" = met ] && met=$((met + 1))
    printf '  %-56s %8s   goal: at %s %s   %s\n' "$1" "$2" "$([ "$3" = min ] && echo least || echo most)" "$4" "$verdict"
}
head_() { echo "$1"; printf '  %-12s %-11s %11s %11s %9s %9s %7s %11s\n' server "" "$2" "$3" "p50 us" "p99 us" client "$4"; }
row() { # SERVER RW COLUMN-OF-THE-RATE COLUMN-OF-THE-RATIO PEER-OR-RAW FACTOR-OF-CPU DIGITS
    local cpu=-
    [ -s "$dir/m.$1" ] || return
    [ "$1" = raw ] || cpu=$(printf "%.$7f" "$(per_op "$1" "$6")")
    printf '  %-12s %-11s %11.0f %11s %9.1f %9.1f %7.2f %11s%s\n' "$1" "$2" "$(of "$1" "$3")" "$(ratio "$(of "$1" "$4")" "$(of "$5" "$4")")" "$(of "$1" 2)" "$(of "$1" 3)" \
        "$(of "$1" 5)" "$cpu" "$(bound "$1" && echo "  client-bound")"
}
rows() { local s; for s in $1; do row "$s" "${@:2}"; done; } # "SERVERS" and what row takes
cpu_ns() { cat "/proc/$1/task/"*/schedstat | awk '{ n += $1 } END { printf "%d", n }'; }

echo "$(nproc) CPUs, Linux $(uname -r), $ROUNDS rounds of $SECONDS_EACH s, disks of $SIZE${WRAP:+, under $WRAP}"
if [[ 1 =~ $ONLY ]]; then
    head_ "1. 4 KiB, depth 32, on memory" IOPS "of tgt-aio" "CPU us/op"
    servers=$(present ours tgt-aio tgt-rdwr nbdkit qemu)
    for rw in randread randwrite; do
        turns "$servers" $rw 4k 32 1
        rows "$servers" $rw 1 1 tgt-aio 1000000 1
        [ $rw = randread ] && g=1.9 c=0.55 || g=1.5 c=0.75
        goal "$rw: IOPS over tgt aio's" "$(ratio "$(of ours 1)" "$(of tgt-aio 1)")" min "$g" ours tgt-aio
        goal "$rw: CPU per operation over tgt aio's" "$(ratio "$(per_op ours 1000000)" "$(per_op tgt-aio 1000000)")" max "$c" ours tgt-aio
    done
fi
if [[ 2 =~ $ONLY ]]; then
    head_ "2. 4 KiB, depth 1, on memory" IOPS "p50/nbdkit" "CPU us/op"
    servers=$(present ours tgt-aio nbdkit qemu)
    cpus=$(taskset -pc $$ | sed 's/.*: //') client="taskset -c 0"
    for place in "one core" "two cores"; do
        [ "$place" = "one core" ] && cpu=0 || cpu=1
        pin $cpu || { echo "  $place: not on this machine"; continue; }
        for rw in randread randwrite; do
            turns "$servers" $rw 4k 1 1
            rows "$servers" "$rw/$((cpu + 1))" 1 2 nbdkit 1000000 1
            goal "$rw, $place: p50 over nbdkit's" "$(ratio "$(of ours 2)" "$(of nbdkit 2)")" max 1.1 ours nbdkit
        done
    done
    pin "$cpus"
    client=
fi
if [[ 3 =~ $ONLY ]]; then
    head_ "3. 1 MiB, depth 32, on memory" MiB/s "of nbdkit" "CPU s/GiB"
    servers=$(present ours tgt-aio nbdkit)
    for rw in read write; do
        turns "$servers" $rw 1m 32 1
        rows "$servers" $rw 4 4 nbdkit 1024 2
        goal "$rw: rate over nbdkit's" "$(ratio "$(of ours 4)" "$(of nbdkit 4)")" min 0.9 ours nbdkit
        goal "$rw: CPU s per GiB" "$(printf %.2f "$(per_op ours 1024)")" max 0.45
    done
fi
if [[ 4 =~ $ONLY ]]; then
    head_ "4. 4 KiB on the disk with O_DIRECT, 32 outstanding through 1 or 4 connections; write and flush at depth 1" IOPS "of raw" "CPU us/op"
    servers=$(present raw ours-disk tgt-disk nbdkit-disk qemu-disk)
    for rw in randread randwrite; do
        for conns in 1 4; do
            turns "$servers" $rw 4k $((32 / conns)) $conns
            rows "$servers" $rw/$conns 1 1 raw 1000000 1
            goal "$rw, $conns connection(s): IOPS over raw's" "$(ratio "$(of ours-disk 1)" "$(of raw 1)")" min "$([ $conns = 1 ] && echo 0.85 || echo 0.9)" ours-disk raw
        done
    done
    servers=$(present raw ours-disk tgt-sync nbdkit-disk qemu-disk)
    turns "$servers" randwrite 4k 1 1 --flush
    rows "$servers" write+flush 1 1 raw 1000000 1
    goal "write and flush in place: over raw's" "$(ratio "$(of ours-disk 1)" "$(of raw 1)")" min 0.7 ours-disk raw
    servers=$(present raw ours-snap)
    turns "$servers" randwrite 4k 1 1 --flush
    rows "$servers" redirected 1 1 raw 1000000 1
    goal "write and flush, redirected: over raw's" "$(ratio "$(of ours-snap 1)" "$(of raw 1)")" min 0.7 ours-snap raw
fi
if [[ 5 =~ $ONLY ]]; then
    head_ "5. 4 KiB, 20,000 a second offered, on memory" IOPS "p99/tgt-aio" "CPU us/op"
    servers=$(present ours tgt-aio nbdkit)
    for rw in randread randwrite; do
        turns "$servers" $rw 4k 64 1 --rate 20000
        rows "$servers" $rw 1 3 tgt-aio 1000000 1
        goal "$rw: p99 over tgt aio's" "$(ratio "$(of ours 3)" "$(of tgt-aio 3)")" max 0.5 ours tgt-aio
    done
fi
if [[ 6 =~ $ONLY ]]; then
    head_ "6. digests of headers and data, 4 KiB, depth 32, on memory" IOPS "of plain" "CPU us/op"
    for rw in randread randwrite; do
        : > "$dir/m.plain"; : > "$dir/m.digests"
        for _ in $(seq $((3 * ROUNDS))); do
            measure plain ours $rw 4k 32 1
            measure digests ours $rw 4k 32 1 --digests
        done
        rows "plain digests" $rw 1 1 plain 1000000 2
        goal "$rw: CPU per operation over that without" "$(ratio "$(per_op digests 1000000)" "$(per_op plain 1000000)")" max 1.05
    done
fi
calls_of() { # SERVER RW: system calls of our server per I/O
    local calls tracer
    if [ "${have[perf]:-}" ] && perf stat -e raw_syscalls:sys_enter true > /dev/null 2>&1; then
        : > "$dir/perf"
        perf stat -x, -e raw_syscalls:sys_enter -p "$ours_pid" -o "$dir/perf" sleep $((SECONDS_EACH + 1)) > /dev/null 2>&1 &
    elif [ "${have[strace]:-}" ]; then
        timeout -s INT $((SECONDS_EACH + 1)) strace -f -c -p "$ours_pid" -o "$dir/strace" > /dev/null 2>&1 &
    else
        echo -; return
    fi
    tracer=$!
    sleep 0.3
    try "$1" "$2" 4k 32 1 > /dev/null
    wait "$tracer"
    if [ -s "$dir/perf" ]; then calls=$(awk -F, '/sys_enter/ { print $1 }' "$dir/perf"); else calls=$(awk '$NF != "total" && $4 ~ /^[0-9]+$/ { n += $4 } END { print n + 0 }' "$dir/strace"); fi
    awk -v c="$calls" -v i="$(jq .ops "$dir/json")" 'BEGIN { printf "%.2f", c / i }'
}
if [[ 7 =~ $ONLY ]]; then
    echo "7. system calls per I/O (4 KiB, depth 32), CPU when idle"
    [ "${have[perf]:-}${have[strace]:-}" ] || echo "  neither perf nor strace is installed: system calls are not counted"
    for s in ours ours-disk; do
        for rw in randread randwrite; do goal "$s, $rw: system calls per I/O" "$(calls_of $s $rw)" max 0.5; done
    done
    before=$(cpu_ns "$ours_pid"); sleep 5; after=$(cpu_ns "$ours_pid")
    goal "idle for 5 s: CPU of the server, ms" "$(awk -v a="$after" -v b="$before" 'BEGIN { printf "%.3f", (a - b) / 1000000 }')" max 0
fi
echo "$met of $goals goals met"
exit $status
