#!/bin/bash
# timeout: 180
# Raw LUNs where space is short: a sparse file on a file system that fills up (initiators are warned once, who finds no space is told so,
# nothing acknowledged is lost, and it goes on when there is room), a block device, which is opened exclusively, and a flush that failed.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io mount
requires_root
send() { "$BUILD/tests/tools/scsi_send" "$@"; }
url() { granary lun list "$1" --json | jq -er '.[0]."iscsi-url"'; }

# ---- a file system that fills up: in memory, and one past the page cache ----
mkdir "$T/mem" "$T/disk"
mount -t tmpfs -o size=64M tmpfs "$T/mem" 2> "$T/err" || skip "cannot mount a tmpfs here: $(cat "$T/err")"
on_exit "umount -l '$T/mem'"
places=(mem)
truncate -s 80M "$T/fs.img"
if command -v mkfs.ext4 > /dev/null && mkfs.ext4 -q -m 0 -O ^has_journal "$T/fs.img" 2> "$T/err" && mount -o loop "$T/fs.img" "$T/disk" 2>> "$T/err"; then
    on_exit "umount -l '$T/disk'"
    places+=(disk)
else
    echo "# SKIPPED: a file system on a loop device cannot be mounted here ($(head -n 1 "$T/err")): space is short in memory only"
fi
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
at=$(granary status --json | jq -r .portal)
warned() { grep -c "LUN '$1'.*less than 10 % of it" "$GRANARY_HOME/log/storaged.log" || true; }
for place in "${places[@]}"; do
    run_check granary lun add "$place" "$T/$place/lun.img" --size 256M
    lun=$(url "$place")
    fill() { qemu-io -f raw -c "write -P $1 $2 $3" "$lun" > "$T/io" 2>&1; }
    fill 0 0 2M || { cat "$T/io"; fail "$place: the first blocks"; } # what the other initiator overwrites has its place
    start "works-$place" "$BUILD/tests/tools/live_load" "$at" "iqn.2026-11.local.granary:$place" 120
    wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
    fill 1 16M 40M || { cat "$T/io"; fail "$place: there is room for that"; }
    sleep 1.5
    check "$place: nobody is warned yet" test "$(warned "$place")" = 0
    i=0
    while fill 2 $((64 + i * 2))M 2M; do i=$((i + 1)); [ $i -lt 40 ] || fail "$place: it takes more than there is"; done
    grep -q 'No space left' "$T/io" || { cat "$T/io"; fail "$place: the writer is told that no space is left"; }
    wait_for 20 sh -c "grep -q \"LUN '$place'.*less than 10 % of it\" '$GRANARY_HOME/log/storaged.log'"
    head -c 1048576 /dev/zero | tr '\0' 'x' > "$T/x"
    check "$place: the code" [ "$(send --out "$T/x" "$lun" 2a000007000000080000)" = 'sense 7/27/07' ]
    check "$place: with FUA" [ "$(send --out "$T/x" "$lun" 2a080007000000080000)" = 'sense 7/27/07' ]
    check "$place: written is written" [ "$(send "$lun" 35000000000000000000)" = good ]
    fill 3 20M 8M || { cat "$T/io"; fail "$place: what has its place is overwritten"; }
    run_check qemu-io -r -f raw -c 'read -P 1 16M 4M' -c 'read -P 3 20M 8M' -c 'read -P 1 28M 28M' "$lun"
    check "$place: all of it" [ "$(grep -c '^read' "$T/out")" = 3 ]
    if grep -q 'Pattern verification failed' "$T/out"; then fail "$place: other bytes"; fi
    # room is made: by the initiator itself
    run_check qemu-io -f raw -c 'discard 28M 28M' "$lun"
    fill 4 200M 8M || { cat "$T/io"; fail "$place: there is room again"; }
    sleep 0.5
    enough "works-$place"
    check "$place: the other initiator saw no error and was told once" jq -e '.errors == 0 and .reconnects == 0 and .ios > 500 and .attentions["3807"] == 1' "$T/works-$place.log"
    check "$place: the log said it once" test "$(warned "$place")" = 1
    run_check granary lun remove "$place"
done

# ---- a block device ----
truncate -s 64M "$T/dev.img"
if [ -e /dev/loop-control ] && dev=$(losetup --find --show "$T/dev.img" 2> "$T/err"); then
    on_exit "losetup -d '$dev'"
    run_check granary lun add dev "$dev"
    lun=$(url dev)
    check 'its size' jq -e '.[0].size == 67108864' <(granary lun list dev --json)
    run_check qemu-io -f raw -c 'write -P 9 1M 4M' -c 'read -P 9 1M 4M' -c 'discard 1M 4M' -c 'read -P 0 1M 4M' "$lun"
    if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes'; fi
    mkdir "$T/b"
    run_mustfail 1 "'$dev'.*used by somebody else" env GRANARY_HOME="$T/b" granary lun add dev "$dev"
    run_mustfail 1 'not a regular file' granary lun resize dev 128M
    mkdir "$T/link"
    ln -s "$dev" "$T/link/dev"
    run_mustfail 1 "is LUN 'dev' already" granary lun add again "$T/link/dev"
    start busy "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:dev 60 iqn.2026-11.org.example:me 16384
    wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
    run_check granary upgrade
    kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
    run_check granary up
    sleep 0.5
    enough busy
    check 'nothing that was acknowledged is lost' jq -e '.errors == 0 and .reconnects >= 1 and .ios > 100' "$T/busy.log"
    run_check granary lun remove dev
    run_check granary lun add dev "$dev" --read-only on
    run_mustfail 1 "used by somebody else" env GRANARY_HOME="$T/b" granary lun add dev "$dev"
    run_check granary down
else
    echo "# SKIPPED: no loop device can be made here ($(head -n 1 "$T/err")): block devices are not tested"
fi

# ---- a flush that failed is final: what the kernel forgot is not called durable by the next one ----
if command -v strace > /dev/null; then
    granary down > /dev/null
    run_check granary lun add flushed "$T/flushed.img" --size 16M
    export GRANARY_ENGINE=sync # system calls can be made to fail
    run_check granary up
    lun=$(url flushed)
    head -c 512 /dev/zero > "$T/zeros"
    check 'it works' [ "$(send "$lun" 35000000000000000000)" = good ]
    start strace strace -f -qq -p "$(cat "$GRANARY_HOME/run/storaged.pid")" -e trace=fdatasync -e inject=fdatasync:error=EIO
    wait_for 10 grep -q '^TracerPid:.*[1-9]' "/proc/$(cat "$GRANARY_HOME/run/storaged.pid")/status"
    check 'it failed' [ "$(send "$lun" 35000000000000000000)" = 'sense 3/11/00' ]
    stop strace
    check 'so does the next one' [ "$(send "$lun" 35000000000000000000)" = 'sense 3/11/00' ]
    check 'and a write that wants to be durable' [ "$(send --out "$T/zeros" "$lun" 2a080000000000000100)" = 'sense 3/11/00' ]
    cat "$T/zeros" "$T/zeros" > "$T/pair"
    check 'and a compare-and-write' [ "$(send --out "$T/pair" "$lun" 89000000000000000000000000010000)" = 'sense 3/11/00' ]
    check 'reads go on' [ "$(send --in 512 "$lun" 28000000000000000100 | cut -c1-4)" = good ]
    run_check granary down
else
    echo '# SKIPPED: strace is not installed: no flush can be made to fail'
fi
if grep -sq Sanitizer "$GRANARY_HOME"/log/*.log; then fail 'a sanitizer complains'; fi
