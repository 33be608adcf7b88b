#!/bin/bash
# What tests/bench/calls makes of traces and a log whose answer is known: the longest command under way at a call, the longest silence, p99 of bursts;
# and that it asks a daemon what it is told to, in the order it is told to.
. "$(dirname "$0")/lib.sh"
requires jq python3
calls=$BUILD/tests/bench/calls
python3 - "$T" <<'E2'
import struct, sys
ms = 1000000
def write(name, rows):
    with open(sys.argv[1] + "/" + name, "wb") as f:
        for a, b in rows: f.write(struct.pack("=QQ", int(a * ms), int(b * ms)))
# one command a millisecond from 0 to 1000, each takes 1 ms, but: one from 99 to 106 (the call from 100 to 102 meets it), and none ends between 500 and 520
rows = [(t, t + 1) for t in range(1000) if not 99 <= t < 105 and not 500 <= t < 520] + [(99, 106), (500, 520.5)]
write("trace", sorted(rows, key=lambda r: r[1]))
write("log", [(100, 102), (510, 511)])
# bursts: calls at 2000 to 2100 and at 3000 to 3100; commands take 3 ms in them and 2 ms else
write("bursts.trace", [(t, t + (3 if t % 1000 <= 100 else 2)) for t in range(1500, 3400)])
write("bursts.log", [(s + k * 10, s + k * 10 + 1) for s in (2000, 3000) for k in range(10)] )
E2
run_check "$calls" report "$T/log" "$T/trace"
check "calls: $(cat "$T/out")" jq -e '.calls == 2 and .felt == 2 and .call.max == 2 and .longest.max == 20.5 and .silence.max == 20.5 and .longest.p50 == 7' "$T/out"
check "before the calls: $(cat "$T/out")" jq -e '."longest-without".p50 == 7 and ."longest-without".max == 20.5' "$T/out"
run_check "$calls" bursts "$T/bursts.log" "$T/bursts.trace"
check "bursts: $(cat "$T/out")" jq -e '.bursts == 2 and .p99 == 3 and ."p99-without" == 2 and .ratio == 1.5' "$T/out"

granary datastore create ds "$T/ds" --size 256M > /dev/null
granary disk create ds/d --size 16M > /dev/null
granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null
on_exit 'granary down > /dev/null 2>&1 || true'
run_check "$calls" make rpc "$GRANARY_HOME/run/storaged.sock" "$T/log" snapshot.create '{"disks":["ds/d"],"name":"s#"}' --count 5 --first 3 \
    --drop snapshot.delete '{"disk":"ds/d","snapshot":"s#"}' --keep 2
granary snapshot list ds/d --json > "$T/list"
check "of s3 to s7 the newest two are there: $(jq -c 'map(.name)' "$T/list")" jq -e 'map(.name) == ["s6", "s7"]' "$T/list"
check "five calls are logged" [ "$(stat -c %s "$T/log")" = 80 ]
run_mustfail 1 "snapshot.delete.*'ds/d@s3'|s3" "$calls" make rpc "$GRANARY_HOME/run/storaged.sock" "$T/log" snapshot.delete '{"disk":"ds/d","snapshot":"s3"}'
