#!/bin/bash
# The target's speed beside its peers, in one run, servers in turn, medians of ROUNDS rounds of SECONDS_EACH seconds:
#   1 4 KiB at depth 32 on memory: IOPS and the server's CPU time per operation, beside tgt (aio, rdwr), nbdkit and qemu-storage-daemon (NBD)
#   2 the median latency at depth 1 on memory          3 1 MiB on memory: rate and the server's CPU time per GiB
#   4 4 KiB on the disk with O_DIRECT as a share of the raw file's (fio, io_uring), with one and four connections; write and flush
#   5 p99 at an offered load of 20,000 a second        6 what digests cost        7 system calls per I/O, and CPU when idle
# Ours is always a fully allocated disk of a datastore, never a bare file. iSCSI is driven by tests/bench/iscsi_load, NBD by fio's nbd engine.
# A cell whose client used more than 0.95 of a core says nothing of the server and is marked with "!". Goals are the project's; "missed"
# is no failure of this script: machines differ. ONLY: which points ("[13]"). FILE_DIR: where the disk's files go.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-3}; SECONDS_EACH=${SECONDS_EACH:-2}; SIZE=${SIZE:-512M}; ONLY=${ONLY:-.}
for p in tgtd tgtadm nbdkit qemu-storage-daemon fio jq; do
    command -v $p > /dev/null || { echo "iscsi_table: $p is not installed (scripts/setup --bench)"; exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "iscsi_table: tgt needs root"; exit 0; }
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

# --- servers
for f in "$dir/raw" "$dir/tgt" "$dir/qsd" "$shm/tgt" "$shm/nbdkit" "$shm/qsd"; do
    fallocate -l "$SIZE" "$f" && dd if=/dev/zero of="$f" bs=4M count=$(($(stat -c %s "$f") >> 22)) conv=notrunc status=none
done
sync
"$B/bin/granary" datastore create disk "$dir/ds" --size $(($(numfmt --from=iec "$SIZE") + (1 << 30))) > /dev/null &&
    "$B/bin/granary" datastore create memory "$shm/ds" --size $(($(numfmt --from=iec "$SIZE") + (1 << 30))) > /dev/null &&
    "$B/bin/granary" disk create disk/disk --size "$SIZE" --provision eager > /dev/null &&
    "$B/bin/granary" disk create memory/disk --size "$SIZE" --provision eager > /dev/null &&
    "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null || { echo "iscsi_table: the datastores cannot be served"; exit 1; }
ours=$("$B/bin/granary" status --json | jq -r .portal) ours_pid=$(cat "$GRANARY_HOME/run/storaged.pid")
port=$(free_port) control=$((RANDOM % 10000 + 20000))
tgtd -f -C $control --iscsi portal=127.0.0.1:"$port" > "$dir/tgtd.log" 2>&1 &
tgt_pid=$!; pids+=("$tgt_pid")
up "$port"
tid=0
tgt_add() { # NAME FILE TYPE [FLAGS]
    tid=$((tid + 1))
    tgtadm -C $control --lld iscsi --op new --mode target --tid $tid -T "iqn.peer:$1" &&
        tgtadm -C $control --lld iscsi --op new --mode logicalunit --tid $tid --lun 1 -b "$2" --bstype "$3" ${4:+--bsoflags "$4"} &&
        tgtadm -C $control --lld iscsi --op bind --mode target --tid $tid -I ALL || { echo "iscsi_table: tgt does not take $2"; exit 1; }
}
tgt_add aio "$shm/tgt" aio; tgt_add rdwr "$shm/tgt" rdwr; tgt_add disk "$dir/tgt" aio
nbdkit_port=$(free_port)
nbdkit -f -p "$nbdkit_port" -i 127.0.0.1 file "$shm/nbdkit" > "$dir/nbdkit.log" 2>&1 &
nbdkit_pid=$!; pids+=("$nbdkit_pid")
up "$nbdkit_port"
qsd_port=$(free_port)
qemu-storage-daemon --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port="$qsd_port" \
    --blockdev driver=file,node-name=m,filename="$shm/qsd" --export type=nbd,id=m,node-name=m,name=m,writable=on \
    --blockdev driver=file,node-name=d,filename="$dir/qsd",cache.direct=on,aio=io_uring --export type=nbd,id=d,node-name=d,name=d,writable=on > "$dir/qsd.log" 2>&1 &
