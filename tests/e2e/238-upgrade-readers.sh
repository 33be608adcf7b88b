#!/bin/bash
# The daemon is replaced while backups read: exposed snapshots stay exposed, requests wait, and nobody sees an error.
# timeout: 600
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io nbdcopy nbdinfo nbdsh cmp
rpc=$BUILD/tests/tools/rpc_call
[ -x "$rpc" ] || skip 'tests/tools/rpc_call is not built: make tools'
ask() { "$rpc" "$GRANARY_HOME/run/storaged.sock" "$@" > "$T/answer" 2> "$T/err"; }
pid() { cat "$GRANARY_HOME/run/storaged.pid"; }
alive() { ps -p "$1" -o stat= | grep -qv Z; }
exposures() { granary status --json | jq '.storaged.exposures'; }
head -c 96M /dev/urandom > "$T/data"
run_check granary datastore create ds "$T/ds.img" --size 2G
run_check granary disk import "$T/data" ds/a --format raw
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary snapshot create ds/a --name s
live=$(granary lun list ds/a --json | jq -r '.[0]."iscsi-url"')
run_check qemu-io -f raw -c 'write -P 0x22 0 1M' "$live"

# --- who does not understand what we hand over is told so, and everything goes on
before=$(pid)
for versions in '' ', "versions": [3, 9]' ', "versions": [1, 1]'; do
    if ask daemon.hand-over "{\"socket\": \"$T/none\"$versions}"; then fail "it went to one that reads [$versions]"; fi
    check "told why" grep -q 'hands over version .*granary down' "$T/err"
done
check "the same process" test "$(pid)" = "$before"
run_check qemu-io -f raw -c 'read -P 0x22 0 1M' "$live"

# --- exposed snapshots, one tied to a connection, with a session that reads it
mkfifo "$T/hold"
start holder bash -c 'exec "$0" --hold "$1" snapshot.expose "{\"disk\": \"ds/a\", \"snapshot\": \"s\", \"tie\": true}" < "$2"' "$rpc" "$GRANARY_HOME/run/storaged.sock" "$T/hold"
exec 7> "$T/hold"
wait_for 10 test -s "$T/holder.log"
ask snapshot.expose '{"disk": "ds/a", "snapshot": "s", "initiator": "iqn.2026-01.com.example:other"}' || fail "$(cat "$T/err")"
exposures > "$T/exposed"
san=$(jq -r '."iscsi-url"' "$T/holder.log")
mkfifo "$T/commands"
start reader bash -c 'exec qemu-io -r -f raw "$0" < "$1"' "$san" "$T/commands"
exec 8> "$T/commands"
echo 'read 0 64M' >&8
wait_for 10 grep -q 'read 67108864' "$T/reader.log"
for round in 1 2; do
    before=$(pid)
    run_check granary upgrade 7>&- 8>&- # what it starts would keep them open
    check "another process" test "$(pid)" != "$before"
    check "exposed as before" sh -c 'granary status --json | jq .storaged.exposures | cmp - "$0"' "$T/exposed"
    echo 'read 0 64M' >&8
    wait_for 10 eval "[ \$(grep -c 'read 67108864' '$T/reader.log') = $((round + 1)) ]"
done
echo quit >&8
exec 8>&-
wait_for 10 eval "! alive $(cat "$T/reader.pid")"
run_check qemu-img convert -f raw -O raw "$san" "$T/copy"
check "it holds what it held" cmp "$T/data" "$T/copy"
run_mustfail 4 'exposed' granary snapshot delete ds/a@s
stop holder
exec 7>&-
wait_for 10 eval '[ "$(exposures | jq length)" = 1 ]'
ask snapshot.unexpose "{\"id\": \"$(exposures | jq -r '.[0].id')\"}" || fail "$(cat "$T/err")"
run_check granary snapshot delete ds/a@s --settle

