#!/bin/bash
# Snapshots of a whole machine: its disks of one instant, its configuration, its memory. A guest counts, in memory and on its disk; reverted
# it goes on from the same count, in the same boot, with its files; without memory it is off, with the configuration of then. The tree is
# told; what is cut short at any place is finished or undone; deleting takes the memory along.
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/boot-image.sh"
[ -x "$BUILD/tests/tools/rpc_call" ] || skip "tests/tools/rpc_call is not built: make tools"
boot_image

shot() { granary vm snapshots web --json | jq -r --arg n "$1" ".[] | select(.name == \$n) | $2"; }
files() { "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" dir.list '{"path": "ds/web"}' | jq -r '[.[].name] | sort | join(" ")'; }

run_check granary datastore create ds "$T/ds.img" --size 4G
run_check granary up --portal 127.0.0.1:"$(free_port)" --mover 127.0.0.1:"$(free_port)"
machine

# --- off: disks and configuration
run_mustfail 1 'is off' granary vm snapshot web --name bad --memory
run_check granary vm snapshots web --json
check "what failed left nothing" test "$(jq length "$T/out")" = 0
run_check granary vm snapshot web --name fresh --description 'before its first start' --json
check "consistent: it is off" jq -e '.consistency == "filesystem" and .memory == 0' "$T/out"
run_mustfail 1 'already' granary vm snapshot web --name fresh
run_check granary snapshot create ds/web/root --name taken
run_mustfail 1 'ds/web/root@taken' granary vm snapshot web --name taken
check "the disk's own snapshot stays" sh -c "granary snapshot list ds/web/root --json | jq -e 'any(.name == \"taken\")'"
run_check granary snapshot delete ds/web/root@taken

# --- running: with memory
run_check granary vm start web --wait agent
guest_counts
guest 'cat /proc/sys/kernel/random/boot_id; echo early > /root/early; sync' > "$T/boot"
guest 'cat /run/c/n' > "$T/before"
run_check granary vm snapshot web --name live --memory --json
echo "# memory: $(jq .memory "$T/out") bytes, held $(jq '."frozen-ms"' "$T/out") ms"
check "with memory" jq -e '.consistency == "memory" and .memory > 1000000 and ."frozen-ms" < 10000' "$T/out"
check "it runs on" test "$(state .state)" = running
check "it is described" test "$(shot live '"\(.parent) \(.current) \(.state)"')" = 'fresh true whole'
guest 'echo late > /root/late; rm /root/early; sync; touch /run/c/late; cat /run/c/n' > "$T/after"
check "it counted on" test "$(cat "$T/after")" -gt "$(cat "$T/before")"

# --- back, while it runs
run_mustfail 1 'give --force' granary vm revert web live
run_mustfail 1 "no snapshot 'nothing'" granary vm revert web nothing --force
check "nothing was ended for that" test "$(state .state)" = running
run_check granary vm revert web live --force --json
check "it runs" jq -e '.state == "running" and .snapshot == "live" and .resumes == false' "$T/out"
guest 'cat /run/c/n; cat /proc/sys/kernel/random/boot_id; ls /root /run/c' > "$T/again" || fail "the guest does not go on: $(granary vm console web | tail -c 2000)"
echo "# counts: $(cat "$T/before") before, $(cat "$T/after") later, $(head -1 "$T/again") after the revert"
check "it counts on" test "$(head -1 "$T/again")" -ge "$(cat "$T/before")"
check "the same boot" grep -q "$(head -1 "$T/boot")" "$T/again"
check "with its files, and its memory, of then" sh -c "grep -q '^early' '$T/again' && ! grep -q '^late' '$T/again'"
check "start number 2" test "$(state .incarnation)" = 2