qsd_pid=$!; pids+=("$qsd_pid")
up "$qsd_port"

# --- one measurement: "iops p50-us p99-us mib-s client-cpu server-cpu"
cpu() { awk '{ sub(/.*\) /, ""); print ($12 + $13) / 100 }' "/proc/$1/stat"; }
iscsi() { # PID AT TARGET LUN OPTION...
    local pid=$1 at=$2 target=$3 lun=$4
    shift 4
    "$B/tests/bench/iscsi_load" "$at" "$target" --lun "$lun" --time "$SECONDS_EACH" --size "$SIZE" --pid "$pid" "$@" |
        jq -r '"\(.iops) \(."p50-us") \(."p99-us") \(."mib-s") \(."client-cpu") \(."target-cpu")"'
}
fio_() { # PID OPTION...: fio's own sum
    local pid=$1 before after
    shift
    [ "$pid" = 0 ] || before=$(cpu "$pid")
    fio --name=x --size="$SIZE" --time_based --runtime="$SECONDS_EACH" --output-format=json --output="$dir/fio" "$@" > "$dir/fio.err" 2>&1 || { cat "$dir/fio.err"; exit 1; }
    sed -i -n '/^{/,$p' "$dir/fio" # some engines chat first
    [ "$pid" = 0 ] || after=$(cpu "$pid")
    jq -r --arg c "$(awk -v a="${after:-0}" -v b="${before:-0}" -v s="$SECONDS_EACH" 'BEGIN { printf "%.3f", (a - b) / s }')" '.jobs[0] as $j |
        (if $j.read.total_ios > 0 then $j.read else $j.write end) as $d |
        "\($d.iops) \($d.clat_ns.percentile."50.000000" / 1000) \($d.clat_ns.percentile."99.000000" / 1000) \($d.bw / 1024) \(($j.usr_cpu + $j.sys_cpu) / 100) \($c)"' "$dir/fio"
}
measure() { # SERVER RW BS DEPTH [CONNS] [OPTION...]
    local server=$1 rw=$2 bs=$3 depth=$4 conns=${5:-1}
    shift $(($# < 5 ? $# : 5))
    case $server in
    ours) iscsi "$ours_pid" "$ours" iqn.2026-11.local.granary:memory:disk 0 --rw "$rw" --bs "$bs" --depth "$depth" --conns "$conns" "$@" ;;
    ours-disk) iscsi "$ours_pid" "$ours" iqn.2026-11.local.granary:disk:disk 0 --rw "$rw" --bs "$bs" --depth "$depth" --conns "$conns" "$@" ;;
    tgt-*) iscsi "$tgt_pid" "127.0.0.1:$port" "iqn.peer:${server#tgt-}" 1 --rw "$rw" --bs "$bs" --depth "$depth" --conns "$conns" "$@" ;;
    nbdkit) fio_ "$nbdkit_pid" --ioengine=nbd --uri="nbd://127.0.0.1:$nbdkit_port" --rw="$rw" --bs="$bs" --iodepth="$depth" ;;
    qsd) fio_ "$qsd_pid" --ioengine=nbd --uri="nbd://127.0.0.1:$qsd_port/m" --rw="$rw" --bs="$bs" --iodepth="$depth" ;;
    qsd-disk) fio_ "$qsd_pid" --ioengine=nbd --uri="nbd://127.0.0.1:$qsd_port/d" --rw="$rw" --bs="$bs" --iodepth="$depth" ;;
    raw) fio_ 0 --ioengine=io_uring --direct=1 --filename="$dir/raw" --rw="$rw" --bs="$bs" --iodepth=$((depth * conns)) "$@" ;;
    esac
}
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
turns() { # "SERVERS" RW BS DEPTH …: fills $dir/m.SERVER, one line a round
    local servers=$1 s
    shift
    for s in $servers; do : > "$dir/m.$s"; done
    for _ in $(seq "$ROUNDS"); do for s in $servers; do measure "$s" "$@" >> "$dir/m.$s"; done; done
}
of() { cut -d' ' -f"$2" "$dir/m.$1" | median; }                                            # SERVER COLUMN
per_op() { awk -v f="$2" '$1 > 0 { print $6 / $1 * 1000000 * f }' "$dir/m.$1" | median; }    # SERVER FACTOR: CPU, µs per operation
bound() { awk -v c="$(of "$1" 5)" 'BEGIN { if (c > 0.95) printf "!" }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", b ? a / b : 0 }'; }
goal() { # WHAT VALUE min|max GOAL
    printf '  %-58s %8s   goal: %s %s: %s\n' "$1" "$2" "$3" "$4" "$(awk -v v="$2" -v g="$4" -v m="$3" 'BEGIN { print (m == "min" ? v >= g : v <= g) ? "met" : "missed" }')"
}
row() { printf '  %-10s %-10s %12s %10s %10s %10s %12s\n' "$@"; }

