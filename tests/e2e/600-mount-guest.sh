#!/bin/bash
# granary-mount over raw images: every file and attribute of ext4, FAT and NTFS guests through FUSE, no kernel mount.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest-images.sh"
requires unshare mke2fs debugfs mkfs.vfat mcopy mkntfs ntfscp sgdisk sfdisk python3
requires_root
[ -c /dev/fuse ] || skip "no /dev/fuse"
mkdir -p "$T/m"
on_exit 'granary-mount --unmount --force "$T/m"'

guest_tree "$T/src"

echo "GPT: ext4, FAT32, NTFS, nothing"
truncate -s 420M "$T/gpt.img"
sgdisk -n1:2048:+180M -c1:'root – Ä' -n2:0:+100M -t2:0700 -n5:0:+100M -t5:0700 -n7:0:+10M "$T/gpt.img" > /dev/null
mke2fs -q -t ext4 -L guestroot -d "$T/src" -E nodiscard,offset=1048576 "$T/gpt.img" 180M
make_fat "$T/fat32" 100 32 "$T/src"; put_part "$T/gpt.img" "$T/fat32" 181
make_ntfs "$T/ntfs" 100 "$T/src"; put_part "$T/gpt.img" "$T/ntfs" 281
sha256sum "$T/gpt.img" > "$T/before"
run_check granary-mount --image "$T/gpt.img" "$T/m"
check "it says nothing" test ! -s "$T/out" -a ! -s "$T/err"
grep -q ' fuse.granary ro,' /proc/mounts || fail "no read-only mount"
grep " $T/m " /proc/mounts | grep -q nosuid,nodev || fail "not nosuid,nodev"
d=$T/m/disk0
check "volumes" test "$(cd "$d" && echo *)" = "disk.raw part1 part2 part5 partitions.json"
check "names of file systems" test "$(jq -r '[.volumes[]."file-system"]|join(" ")' "$d/partitions.json")" = "ext4 fat32 ntfs "
check "label" test "$(jq -r '.volumes[0].label + .volumes[0]."partition-label"' "$d/partitions.json")" = "guestrootroot – Ä"
check "NTFS label" test "$(jq -r '.volumes[2].label' "$d/partitions.json")" = GUESTNTFS
tree_listing "$T/src" > "$T/want"; tree_listing "$d/part1" > "$T/got"
check "ext4: names and attributes" diff "$T/want" "$T/got"
tree_hashes "$T/src" > "$T/want"; tree_hashes "$d/part1" > "$T/got"
check "ext4: content" diff "$T/want" "$T/got"
check "raw disk" cmp "$T/gpt.img" "$d/disk.raw"
for f in big.bin hello.txt zero; do cmp "$T/src/$f" "$d/part2/$f" || fail "FAT: $f"; done
for f in "$T"/src/size-*; do cmp "$f" "$d/part2/dir/sub/$(basename "$f")" || fail "FAT: $f"; done
check "FAT: long name" cmp "$T/src/docs/file17" "$d/part2/dir/a long name, with Spaces.txt"
check "FAT: nothing deleted, nothing invented" test "$(cd "$d/part2" && echo *)" = "big.bin dir hello.txt zero"
check "FAT: times are UTC" test "$(stat -c %Y "$d/part2/hello.txt")" = "$(stat -c %Y "$T/src/hello.txt")"
for f in big.bin hello.txt zero size-1 size-4097 size-1048577; do cmp "$T/src/$f" "$d/part5/$f" || fail "NTFS: $f"; done
check "NTFS: nothing invented" test "$(cd "$d/part5" && echo *)" = "big.bin hello.txt size-1 size-1048577 size-4097 zero"

echo "reading only"
run_mustfail 1 'Read-only' touch "$d/part1/new"
run_mustfail 1 'Read-only' rm "$d/part1/hello.txt"
run_mustfail 1 'No such file' cat "$d/part1/none"

echo "10,000 open files"
python3 - "$d/part1" <<'PY'
import os, resource, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
want = 10000
resource.setrlimit(resource.RLIMIT_NOFILE, (want + 100, max(hard, want + 100)))
top = sys.argv[1]
fds = [os.open(f"{top}/docs/file{i % 300 + 1}", os.O_RDONLY) for i in range(want)]
for i in range(0, want, 7):
    assert os.pread(fds[i], 100, 0) == b"%d\n" % (i % 300 + 1)
PY

echo "unmounting"
exec 9< "$d/part1/big.bin"
run_mustfail 4 'in use' granary-mount --unmount "$T/m"
head -c 100 <&9 | cmp - <(head -c 100 "$T/src/big.bin") || fail "still readable"
run_check granary-mount --unmount --force "$T/m"
exec 9<&-
check "no mount left" test -z "$(grep " $T/m" /proc/mounts)"
check "no record left" test -z "$(ls "$GRANARY_HOME/state/intents")"
check "the image is untouched" sha256sum -c --quiet "$T/before"
run_mustfail 1 'nothing that this GRANARY_HOME mounted' granary-mount --unmount "$T/m"
# one that a mount namespace made meanwhile holds, too, ends here, and in order: its daemon would serve the other for ever
run_check granary-mount --image "$T/gpt.img" "$T/m"
start elsewhere unshare -m --propagation private sleep 60
wait_for 10 grep -q " $T/m " "/proc/$(cat "$T/elsewhere.pid")/mounts"
run_check timeout 8 granary-mount --unmount "$T/m"
stop elsewhere

