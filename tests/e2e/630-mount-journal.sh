#!/bin/bash
# A guest's ext4 that was in use when its disk was frozen: shown with its journal applied, as e2fsck would leave it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest-images.sh"
requires mke2fs debugfs e2fsck python3
requires_root
[ -c /dev/fuse ] || skip "no /dev/fuse"
mkdir -p "$T/m" "$T/src/dir"
on_exit 'granary-mount --unmount --force "$T/m"'
for i in $(seq 40); do echo "$i" > "$T/src/dir/f$i"; done
head -c 300000 /dev/urandom > "$T/src/data"
{ printf '\xc0\x3b\x39\x98'; head -c 9000 /dev/urandom; } > "$T/magic" # a block that the journal must escape

changed_blocks() { # OLD NEW BLOCKSIZE: their numbers to stdout, their new content to $T/blocks
    python3 - "$1" "$2" "$3" "$T/blocks" <<'PY'
import sys
old, new, bs = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read(), int(sys.argv[3])
which = [i for i in range(len(new) // bs) if old[i * bs:(i + 1) * bs] != new[i * bs:(i + 1) * bs]]
open(sys.argv[4], "wb").write(b"".join(new[i * bs:(i + 1) * bs] for i in which))
print(",".join(map(str, which)))
PY
}
journal() { # IMAGE COMMAND...: debugfs commands on an open journal
    local image=$1; shift
    { echo "jo $open"; printf '%s\n' "$@"; echo jc; } > "$T/commands"
    debugfs -w -f "$T/commands" "$image" > "$T/debugfs" 2>&1
    ! grep -iE 'invalid|error|usage' "$T/debugfs" || { cat "$T/debugfs"; fail "debugfs"; }
}
listing() { tree_listing "$1"; tree_hashes "$1"; }

replayed=0
for kind in '1024::' '4096::' '1024:-O ^64bit,^metadata_csum:' '4096:-O metadata_csum:-c'; do
    bs=${kind%%:*} rest=${kind#*:}
    options=${rest%%:*} open=${rest#*:}
    echo "blocks of $bs $options $open"
    truncate -s 0 "$T/a"; truncate -s 40M "$T/a"
    # shellcheck disable=SC2086
    mke2fs -q -t ext4 -b "$bs" $options -J size=4 -d "$T/src" "$T/a"
    cp "$T/a" "$T/b"
    printf 'write %s two\nmkdir new\nrm dir/f7\nrm data\n' "$T/magic" | debugfs -w -f - "$T/b" > /dev/null 2>&1
    first=$(changed_blocks "$T/a" "$T/b" "$bs"); cp "$T/blocks" "$T/blocks1"
    cp "$T/b" "$T/c"
    printf 'cd new\nwrite %s three\nln /one /new/gone\nwrite /etc/services four\n' "$T/magic" | debugfs -w -f - "$T/c" > /dev/null 2>&1
    second=$(changed_blocks "$T/b" "$T/c" "$bs"); cp "$T/blocks" "$T/blocks2"
    journal "$T/a" "jw -b $first $T/blocks1" "jw -b $second $T/blocks2"
    cp "$T/a" "$T/fixed"
    e2fsck -fy "$T/fixed" > "$T/fsck" 2>&1 || [ $? -eq 1 ] || { cat "$T/fsck"; fail "e2fsck"; }
    run_check granary-mount --image "$T/fixed" "$T/m"
    listing "$T/m/disk0/whole" > "$T/want"
    check "a clean one is called clean" test "$(jq .volumes[0].unclean "$T/m/disk0/partitions.json")" = false
    run_check granary-mount --unmount "$T/m"
    sha256sum "$T/a" > "$T/before"
    run_check granary-mount --image "$T/a" "$T/m"
    listing "$T/m/disk0/whole" > "$T/got"
    check "as after e2fsck" diff "$T/want" "$T/got"
    check "the escaped block" cmp "$T/magic" "$T/m/disk0/whole/two"
    check "what came second" cmp "$T/magic" "$T/m/disk0/whole/new/three"
    check "what was removed" test ! -e "$T/m/disk0/whole/data" -a ! -e "$T/m/disk0/whole/dir/f7"
    check "it says so" test "$(jq '.volumes[0]."journal-replayed"' "$T/m/disk0/partitions.json")" = true
    run_check granary-mount --unmount "$T/m"
    check "the image is untouched" sha256sum -c --quiet "$T/before"
    replayed=$((replayed + 1))

    # a transaction without its commit never happened; a revoked block does not come back
    mke2fs -q -F -t ext4 -b "$bs" -J size=4 -d "$T/src" "$T/a" > /dev/null 2>&1
    printf 'write %s two\n' "$T/magic" > "$T/w"
    cp "$T/a" "$T/b"; debugfs -w -f "$T/w" "$T/b" > /dev/null 2>&1
    first=$(changed_blocks "$T/a" "$T/b" "$bs"); cp "$T/blocks" "$T/blocks1"
    open='' journal "$T/a" "jw -b $first -c $T/blocks1"
    run_check granary-mount --image "$T/a" "$T/m"
    check "not committed: not there" test ! -e "$T/m/disk0/whole/two"
    check "the rest is" cmp "$T/src/data" "$T/m/disk0/whole/data"
    run_check granary-mount --unmount "$T/m"
    head -c "$bs" /dev/urandom > "$T/stale"
    block=$(debugfs -R 'blocks two' "$T/b" 2> /dev/null | awk '{print $1}')
    cp "$T/b" "$T/c"
    open='' journal "$T/c" "jw -b $block $T/stale"
    run_check granary-mount --image "$T/c" "$T/m"
    check "not revoked: the journal counts" cmp -n "$bs" "$T/stale" "$T/m/disk0/whole/two"
    run_check granary-mount --unmount "$T/m"
    open='' journal "$T/b" "jw -b $block $T/stale" "jw -r $block"
    run_check granary-mount --image "$T/b" "$T/m"
    check "revoked: the block in place counts" cmp "$T/magic" "$T/m/disk0/whole/two"
    run_check granary-mount --unmount "$T/m"
done
check "journals replayed" test "$replayed" -eq 4

echo "damaged journals"
seed=${GRANARY_SEED:-$RANDOM}
for i in $(seq 10); do
    python3 - "$T/b" "$T/hurt" "$seed-$i" <<'PY'
import random, sys
r = random.Random(sys.argv[3])
b = bytearray(open(sys.argv[1], "rb").read())
at = b.find(b"\xc0\x3b\x39\x98\0\0\0\x04")
for _ in range(r.choice([1, 3, 30])):
    b[at + r.randrange(r.choice([64, 1024, 65536]))] = r.choice([0, 255, r.randrange(256)])
open(sys.argv[2], "wb").write(b)
PY
    run_check granary-mount --image "$T/hurt" "$T/m"
    timeout 100 python3 "$(dirname "$0")/walk-hostile.py" "$T/m" > "$T/walk" || fail "seed $seed: $(cat "$T/walk")"
    run_check granary-mount --unmount "$T/m"
done