if [[ 1 =~ $ONLY ]]; then
    echo "1. 4 KiB, depth 32, on memory"; row server rw IOPS "p50 us" "p99 us" client "CPU us/op"
    for rw in randread randwrite; do
        turns "ours tgt-aio tgt-rdwr nbdkit qsd" $rw 4k 32
        for s in ours tgt-aio tgt-rdwr nbdkit qsd; do row $s $rw "$(printf %.0f "$(of $s 1)")$(bound $s)" "$(of $s 2)" "$(of $s 3)" "$(of $s 5)" "$(printf %.1f "$(per_op $s 1)")"; done
        [ $rw = randread ] && g=1.9 c=0.55 || g=1.5 c=0.75
        goal "$rw: IOPS over tgt aio's" "$(ratio "$(of ours 1)" "$(of tgt-aio 1)")" min $g
        goal "$rw: CPU per operation over tgt aio's" "$(ratio "$(per_op ours 1)" "$(per_op tgt-aio 1)")" max $c
    done
fi
if [[ 2 =~ $ONLY ]]; then
    echo "2. 4 KiB, depth 1, on memory"; row server rw IOPS "p50 us" "p99 us" client "CPU us/op"
    for rw in randread randwrite; do
        turns "ours tgt-aio nbdkit qsd" $rw 4k 1
        for s in ours tgt-aio nbdkit qsd; do row $s $rw "$(printf %.0f "$(of $s 1)")$(bound $s)" "$(of $s 2)" "$(of $s 3)" "$(of $s 5)" "$(printf %.1f "$(per_op $s 1)")"; done
        goal "$rw: p50 over nbdkit's" "$(ratio "$(of ours 2)" "$(of nbdkit 2)")" max 1.1
    done
fi
if [[ 3 =~ $ONLY ]]; then
    echo "3. 1 MiB, depth 32, on memory"; row server rw MiB/s "p50 us" "p99 us" client "CPU s/GiB"
    for rw in read write; do
        turns "ours tgt-aio nbdkit" $rw 1m 32
        for s in ours tgt-aio nbdkit; do row $s $rw "$(printf %.0f "$(of $s 4)")$(bound $s)" "$(of $s 2)" "$(of $s 3)" "$(of $s 5)" "$(printf %.2f "$(per_op $s 0.001024)")"; done
        goal "$rw: rate over nbdkit's" "$(ratio "$(of ours 4)" "$(of nbdkit 4)")" min 0.9
        goal "$rw: CPU s per GiB" "$(printf %.2f "$(per_op ours 0.001024)")" max 0.45
    done
