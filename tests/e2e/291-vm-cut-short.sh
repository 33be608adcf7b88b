#!/bin/bash
# What is left of a machine's snapshots, reverts and starts that were cut short, or take long, and of records that are damaged. No engine runs: beside
# the programs stands a supervisor that waits for ever.
. "$(dirname "$0")/lib.sh"
requires jq
[ -x "$BUILD/tests/tools/rpc_call" ] || skip "tests/tools/rpc_call is not built: make tools"
mkdir "$T/bin"
cp "$BUILD"/bin/granary* "$T/bin"
printf '#!/bin/sh\necho $$ >> "%s"\nwhile [ ! -e "%s" ]; do sleep 0.1; done\nexit 1\n' "$T/starts" "$T/go" > "$T/bin/granary-vmx"
chmod +x "$T/bin/granary-vmx"
PATH=$T/bin:$PATH

rpc() { "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" "$@"; }
get() { rpc file.read "{\"path\": \"ds/web/$1\"}" | jq -r '."data-b64"' | base64 -d; }
put() { rpc file.write "{\"path\": \"ds/web/$1\", \"data-b64\": \"$(base64 -w0)\"}" > /dev/null; }
names() { granary vm snapshots web --json | jq -r '[.[].name] | join(" ")'; }
taken() { granary snapshot list "ds/web/$1" --json | jq -r '[.[].name] | sort | join(" ")'; }
files() { rpc dir.list '{"path": "ds/web"}' | jq -r '[.[].name] | sort | join(" ")'; }

run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary vm create ds/web --disk 4M --disk 4M
run_check granary vm create ds/other --disk 4M
run_check granary vm snapshot web --name a

# --- a record that was cut short is not of what others took later under its name
get web-a.vmsn > "$T/a"
grep -q '^snapshot.group = ".*-.*"' "$T/a" || fail "no group is noted: $(cat "$T/a")"
sed 's/^snapshot.state.*/snapshot.state = "making"/; s/^snapshot.name.*/snapshot.name = "b"/; s/^snapshot.created.*/snapshot.created = "1"/; /^snapshot.group/d' "$T/a" |
    put web-b.vmsn
sed 's/^snapshot.state.*/snapshot.state = "making"/; s/^snapshot.name.*/snapshot.name = "c"/; s/^snapshot.created.*/snapshot.created = "1"/
    s/^snapshot.group.*/snapshot.group = "12345678-1234-4234-8234-123456789012"/' "$T/a" | put web-c.vmsn
for s in b c; do run_check granary snapshot create ds/web/disk0 --name $s; done
check "told as they are" test "$(granary vm snapshots web --json | jq -r '[.[] | "\(.name) \(.state) \(.missing | length)"] | join(", ")')" = 'b making 2, c making 2, a whole 0'
run_check granary vm snapshot web --name d
check "the records are gone" test "$(names)" = 'a d'
check "what was taken of the disk stays" test "$(taken disk0)" = 'a b c d'
run_check granary vm delete-snapshot web d
check "and a delete takes its own" test "$(taken disk0) $(taken disk1)" = 'a b c a'

# --- a revert that was cut short, of which a part is gone: two ways out
run_mustfail 1 'no revert of .*was cut short' granary vm revert web --abandon
run_mustfail 2 'which snapshot' granary vm revert web
run_mustfail 2 'name of the machine alone' granary vm revert web a --abandon
run_check granary vm snapshot web --name e
cut() { { get web.vmx; printf 'snapshot.reverting = "e"\nsnapshot.revertMemory = "0"\n'; } | put web.vmx; }
cut
run_check granary snapshot delete ds/web/disk1@e
check "it says so" test "$(granary vm info web --json | jq -r .reverting)" = e
run_mustfail 1 'disk1 was deleted' granary vm start web
check "and what can be done" grep -q "vm revert ds/web --abandon" "$T/err"
run_mustfail 1 'vm revert ds/web --abandon' granary vm delete-snapshot web e
run_check granary vm revert web --abandon --json
check "given up" jq -e '.reverting == "" and .state == "off"' "$T/out"
run_check granary vm delete-snapshot web e
run_check granary vm snapshot web --name e
cut
run_check granary snapshot delete ds/web/disk1@e
run_check granary vm revert web a --json
check "back at another" jq -e '.reverting == "" and .snapshot == "a"' "$T/out"
run_check granary vm delete-snapshot web e