echo "MBR: ext2 and ext3 with other block sizes, FAT12 and FAT16 in logical partitions"
truncate -s 200M "$T/mbr.img"
printf 'label: dos\nstart=1MiB, size=80MiB, type=83\nstart=81MiB, size=80MiB, type=83\nstart=161MiB, size=38MiB, type=5\nstart=162MiB, size=6MiB, type=1\nstart=170MiB, size=28MiB, type=6\n' \
    | sfdisk -q "$T/mbr.img"
mke2fs -q -t ext2 -b 1024 -d "$T/src" -E nodiscard,offset=1048576 "$T/mbr.img" 80M
mke2fs -q -t ext3 -b 4096 -d "$T/src" -E nodiscard,offset=84934656 "$T/mbr.img" 80M
make_fat "$T/fat12" 6 12 "$T/src"; put_part "$T/mbr.img" "$T/fat12" 162
make_fat "$T/fat16" 28 16 "$T/src"; put_part "$T/mbr.img" "$T/fat16" 170
run_check granary-mount --image "$T/mbr.img" "$T/m"
check "MBR volumes" test "$(jq -r '[.volumes[]|.name + "=" + ."file-system"]|join(" ")' "$d/partitions.json")" = \
    "part1=ext2 part2=ext3 part5=fat12 part6=fat16"
for p in part1 part2; do
    tree_hashes "$d/$p" > "$T/got"
    check "$p: content" diff "$T/want" "$T/got"
done
for p in part5 part6; do cmp "$T/src/big.bin" "$d/$p/big.bin" || fail "$p: content"; done

echo "a daemon that is killed"
pid=$(jq .pid "$GRANARY_HOME"/state/intents/mount-*.json)
cat "$d/part1/big.bin" > /dev/null
helpers=$(ps -o pid= --ppid "$pid")
kill -9 "$pid"
wait_for 10 bash -c 'ls "$T/m" 2>&1 | grep -q "not connected"'
run_check granary-mount --image "$T/mbr.img" "$T/m"
check "mounted again" cmp "$T/src/big.bin" "$d/part1/big.bin"
for p in $helpers; do wait_for 20 test ! -d "/proc/$p"; done
check "one mount" test "$(grep -c " $T/m " /proc/mounts)" = 1
pid=$(jq .pid "$GRANARY_HOME"/state/intents/mount-*.json)
kill -9 "$pid"
run_check granary-mount --unmount "$T/m"
check "no mount left" test -z "$(grep " $T/m" /proc/mounts)"
check "no record left" test -z "$(ls "$GRANARY_HOME/state/intents")"

echo "a reader that is killed, also while it reads"
run_check granary-mount --image "$T/gpt.img" "$T/m"
pid=$(jq .pid "$GRANARY_HOME"/state/intents/mount-*.json)
ls "$d/part1" > /dev/null
for i in $(seq 20); do
    helper=$(ps -o pid= --ppid "$pid" | head -n 1) || true
    ls -R "$d/part$((i % 2 + 1))" > /dev/null 2>&1 &
    [ -z "$helper" ] || kill -9 "$helper" 2>/dev/null || true
    wait $! || true
    check "answers after its reader died" cmp "$T/src/docs/file$i" "$d/part1/docs/file$i"
done
tree_hashes "$d/part1" > "$T/got"
check "all there" diff "$T/want" "$T/got"
run_check granary-mount --unmount "$T/m"

echo "refused"
run_mustfail 1 'No such file' granary-mount --image "$T/none.img" "$T/m"
run_mustfail 1 'No such file' granary-mount --image "$T/gpt.img" "$T/nowhere"
run_mustfail 1 'no directory' granary-mount --image "$T/gpt.img" "$T/gpt.img"
run_mustfail 2 'usage' granary-mount "$T/m"
: > "$T/empty.img"
status=0; granary-mount --image "$T/empty.img" "$T/m" 2> "$T/err" || status=$?
[ $status -eq 0 ] && { run_check ls -R "$T/m"; run_check granary-mount --unmount "$T/m"; }
echo "the reader's sandbox"
run_check granary-fsread --self-test
check "nothing allowed" test -z "$(grep ALLOWED "$T/out")"
check "tried something" test "$(grep -c denied "$T/out")" -ge 10
cp "$(command -v granary-fsread)" "$T/fsread"; chmod 755 "$T" "$T/fsread" # the build may lie where others cannot go
run_check setpriv --reuid=65534 --regid=65534 --clear-groups "$T/fsread" --self-test
check "nothing allowed without root either" test -z "$(grep ALLOWED "$T/out")" -a "$(grep -c denied "$T/out")" -ge 10
