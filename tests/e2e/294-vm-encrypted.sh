#!/bin/bash
# The memory of a machine with an encrypted disk: kept encrypted with the key of that disk, so that nothing which stands in the guest's memory alone is
# on the device. Reverted, the guest counts on in the same boot. What the key is changed to counts; without it nothing is ended for a revert; the
# snapshot takes the memory along.
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/boot-image.sh"
[ -x "$BUILD/tests/tools/rpc_call" ] || skip "tests/tools/rpc_call is not built: make tools"
boot_image

memory() { "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" dir.stat "{\"path\": \"ds/web/web-$1.vmem\"}"; }
objects() { granary datastore check ds --json | jq .objects; }
keys() { granary key list --json | jq -r --arg k "$1" '.[] | select(.key == $k) | .disks'; }

run_check granary datastore create ds "$T/ds.img" --size 4G
run_check granary key create --json
k1=$(jq -r .key "$T/out")
run_check granary up --portal 127.0.0.1:"$(free_port)" --mover 127.0.0.1:"$(free_port)"
machine --encrypt

# a word that the guest puts together in its memory, so that it is in nothing that was typed, and never on a disk
run_check granary vm start web --wait agent
guest_counts
guest 'swapoff -a; i=0; while [ $i -lt 4096 ]; do printf "%s-%s" remember nothing-of-this; i=$((i + 1)); done > /run/c/word; cat /proc/sys/kernel/random/boot_id' > "$T/boot"
word=remember-nothing-of-this
guest 'cat /run/c/n' > "$T/before"
run_check granary vm snapshot web --name live --memory --json
check "with memory" jq -e '.consistency == "memory" and .memory > 1000000' "$T/out"
check "it is encrypted as the disk is" sh -c "[ \"$(memory live | jq -r '"\(.encrypted) \(.key) \(."key-here")"')\" = 'true $k1 true' ]"
check "the key is told to be needed by it" [ "$(keys "$k1")" = 2 ]
guest 'touch /run/c/late; cat /run/c/n' > "$T/after"
check "it counted on" test "$(cat "$T/after")" -gt "$(cat "$T/before")"
if holds "$T/ds.img" "$word"; then fail "what was in the guest's memory is on the device"; fi

# the key is another, and the old one gone; without the new one it is told before anything is ended
run_check granary key rotate --json
k2=$(jq -r .key "$T/out")
check "memory, too" jq -e '.disks == 2 and .failed == []' "$T/out"
run_check granary key delete "$k1"
run_mustfail 1 "needs this key" granary key delete "$k2"
mv "$GRANARY_HOME/conf/keys/$k2.key" "$T/k2"
run_mustfail 1 "$k2, which is not here" granary vm revert web live --force
check "nothing was ended for that" test "$(state .state)" = running
run_mustfail 1 "$k2, which is not here" granary vm snapshot web --name no --memory
check "what failed left nothing" test "$(granary vm snapshots web --json | jq -r '[.[].name] | join(" ")')" = live
mv "$T/k2" "$GRANARY_HOME/conf/keys/$k2.key"

# the service's reason is told, not what QEMU saw of it
run_check granary datastore quota ds/web 4G
run_check granary datastore quota ds/web --json
run_check granary datastore quota ds/web $(($(jq -r 'if type == "array" then .[0] else . end | .used' "$T/out") + 8388608))
run_mustfail 1 'web-full.vmem: writing at byte' granary vm snapshot web --name full --memory
run_check granary datastore quota ds/web off

# back
run_check granary vm revert web live --force --json
check "it runs" jq -e '.state == "running" and .snapshot == "live" and .resumes == false' "$T/out"
guest 'cat /run/c/n; cat /proc/sys/kernel/random/boot_id; ls /run/c; tail -c 24 /run/c/word' > "$T/again" || fail "the guest does not go on: $(granary vm console web | tail -c 2000)"
echo "# counts: $(cat "$T/before") before, $(cat "$T/after") later, $(head -1 "$T/again") after the revert"
check "it counts on" test "$(head -1 "$T/again")" -ge "$(cat "$T/before")"
check "the same boot" grep -q "$(tail -1 "$T/boot")" "$T/again"
check "with its memory of then" sh -c "grep -q '$word' '$T/again' && ! grep -q '^late' '$T/again'"

# deleting it takes the memory along
run_check granary vm suspend web
run_check granary vm delete-snapshot web live
run_mustfail 1 'ds/web/web-live.vmem' granary disk info ds/web/web-live.vmem
check "the key is not needed for it any more" [ "$(keys "$k2")" = 1 ]
run_check granary vm resume web
run_check granary vm snapshot web --name second --memory
run_check granary vm stop web --force
run_check granary disk info ds/web/data --json
check "the disks are as they were" jq -e .encrypted "$T/out"
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
if holds "$T/ds.img" "$word"; then fail "what was in the guest's memory is on the device"; fi

# who has no key cannot read it through a mount, and can remove it there
if [ -c /dev/fuse ]; then
    mkdir "$T/mnt"
    on_exit "granary unmount --force '$T/mnt'"
    run_check granary datastore mount ds "$T/mnt"
    check "who has the key reads the guest's memory" grep -qaF "$word" "$T/mnt/web/web-second.vmem"
    sleep 5 # it is given back (a second after its last use, on a loaded machine later)
    mv "$GRANARY_HOME/conf/keys/$k2.key" "$T/k2"
    run_mustfail 1 'Required key' head -c 1 "$T/mnt/web/web-second.vmem"
    left=$(($(objects) - 1))
    run_check rm "$T/mnt/web/web-second.vmem"
    wait_for 30 eval "[ \"\$(objects)\" = $left ]"
    mv "$T/k2" "$GRANARY_HOME/conf/keys/$k2.key"
    run_check granary unmount "$T/mnt"
    run_mustfail 1 'web-second.vmem' granary vm revert web second # before anything of it changes
    check "nothing was begun for that" test "$(state '"\(.state) \(.resumes)"')" = 'off false'
fi
run_check granary vm delete web --yes
run_check granary down
run_check granary datastore check ds --json
check "sound, and nothing left" jq -e '.sound and ."leaked-units" == 0' "$T/out"
