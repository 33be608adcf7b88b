#!/bin/bash
# The mover's gate: what the process that strangers talk to can and cannot do, what they cost, and that its death is nobody else's.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
requires jq nbdinfo nbdcopy python3 pgrep
requires_root
run_check granary datastore create ds "$T/ds.img" --size 1G
for d in a b; do run_check granary disk create ds/$d --size 64M; done
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
storaged=$(cat "$GRANARY_HOME/run/storaged.pid")
gate() { pgrep -P "$storaged" -x granary-gate; }
wait_for 10 gate
first=$(gate)
url=$(granary lun list ds/a --json | jq -r '.[0]."nbd-url"')
port=${url#nbds://*:} port=${port%%/*}
head -c 67108864 /dev/urandom > "$T/data"
run_check nbdcopy "$T/data" "$url"
run_check nbdcopy "$url" "$T/copy"
check "every byte, there and back" cmp "$T/data" "$T/copy"
check "the log says who it was" grep -q 'opened ds/a (TLS, certificate of ' "$GRANARY_HOME/log/storaged.log"

# --- what it can do
sandboxed=1 # a sanitizer makes calls, and has memory, of its own
case $BUILD in *asan | *tsan) sandboxed=0 ;; esac
[ $sandboxed = 0 ] || check "a filter of system calls" grep -q '^Seccomp:[[:space:]]*2$' "/proc/$first/status"
check "no new privileges" grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$first/status"
check "nobody's rights" grep -q '^Uid:[[:space:]]*65534[[:space:]]*65534[[:space:]]*65534' "/proc/$first/status"
check "no capabilities" grep -q '^CapEff:[[:space:]]*0*$' "/proc/$first/status"
find "/proc/$first/fd" -type l -printf '%l\n' | sort | uniq -c > "$T/gate.fds"
sed 's/^/# /' "$T/gate.fds"
[ $sandboxed = 0 ] || check "nothing open but sockets and its loop" test -z "$(grep -Ev ' (socket:|anon_inode:\[event|/dev/null|/proc$)' "$T/gate.fds" || true)"

# --- what it knows: the server's key is in storaged's memory, and not in its
cat > "$T/search.py" <<'EOF2'
import base64, re, sys
pid, kind, path = sys.argv[1:4]
text = open(path).read()
if kind == "key":
    der = base64.b64decode("".join(l for l in text.splitlines() if not l.startswith("--") and ":" not in l))
    at = der.index(b"\x02\x01\x01\x04") + 4 # ECPrivateKey: version 1, an octet string
    secret = der[at + 1:at + 1 + der[at]].lstrip(b"\0")
    assert 28 <= len(secret) <= 32
else:
    secret = bytes.fromhex(text.strip().split(":")[1])
wanted = {half for s in (secret, secret[::-1]) for half in (s[:16], s[-16:])}
hits = 0
with open(f"/proc/{pid}/mem", "rb", 0) as mem:
    for line in open(f"/proc/{pid}/maps"):
        m = re.match(r"([0-9a-f]+)-([0-9a-f]+) r.*", line)
        if not m or "[vvar" in line or "[vsyscall" in line:
            continue
        start, end = (int(x, 16) for x in m.groups())
        while start < end:
            n = min(end - start, 64 << 20)
            try:
                mem.seek(start)
                data = mem.read(n)
            except OSError:
                data = b""
            hits += sum(data.count(w) for w in wanted)
            start += n
print(hits)
EOF2
search() { python3 "$T/search.py" "$@"; }
key=$GRANARY_HOME/conf/pki/server-key.pem
[ $sandboxed = 0 ] || check "the search finds the key where it is" test "$(search "$storaged" key "$key")" -gt 0
[ $sandboxed = 0 ] || check "the gate does not have it" test "$(search "$first" key "$key")" = 0

# --- strangers: the handshake begun with each, and never ended
cat > "$T/strangers.py" <<'EOF2'
import socket, ssl, struct, sys, time
port, count, per_address, how = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def hello(version):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.check_hostname, ctx.verify_mode = False, ssl.CERT_NONE
    ctx.minimum_version = ctx.maximum_version = version
    out = ssl.MemoryBIO()
    o = ctx.wrap_bio(ssl.MemoryBIO(), out)
    try: o.do_handshake()
    except ssl.SSLWantReadError: pass
    return out.read()
socks = []
for i in range(count):
    s = socket.socket()
    s.bind((f"127.1.{1 + i // per_address}.1", 0))
    s.connect(("127.0.0.1", port))
    s.recv(18, socket.MSG_WAITALL)
    s.sendall(b"\0\0\0\3IHAVEOPT\0\0\0\5\0\0\0\0")
    s.recv(20, socket.MSG_WAITALL)
    s.settimeout(2)
    if how == "tls1.3":
        s.sendall(hello(ssl.TLSVersion.TLSv1_3)); s.recv(4096)
    elif how == "certificate": # as much of a client's certificates as is taken, but for the last byte
        s.sendall(hello(ssl.TLSVersion.TLSv1_2)); s.recv(4096)
        body = b"\x0b" + struct.pack(">I", 32000)[1:] + bytes(31990)
        for at in range(0, len(body), 16000):
            part = body[at:at + 16000]
            s.sendall(b"\x16\3\3" + struct.pack(">H", len(part)) + part)
    elif how == "garbage":
        s.sendall(bytes(range(256)) * 8)
    socks.append(s)
