# shellcheck shell=bash
# A site of three hosts, a, b and c, that share datastore ds, for tests/matrix/trials; sourced after tests/e2e/lib.sh.
#   $place  plain: processes of this machine with a home each; netns: a network namespace each, and homes at one path
#   $on     file: the datastore lies in a file; fuse: in two that processes serve, which can stand still or fail; lun: on two LUNs of a target of ours
#           ("array"), each behind a portal of its own.
#   $devices  of fuse and lun: 2, or 3 (losses.sh). $fails: the third LUN lies in a file that can fail, and is slow.
#           Every host has a proxy per device (tests/tools/iscsi_proxy), which may lose answers and kills at a
#           step of a take-over; $timing is the datastore's; the proxy is what is cut for a process, a cable is in a namespace. On files a library in each host does that (steps.c).
# shellcheck disable=SC2154,SC2034 # place, on, devices, fails, seed, timing: the caller's
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
    switch s dev2 10.77.2.9
    for n in "${HOSTS[@]}"; do
        k=$((k + 1))
        cable "$n" front 10.78.0.$k i front
        cable "$n" dev0 10.77.0.$k s dev0
        cable "$n" dev1 10.77.1.$k s dev1
        cable "$n" dev2 10.77.2.$k s dev2
    done
}

proxy_start() { # HOST DEVICE
    local port
    port=$(free_port)
    start_in "$1" "proxy-$1$2" "$BUILD/tests/tools/iscsi_proxy" "127.0.0.1:$port" "${upstream[$2]}" "$((seed * 8 + $2))" \
        "$T/steps" "$(number_of "$1")" "$2" "$T/$1/run/storaged.pid"
    url[$1$2]="iscsi://127.0.0.1:$port/$(array lun list "store$2" --json | jq -r '.[0].target')/0"
}
numbers() { seq 0 $((devices - 1)); }
array_up() {
    local d portals=()
    for d in $(numbers); do
        upstream[$d]=127.0.0.1:$(free_port)
        if [ "$place" = netns ]; then upstream[$d]=10.77.$d.9:3260; fi
        portals+=(--portal "${upstream[$d]}")
        truncate -s $((devices == 3 ? 96 : 320))M "$T/store$d.img"
        if [ "$d$fails" = 21 ]; then rm "$T/store2.img" && served 2 "$T/store2.img" 96M; fi
        run_check array lun add "store$d" "$T/store$d.img"
    done
    on_exit 'array down'
    run_check array up "${portals[@]}" --insecure
}
served() { # NUMBER FILE SIZE: a file that fails while $T/eioNUMBER is there
    requires nbdfuse nbdkit
    truncate -s "$3" "$T/back$1.img"
    touch "$2"
    start "fuse$1" nbdfuse "$2" --command nbdkit -s --filter=error file "$T/back$1.img" error=EIO error-rate=100% error-file="$T/eio$1"
    wait_for 10 [ -s "$2" ]
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
    local h d named
    mkdir "$H" "$T/array"
    head -c 4096 /dev/zero > "$T/steps"
    if [ "$place" = netns ]; then network; fi
    if [ "$on" = lun ]; then array_up; fi
    if [ "$on" = fuse ]; then for d in $(numbers); do served "$d" "$T/ds$d.img" $((devices == 3 ? 96 : 256))M; done; fi
    for h in "${HOSTS[@]}"; do
        mkdir "$T/$h"
        head -c 4096 /dev/zero > "$T/$h.clock"
        on_exit "host_end $h"
        addr[$h]=127.0.0.1:$(free_port) multi[$h]=127.0.0.1:$(free_port)
        if [ "$place" = netns ]; then
            local ip; ip=$(ip -n "$N$h" -j addr show dev front | jq -r '.[].addr_info[] | select(.family == "inet") | .local')
            addr[$h]=$ip:3260 multi[$h]=$ip:3261
        fi
        named=()
        for d in $(numbers); do
            if [ "$on" = lun ]; then
                proxy_start "$h" "$d"
                named+=("${url[$h$d]}")
            elif [ "$on" = fuse ]; then
                named+=("$T/ds$d.img")
            elif [ "$d" = 0 ]; then
                named=("$T/ds.img")
            fi
        done
        if [ "$h" = a ] && [ "$on" = lun ]; then run_check granary_on a datastore create ds "${named[@]}" --timing "$timing"
        elif [ "$h" = a ] && [ "$on" = file ]; then run_check granary_on a datastore create ds "${named[@]}" --size 512M
        elif [ "$h" = a ]; then run_check granary_on a datastore create ds "${named[@]}"
        else run_check granary_on "$h" datastore join ds "${named[@]}"; fi
    done
    run_check granary_on a disk create ds/d0 --size 16M --provision "$([ "$devices" = 3 ] && echo eager || echo thin)"
    [ "$devices" = 3 ] || run_check granary_on a disk create ds/d1 --size 16M
    for h in "${HOSTS[@]}"; do host_up "$h"; done
    use_disk 0 d0
    [ "$devices" = 3 ] || use_disk 1 d1
}
use_disk() { target[$1]=$(granary_on a lun list "ds/$2" --json | jq -r '.[0].target'); } # LOAD DISK
well() { # HOST...: they have joined, and everybody is there
    local h
    for h in "$@"; do
        granary_on "$h" datastore info ds --json > "$T/info.$h.log"
        jq -e --argjson stale "$stale" '(.state == "joined" or ($stale == 1 and .state == "degraded")) and ([.hosts[] | select(.alive)] | length == 3)' "$T/info.$h.log" || return 1
    done
}
site_down() { # and what is left is sound
    local h
    for h in c b a; do run_check granary_on "$h" down; done
    if [ "$gone" = 1 ]; then
        run_mustfail 3 'sound as far as it could be looked at' granary_on a datastore check ds
        return
    fi
    run_check granary_on a datastore check ds --json
    check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
}
