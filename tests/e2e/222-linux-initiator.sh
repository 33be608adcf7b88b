#!/bin/bash
# Linux's own initiator (the kernel's iscsi_tcp and open-iscsi, in a small guest under TCG) on our target: who is let in, what the
# kernel makes of the disk, a file system with discards, a snapshot under writes, zeroes in every manner, a disk that grows, one of
# 3 TiB, one masked for a while, resets, small pieces, the daemon killed under writes.
# shellcheck disable=SC2154 # kernel, ram and console are guest.sh's
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq apt-get e2fsck debugfs
. "$(dirname "$0")/guest.sh"

me=iqn.2026-11.org.example:linux size=$((160 << 20)) grown=$((192 << 20))
attr() { sed -n "s/^ATTR $1 //p" "$console" | tr -d '\r'; }
is() { check "$1 is $2" test "$(attr "$1")" = "$2"; }
used() { granary disk info "$1" --json | jq .used; }
used_above() { [ "$(used "$1")" -gt "$2" ]; }
used_below() { [ "$(used "$1")" -le "$2" ]; }

run_check granary datastore create ds "$T/ds.img" --size 1G
run_check granary disk create ds/a --size $size
run_check granary disk create ds/b --size $size
run_check granary disk create ds/huge --size 3T
port=$(free_port)
run_check granary up --portal "127.0.0.1:$port" --mover 127.0.0.1:0
echo one-secret-of-ours > "$T/secret"; echo another-one-of-theirs > "$T/mutual"
chmod 600 "$T/secret" "$T/mutual"
run_check granary lun chap ds/a --user joe --secret-file "$T/secret" --mutual-user us --mutual-secret-file "$T/mutual"
run_check granary lun acl ds/b --allow $me
a=$(granary lun list ds/a --json | jq -r '.[0].target') b=${a%:a}:b c=${a%:a}:huge

steps=$TOP/tests/e2e/initiator-guest.sh
start_guest "$steps" "PORT=$port A=$a B=$b C=$c USER=joe SECRET=one-secret-of-ours TUSER=us TSECRET=another-one-of-theirs"

# --- what the kernel knows of the disk
asks attributes
is size $((size / 512))
is logical_block_size 512
is physical_block_size 4096
is cache_type 'write back'
is FUA 1
is thin_provisioning 1
is provisioning_mode unmap
is discard_granularity 4096
check "discards of 1 GiB and more" test "$(attr discard_max_bytes)" -ge $((1 << 30))
is zeroing_mode writesame_16_unmap
is write_zeroes_max_bytes $((1 << 30))
is max_sectors_kb 8192
is optimal_io_size $((8 << 20))
is rotational 0
is vendor 'GRANARY '
uuid=$(granary disk info ds/a --json | jq -r .uuid | tr -d -)
is wwid "naa.6${uuid:1}"
is vpd_pg80 "00800020$(printf %s "$uuid" | od -An -v -tx1 | tr -d ' \n')"
for page in 0 83 b0 b1 b2; do check "page $page" grep -aq "^ATTR vpd_pg$page 00..00" "$console"; done
answer

# --- what the file system discards is free again
asks filled
full=$(used ds/a)
check "what was written is used" test "$full" -gt 24000000
answer
asks trimmed
wait_for 10 used_below ds/a $((full - 15000000))
echo "# used $full, after fstrim $(used ds/a)"
answer

# --- a snapshot while the guest writes; it is a disk after a power cut
asks snapshot
sleep 1
run_check granary snapshot create ds/a ds/b --name busy
sleep 1
answer

asks full
full=$(used ds/b)
answer
asks discarded
wait_for 10 used_below ds/b $((full - (7 << 20)))
answer
asks resize
run_check granary disk resize ds/b $grown
answer $((grown / 512))
asks huge
check "the far end is used" test "$(used ds/huge)" -ge $((8 << 20))
answer
asks empty
wait_for 10 used_below ds/huge $((1 << 20))
answer
asks mask
run_check granary lun mask ds/huge
check "its session ended" sh -c "granary session list --json | jq -e 'all(.[]; .disk != \"ds/huge\")'"
answer
asks unmask
wait_for 20 grep -q "'ds/huge' refused: .* is masked" "$GRANARY_HOME/log/storaged.log"
run_check granary lun unmask ds/huge
answer

# --- killed while the guest writes
asks crash
sleep 1
written=$(used ds/a)
kill -KILL "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary up --portal "127.0.0.1:$port" --mover 127.0.0.1:0
wait_for 30 sh -c 'granary session list --json | jq -e "length == 2"'
wait_for 20 used_above ds/a $((written + 200000))
answer
end_guest "$steps"

# --- what we have of it
tree() { # IMAGE DIR: the files agree with the sums that the guest took
    mkdir "$2"
    run_check debugfs -R "rdump / $2" "$1"
    check "kept files of $1" sh -c "cd '$2' && sha256sum -c SUMS"
    check "files written in $1" test "$(find "$2/w" -name '????????????????????????????????????????????????????????????????' | wc -l)" -gt 0
    (cd "$2/w" && find . -type f ! -name '*.new' -printf '%f  %f\n' | sha256sum -c --quiet) || fail "files of $1 differ"
}
run_check granary disk export ds/a "$T/a.raw"
check "a sound file system" e2fsck -fn "$T/a.raw"
tree "$T/a.raw" "$T/a"
run_check granary disk export ds/a@busy "$T/busy.raw"
e2fsck -fy "$T/busy.raw" > "$T/out" 2>&1 || [ $? = 1 ] || { cat "$T/out"; fail "the snapshot's file system"; }
check "the snapshot's file system after its journal" e2fsck -fn "$T/busy.raw"
tree "$T/busy.raw" "$T/busy"
echo "# files written: $(find "$T/a/w" -type f | wc -l), when the snapshot was taken $(find "$T/busy/w" -type f | wc -l)"
run_check granary disk export ds/b "$T/b.raw"
check "size" test "$(stat -c %s "$T/b.raw")" = $grown
check "content" sh -c "yes granary | head -c 8388608 | cmp - '$T/b.raw' -n 8388608"
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
