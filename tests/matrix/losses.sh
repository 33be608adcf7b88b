# shellcheck shell=bash
# The third of three devices is lost while it is written, on files by all hosts, on LUNs by one or by all, with errors or in silence. Disk d0 is not there; the
# second disk of each trial is, and what is redirected of it goes there, too, for the others are full. Who loses the device gives the volume up and goes on
# without it: d0 sees no error; the other disk is refused until the device is back, or, when it has lost writes, until that is accepted. In two of three
# trials somebody is killed: in the moment that the device is lost, or when that was noticed; in the third behind all of it. Sourced with faults.sh.
# Each leaves in $losses how many hosts went on without the device, in $poisoned whether the disk said that it had lost writes, in $returned who has left in
# order and joined since, in $stale that the device has to be counted anew, in $gone that it will not be back.
# shellcheck disable=SC2154,SC2034 # the caller's
fillers=()
# The first two devices are filled until a disk comes to lie on the third (what was deleted before may be given back meanwhile), but for room that metadata
# may need while it is lost.
disk_on_third() {
    place_on_third
    run_check granary_on a disk delete "ds/room$seed"
}
place_on_third() {
    local free used n
    fillers=()
    run_check granary_on a disk create "ds/room$seed" --size 16M --provision eager
    for n in 1 2 3 4 5 6 7 8; do
        third=third$seed-$n
        run_check granary_on a datastore devices ds --json
        free=$(jq 'map(.free)[:2] | add' "$T/out")
        if [ "$free" -gt 4194304 ] && granary_on a disk create "ds/filler$n" --size $((free >> 20))M --provision eager > /dev/null; then fillers+=("ds/filler$n"); fi
        used=$(granary_on a datastore devices ds --json | jq '.[2].used')
        run_check granary_on a disk create "ds/$third" --size 4M --provision eager
        run_check granary_on a datastore devices ds --json
        if jq -e --argjson used "$used" '.[2].used >= $used + 4194304' "$T/out" > /dev/null; then use_disk 1 "$third" && return; fi
        fillers+=("ds/$third")
    done
    fail 'no disk comes to lie on the third device'
}
third_of() { if [ "$on" = lun ]; then echo "${url[${1}2]}"; else echo "$T/ds2.img"; fi; } # HOST
count_losses() { count "$1" 'goes on without it: device 2 '; } # HOST
info_of() { granary_on "$1" datastore info ds --json > "$T/info.$1.log"; }
goes_without() { info_of "$1" && jq -e '.state == "degraded" and ([.members[] | select(.missing)] | map(.number) == [2])' "$T/info.$1.log"; }
has_it() { info_of "$1" && jq -e 'all(.members[]; .missing | not)' "$T/info.$1.log"; }
is_dead() { [[ " ${dead[*]} " == *" $1 "* ]]; }
living() { local h; for h in "$@"; do is_dead "$h" || echo "$h"; done; }

spoil() { # HOW on|off HOST...
    local how=$1 state=$2 h; shift 2
    case $how$state in
    errorson) touch "$T/eio2" ;;
    errorsoff) rm "$T/eio2" ;;
    *) for h in "$@"; do sever "$h" 2 "$state"; done ;;
    esac
}
# Those that have noticed name it again, for which they leave in order and join; whoever was started meanwhile finds it.
device_is_back() {
    local h
    for h in $(living "${HOSTS[@]}"); do
        wait_for 60 info_of "$h"
        if has_it "$h"; then continue; fi
        run_check granary_on "$h" datastore add-device ds "$(third_of "$h")"
        returned[$h]=1
    done
}
lost_writes() { granary_on "$1" disk info "ds/$third" --json > "$T/third.json" && jq -e '."lost-writes"' "$T/third.json" > /dev/null; } # HOST
# The disk is written again; its owner may have told before or behind anything that happened here, so it is asked each time.
third_works() { # HOST NUMBER
    if lost_writes "$1" && granary_on "$1" datastore accept-loss "ds/$third" > /dev/null; then poisoned=1; fi
    works 1 "$2"
}
count_all() {
    local h n=0
    for h in "${HOSTS[@]}"; do n=$((n + $(count_losses "$h") - before_losses[$h])); done
    losses=$n
}
noticed() { count_all; [ "$losses" -gt 0 ]; }
# What was not written since it was made is there for sure.
nudge() { start_in i nudge timeout 60 qemu-io -r -f raw -c 'read 2M 64k' "iscsi://${multi[$1]}/${target[1]}/0"; } # HOST

