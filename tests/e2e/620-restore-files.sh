#!/bin/bash
# Files out of a restore point: mounted, and copied out (file-level restore) without a way out of the target.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest-images.sh"
requires mke2fs debugfs mkfs.vfat mcopy sgdisk
requires_root
[ -c /dev/fuse ] || skip "no /dev/fuse"
tool=$BUILD/tests/tools/guest_file fsread=$BUILD/bin/granary-fsread
[ -x "$tool" ] || skip "needs make tools"
mkdir -p "$T/m" "$T/to"
on_exit 'granary-mount --unmount --force "$T/m"'
guest_tree "$T/src"
truncate -s 300M "$T/disk.img"
sgdisk -n1:2048:+180M -n2:0:+40M -t2:0700 "$T/disk.img" > /dev/null
mke2fs -q -t ext4 -d "$T/src" -E nodiscard,offset=1048576 "$T/disk.img" 180M
make_fat "$T/fat" 40 16 "$T/src"; put_part "$T/disk.img" "$T/fat" 181
truncate -s 30M "$T/data.img"; mke2fs -q -t ext4 -d "$T/src/docs" "$T/data.img"

echo "mount of a restore point"
run_check "$tool" point "$T/repo" site/web01 "$T/disk.img" "$T/data.img"
id=$(tail -n 1 "$T/out")
run_check granary-mount --repo "$T/repo" --point "$id" "$T/m"
check "both disks" test "$(echo "$T/m"/*)" = "$T/m/disk0 $T/m/disk1"
check "raw" cmp "$T/disk.img" "$T/m/disk0/disk.raw"
check "raw of the second" cmp "$T/data.img" "$T/m/disk1/disk.raw"
tree_hashes "$T/src" > "$T/want"
tree_hashes "$T/m/disk0/part1" > "$T/got"
check "files" diff "$T/want" "$T/got"
check "time of the point" test "$(($(date +%s) - $(stat -c %Y "$T/m")))" -lt 300
run_check granary-mount --unmount "$T/m"
run_check granary-mount --repo "$T/repo" --point "site/web01:disk1" "$T/m"
check "one disk" test "$(echo "$T/m"/*)" = "$T/m/disk1"
check "its files" cmp "$T/src/docs/file17" "$T/m/disk1/whole/file17"
run_check granary-mount --unmount "$T/m"
if [ -x "$BUILD/bin/granary" ]; then # the same by the command
    run_check granary mount "$id:disk0" --repo "$T/repo" "$T/m"
    check "mounted" cmp "$T/src/hello.txt" "$T/m/disk0/part1/hello.txt"
    run_check granary unmount "$T/m"
    check "unmounted" test -z "$(grep " $T/m" /proc/mounts)"
    run_mustfail 1 'nothere' granary mount site/nothere --repo "$T/repo" "$T/m"
    run_mustfail 1 'nothing that' granary unmount "$T/m"
    run_mustfail 2 'usage' granary mount "$T/m"
fi
run_mustfail 1 'nothere' granary-mount --repo "$T/repo" --point "site/nothere" "$T/m"
run_mustfail 1 'disk7' granary-mount --repo "$T/repo" --point "site/web01:disk7" "$T/m"
run_mustfail 1 'No such file' granary-mount --repo "$T/norepo" --point "site/web01" "$T/m"
check "nothing left of the refused ones" test -z "$(ls "$GRANARY_HOME/state/intents")"

extract() { "$tool" extract "$fsread" "$T/disk.img" "$@"; }
echo "one file"
run_check extract part1/docs/file17 "$T/to/f17"
check "content" cmp "$T/src/docs/file17" "$T/to/f17"
run_check extract /docs/file18 "$T/to"
check "found on its volume, kept its name" cmp "$T/src/docs/file18" "$T/to/file18"
run_mustfail 1 'several volumes' extract /hello.txt "$T/to/x"
run_mustfail 1 'no volume' extract /nowhere "$T/to/x"
run_mustfail 1 'exists' extract part1/docs/file17 "$T/to/f17"
run_mustfail 1 "cannot be a name" extract part1/docs/../../../etc/passwd "$T/to/x"
run_mustfail 1 'No such file' extract part1/docs/file17 "$T/none/x"

echo "a tree"
status=0; extract part1 "$T/to/tree" ids > "$T/said" 2> "$T/err" || status=$?
check "partly: device and pipe are left out" test $status -eq 3
grep -q 'skipped docs/null: a device node' "$T/said" || fail "device"
grep -q 'skipped docs/fifo: a named pipe' "$T/said" || fail "pipe"
tree_listing "$T/src" | grep -v '^./docs/\(null\|fifo\) ' | sed 's/ 4711 / 711 /' > "$T/want-attributes"
rm -f "$T/src/docs/null" "$T/src/docs/fifo"
rm -rf "$T/to/tree/lost+found"
tree_hashes "$T/src" > "$T/want"; tree_hashes "$T/to/tree" > "$T/got"
check "content" diff "$T/want" "$T/got"
tree_listing "$T/to/tree" > "$T/got"
check "attributes, set-user-id cleared" diff "$T/want-attributes" "$T/got"
check "holes stay holes" test "$(stat -c %b "$T/to/tree/sparse")" -lt 100
check "nothing temporary" test -z "$(find "$T/to" -name '*.granary-*')"

echo "killed in the middle"
"$tool" extract "$fsread" "$T/disk.img" part1 "$T/to/again" kill > "$T/said" 2>&1 || true
temp=$(sed -n 's/^temporary //p' "$T/said")
check "only the temporary tree is there" test -d "$temp" -a ! -e "$T/to/again"
run_check "$tool" undo "$temp"
check "and can be removed" test ! -e "$temp"
run_mustfail 1 'no temporary name' "$tool" undo "$T/to/tree"

echo "hostile trees"
mkdir -p "$T/evil/a/b"
echo outside > "$T/outside"
ln -s "$T" "$T/evil/way-out"
ln -s /etc "$T/evil/a/etc"
echo x > "$T/evil/file"
truncate -s 20M "$T/evil.img"; mke2fs -q -t ext4 -d "$T/evil" "$T/evil.img"
# what mke2fs does not make: a loop of directories, a name with '..' and '/'
debugfs -w "$T/evil.img" > /dev/null 2>&1 <<'DEBUGFS'
ln /a /a/b/loop
write /etc/hostname xxETCxx
DEBUGFS
python3 - "$T/evil.img" <<'PY'
import sys
b = bytearray(open(sys.argv[1], "rb").read())
at = b.find(b"xxETCxx")
while at >= 0:
    b[at:at + 7] = b"../ETC/"
    at = b.find(b"xxETCxx", at + 1)
open(sys.argv[1], "wb").write(b)
PY
status=0; "$tool" extract "$fsread" "$T/evil.img" whole "$T/to/evil" > "$T/said" 2>&1 || status=$?
check "the loop is left out" grep -q 'skipped a/b/loop: a directory that contains itself' "$T/said"
check "partly" test $status -eq 3
check "links are text" test "$(readlink "$T/to/evil/way-out")" = "$T"
check "no name with a slash" test -f "$T/to/evil/..%2FETC%2F"
check "nothing outside" test "$(cat "$T/outside")" = outside -a ! -e "$T/to/ETC" -a ! -e "$T/ETC"
run_check granary-mount --image "$T/evil.img" "$T/m"
status=0; timeout 60 find "$T/m" > "$T/found" 2>&1 || status=$?
check "a loop of directories ends" test "$(wc -l < "$T/found")" -lt 50
run_check granary-mount --unmount "$T/m"
