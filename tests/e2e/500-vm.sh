#!/bin/bash
# A virtual machine from its LUNs: made, booted by its own boot loader, driven through its agent, snapshotted frozen, its
# supervisor and the host agent killed, shut down, started anew; its files hold; wrong uses are refused.
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/boot-image.sh"
[ -x "$BUILD/bin/granary" ] || skip "granary is not built"
boot_image

gone() { case $(ps -o stat= -p "$1") in '' | Z*) ;; *) return 1 ;; esac; } # an orphan may wait for an init that does not collect
console_has() { granary vm console web | grep -aq -- "$1"; }

run_check granary datastore create ds "$T/ds.img" --size 3G
run_check granary up --portal 127.0.0.1:"$(free_port)" --mover 127.0.0.1:"$(free_port)"
run_check granary disk import "$SYSTEM_IMAGE" ds/images/root --format raw
run_check granary disk import "$DATA_IMAGE" ds/images/data --format raw

# --- made, and what is refused
run_mustfail 2 'DATASTORE/PATH' granary vm create web
run_mustfail 2 "empty, '.' or '..'" granary vm create ds/../web
run_mustfail 2 'neither DATASTORE/PATH nor a size' granary vm create ds/web --disk many
run_mustfail 2 'whole MiB' granary vm create ds/web --memory 1M
run_mustfail 1 'no-such' granary vm create ds/web --disk 64M --disk ds/images/no-such
check "a failed create leaves no disk" test "$(granary disk list --json | jq '[.[] | select(.disk | startswith("ds/web/"))] | length')" = 0
run_mustfail 1 "no virtual machine 'web'" granary vm start web
run_check granary vm create ds/web --disk ds/images/root --disk ds/images/data --memory 256M
run_mustfail 1 'exists already' granary vm create ds/web
check "it is off" test "$(state .state)" = off
run_mustfail 1 'is off' granary vm exec web -- /bin/true

# --- booted
begin=$SECONDS
run_check granary vm start web --wait agent
echo "# agent answered after $((SECONDS - begin)) s ($(state .accel): $(state '."accel-reason"'))"
check "it runs" test "$(state .state)" = running
check "start number 1" test "$(state .incarnation)" = 1
run_mustfail 1 'on already' granary vm start web
run_mustfail 1 'is on; stop it first' granary vm delete web --keep-disks
engine=$(state .pid)
check "the engine is no root" test "$(stat -c %u "/proc/$engine")" != 0
check "the engine is in a sandbox" grep -q '^Seccomp:.*2' "/proc/$engine/status"
check "its session names the incarnation" sh -c "granary session list --json | jq -e 'any(.[]; .initiator | test(\":vm-.*:1\$\"))'"
run_check granary vm exec web -- /bin/sh -c 'echo out; echo err >&2'
check "output" test "$(cat "$T/out")/$(cat "$T/err")" = out/err
run_mustfail 1 'ended with status 3' granary vm exec web -- /bin/sh -c 'exit 3'
run_mustfail 1 'no-such-program' granary vm exec web -- /no-such-program
run_check granary vm exec web -- /usr/local/sbin/granary-writer once 300000
cp "$T/out" "$T/sums"
check "two disks written" test "$(wc -l < "$T/sums")" = 2

# --- frozen for a snapshot; paused, it is crash-consistent and says why
run_check granary vm snapshot web --name one --json
check "filesystem-consistent" jq -e '.consistency == "filesystem" and ."frozen-ms" < 10000 and (.disks | length) == 2' "$T/out"
echo "# frozen for $(jq '."frozen-ms"' "$T/out") ms"
check "the snapshots are there" sh -c "granary snapshot list ds/images/data --json | jq -e 'any(.[]; .name == \"one\")'"
check "thawed" test "$(state .frozen)" = no
run_check granary vm suspend web
check "suspended" test "$(state .state)" = suspended
run_mustfail 1 'is not running' granary vm exec web -- /bin/true
run_check granary vm snapshot web --name two --json
check "crash-consistent, with a cause" jq -e '.consistency == "crash" and (.cause | test("suspended"))' "$T/out"
run_check granary vm resume web
run_check granary vm exec web -- /bin/true

# --- nobody of us is needed for the guest to run
for _ in $(seq 8); do # one that was killed may answer on its socket for a moment: its successor waits for that
    kill -9 "$(cat "$GRANARY_HOME"/run/vm/*/vmx.pid)"
    wait_for 20 granary vm exec web -- /bin/true
    kill -9 "$(cat "$GRANARY_HOME/run/hostd.pid")" "$(cat "$GRANARY_HOME"/run/vm/*/vmx.pid)"
    wait_for 20 granary vm exec web -- /bin/true
done
check "the same engine" test "$(state .pid)" = "$engine"
dead=("$(cat "$GRANARY_HOME/run/hostd.pid")" "$(cat "$GRANARY_HOME"/run/vm/*/vmx.pid)")
kill -9 "${dead[@]}"
for pid in "${dead[@]}"; do wait_for 10 gone "$pid"; done # else one that is about to go takes the request with it
run_check granary backup run ds/web --repo "$T/repo" --json
check "a backup does not take a running guest for one that is off" jq -e '.[0].consistency == "filesystem" and .[0]."frozen-ms" > 0' "$T/out"

# --- the plug is pulled while it writes; on again, its files verified by the guest itself
run_check granary vm stop web --force
check "off" test "$(state .state)" = off
check "the engine is gone" gone "$engine"
run_check granary vm start web --wait agent
check "start number 2" test "$(state .incarnation)" = 2
wait_for 60 console_has 'granary-selfcheck: OK files=.* disks=2'
while read -r sum path; do
    run_check granary vm exec web -- /usr/bin/sha256sum "$path"
    check "$path is as written" grep -q "^$sum " "$T/out"
done < "$T/sums"

# --- off in order, and gone
engine=$(state .pid)
run_check granary vm stop web --timeout 120
check "the engine is gone" gone "$engine"
check "it went by itself" jq -e '.ended | test("status 0")' "$GRANARY_HOME"/run/vm/*/last.json
run_mustfail 2 'add --yes' granary vm delete web
run_check granary vm delete web --yes --json
check "disks elsewhere stay" jq -e '.kept | length == 2' "$T/out"
check "none left" test "$(granary vm list --json | jq length)" = 0
check "no traces" test -z "$(find "$GRANARY_HOME/run/vm" "$GRANARY_HOME/log/vm" -mindepth 1)"
run_check granary down
