#!/bin/bash
# Two hosts at random work on one datastore for GRANARY_SOAK seconds (default 60): disks, snapshots, clones, imports, exports,
# daemons that come, go and are killed. Nothing may fail but for reasons that the others give; at the end everything that was
# imported reads back, and the datastore is sound. GRANARY_SEED repeats the choices (not the timing).
. "$(dirname "$0")/../e2e/lib.sh"
requires jq
SEED=${GRANARY_SEED:-$(date +%s)}
RANDOM=$((SEED % 32768))
echo "# GRANARY_SEED=$SEED"
end=$((SECONDS + ${GRANARY_SOAK:-60}))
A=$T/home B=$T/b
mkdir -p "$B" "$T/ref" "$T/tmp"
on_exit "GRANARY_HOME='$B' granary down"
declare -A did
n=0 kills=0
# Answers that a busy neighbour or a killed daemon explain.
EXPLAINED='exists|does not exist|no snapshot|not found|owned by|in use|is being|closed the connection|Connection re|does not answer|cannot receive|clones|is gone|no longer|holds|answered|not ready|ended before|locked|add --shrink|bookmark'

on() { # HOST COMMAND...
    local home=$A status=0; [ "$1" = b ] && home=$B
    shift
    GRANARY_HOME=$home timeout 120 granary "$@" > "$T/so" 2> "$T/se" || status=$?
    local what=$1; case $1 in disk | snapshot) what=$1-$2 ;; esac; did[$what]=$((${did[$what]:-0} + 1))
    [ $status -ne 0 ] || return 0
    [ $status -ne 5 ] || { cat "$T/se"; fail "damage: $home: $*"; }
    [ $status -ne 124 ] || fail "hangs: $home: $*"
    [ $status -lt 128 ] || fail "crashed ($status): $home: $*"
    grep -Eq "$EXPLAINED" "$T/se" || { cat "$T/se"; fail "exit $status: $home: $*"; }
    return 0
}
pick() { local a=("$@"); echo "${a[RANDOM % ${#a[@]}]}"; }

GRANARY_HOME=$A run_check granary datastore create ds "$T/ds.img" --size 2G
GRANARY_HOME=$B run_check granary datastore join ds "$T/ds.img"
while [ $SECONDS -lt $end ]; do
    n=$((n + 1))
    h=$(pick a b) d=ds/d$((RANDOM % 6)) s=s$((RANDOM % 4))
    case $((RANDOM % 16)) in
        0 | 1) on "$h" disk create "$d" --size $((RANDOM % 64 + 1))M ;;
        2) on "$h" disk delete "$d" ;;
        3) on "$h" disk list --json ;;
        4 | 5) on "$h" snapshot create "$d" --name "$s" ;;
        6) on "$h" snapshot delete "$d@$s" "$(pick --settle --keep-bookmark)" ;;
        7) on "$h" snapshot clone "$d@$s" "ds/c$((RANDOM % 6))" ;;
        8) on "$h" disk delete "ds/c$((RANDOM % 6))" ;;
        9) on "$h" snapshot diff "$d@$s" --json ;;
        10)
            name=i$((RANDOM % 5))
            [ -e "$T/ref/$name" ] || head -c $((RANDOM * 300)) /dev/urandom > "$T/tmp/$name"
            if [ ! -e "$T/ref/$name" ]; then
                truncate -s %512 "$T/tmp/$name"
                [ -s "$T/tmp/$name" ] || continue
                on "$h" disk import "$T/tmp/$name" "ds/$name" --format raw
                if grep -q imported "$T/so"; then mv "$T/tmp/$name" "$T/ref/$name"; else rm -f "$T/tmp/$name"; fi
            fi ;;
        11)
            name=$(pick i0 i1 i2 i3 i4)
            [ -e "$T/ref/$name" ] || continue
            rm -f "$T/x"
            on "$h" disk export "ds/$name" "$T/x"
            if [ -e "$T/x" ]; then cmp "$T/x" "$T/ref/$name" || fail "ds/$name reads back with another content"; fi ;;
        12) on "$h" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 ;;
        13) on "$h" down ;;
        14)
            home=$A; [ "$h" = b ] && home=$B
            if [ -s "$home/run/storaged.pid" ] && kill -9 "$(cat "$home/run/storaged.pid")" 2> /dev/null; then kills=$((kills + 1)); rm -f "$home/run/storaged.pid"; fi ;;
        15) on "$h" disk resize "$d" $((RANDOM % 64 + 64))M ;;
    esac
done
on a down
on b down
for f in "$T"/ref/*; do
    [ -e "$f" ] || continue
    rm -f "$T/x"
    GRANARY_HOME=$B run_check granary disk export "ds/$(basename "$f")" "$T/x"
    cmp "$T/x" "$f" || fail "ds/$(basename "$f") reads back with another content"
done
GRANARY_HOME=$A run_check granary datastore check ds
GRANARY_HOME=$B run_check granary datastore check ds
echo "# $n steps, $kills daemons killed:$(for k in "${!did[@]}"; do printf ' %s=%s' "$k" "${did[$k]}"; done)"
