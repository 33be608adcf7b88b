#!/bin/bash
# What was read and written, and how long it took: per disk and session, as JSON, a table and Prometheus text.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io python3
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary disk create ds/a --size 64M
run_check granary disk create 'ds/an"odd one' --size 8M
run_mustfail 1 'does not run' granary lun stat --prometheus
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
url=$(granary lun list ds/a --json | jq -er '.[0]."iscsi-url"')
stat() { granary lun stat ds/a --json | jq "$@"; }
check 'nothing yet' stat -e '.[0] | .reads == 0 and ."read-latency".count == 0 and ."read-latency".buckets == []'
start user qemu-io -f raw -c 'write 0 1M' -c 'write 1M 64k' -c 'read 0 4k' -c 'read 4k 4k' -c 'sleep 60000' "$url"
wait_for 20 sh -c 'granary session list --json | jq -e "any(.[]; .reads >= 2 and .\"read-latency\".count == .reads)"'
check 'a session tells for itself' sh -c 'granary session list --json | jq -e ".[0] | .\"write-bytes\" == 1114112 and .\"write-latency\".\"p50-us\" > 0"'
stop user
wait_for 20 sh -c 'granary session list --json | jq -e "length == 0"'
check 'the disk keeps the sum' stat -e '.[0] | ."write-bytes" == 1114112 and ."write-latency".count == .writes and ."read-latency".count == .reads'
check 'percentiles are in order' stat -e '.[0]."write-latency" | ."p50-us" > 0 and ."p50-us" <= ."p99-us" and ."p99-us" <= ."max-us"'
run_check granary lun stat
check 'the table' grep -q 'WRITE P99 US' "$T/out"
run_check granary lun stat --prometheus
cp "$T/out" "$T/prom"
check 'Prometheus text: every line well formed, histograms cumulative' python3 - "$T/prom" << 'PY'
import re, sys
line = re.compile(r'^([a-z_]+)\{disk="((?:[^"\\]|\\.)*)"(?:,op="(read|write)")?(?:,le="([^"]+)")?\} ([0-9.e+-]+)$')
typed, before, total = set(), {}, {}
disks = set()
for text in open(sys.argv[1]):
    text = text.rstrip('\n')
    if text.startswith('# TYPE '):
        typed.add(text.split()[2]); continue
    if text.startswith('# HELP '):
        continue
    m = line.match(text)
    assert m, text
    name, disk, op, le, value = m.groups()
    disks.add(disk)
    assert name in typed or re.sub('_(bucket|sum|count)$', '', name) in typed, name
    if name.endswith('_bucket'):
        key = (disk, op)
        bound = float('inf') if le == '+Inf' else float(le)
        assert key not in before or (bound > before[key][0] and float(value) >= before[key][1]), text
        before[key] = (bound, float(value))
    if name.endswith('_count'):
        assert before[(disk, op)] == (float('inf'), float(value)), text
        total[(disk, op)] = float(value)
assert disks == {'ds/a', 'ds/an\\"odd one'}, disks
assert total[('ds/a', 'write')] > 0 and total[('ds/an\\"odd one', 'read')] == 0
PY
run_check granary down
