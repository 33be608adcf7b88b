# shellcheck shell=bash
# Sourced first by every end-to-end test: set -eu, a private directory $T (also GRANARY_HOME=$T/home), the programs on PATH,
# helpers, and a clean-up that ends what the test started, by process id, and removes $T. A failing command fails the test.
#
#   requires CMD...            skip (77) when a program is missing        requires_root        skip 'why'
#   free_port                  prints a TCP port nobody listens on
#   start NAME CMD ARG...      runs CMD in the background, output in $T/NAME.log, pid in $T/NAME.pid; ended at the end
#   stop NAME [SIGNAL]         ends it (TERM) and waits; prints nothing
#   over NAME                  waits until it ends by itself (90 s), shows what it printed
#   enough NAME...             tells a load (live_load, iscsi_load) that it is enough, then over
#   hosts NAME...              homes of their own: NAME is granary in the home $NAME (in capitals), a that in $GRANARY_HOME; at the end they go down
#                              in this order, so whoever serves the others comes last
#   mount_hosts SIZE           hosts a and b are up on a datastore ds, a file; $MA and $MB are where each may show it
#   mounts_over                what both showed is unmounted, both go down, and all is sound
#   patterns HOST DISK=SIZE... writes the beginning of each, of the first with byte 10, of the next with 11 and so on
#   filled HOST DISK PATTERN [FROM [STEP]]   writes it from there on until no space is left; prints how many MiB could be written
#   machines NAME...           network namespaces $N$NAME, with their loopback      wire NAME ADDRESS NAME ADDRESS   a cable between two of them
#   track PID                  a process started otherwise: ended at the end
#   on_exit 'command'          run at the end, last given first
#   wait_for SECONDS CMD...    until CMD succeeds, else fails, telling what it waited for: many seconds, unless they are what is claimed
#   run_check CMD ARG...       must succeed; its output is in $T/out (stdout) and $T/err, and printed when it fails
#   run_mustfail STATUS TEXT CMD ARG...   must exit with STATUS and say TEXT (grep -E, on stderr or stdout)
#   check 'sentence' CMD...    an assertion with a name
#   equal FILE FILE [BYTES]    cmp for images, see tests/tools/equal.c
#   holds FILE TEXT            is it anywhere in FILE? Holes are not read (grep needs half a minute for the line that a disk image is)
#   fail 'sentence'
set -eEu
set -o pipefail
trap 'echo "ERR: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND" >&2' ERR # a command that fails unasked says which it was
TOP=${GRANARY_TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
BUILD=${GRANARY_BUILD:-$TOP/build/release}
export TOP BUILD
PATH=$BUILD/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin # the system's programs: a python3 that a version manager wraps costs a tenth of a second each time
T=$(mktemp -d "${TMPDIR:-/tmp}/granary-e2e.XXXXXX")
export T PATH GRANARY_HOME=$T/home LC_ALL=C
TEST_NAME=$(basename "$0" .sh)
test_pids=()
test_on_exit=()
test_homes=()

fail() { echo "FAIL: $TEST_NAME: $*" >&2; exit 1; }
skip() { echo "$*"; exit 77; }
requires() { local p; for p in "$@"; do command -v "$p" > /dev/null || skip "needs $p"; done; }
requires_root() { [ "$(id -u)" = 0 ] || skip "needs root"; }
on_exit() { test_on_exit+=("$1"); }
track() { test_pids+=("$1"); }
hosts() { # NAME...
    local name home
    for name in "$@"; do
        home=$T/$name
        [ "$name" != a ] || home=$GRANARY_HOME
        mkdir -p "$home"
        declare -g "${name^^}=$home"
        eval "$name() { GRANARY_HOME=$home granary \"\$@\"; }"
        test_homes+=("$home")
    done
}

mount_hosts() { # SIZE
    [ -c /dev/fuse ] || skip 'no /dev/fuse'
    requires_root
    hosts a b
    MA=$T/mnt-a MB=$T/mnt-b
    mkdir "$MA" "$MB"
    on_exit "b unmount --force '$MB'"
    on_exit "a unmount --force '$MA'"
    run_check a datastore create ds "$T/ds.img" --size "$1"
    run_check b datastore join ds "$T/ds.img"
    run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
    run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
}

mounts_over() {
    run_check a unmount "$MA"
    run_check b unmount "$MB"
    run_check b down
    run_check a datastore check ds
    check 'no space is lost' grep -q sound "$T/out"
    run_check a down
    if grep -sq Sanitizer "$A"/log/*.log "$B"/log/*.log; then fail 'a sanitizer complains'; fi
}

lun_url() { "$1" lun list "$2" --json | jq -r '.[0]."iscsi-url"'; } # HOST DISK
patterns() { # HOST DISK=SIZE...
    local host=$1 n=10 what; shift
    for what in "$@"; do
        run_check qemu-io -f raw -c "write -P $n 0 ${what#*=}" -c flush "$(lun_url "$host" "${what%=*}")"
        n=$((n + 1))
    done
}
filled() { # HOST DISK PATTERN [FROM [STEP]]
    local u i=${4:-0} step=${5:-16}
    u=$(lun_url "$1" "$2")
    while qemu-io -f raw -c "write -q -P $3 ${i}M ${step}M" "$u" > "$T/io" 2>&1; do i=$((i + step)); [ $i -lt 512 ] || fail 'it never gets full'; done
    grep -q 'No space left' "$T/io" || { cat "$T/io" >&2; fail 'refused for another reason'; }
    echo $((i - ${4:-0}))
}

machines() { # NAME...
    local name
    N=gr$$
    for name in "$@"; do
        ip netns add "$N$name"
        on_exit "ip netns del $N$name"
        ip -n "$N$name" link set lo up
    done
}
wire() { # MACHINE ADDRESS MACHINE ADDRESS
    ip -n "$N$1" link add "to$3" type veth peer name "to$1" netns "$N$3"
    ip -n "$N$1" addr add "$2/24" dev "to$3"
    ip -n "$N$3" addr add "$4/24" dev "to$1"
    ip -n "$N$1" link set "to$3" up
    ip -n "$N$3" link set "to$1" up
}

# End one process: TERM, ten seconds of patience, KILL.
end_pid() { # PID [SIGNAL]
    kill "-${2:-TERM}" "$1" 2>/dev/null || return 0
    local i
    for i in $(seq 400); do
        [ "$(ps -o stat= -p "$1" 2>/dev/null | cut -c1)" = Z ] && break
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.025
    done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
    : "$i"
}

# A pid file may be stale and its number somebody else's by now.
is_ours() { # PID HOME
    grep -qzxF "GRANARY_HOME=$2" "/proc/$1/environ" 2>/dev/null
}
# End what is at work in a home: as its user would, and then the daemons that this or the test left behind, which name themselves in their pid files.
end_home() { # HOME
    local i
    [ -d "$1/run" ] || return 0
    if [ -x "$BUILD/bin/granary" ]; then GRANARY_HOME=$1 timeout 30 granary down > /dev/null 2>&1; fi
    for i in "$1"/run/*.pid "$1"/run/vm/*.pid "$1"/run/vm/*/*.pid; do
        [ -s "$i" ] && is_ours "$(head -n 1 "$i")" "$1" && end_pid "$(head -n 1 "$i")"
    done
}

cleanup() {
    local status=$? i
    trap - EXIT INT TERM HUP
    set +e
    if [ $status -ne 0 ] && [ $status -ne 77 ]; then
        for i in "$T"/*.log "$T"/*/log/*.log "$T"/*/log/*/*.log; do
            [ -s "$i" ] && { echo "---- ${i#"$T"/} (end)"; tail -n 25 "$i"; }
        done
    fi
    for ((i = ${#test_on_exit[@]} - 1; i >= 0; i--)); do eval "${test_on_exit[$i]}" > /dev/null 2>&1; done
    [[ " ${test_homes[*]} " == *" $GRANARY_HOME "* ]] || test_homes=("$GRANARY_HOME" "${test_homes[@]}")
    for i in "${test_homes[@]}"; do end_home "$i"; done
    for ((i = ${#test_pids[@]} - 1; i >= 0; i--)); do end_pid "${test_pids[$i]}"; done
    rm -rf "$T"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

free_port() {
    local port
    while :; do
        port=$((10240 + (RANDOM * 32768 + RANDOM) % 22000)) # below the ephemeral range, so that no client takes it meanwhile
        (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
start() { # NAME CMD ARG...
    local name=$1; shift
    "$@" > "$T/$name.log" 2>&1 &
    echo $! > "$T/$name.pid"
    track $!
}
stop() { # NAME [SIGNAL]
    local pid; pid=$(cat "$T/$1.pid")
    end_pid "$pid" "${2:-TERM}"
    wait "$pid" 2>/dev/null || true
}
ended() { ! ps -p "$(cat "$T/$1.pid")" -o stat= | grep -qv Z; }
over() { # NAME
    wait_for 90 ended "$1"
    echo "# $1: $(cat "$T/$1.log")"
}
enough() { # NAME...
    local name
    for name in "$@"; do kill -TERM "$(cat "$T/$name.pid")" 2>/dev/null || true; done
    for name in "$@"; do over "$name"; done
}
wait_for() { # SECONDS CMD...
    local end=$((SECONDS + $1)) tries=0 pause=0.05; shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for: $*"
        [ $((tries += 1)) -lt 40 ] || pause=0.25 # who looks all the time takes from what is waited for
        sleep $pause
    done
}
run_check() {
    local status=0
    "$@" > "$T/out" 2> "$T/err" || status=$?
    [ $status -eq 0 ] || { cat "$T/out" "$T/err"; fail "exit $status: $*"; }
}
run_mustfail() { # STATUS TEXT CMD...
    local want=$1 text=$2 status=0; shift 2
    "$@" > "$T/out" 2> "$T/err" || status=$?
    [ $status -eq "$want" ] || { cat "$T/out" "$T/err"; fail "exit $status, wanted $want: $*"; }
    grep -Eqs -- "$text" "$T/err" "$T/out" || { cat "$T/out" "$T/err"; fail "does not say '$text': $*"; }
}
equal() { "$BUILD/tests/tools/equal" "$@"; }
holds() { # FILE TEXT
    python3 -c '
import os, sys
fd, text, at, size = os.open(sys.argv[1], os.O_RDONLY), sys.argv[2].encode(), 0, os.stat(sys.argv[1]).st_size
while at < size:
    try:
        at = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # nothing but a hole is left
        break
    end = os.lseek(fd, at, os.SEEK_HOLE)
    while at < end:
        piece = os.pread(fd, 16 << 20, at)
        if text in piece:
            sys.exit(0)
        at += max(len(piece) - len(text) + 1, 1) if at + len(piece) < end else len(piece)
sys.exit(1)' "$1" "$2"
}
check() { # SENTENCE CMD...
    local what=$1; shift
    "$@" > "$T/check" 2>&1 || { cat "$T/check"; fail "$what ($*)"; }
}
