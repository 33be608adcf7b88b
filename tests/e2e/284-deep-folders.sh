#!/bin/bash
# Folders in folders: whatever can be made, by command or in a mount, can be listed, checked and removed; what would be too long to be named, or too
# many folders for one change, is refused and leaves nothing.
# timeout: 120
. "$(dirname "$0")/lib.sh"
requires jq python3
M=$T/mnt
mkdir "$M"
deep() { python3 -c 'import sys; print("/".join([sys.argv[1]] + ["d"] * int(sys.argv[2]) + sys.argv[3:]))' "$@"; }
run_check granary datastore create ds "$T/ds.img" --size 512M
run_mustfail 1 'needs 1501 new folders: .* room for [0-9]+ at a time' granary disk create ds/"$(deep x 1500 disk)" --size 1M
run_mustfail 1 'does not exist' granary disk info ds/x
run_check granary disk list ds # the datastore lives
for n in 25 50 75 100 125 150; do run_check granary disk create ds/"$(deep x $n disk)" --size 1M; done
run_check granary disk list ds/x --json
check 'all of them' jq -e 'length == 6' "$T/out"
run_check granary disk info ds/"$(deep x 150 disk)"
run_check granary datastore check ds

[ -c /dev/fuse ] && [ "$(id -u)" = 0 ] || exit 0
on_exit "granary unmount --force '$M'"
run_check granary up --portal 127.0.0.1:0
run_check granary datastore mount ds "$M"
python3 - "$M" > "$T/out" 2>&1 <<'P' || { cat "$T/out"; fail 'deep folders'; }
import errno, os, sys
top = sys.argv[1]
os.chdir(top)
os.mkdir("top")
os.chdir("top")
length, name = len("top"), "f" * 31
while True: # the kernel counts what it is given, not where that is
    try:
        os.mkdir(name)
    except OSError as e:
        assert e.errno == errno.ENAMETOOLONG, e
        break
    os.chdir(name)
    length += 1 + len(name)
assert length <= 4096 < length + 1 + len(name), length
open("g" * (4096 - length - 1), "x").close()
for make in lambda: open("g" * (4096 - length), "x"), lambda: os.mkdir("g" * (4096 - length)):
    try:
        make()
    except OSError as e:
        assert e.errno == errno.ENAMETOOLONG, e
    else:
        raise AssertionError("longer than any path")
os.chdir(top)
os.rename("top", "pot") # no longer than it was
try:
    os.rename("pot", "longer")
except OSError as e:
    assert e.errno == errno.ENAMETOOLONG, e
else:
    raise AssertionError("all below it would have no path")
print(length)
P
run_check granary disk list ds --json
check 'they do not matter to listings' jq -e 'length == 6' "$T/out"
"$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" file.list '{"path":"ds/pot"}' > "$T/out"
check 'nor does the deepest file' jq -e '[.[].path | length] | max == 4096 + 3' "$T/out"
run_check granary datastore check ds