# --- a backup, and the daemon is replaced again and again meanwhile
run_check qemu-img convert -n -f raw -O raw "$T/data" "$live"
backup() { # TRANSPORT
    local n=0
    start "backup-$1" granary backup run --disk ds/a --disk ds/a2 --disk ds/a3 --name "$1" --repo "$T/repo-$1" --transport "$1" --json
    while alive "$(cat "$T/backup-$1.pid")"; do sleep 0.2
        run_check granary upgrade
        n=$((n + 1))
    done
    check "it was a whole one" jq -e 'length == 1 and .[0].kind == "full"' "$T/backup-$1.log"
    check "replaced meanwhile, $n times" test "$n" -ge 2
    run_check granary backup export "$1:a" "$T/back-$1" --format raw --repo "$T/repo-$1"
    check "$1: every byte" cmp "$T/data" "$T/back-$1"
    check "no snapshot stays" test "$(granary snapshot list ds/a --json | jq length)" = 0
}
for d in a2 a3; do
    head -c 96M /dev/urandom > "$T/more"
    run_check granary disk import "$T/more" "ds/$d" --format raw
done
backup san
backup lan

# --- stock clients of the mover, and the daemon is replaced again and again meanwhile
nbd() { granary lun list "$1" --json | jq -r '.[0]."nbd-url"'; }
run_check granary snapshot create ds/a --name t
run_check granary disk create ds/w --size 64M
url=$(nbd ds/a) url=${url/a\?/a%40t?} write=$(nbd ds/w)
cat > "$T/client.py" << EOF
import os, random, time
h.set_uri_allow_local_file(True)
h.add_meta_context("base:allocation")
h.connect_uri("$url")
w = nbd.NBD()
w.set_uri_allow_local_file(True)
w.connect_uri("$write")
data = open("$T/data", "rb").read()
mine = bytearray(64 << 20)
longest, n, extents = 0, 0, []
random.seed(7)
def took(since):
    global longest, n
    longest, n = max(longest, time.time() - since), n + 1
while not os.path.exists("$T/enough"):
    began = time.time()
    asked = [(random.randrange(0, len(data) - 300000), random.randrange(1, 300000)) for i in range(40)]
    bufs = [(nbd.Buffer(size), at) for at, size in asked]
    cookies = [h.aio_pread(b, at) for b, at in bufs]
    while h.aio_in_flight() > 0: h.poll(-1)
    assert all(h.aio_command_completed(c) for c in cookies)
    for (b, at), (_, size) in zip(bufs, asked): assert b.to_bytearray() == data[at:at + size], at
    took(began)
    at, what = random.randrange(0, 63) << 20, os.urandom(1 << 20)
    began = time.time()
    w.pwrite(what, at, nbd.CMD_FLAG_FUA)
    took(began)
    mine[at:at + (1 << 20)] = what
    began = time.time()
    h.block_status(1 << 20, 0, lambda context, offset, e, err: extents.append(context) and 0 or 0)
    took(began)
for at in range(0, 64): assert w.pread(1 << 20, at << 20) == mine[at << 20:(at + 1) << 20], at
assert extents and set(extents) == {"base:allocation"}
print('{"requests": %d, "longest-ms": %.1f}' % (n, longest * 1000))
EOF
start client env PATH=/usr/bin:/bin nbdsh -c "$(cat "$T/client.py")"
# somebody always comes
start comes bash -c 'while [ ! -e "$1/enough" ]; do nbdinfo --size "$0" || echo failed; done' "$url" "$T"
cat > "$T/logs-in.py" << 'EOF'
import os, socket, struct, sys, threading, time
portal, target = sys.argv[1].split("/")[2:4]
host, port = portal.rsplit(":", 1)
def exactly(s, n):
    b = b""
    while len(b) < n:
        more = s.recv(n - len(b))
        if not more: raise OSError("cut off after %d bytes" % len(b))
        b += more
    return b
def log_in(k, n): # in one request, which is sent in two pieces
    text = ("InitiatorName=iqn.2026-01.com.example:%d\0TargetName=%s\0SessionType=Normal\0" % (k, target)).encode()
    head = struct.pack(">BBHI6sHIHHII16x", 0x43, 0x87, 0, len(text), struct.pack(">BHBH", 0x80, k, 0, n & 0xffff), 0, n, 0, 0, 1, 1)
    pdu = head + text + bytes(-len(text) % 4)
    with socket.create_connection((host, int(port)), 30) as s:
        s.sendall(pdu[:60])
        time.sleep(0.02)
        s.sendall(pdu[60:])
        answer = exactly(s, 48)
        if answer[0] != 0x23 or answer[36:38] != bytes(2): raise OSError("answered " + answer.hex())
