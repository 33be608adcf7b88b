#!/bin/bash
# timeout: 900
# Backups of a guest that runs: it keeps writing, its freeze ends by its deadline whatever stalls, a job killed in the middle leaves
# nothing after the next one, a dead agent makes the point crash-consistent and says so; off, it is backed up incrementally, too. The
# machine is destroyed and restored under a new name from such a point: it boots and verifies itself. (900 does it with a consistent point.)
# guest
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/boot-image.sh"
boot_image
repo=$T/repo
field() { jq -r ".[0][\"$1\"]" "$T/out"; }
backup() { run_check granary backup run web --repo "$repo" --json "$@"; }
files() { granary vm exec web -- /bin/sh -c 'cat /var/lib/granary/*/MANIFEST /data/granary/gen-*/MANIFEST | wc -l'; }
traces() { # snapshots, LUNs beyond the two disks, intents, files of the repository that only a running job has
    local d
    for d in root data; do granary snapshot list ds/web/$d --json | jq -r '.[] | select(.kind == "snapshot").name'; done
    granary lun list --json | jq -r '.[].disk' | grep -v '^ds/web/[a-z]*$' || true
    find "$GRANARY_HOME/state/intents" "$repo/tmp" "$repo/leases" -type f ! -name '.*'
}

run_check granary datastore create ds "$T/ds.img" --size 4G
run_check granary disk import "$SYSTEM_IMAGE" ds/web/root
run_check granary disk import "$DATA_IMAGE" ds/web/data
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary vm create ds/web --disk ds/web/root --disk ds/web/data --memory 256M
run_mustfail 1 "nobody" granary backup run ds/nobody --repo "$repo"
run_check granary vm start web --wait agent --timeout 300
wait_for 120 granary vm exec web -- /bin/mountpoint -q /data
wait_for 120 granary vm exec web -- /bin/sh -c 'ls /data/granary/gen-*/MANIFEST'

# --- both transports while it writes
n0=$(files)
backup --transport san
check "full, consistent" test "$(field kind)/$(field consistency)" = full/filesystem
check "frozen for a while, but not long ($(field frozen-ms) ms)" sh -c "[ $(field frozen-ms) -gt 0 ] && [ $(field frozen-ms) -lt 10000 ]"
check "holes are not read" test "$(field read)" -lt $((500 << 20))
backup --transport lan --full
check "as full over lan" test "$(field kind)/$(field consistency)" = full/filesystem
check "all of it was there already" test "$(field stored)" -lt $((60 << 20))
n1=$(files)
check "the guest kept writing ($n0, then $n1 files)" test "$n1" -gt "$n0"
granary vm exec web -- /usr/local/sbin/granary-writer once 4000000 > "$T/sums"
for t in lan san local; do
    backup --transport $t
    check "$t: incremental" test "$(field kind)/$(field transport)" = incremental/$t
    check "$t: reads no more than changed ($(field read) of $(field changed))" test "$(field read)" -le $(($(field changed) * 11 / 10))
done
check "no traces" test -z "$(traces)"

# --- a job killed in the middle: the guest is not frozen, the next job puts away what it left
storaged=$(cat "$GRANARY_HOME/run/storaged.pid")
granary-proxy backup ds/web --repo "$repo" --full > "$T/killed.log" 2>&1 &
job=$!
wait_for 60 sh -c "granary snapshot list ds/web/root --json | jq -e 'any(.[]; .name | startswith(\"backup-\"))'"
kill -KILL $job
wait $job 2> /dev/null || true
check "it was killed in the middle" test -n "$(traces)"
run_check granary vm exec web -- /bin/true
backup
check "no traces after the next" test -z "$(traces)"

# --- storage that stands still while the guest is being frozen: the deadline thaws it
granary backup run web --repo "$repo" --json > "$T/stalled" 2> "$T/stalled.err" &
job=$!
kill -STOP "$storaged"
sleep 14
kill -CONT "$storaged"
wait $job || { cat "$T/stalled" "$T/stalled.err"; fail "the stalled backup failed"; }
check "not called better than it is" jq -e '.[0] | .consistency == "crash" and (."consistency-cause" | length) > 0 or ."frozen-ms" < 10000' "$T/stalled"
check "thawed" test "$(state .frozen)" = no
run_check granary vm exec web -- /bin/sh -c 'touch /data/granary/still-writable'

# --- without an agent: crash-consistent, with the cause
granary vm exec web -- /bin/systemctl stop qemu-guest-agent > /dev/null 2>&1 || true
backup
cp "$T/err" "$T/said"
check "crash-consistent" test "$(field consistency)" = crash
check "with a cause" test -n "$(field consistency-cause)" -a "$(field consistency-cause)" != null
check "and a warning" grep -q 'crash-consistent' "$T/said"
point=$(field point)
check "it says so later, too" test "$(granary backup show "$point" --repo "$repo" --json | jq -r .consistency)" = crash
check "no traces" test -z "$(traces)"

# --- its point boots; ext4 replays its journal; every file with a recorded sum is right
run_check granary vm stop web --force
backup
check "off: incremental, too" test "$(field kind)" = incremental
# a bad one and a good one: partly done
run_mustfail 3 "1 of 2" granary backup run web nobody --repo "$repo"
run_check granary vm delete web --yes
run_check granary restore vm "$point" --as ds/again --repo "$repo"
run_mustfail 1 'exists already' granary restore vm "$point" --as ds/again --repo "$repo"
check "a new machine" sh -c "granary vm list --json | jq -e 'any(.[]; .vm == \"ds/again\")'"
run_check granary vm start again --wait agent --timeout 300
verdict() { granary vm console again | grep -a 'granary-selfcheck: '; }
wait_for 240 verdict
check "the guest finds its files right" sh -c "granary vm console again | grep -aq 'granary-selfcheck: OK .* disks=2'"
while read -r sum path; do
    run_check granary vm exec again -- /usr/bin/sha256sum "$path"
    check "$path is as written" grep -q "^$sum " "$T/out"
done < "$T/sums"
run_check granary vm stop again --force
run_check granary backup verify --repo "$repo"
run_check granary datastore check ds
run_check granary down
check "no intent stays" test -z "$(ls "$GRANARY_HOME/state/intents")"
