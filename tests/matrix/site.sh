# shellcheck shell=bash
# A site of three hosts, a, b and c, that share datastore ds, for tests/matrix/trials; sourced after tests/e2e/lib.sh.
#   $place  plain: processes of this machine with a home each; netns: a network namespace each, and homes at one path
#   $on     file: the datastore lies in a file; fuse: in two that processes serve, which can stand still or fail; lun: on two LUNs of a target of ours
#           ("array"), each behind a portal of its own. Every host has a proxy per device (tests/tools/iscsi_proxy), which may lose answers and kills at a
#           step of a take-over; $timing is the datastore's; the proxy is what is cut for a process, a cable is in a namespace. On files a library in each host does that (steps.c).
# shellcheck disable=SC2154,SC2034 # place, on, seed, timing: the caller's
HOSTS=(a b c)
declare -A addr multi upstream url before_given_up
N=gm$$
H=$T/host

start_in() { # NAMESPACE NAME CMD...: as start()
    local n=$1 name=$2; shift 2
    if [ "$place" = netns ]; then start "$name" ip netns exec "$N$n" "$@"; else start "$name" "$@"; fi
}
on_host() { # HOST CMD...: there, with its home
    local h=$1; shift
    if [ "$place" = netns ]; then
        # shellcheck disable=SC2016
        GRANARY_HOME=$H ip netns exec "$N$h" unshare -m sh -c 'mount --bind "$1" "$2"; shift 2; exec "$@"' sh "$T/$h" "$H" "$@"
    else
        GRANARY_HOME=$T/$h "$@"
    fi
}
granary_on() { local h=$1; shift; on_host "$h" granary "$@"; }
array() { if [ "$place" = netns ]; then GRANARY_HOME=$T/array ip netns exec "${N}s" granary "$@"; else GRANARY_HOME=$T/array granary "$@"; fi; }
pid_of() { cat "$T/$1/run/storaged.pid"; }
number_of() { local k; for k in "${!HOSTS[@]}"; do [ "${HOSTS[k]}" != "$1" ] || echo "$k"; done; } # HOST
log_of() { cat "$T/$1/log/storaged.log"; }

switch() { # NAMESPACE BRIDGE ADDRESS
    ip -n "$N$1" link add "$2" type bridge
    ip -n "$N$1" addr add "$3/24" dev "$2"
    ip -n "$N$1" link set "$2" up
}
cable() { # HOST INTERFACE ADDRESS NAMESPACE BRIDGE
    ip -n "$N$1" link add "$2" type veth peer name "$2$1" netns "$N$4"
    ip -n "$N$4" link set "$2$1" master "$5" up
    ip -n "$N$1" addr add "$3/24" dev "$2"
    ip -n "$N$1" link set "$2" up
}
network() {
    local n k=0
    for n in i s "${HOSTS[@]}"; do
        ip netns add "$N$n"
        on_exit "ip netns del $N$n"
        ip -n "$N$n" link set lo up
    done
    switch i front 10.78.0.9
    switch s dev0 10.77.0.9
    switch s dev1 10.77.1.9
    for n in "${HOSTS[@]}"; do
        k=$((k + 1))
        cable "$n" front 10.78.0.$k i front
        cable "$n" dev0 10.77.0.$k s dev0
        cable "$n" dev1 10.77.1.$k s dev1
    done
}