def again_and_again(k):
    n = 0
    while not os.path.exists("enough"):
        try: log_in(k, n)
        except OSError as e: print("login %d of %d: %s" % (n, k, e), flush=True)
        n += 1
        if n == 1: print("in", flush=True)
        time.sleep(0.01)
    print("in", n, flush=True)
for k in range(4): threading.Thread(target=again_and_again, args=(k,)).start()
EOF
start copies bash -c 'set -e; while [ ! -e "$1/enough" ]; do nbdcopy "$0" "$1/nbd.copy"; cmp "$1/data" "$1/nbd.copy"; echo copied; done' "$url" "$T"
wait_for 60 grep -q copied "$T/copies.log"
start logs-in bash -c 'cd "$1" && exec python3 logs-in.py "$0"' "$live" "$T"
wait_for 20 test -s "$T/logs-in.log"
for round in 1 2 3 4 5; do
    before=$(pid)
    run_check granary upgrade --json
    check "another process" test "$(pid)" != "$before"
    sleep 0.7
done
touch "$T/enough"
for l in client comes logs-in copies; do wait_for 60 eval "! alive $(cat "$T/$l.pid")"; done
echo "# client: $(cat "$T/client.log")"
check "the client saw no error" jq -e '.requests > 50 and ."longest-ms" < 3000' "$T/client.log"
check "copies were made, $(grep -c copied "$T/copies.log")" sh -c '! grep -v copied "$0"' "$T/copies.log"
check "who came in the middle came in" sh -c '[ "$(wc -l < "$0")" -gt 20 ] && ! grep -v "^100663296$" "$0"' "$T/comes.log"
echo "# logins: $(tr '\n' ' ' < "$T/logs-in.log")"
check "who logged in in the middle did" sh -c '[ "$(grep -c "^in [1-9][0-9]" "$0")" = 4 ] && ! grep -v ^in "$0"' "$T/logs-in.log"

# --- one whose snapshot is deleted while he reads would not find it again
mkfifo "$T/go-on"
cat > "$T/last.py" << EOF
h.set_uri_allow_local_file(True)
h.connect_uri("$url")
h.pread(512, 0)
open("$T/reading", "w")
open("$T/go-on").read()
assert h.pread(1 << 20, 1 << 20) == open("$T/data", "rb").read()[1 << 20:2 << 20]
EOF
start last env PATH=/usr/bin:/bin nbdsh -c "$(cat "$T/last.py")"
exec 9> "$T/go-on"
wait_for 10 test -e "$T/reading"
run_check granary snapshot delete ds/a@t 9>&-
start refused granary upgrade 9>&-
wait_for 10 test -e "$GRANARY_HOME/run/hand-over.sock"
answers=0 status=0
while alive "$(cat "$T/refused.pid")"; do
    ask portal.list && answers=$((answers + 1))
    sleep 0.1
done
wait "$(cat "$T/refused.pid")" || status=$?
check "refused, and named" sh -c '[ "$1" = 1 ] && grep "ds/a@t is deleted as soon as 127.0.0.1:" "$0"' "$T/refused.log" "$status"
check "requests were answered meanwhile, $answers" test "$answers" -ge 3
# when he is done while it waits for him, it goes on
start upgrade granary upgrade 9>&-
wait_for 10 test -e "$GRANARY_HOME/run/hand-over.sock"
sleep 0.2
exec 9>&-
wait_for 10 eval "! alive $(cat "$T/last.pid")"
check "it read on" sh -c '! grep . "$0"' "$T/last.log"
wait "$(cat "$T/upgrade.pid")" || fail "the upgrade was refused: $(cat "$T/upgrade.log")"

grep -h 'taken over' "$GRANARY_HOME/log/storaged.log" | sed 's/^/# /'
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