# --- a start that takes long holds up nobody but its own machine
start long granary vm start web
wait_for 20 test -s "$T/starts"
run_check timeout 60 granary vm create ds/third --disk 4M
run_check timeout 60 granary vm snapshot other --name s
run_check timeout 60 granary vm delete third --yes
check "it is still at it" sh -c "! [ -e '$T/go' ] && kill -0 $(cat "$T/long.pid") && kill -0 $(tail -1 "$T/starts")"
start again granary vm start web
check "who wants the same machine waits" sh -c "sleep 1; kill -0 $(cat "$T/again.pid") && [ $(wc -l < "$T/starts") = 1 ]"
touch "$T/go"
wait_for 30 ended again
check "the second start came after the first" test "$(wc -l < "$T/starts")" = 2
rm "$T/go"
start third granary vm start web
wait_for 20 sh -c "[ \$(wc -l < '$T/starts') = 3 ]"
check "a delete waits" sh -c 'timeout 5 granary vm delete web --yes; [ $? = 124 ]'
touch "$T/go"
wait_for 30 eval '! granary vm info ds/web' # that delete was not taken back

# --- a part stays with its disk, so no clone takes it over
run_check granary snapshot describe ds/other/disk0@s 'what it is for'
run_check granary snapshot list ds/other/disk0 --json
check "it says of what it is a part" jq -e '.[0]."part-of" == "ds/other"' "$T/out"
run_check granary snapshot clone ds/other/disk0@s ds/clone
run_mustfail 1 "'s' is part of one of the virtual machine 'ds/other'" granary disk promote ds/clone
check "still whole" test "$(granary vm snapshots other --json | jq -r '.[0].state')" = whole
run_check granary vm revert other s
run_check granary vm delete-snapshot other s
run_check granary disk promote ds/clone
run_check granary vm snapshot other --name s
run_check granary vm delete other --keep-disks
run_check granary snapshot describe ds/other/disk0@s 'what it is for'
run_check granary snapshot clone ds/other/disk0@s ds/clone2
run_check granary disk promote ds/clone2
run_check granary snapshot list ds/clone2 --json
check "what is said of it goes along" jq -e 'any(.name == "s" and .description == "what it is for" and (has("part-of") | not))' "$T/out"
check "and not twice" sh -c "granary snapshot list ds/other/disk0 --json | jq -e '[.[] | select(.description != \"\")] == []'"

# --- what cannot be read is told, and goes as well
run_check granary vm create ds/web --disk 4M --disk 4M
for s in a b; do run_check granary vm snapshot web --name $s; done
echo nonsense | put web-a.vmsn
echo memory | put web-a.vmem
echo mine | put notes
granary down
run_mustfail 1 'storage service does not run' granary vm delete web --yes
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
check "nothing was deleted while nobody could" test "$(files)" = 'disk0 disk1 notes web-a.vmem web-a.vmsn web-b.vmsn web.vmx'
run_check granary vm delete web --yes --json
check "told" jq -e '.unread == ["ds/web/web-a.vmsn"] and .left == ["ds/web/notes"] and (.deleted | length) == 2' "$T/out"
check "and gone" test "$(files)" = notes
run_check rpc dir.remove '{"path": "ds/web/notes"}'
run_check rpc dir.remove '{"path": "ds/web"}'
run_check granary vm create ds/web --disk 4M
run_check granary vm delete web --yes
check "the usual is told as before" grep -qx 'deleted web' "$T/out"
run_check granary down
run_check granary datastore check ds --json
check "sound, and nothing left" jq -e '.sound and ."leaked-units" == 0' "$T/out"