proxy_start() { # HOST DEVICE
    local port
    port=$(free_port)
    start_in "$1" "proxy-$1$2" "$BUILD/tests/tools/iscsi_proxy" "127.0.0.1:$port" "${upstream[$2]}" "$((seed * 8 + $2))" \
        "$T/steps" "$(number_of "$1")" "$2" "$T/$1/run/storaged.pid"
    url[$1$2]="iscsi://127.0.0.1:$port/$(array lun list "store$2" --json | jq -r '.[0].target')/0"
}
array_up() {
    local d
    for d in 0 1; do
        upstream[$d]=127.0.0.1:$(free_port)
        if [ "$place" = netns ]; then upstream[$d]=10.77.$d.9:3260; fi
        run_check array lun add "store$d" "$T/store$d.img" --size 320M
    done
    on_exit 'array down'
    run_check array up --portal "${upstream[0]}" --portal "${upstream[1]}" --insecure
}
fuse_up() {
    local d
    requires nbdfuse nbdkit
    for d in 0 1; do
        truncate -s 256M "$T/back$d.img"
        touch "$T/ds$d.img"
        start "fuse$d" nbdfuse "$T/ds$d.img" --command nbdkit -s --filter=error file "$T/back$d.img" error=EIO error-rate=100% error-file="$T/eio$d"
        wait_for 10 [ -s "$T/ds$d.img" ]
    done
}
host_up() { # HOST
    local library=$BUILD/tests/matrix/clock.so
    if [ "$on" != lun ]; then library+=:$BUILD/tests/matrix/steps.so; fi
    LD_PRELOAD=$library GRANARY_CLOCK_FILE=$T/$1.clock GRANARY_STEPS_FILE=$T/steps GRANARY_STEPS_HOST=$(number_of "$1") \
        run_check granary_on "$1" up --portal "${addr[$1]}" --multipath-portal "${multi[$1]}" --mover 127.0.0.1:0 --insecure
}
host_end() { # HOST: whatever state it is in
    local pid
    granary_on "$1" down || { pid=$(pid_of "$1") && grep -qzxF "T=$T" "/proc/$pid/environ" && kill -KILL "$pid"; }
}
site_up() {
    local h devices
    mkdir "$H" "$T/array"
    head -c 4096 /dev/zero > "$T/steps"
    if [ "$place" = netns ]; then network; fi
    if [ "$on" = lun ]; then array_up; fi
    if [ "$on" = fuse ]; then fuse_up; fi
    for h in "${HOSTS[@]}"; do
        mkdir "$T/$h"
        head -c 4096 /dev/zero > "$T/$h.clock"
        on_exit "host_end $h"
        addr[$h]=127.0.0.1:$(free_port) multi[$h]=127.0.0.1:$(free_port)
        if [ "$place" = netns ]; then
            local ip; ip=$(ip -n "$N$h" -j addr show dev front | jq -r '.[].addr_info[] | select(.family == "inet") | .local')
            addr[$h]=$ip:3260 multi[$h]=$ip:3261
        fi
        if [ "$on" = lun ]; then
            proxy_start "$h" 0
            proxy_start "$h" 1
            devices=("${url[${h}0]}" "${url[${h}1]}")
        elif [ "$on" = fuse ]; then
            devices=("$T/ds0.img" "$T/ds1.img")
        else
            devices=("$T/ds.img")
        fi
        if [ "$h" = a ] && [ "$on" = lun ]; then run_check granary_on a datastore create ds "${devices[@]}" --timing "$timing"
        elif [ "$h" = a ] && [ "$on" = file ]; then run_check granary_on a datastore create ds "${devices[@]}" --size 512M
        elif [ "$h" = a ]; then run_check granary_on a datastore create ds "${devices[@]}"
        else run_check granary_on "$h" datastore join ds "${devices[@]}"; fi
    done
    for h in 0 1; do run_check granary_on a disk create "ds/d$h" --size 16M; done
    for h in "${HOSTS[@]}"; do host_up "$h"; done
    for h in 0 1; do target[h]=$(granary_on a lun list "ds/d$h" --json | jq -r '.[0].target'); done
}
well() { # HOST...: they have joined, and everybody is there
    local h
    for h in "$@"; do
        granary_on "$h" datastore info ds --json > "$T/info.$h.log"
        jq -e '.state == "joined" and ([.hosts[] | select(.alive)] | length == 3)' "$T/info.$h.log" || return 1
    done
}
site_down() { # and what is left is sound
    local h
    for h in c b a; do run_check granary_on "$h" down; done
    run_check granary_on a datastore check ds --json
    check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
}