fi
if [[ 4 =~ $ONLY ]]; then
    echo "4. 4 KiB on the disk, O_DIRECT: share of the raw file's IOPS"; row server rw IOPS "of raw" "p99 us" client "CPU us/op"
    for rw in randread randwrite; do
        for conns in 1 4; do
            turns "raw ours-disk tgt-disk qsd-disk" $rw 4k $((conns == 1 ? 32 : 8)) $conns
            for s in raw ours-disk tgt-disk qsd-disk; do row $s "$rw/$conns" "$(printf %.0f "$(of $s 1)")$(bound $s)" "$(ratio "$(of $s 1)" "$(of raw 1)")" "$(of $s 3)" "$(of $s 5)" "$(printf %.1f "$(per_op $s 1)")"; done
            goal "$rw, $conns connection(s): share of raw" "$(ratio "$(of ours-disk 1)" "$(of raw 1)")" min "$([ $conns = 1 ] && echo 0.85 || echo 0.9)"
            [ $conns = 1 ] && goal "$rw: p99 over raw's" "$(ratio "$(of ours-disk 3)" "$(of raw 3)")" max 1.3
        done
    done
    for place in "in place" redirected; do
        [ "$place" = redirected ] && "$B/bin/granary" snapshot create disk/disk --name bench > /dev/null
        : > "$dir/m.raw"; : > "$dir/m.ours-disk"; : > "$dir/m.tgt-disk"
        for _ in $(seq "$ROUNDS"); do
            measure raw randwrite 4k 1 1 --fdatasync=1 >> "$dir/m.raw"
            measure ours-disk randwrite 4k 1 1 --flush >> "$dir/m.ours-disk"
            measure tgt-disk randwrite 4k 1 1 --flush >> "$dir/m.tgt-disk"
        done
        for s in raw ours-disk tgt-disk; do row $s flush "$(printf %.0f "$(of $s 1)")" "$(ratio "$(of $s 1)" "$(of raw 1)")" "$(of $s 3)" "$(of $s 5)" ""; done
        [ "$place" = "in place" ] && goal "write and flush, depth 1, in place: share of raw" "$(ratio "$(of ours-disk 1)" "$(of raw 1)")" min 0.7
    done
fi
if [[ 5 =~ $ONLY ]]; then
    echo "5. 20,000 a second offered, on memory"; row server rw IOPS "p50 us" "p99 us" client "CPU us/op"
    for rw in randread randwrite; do
        turns "ours tgt-aio" $rw 4k 64 1 --rate 20000
        for s in ours tgt-aio; do row $s $rw "$(printf %.0f "$(of $s 1)")$(bound $s)" "$(of $s 2)" "$(of $s 3)" "$(of $s 5)" "$(printf %.1f "$(per_op $s 1)")"; done
        goal "$rw: p99 over tgt aio's" "$(ratio "$(of ours 3)" "$(of tgt-aio 3)")" max 0.5
    done
fi
if [[ 6 =~ $ONLY ]]; then
    echo "6. digests of headers and data, 4 KiB, depth 32, on memory"
    for rw in randread randwrite; do
        : > "$dir/m.plain"; : > "$dir/m.digests"
        for _ in $(seq $((2 * ROUNDS))); do
            measure ours $rw 4k 32 >> "$dir/m.plain"
            measure ours $rw 4k 32 1 --digests >> "$dir/m.digests"
        done
        printf '  %-10s plain %.2f us/op, with digests %.2f us/op\n' $rw "$(per_op plain 1)" "$(per_op digests 1)"
        goal "$rw: CPU per operation over that without" "$(ratio "$(per_op digests 1)" "$(per_op plain 1)")" max 1.05
    done
fi
if [[ 7 =~ $ONLY ]]; then
    echo "7. system calls per I/O (4 KiB, depth 32), CPU when idle; on memory each I/O is one pread or pwrite, which costs less than the ring does"
    if command -v strace > /dev/null; then
        for s in ours-disk ours; do
            for rw in randread randwrite; do
                timeout -s INT $((SECONDS_EACH + 2)) strace -f -c -p "$ours_pid" -o "$dir/strace" > /dev/null 2>&1 &
                tracer=$!
                sleep 0.5
                measure $s $rw 4k 32 > "$dir/m.traced"
                wait $tracer
                calls=$(awk '$NF != "total" && $4 ~ /^[0-9]+$/ { n += $4 } END { print n + 0 }' "$dir/strace")
                goal "$s $rw: system calls per I/O" "$(awk -v c="$calls" -v i="$(cut -d' ' -f1 "$dir/m.traced")" -v s="$SECONDS_EACH" 'BEGIN { printf "%.2f", c / (i * s) }')" max 0.5
            done
        done
    else
        echo "  strace is not installed"
    fi
    before=$(cpu "$ours_pid"); sleep 5; after=$(cpu "$ours_pid")
    goal "CPU of the idle server, share of a core" "$(awk -v a="$after" -v b="$before" 'BEGIN { printf "%.3f", (a - b) / 5 }')" max 0.002
fi
exit 0