# The device that is back gets nothing new, so there must be room elsewhere.
emptied() {
    local n h
    for n in "${fillers[@]}"; do
        for h in $(living "${HOSTS[@]}"); do if granary_on "$h" disk delete "$n"; then break; fi; done
        ! granary_on "$h" disk info "$n" || return 1
    done
}

lose() { # HOW HOST...: who loses it; the first one writes there
    local how=$1 when=$(($(random) % 3)) h n n0 n1; shift
    local whom=("$@")
    declare -A before_losses
    stale=1 losses_due=1
    for h in "${HOSTS[@]}"; do before_losses[$h]=$(count_losses "$h"); done
    if [ $(($(random) % 2)) = 0 ]; then run_check granary_on "$victim" snapshot create "ds/$third" --name before && ms $(($(random) % 50)); fi
    status 1 acked; n1=$is
    spoil "$how" on "${whom[@]}"
    if [ $when = 0 ]; then
        ms $(($(random) % 2000))
        h=${HOSTS[$(($(random) % 3))]}
        say "$h is killed meanwhile"
        due=$((due + 1))
        [ "$h" != "${whom[0]}" ] || losses_due=0 # it may not have come to it
        kill_host "$h"
    fi
    if [ $losses_due = 1 ]; then
        ms 1500
        noticed || nudge "${whom[0]}"
        wait_for 60 noticed
    fi
    say "noticed by $losses"
    for h in $(living "${whom[0]}"); do wait_for 60 goes_without "$h"; done
    ms $(($(random) % 3000 + long * 10000))
    if [ $when = 1 ]; then
        owner 0 && h=$is
        say "$h is killed behind that"
        due=$((due + 1))
        kill_host "$h"
    fi
    status 0 acked; n0=$is
    if [ "$gone" = 1 ]; then # on LUNs nobody is taken over from while a device is missing
        for h in "${dead[@]}"; do host_up "$h"; done
        dead=()
        if lost_writes a; then poisoned=1; fi
    else
        spoil "$how" off "${whom[@]}"
        device_is_back
        say 'is back'
        if ! emptied; then # whoever is dead may have what it takes
            for n in "${dead[@]}"; do host_up "$n"; done
            dead=()
            wait_for 60 emptied
        fi
        read -r h < <(living "${HOSTS[@]}")
        wait_for 90 third_works "$h" $((n1 + 100))
    fi
    wait_for 90 works 0 $((n0 + 100))
    count_all
    say "$losses have lost it, lost writes: $poisoned"
    due=$((due + losses_due))
    if [ $when = 2 ] && [ "$gone" = 0 ]; then
        owner 1; victim=$is due=$((due + 1))
        kill_host "$victim"
        wait_for 60 moved_from "$victim" 1
    fi
}
moved_from() { owner "$2" && [ "$is" != "$1" ]; } # HOST LOAD
the_owner() { owner 1; victim=$is; mapfile -t rest < <(others); }

fault_lost_errors() { the_owner; lose errors "$victim" "${rest[@]}"; }
fault_lost_silent() { the_owner; lose silent "$victim"; }
fault_lost_silent_all() { the_owner; lose silent "$victim" "${rest[@]}"; }
fault_lost_for_good() { the_owner; gone=1; lose "$([ "$on" = lun ] && echo silent || echo errors)" "$victim" "${rest[@]}"; }

# By a host that is alone.
count_anew() {
    local h
    for h in c b; do run_check granary_on "$h" down; done
    run_check granary_on a datastore check ds --repair
    stale=0
    for h in b c; do host_up "$h"; done
    wait_for 90 well "${HOSTS[@]}"
}
