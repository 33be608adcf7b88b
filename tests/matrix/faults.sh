# shellcheck shell=bash
# What goes wrong in a trial of tests/matrix/trials. Each fault_NAME strikes $victim, the owner of the first disk, or the storage, waits for what must
# come of it, heals, and says in $due whether somebody had to be taken over from, in $may_be_out who may have been shut out for it.
# shellcheck disable=SC2154,SC2034 # the caller's
random='(RANDOM * 32768 + RANDOM)' # within $((...)): of the trial's seed; a subshell would draw numbers of its own
ms() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }
others() { local h; for h in "${HOSTS[@]}"; do [ "$h" = "$victim" ] || echo "$h"; done; }
# These are asked many times a second, so they start no process: the number of a field of a load's status is left in $is, its owner, too.
status() { local line=''; read -r line < "$T/load$1.status" && [[ $line =~ \"$2\":(-?[0-9]+) ]] && is=${BASH_REMATCH[1]}; } # LOAD FIELD
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
        ms $((500 + random % 1500 + long * 30000))
    else
        ms $((2500 + random % 1500 + long * 30000))
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
fault_cut_first() { due=1 may_be_out=$victim; sever "$victim" 0 on; taken_over; ms $((random % 1000 + long * 20000)); sever "$victim" 0 off; }
fault_cut_second() { sever "$victim" 1 on; ms $((2500 + random % 1500 + long * 20000)); sever "$victim" 1 off; }

# Every other answer to a compare-and-write is lost on its way to those who are left, while they take over.
fault_caw() {
    local h d
    due=1
    for h in $(others); do for d in 0 1; do kill -USR1 "$(cat "$T/proxy-$h$d.pid")"; done; done
    kill_host "$victim"
    taken_over
    ms $((random % 500))
    for h in $(others); do for d in 0 1; do kill -USR2 "$(cat "$T/proxy-$h$d.pid")"; done; done
}

word() { # NUMBER BYTES: as this machine has it in memory
    local k
    for ((k = 0; k < $2; k++)); do printf '%b' "$(printf '\\x%02x' $(($1 >> 8 * k & 255)))"; done
}
jump() { word "$2" 8 | dd of="$T/$1.clock" conv=notrunc status=none; } # HOST SECONDS: of the wall clock, from now on
fault_clock() {
    local h
    due=1
    for h in "${HOSTS[@]}"; do jump "$h" $((random % 200000 - 100000)); done
    ms $((1000 + long * 10000))
    goes_on
    for h in "${HOSTS[@]}"; do jump "$h" $((random % 200000 - 100000)); done
    kill_host "$victim"
    taken_over
}

# Storage that does not answer anybody, or one of its devices, for far longer than anybody's patience: all wait, nobody is shut out.
fault_stall() {
    local pids=() which=$((random % 3)) h d p # 2: all of it
    for d in 0 1; do
        if [ "$which" = $((1 - d)) ]; then continue; fi
        if [ "$on" = fuse ]; then pids+=("$(cat "$T/fuse$d.pid")"); else for h in "${HOSTS[@]}"; do pids+=("$(cat "$T/proxy-$h$d.pid")"); done; fi
    done
    if [ "$on$which" = lun2 ]; then pids=("$(pid_of array)"); fi
    say "device $which stands still (2: both)"
    resume+=("${pids[@]}")
    for p in "${pids[@]}"; do kill -STOP "$p"; done
    ms $((10000 + long * 50000))
    for p in "${pids[@]}"; do kill -CONT "$p"; done
}

# What is written from now on goes to new places, so there is something in the victim's journal.
journal_something() { run_check granary_on "$victim" snapshot create ds/d0 --name "before-$seed" && ms 100; }

# One of two devices that a file system serves fails whatever is asked of it. A host that a write or a flush has failed on gives the volume up, then or at its next
# flush, and acknowledges nothing any more; who starts again finds what was acknowledged. Nothing else needs help.
gave_up() { [ "$(count "$1" 'is given up on this host')" -gt "${before_given_up[$1]}" ]; } # HOST
well_again() { # NUMBER NUMBER: of writes that were answered on the disks; whoever gave up starts again
    local h
    for h in "${HOSTS[@]}"; do
        gave_up "$h" || continue
        say "$h gave up"
        before_given_up[$h]=$((before_given_up[$h] + 1)) due=$((due + 1))
        kill_host "$h"
        host_up "$h"
    done
    works 0 $(($1 + 100)) && works 1 $(($2 + 100))
}
fails_for_a_while() { # DEVICE
    local h n0 n1
    for h in "${HOSTS[@]}"; do before_given_up[$h]=$(count "$h" 'is given up on this host'); done
    journal_something
    touch "$T/eio$1"
    ms $((1000 + random % 3000 + long * 20000))
    rm "$T/eio$1"
    status 0 acked; n0=$is
    status 1 acked; n1=$is
    wait_for 90 well_again $n0 $n1
    dead=()
    owner 0; victim=$is # what it has acknowledged since, and before, is there without it
    due=$((due + 1))
    kill_host "$victim"
    taken_over
}
fault_errors_first() { fails_for_a_while 0; }
fault_errors_second() { fails_for_a_while 1; }

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
    local next last span
    due=2
    mapfile -t next < <(others)
    last=$((random % 2))
    kill_host "$victim"
    if [ "$on" != lun ]; then span=300; elif [ "$timing" = fast ]; then span=2500; else span=7000; fi
    ms $((random % span))
    kill_host "${next[$last]}"
    wait_for 30 owns "${next[1 - last]}" 0
    wait_for 30 owns "${next[1 - last]}" 1
}

# Whoever takes over is killed at the n-th occasion of a step of it (tests/lib/take_steps.h), before or after what it asks of the device at that moment gets
# there; the third does both.
STEPS=(none ask claim eject ejected mark replay home free lock) # enum take_step
struck() { is=$(od -An -tu4 -j12 -N4 "$T/steps") && [ "$is" -gt 0 ]; }
recoverer_at() { # STEP NTH [HOLD]
    local k step=0 hold=${3:-$((random % 2))} h
    for k in "${!STEPS[@]}"; do if [ "${STEPS[k]}" = "$1" ]; then step=$k; fi; done
    due=2
    journal_something
    { word $step 4; word "$2" 4; word "$hold" 4; head -c 4084 /dev/zero; } | dd of="$T/steps" bs=4096 iflag=fullblock conv=notrunc status=none
    kill_host "$victim"
    wait_for 20 struck
    h=${HOSTS[is - 1]}
    dead+=("$h")
    say "$h was killed at its $1 number $2, which $([ "$hold" = 1 ] && echo did not reach the device || echo was on its way)"
    for k in $(others); do
        if [ "$k" = "$h" ]; then continue; fi
        wait_for 30 owns "$k" 0
        wait_for 30 owns "$k" 1
    done
}
fault_recoverer_ask() { recoverer_at ask 1; }
fault_recoverer_claim() { recoverer_at claim 1; }
fault_recoverer_eject() { recoverer_at eject 1; }
fault_recoverer_half() { recoverer_at eject 2 1; } # shut out of one of two devices
fault_recoverer_ejected() { recoverer_at ejected 2; }
fault_recoverer_mark() { recoverer_at mark 1; }
fault_recoverer_replay() { recoverer_at replay $((1 + random % 2)); }
fault_recoverer_home() { recoverer_at home $((1 + random % 6)); }
fault_recoverer_free() { recoverer_at free $((1 + random % 2)); due=1; } # it may be free already, and then one is left that must be taken over from
fault_recoverer_lock() { recoverer_at lock 1; } # not always the one that has recovered the slot
