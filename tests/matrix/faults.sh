# shellcheck shell=bash
# What goes wrong in a trial of tests/matrix/trials. Each fault_NAME strikes $victim, the owner of the first disk, or the storage, waits for what must
# come of it, heals, and says in $due whether somebody had to be taken over from, in $may_be_out who may have been shut out for it.
# shellcheck disable=SC2154,SC2034 # the caller's
random() { echo $((RANDOM * 32768 + RANDOM)); } # of the trial's seed
ms() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }
others() { local h; for h in "${HOSTS[@]}"; do [ "$h" = "$victim" ] || echo "$h"; done; }
# These are asked many times a second, so they start no process: the number of a field of a load's status is left in $is, its owner, too.
status() { [[ $(< "$T/load$1.status") =~ \"$2\":(-?[0-9]+) ]] && is=${BASH_REMATCH[1]}; } # LOAD FIELD
owner() { status "$1" owner && [ "$is" -ge 0 ] && is=${HOSTS[is]}; } # LOAD
owns() { owner "$2" && [ "$is" = "$1" ]; } # HOST LOAD
moved() { owner 0 && [ "$is" != "$victim" ]; }
works() { status "$1" acked && [ "$is" -gt "$2" ]; } # LOAD NUMBER
goes_on() { # both disks are written from now on
    local k n0 n1
    status 0 acked; n0=$is
    status 1 acked; n1=$is
    wait_for 60 works 0 $((n0 + 100))
    wait_for 60 works 1 $((n1 + 100))
}
kill_host() { kill -KILL "$(pid_of "$1")"; dead+=("$1"); }
taken_over() { wait_for 30 moved; }

fault_kill() { due=1; kill_host "$victim"; taken_over; }

# A process that is stopped with writes under way; on a file nobody can know that it is not merely slow, so all wait.
fault_stop() {
    local pid; pid=$(pid_of "$victim")
    kill -STOP "$pid"
    resume+=("$pid")
    if [ "$on" = lun ]; then
        due=1 may_be_out=$victim
        taken_over
        ms $((500 + $(random) % 1500 + long * 30000))
    else
        ms $((2500 + $(random) % 1500 + long * 30000))
    fi
    kill -CONT "$pid"
}

sever() { # HOST DEVICE on|off
    local pid
    if [ "$place" = netns ]; then
        ip -n "$N$1" link set "dev$2" "$([ "$3" = on ] && echo down || echo up)"
    else
        pid=$(cat "$T/proxy-$1$2.pid")
        resume+=("$pid")
        kill "$([ "$3" = on ] && echo -STOP || echo -CONT)" "$pid"
    fi
}
# The first device has the slots and alarms: who cannot read them does not answer. Who is cut off from the second one answers, and keeps what it has.
fault_cut_first() { due=1 may_be_out=$victim; sever "$victim" 0 on; taken_over; ms $(($(random) % 1000 + long * 20000)); sever "$victim" 0 off; }
fault_cut_second() { sever "$victim" 1 on; ms $((2500 + $(random) % 1500 + long * 20000)); sever "$victim" 1 off; }

# Every other answer to a compare-and-write is lost on its way to those who are left, while they take over.
fault_caw() {
    local h d
    due=1
    for h in $(others); do for d in 0 1; do kill -USR1 "$(cat "$T/proxy-$h$d.pid")"; done; done
    kill_host "$victim"
    taken_over
    ms $(($(random) % 500))
    for h in $(others); do for d in 0 1; do kill -USR2 "$(cat "$T/proxy-$h$d.pid")"; done; done
}

jump() { # HOST SECONDS: of the wall clock, from now on
    local k v=$2 bytes=''
    for k in 0 1 2 3 4 5 6 7; do bytes+=$(printf '\\x%02x' $((v >> 8 * k & 255))); done
    printf '%b' "$bytes" | dd of="$T/$1.clock" conv=notrunc status=none
}
fault_clock() {
    local h
    due=1
    for h in "${HOSTS[@]}"; do jump "$h" $(($(random) % 200000 - 100000)); done
    ms $((1000 + long * 10000))
    goes_on
    for h in "${HOSTS[@]}"; do jump "$h" $(($(random) % 200000 - 100000)); done
    kill_host "$victim"
    taken_over
}

# Storage that does not answer anybody, for far longer than anybody's patience: all wait, nobody is shut out.
fault_stall() {
    local pid
    pid=$(if [ "$on" = lun ]; then pid_of array; else cat "$T/fuse.pid"; fi)
    resume+=("$pid")
    kill -STOP "$pid"
    ms $((10000 + long * 50000))
    kill -CONT "$pid"
}

starve() { # HOST PERCENT: of a core, for all its processes; 0: no longer
    local group=/sys/fs/cgroup/cpu/granary-matrix-$$-$1 p
    if [ "$2" = 0 ]; then
        for p in $(cat "$group/cgroup.procs"); do echo "$p" > "$group/../cgroup.procs" || true; done
        for p in $(seq 50); do rmdir "$group" 2> /dev/null && break; sleep 0.02; done
        return
    fi
    mkdir -p "$group"
    on_exit "for p in \$(cat $group/cgroup.procs); do echo \$p > $group/../cgroup.procs; done; rmdir $group"
    echo 20000 > "$group/cpu.cfs_period_us"
    echo $(($2 * 200)) > "$group/cpu.cfs_quota_us"
    for p in $(pid_of "$1") $(pgrep -P "$(pid_of "$1")"); do echo "$p" > "$group/cgroup.procs" || true; done
}
# Who is slow but answers is left alone by those who ask; then it is killed, and those who take over are slow.
fault_cpu() {
    local h
    due=1
    starve "$victim" 8
    ms $((3000 + long * 20000))
    starve "$victim" 0
    for h in $(others); do starve "$h" 15; done
    kill_host "$victim"
    taken_over
    for h in $(others); do starve "$h" 0; done
}

# Whoever takes over is killed at any moment of it; the third does both.
fault_recoverer() {
    local next last
    due=2
    mapfile -t next < <(others)
    last=$(($(random) % 2))
    kill_host "$victim"
    ms $(($(random) % ($([ "$on" = lun ] && echo 2500 || echo 300))))
    kill_host "${next[$last]}"
    wait_for 30 owns "${next[1 - last]}" 0
    wait_for 30 owns "${next[1 - last]}" 1
}