time.sleep(0.2)
def is_open(s):
    s.setblocking(False)
    try:
        while s.recv(65536): pass
        return False
    except BlockingIOError: return True
    except OSError: return False
print(sum(map(is_open, socks)), flush=True)
sys.stdin.readline()
EOF2
memory() { awk '/^Rss(Anon|Shmem)/ { n += $2 } END { print n }' "/proc/$first/status"; }
come() { # COUNT PER-ADDRESS HOW: they are there until leave
    rm -f "$T/stay" && mkfifo "$T/stay"
    start strangers sh -c 'exec python3 "$0" "$@" < "$T/stay"' "$T/strangers.py" "$port" "$@"
    exec 8> "$T/stay"
    wait_for 30 test -s "$T/strangers.log"
}
leave() {
    exec 8>&-
    wait_for 10 eval '! ps -p "$(cat "$T/strangers.pid")" -o stat= | grep -qv Z'
}
connections() { "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" daemon.status | jq '."mover-connections"'; }

come 20 20 tls1.3
check "16 of one address stay" test "$(cat "$T/strangers.log")" = 16
check "and are counted" test "$(connections)" = 16
run_check nbdinfo --size "$url"
leave
wait_for 20 eval '[ "$(connections)" = 0 ]'

for how in nothing tls1.3 certificate; do
    kill -KILL "$first" # a fresh one, whose memory nobody has used yet
    wait_for 20 eval '[ -n "$(gate)" ] && [ "$(gate)" != "$first" ]'
    first=$(gate)
    run_check nbdinfo --size "$url"
    before=$(memory)
    come 80 10 $how
    check "64 stay" test "$(cat "$T/strangers.log")" = 64
    check "and are counted" test "$(connections)" = 64
    echo "# a stranger ($how) costs the gate $((($(memory) - before) / 64)) KiB"
    [ $sandboxed = 0 ] || check "not too much" test $((($(memory) - before) / 64)) -lt 96
    run_check nbdcopy "$url" "$T/copy"
    check "who has a certificate comes in past them" cmp "$T/data" "$T/copy"
    leave
    wait_for 20 eval '[ "$(connections)" = 0 ]'
done
come 10 10 garbage
check "who talks nonsense is gone" test "$(cat "$T/strangers.log")" = 0
leave

# who has proved nothing does not hold up an upgrade
come 10 10 tls1.3
run_check granary upgrade 8>&- # what it starts would keep that open
leave
storaged=$(cat "$GRANARY_HOME/run/storaged.pid")
wait_for 10 gate
check "another gate" test "$(gate)" != "$first"
first=$(gate)
run_check nbdinfo --size "$url"

# --- killed in the middle of a copy: the client is told, the next one is served, nobody else notices
at=$(granary status --json | jq -r .portal)
start load "$BUILD/tests/bench/iscsi_load" "$at" "$(granary lun list ds/b --json | jq -r '.[0].target')" --rw randwrite --bs 4K --depth 4 --conns 1 --time 4 --size 64M
mkfifo "$T/sink"
start copy sh -c 'nbdcopy "$0" - > "$T/sink"; echo "exit $?"' "$url"
exec 9< "$T/sink" # nobody reads on: the copy stands still
wait_for 10 eval '[ "$(connections)" != 0 ]'
sleep 0.5
kill -KILL "$first"
cat <&9 > /dev/null
exec 9<&-
wait_for 10 grep -q '^exit' "$T/copy.log"
check "the copy failed" grep -q '^exit [1-9]' "$T/copy.log"
wait_for 20 gate
check "another gate" test "$(gate)" != "$first"
run_check nbdcopy "$url" "$T/copy"
check "the next one has every byte" cmp "$T/data" "$T/copy"
check "storaged is the same" test "$(cat "$GRANARY_HOME/run/storaged.pid")" = "$storaged" -a -d "/proc/$storaged"
check "the log tells" grep -q 'the gate ended (signal 9)' "$GRANARY_HOME/log/storaged.log"
wait_for 30 eval '! ps -p "$(cat "$T/load.pid")" -o stat= | grep -qv Z'
check "the initiator saw nothing" jq -e '.errors == 0 and .iops > 0' "$T/load.log"
run_check granary down
check "the gate is gone too" test ! -d "/proc/$(gate || echo none)"
[ $sandboxed = 1 ] || exit 0

# --- a pre-shared key is in the gate for one handshake only
demo=$BUILD/tests/tools/mover_demo
run_check "$demo" --make-psk "$T/keys.psk" alice
start demo "$demo" --psk "$T/keys.psk" ds/d=mem:8M
wait_for 10 grep -q '^port' "$T/demo.log"
url="nbds://alice@127.0.0.1:$(sed -n 's/^port //p' "$T/demo.log")/ds/d?tls-psk-file=$T/keys.psk"
run_check nbdcopy "$url" null:
printf '[overrides]\ndisabled-version = tls1.3\n' > "$T/no13"
run_check env GNUTLS_SYSTEM_PRIORITY_FILE="$T/no13" nbdcopy "$url" null:
check "the search finds it in the mover" test "$(search "$(cat "$T/demo.pid")" psk "$T/keys.psk")" -gt 0
check "and not in its gate" test "$(search "$(pgrep -P "$(cat "$T/demo.pid")" -x granary-gate)" psk "$T/keys.psk")" = 0
stop demo
