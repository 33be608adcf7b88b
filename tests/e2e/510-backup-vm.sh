#!/bin/bash
# The main job: a running guest is backed up over san and lan, incrementally, with its file systems frozen for the snapshot; a file is
# read straight out of the point; the machine is destroyed, restored under a new name, boots, and confirms its files itself.
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/boot-image.sh"
requires qemu-system-x86_64 jq mmdebstrap
requires_root
[ -x "$BUILD/bin/granary" ] || skip "granary is not built"
boot_image
cd "$T"
repo=$T/repo
field() { jq -r ".[0][\"$1\"]" out; }

run_check granary datastore create ds "$T/ds.img" --size 4G
run_check granary up --portal 127.0.0.1:"$(free_port)" --mover 127.0.0.1:"$(free_port)"
run_check granary disk import "$SYSTEM_IMAGE" ds/web/root --format raw
run_check granary disk import "$DATA_IMAGE" ds/web/data --format raw
run_check granary vm create ds/web --disk ds/web/root --disk ds/web/data --memory 256M
run_mustfail 1 "nobody" granary backup run ds/nobody --repo "$repo"
run_check granary vm start web --wait agent
run_check granary vm exec web -- /usr/local/sbin/granary-writer once 200000; cp out sums1
run_check granary backup run web --repo "$repo" --transport san --json
check "full over san" test "$(field kind)/$(field transport)" = full/san
check "filesystem-consistent" test "$(field consistency)" = filesystem
echo "# full: $(field read) bytes read in $(field duration) s, frozen $(field frozen-ms) ms"
run_check granary vm exec web -- /usr/local/sbin/granary-writer once 300000; cp out sums2
run_check granary backup run web --repo "$repo" --transport lan --json
check "incremental over lan" test "$(field kind)/$(field transport)" = incremental/lan
echo "# incremental: $(field read) bytes read of $(field changed) changed in $(field duration) s, frozen $(field frozen-ms) ms"
check "reads what changed" test "$(field read)" -le $(($(field changed) * 11 / 10))
check "no snapshots stay" test "$(granary snapshot list ds/web/root --json | jq length)$(granary snapshot list ds/web/data --json | jq length)" = 00
run_check granary vm stop web --force
run_check granary backup run ds/web --repo "$repo" --json
check "off: incremental too" test "$(field kind)" = incremental
# a bad one and a good one: partly done
run_mustfail 3 "1 of 2" granary backup run web nobody --repo "$repo"

# destroyed and given back under another name
point=$(granary backup list --repo "$repo" --json | jq -r '.[1].point')
run_check granary vm delete web --yes
run_check granary restore vm "$point" --as ds/back --repo "$repo"
run_mustfail 1 "exists already" granary restore vm "$point" --as ds/back --repo "$repo"
check "a new machine" sh -c "granary vm list --json | jq -e 'any(.[]; .vm == \"ds/back\")' > /dev/null"
granary vm start back --wait agent > start.log 2>&1 || { cat start.log; granary vm console back | tail -c 4000; fail "the restored guest does not start"; }
granary vm exec back -- /usr/local/sbin/granary-selfcheck > self 2>&1 || { cat self; granary vm console back | tail -c 3000; fail "the restored guest does not confirm its files"; }
check "the guest confirms its files" grep 'granary-selfcheck: OK files=.* disks=2' self
while read -r sum path; do
    run_check granary vm exec back -- /usr/bin/sha256sum "$path"
    check "$path is as written" grep -q "^$sum " out
done < sums2
run_check granary vm stop back --force
run_check granary backup verify --repo "$repo"
run_check granary down
run_check granary datastore check ds
check "no intent stays" test -z "$(ls home/state/intents)"