# --- a start that fails before its virtual CPUs run has not used the memory up; one whose supervisor dies there is finished by the next
run_check granary vm stop web --force
console=$(echo "$GRANARY_HOME"/log/vm/*/console.log)
mkdir "$T/logs"
mv "$console"* "$T/logs"
mkdir "$console"
run_mustfail 1 'console' granary vm revert web live
check "it is off, and will go on from there" test "$(state '"\(.state) \(.resumes)"')" = 'off true'
rmdir "$console"
run_check granary vm start web
check "it runs" test "$(state '"\(.state) \(.resumes)"')" = 'running false'
wait_for 30 eval "guest 'cat /proc/sys/kernel/random/boot_id' > '$T/again2'"
check "the same boot" test "$(cat "$T/again2")" = "$(head -1 "$T/boot")"
run_check granary vm suspend web
record=$(echo "$GRANARY_HOME"/run/vm/*/record.json)
kill -9 "$(cat "$GRANARY_HOME/run/hostd.pid")" "$(cat "$GRANARY_HOME"/run/vm/*/vmx.pid)"
jq '.starting = "running"' "$record" > "$T/record" && cp "$T/record" "$record"
wait_for 30 eval '[ "$(state .state)" = running ]'
check "that is written down" jq -e '.starting == ""' "$record"
wait_for 30 eval "guest 'cat /proc/sys/kernel/random/boot_id' > '$T/again2'"

# --- whoever saves it dies: the guest goes on, and nothing is left
for _ in 1 2 3 4 5; do
    granary vm snapshot web --name cut --memory > "$T/cut.log" 2>&1 & pid=$!
    wait_for 20 eval 'files | grep -q "web-cut.vmem"'
    kill -9 "$(cat "$GRANARY_HOME"/run/vm/*/vmx.pid)" "$(cat "$GRANARY_HOME/run/hostd.pid")"
    wait $pid || break # else it was quicker
    wait_for 20 granary vm delete-snapshot web cut
done
wait_for 20 eval "guest 'cat /run/c/n' > '$T/on'"
check "it counts on" test "$(cat "$T/on")" -gt "$(head -1 "$T/again")"
run_check granary vm snapshot web --name crash --no-quiesce
check "what was cut is gone" test "$(files)" = 'data root web-crash.vmsn web-fresh.vmsn web-live.vmem web-live.vmsn web.vmx'
check "and not told" test -z "$(shot cut .name)"
check "also of the disks" sh -c "granary snapshot list ds/web/root --json | jq -e 'any(.name == \"cut\") | not'"
run_check granary vm snapshots web --tree
check "the tree" sh -c "grep -q '^fresh' '$T/out' && grep -q '^  live' '$T/out' && grep -q '^    crash' '$T/out' && grep -q '^      (the machine as it is now)' '$T/out' && grep -q 'before its first start' '$T/out'"
run_check granary snapshot describe ds/web/root@fresh 'the root'
run_check granary snapshot tree ds/web/root
check "the disk's" sh -c "grep -q '^fresh.*the root' '$T/out' && grep -q '^      (the disk as it is now)' '$T/out'"

# --- without memory; the configuration of then; and one that is gone in part
run_check granary vm revert web live --force --no-memory --json
check "off, and not to go on" jq -e '.state == "off" and .resumes == false' "$T/out"
run_check granary vm delete-snapshot web live
check "its memory is gone" test "$(files)" = 'data root web-crash.vmsn web-fresh.vmsn web.vmx'
check "what grew from it hangs at its parent" test "$(shot crash .parent)" = fresh
check "the machine, too" test "$(state .snapshot)" = fresh
run_check granary snapshot delete ds/web/data@crash
check "incomplete" test "$(shot crash '"\(.state) \(.missing[0])"')" = 'incomplete ds/web/data'
run_mustfail 1 'its part of disk ds/web/data was deleted' granary vm revert web crash
run_check granary vm revert web fresh
check "all that is left" test "$(granary vm snapshots web --json | jq -r '[.[].name] | join(" ")')" = 'fresh crash'
run_check granary vm delete web --yes
run_check granary down
run_check granary datastore check ds --json
check "sound, and nothing left" jq -e '.sound and ."leaked-units" == 0' "$T/out"
