#!/bin/bash
# Commands of one home wait for each other: as long as the one at work changes, a command stands in the queue; one that stays at work
# for 10 seconds is named.
# idle
. "$(dirname "$0")/lib.sh"
requires jq python3
run_check granary datastore create ds "$T/ds.img" --size 1G
cat > "$T/hold.py" <<'PY'
import fcntl, os, struct, sys, time  # holds the home's lock for some seconds, as a command does
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.fcntl(fd, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))  # F_OFD_SETLKW
os.pwrite(fd, b"%-8d\n" % os.getpid(), 0)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
PY
hold() { exec python3 "$T/hold.py" "$GRANARY_HOME/run/storage.lock" "$1"; }
hold 5.5 > "$T/held" & first=$!
wait_for 10 grep -q held "$T/held"
hold 5.5 > "$T/held2" & second=$!
run_check granary disk create ds/a --size 1M
check 'the second holder had its turn' grep -q held "$T/held2"
wait $first $second
hold 60 > "$T/held3" & third=$!
wait_for 10 grep -q held "$T/held3"
run_mustfail 4 'in use by process [0-9]' granary disk create ds/b --size 1M
kill $third
wait $third || true
run_check granary disk create ds/b --size 1M
