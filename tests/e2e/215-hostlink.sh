#!/bin/bash
# Three machines, as network namespaces: an array, and two hosts that share a datastore on its LUN. The hosts have a network of their own for
# each other, and the same paths: a socket of the one means nothing to the other. What one asks of the other's disks goes over the link, which
# strangers cannot use; when it is cut, nothing is lost, and logins still find their way.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io ip unshare
requires_root
H=$T/host
mkdir "$H" "$T/a" "$T/b" "$T/array"
machines a b s
wire a 10.77.1.1 s 10.77.1.9
wire b 10.77.2.1 s 10.77.2.9
wire a 10.77.3.1 b 10.77.3.2
on() { # NAMESPACE HOME CMD...: there, with that home at the path that all homes have
    local n=$1 home=$2; shift 2
    # shellcheck disable=SC2016
    GRANARY_HOME=$H ip netns exec "$N$n" unshare -m sh -c 'mount --bind "$1" "$2"; shift 2; exec "$@"' sh "$home" "$H" "$@"
}
a() { on a "$T/a" granary "$@"; }
b() { on b "$T/b" granary "$@"; }
array() { on s "$T/array" granary "$@"; }
on_exit 'array down'
on_exit 'b down'
on_exit 'a down'
log() { cat "$T/$1/log/storaged.log"; }

run_check array lun add store "$T/array.img" --size 2G
run_check array up --portal 10.77.1.9:3260 --portal 10.77.2.9:3260 --insecure
target=$(array lun list --json | jq -r '.[0].target')
run_check a datastore create ds "iscsi://10.77.1.9/$target/0" --timing fast
run_check b datastore join ds "iscsi://10.77.2.9/$target/0"
for d in d e f; do run_check a disk create ds/$d --size 64M; done

# --- without a way to name this host, it says so; nonsense is refused
run_mustfail 2 'numeric address' a up --portal 10.77.3.1:3260 --insecure --link host.example
run_check a up --portal 10.77.3.1:3260 --multipath-portal 10.77.3.1:3261 --insecure
run_check b up --portal 10.77.3.2:3260 --multipath-portal 10.77.3.2:3261 --insecure --link 10.77.3.2:3999
run_check a datastore info ds --json
check 'both have links' jq -e '[.hosts[].address] | length == 2 and all(startswith("hostlink://10.77.3.")) and any(endswith(":3999"))' "$T/out"
check 'the key is for its owner' [ "$(stat -c %a "$T/a/conf/link.key")" = 600 ]

# --- what b asks of a's disks is done by a
run_check b disk info ds/d --json
check "it is a's" jq -e '(."owner-self" | not) and .owner != ""' "$T/out"
run_check on a "$T/a" qemu-io -f raw -c 'write -P 0x11 0 1M' "iscsi://10.77.3.1/$(a lun list ds/d --json | jq -r '.[0].target')/0"
run_check b snapshot create ds/d --name over-there
run_check a snapshot list ds/d --json
check 'it is there' jq -e 'map(.name) == ["over-there"]' "$T/out"
run_check b disk resize ds/d 96M
run_check a disk info ds/d --json
check 'it has grown' jq -e '.size == 100663296' "$T/out"
run_check b disk list ds --json
check "b knows what a's disks hold now" jq -e '.[] | select(.disk == "ds/d") | .used > 0 and .snapshots == 1' "$T/out"
run_check b disk move ds/e "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
run_check b disk info ds/e --json
check "it is b's" jq -e '."owner-self"' "$T/out"

# --- a reservation through the path that stands by is the owner's, and goes with the disk to the next owner
out() { # NAMESPACE ADDRESS PORT ACTION TYPE KEY NEW-KEY: PERSISTENT RESERVE OUT, without APTPL
    printf '%016x%016x%s' "$6" "$7" 0000000000000000 | sed 's/../\\x&/g' > "$T/text"
    printf '%b' "$(cat "$T/text")" > "$T/list"
    on "$1" "$T/$1" "$BUILD/tests/tools/scsi_send" --bare on --port "$3" --out "$T/list" "iscsi://$2/$tf/0" "5f$4$(printf %02x "$5")00000000001800"
}
get() { on "$1" "$T/$1" "$BUILD/tests/tools/scsi_send" --bare on --port "$3" --in "$4" "iscsi://$2/$tf/0" "$5"; }
tf=$(a lun list ds/f --json | jq -r '.[0].target')
check "b's path stands by" [ "$(get b 10.77.3.2:3261 1 512 28000000000000000100)" = 'sense 2/04/0b' ]
check 'registered through it' [ "$(out b 10.77.3.2:3261 1 06 0 0 0xb1)" = good ]
check 'reserved, for registrants' [ "$(out b 10.77.3.2:3261 1 01 6 0xb1 0)" = good ]
check 'the owner has it' [ "$(get a 10.77.3.1:3260 2 16 5e000000000000001000)" = 'good 000000010000000800000000000000b1' ]
check 'a stranger may not read' [ "$(get a 10.77.3.1:3260 2 512 28000000000000000100)" = conflict ]
run_check b disk move ds/f "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
check 'nor at the next owner' [ "$(get b 10.77.3.2:3261 2 512 28000000000000000100)" = conflict ]
check 'where its holder may' [ "$(get b 10.77.3.2:3261 1 4 28000000000000000100)" = 'good 00000000' ]
check 'and through the other path ends it' [ "$(out a 10.77.3.1:3261 1 03 0 0xb1 0)" = good ]
check 'it is over' [ "$(get b 10.77.3.2:3260 2 4 28000000000000000100)" = 'good 00000000' ]

# --- what concerns files of a machine is not done for another
run_mustfail 1 'run the command on the host that owns' b disk export ds/d "$T/x.img"
check 'and was not' [ ! -e "$T/x.img" ]

# --- strangers: rubbish, silence, and the death of the process that they talk to
port=$(a datastore info ds --json | jq -r '.hosts[] | select(.self) | .address' | sed 's/.*://')
for i in 1 2 3; do
    head -c 20000 /dev/urandom | on b "$T/b" timeout 3 bash -c "cat > /dev/tcp/10.77.3.1/$port" || true
done
: "$i"
pid=$(pgrep -P "$(cat "$T/a/run/storaged.pid")" -x granary-link)
check 'it is nobody' [ "$(awk '/^Uid/ {print $2}' "/proc/$pid/status")" = 65534 ]
check 'and confined' grep -q '^Seccomp:.*2' "/proc/$pid/status"
check 'without a file' sh -c "! ls -l /proc/$pid/fd | grep -q '$T'"
kill -KILL "$pid"
wait_for 10 b snapshot list ds/d --json
check 'the log tells of it' sh -c "log() { cat '$T/a/log/storaged.log'; }; log | grep -q 'link process ended'"

# --- a command without a daemon has its home's key
run_check b down
run_check b snapshot create ds/d --name by-command
run_check a snapshot list ds/d --json
check 'it is there' jq -e 'map(.name) | contains(["by-command"])' "$T/out"
run_check b up --insecure

# --- the hosts' own network is cut: the storage is still there. Nobody is shut out, and what needs the other host says so
ip -n "${N}a" link set tob down
run_mustfail 4 "owned by host|does not answer" b snapshot create ds/d --name unheard
run_check b disk create ds/g --size 32M
run_check on a "$T/a" qemu-io -f raw -c 'read -P 0x11 0 1M' "iscsi://10.77.3.1/$(a lun list ds/d --json | jq -r '.[0].target')/0" || true
ip -n "${N}a" link set tob up
wait_for 20 b snapshot create ds/d --name heard
check 'nobody was shut out' sh -c "! cat '$T/a/log/storaged.log' '$T/b/log/storaged.log' | grep -q 'taken its place'"

# --- a is killed: b has its disks, and a comes back under the same key
kill -KILL "$(cat "$T/a/run/storaged.pid")"
wait_for 20 on b "$T/b" qemu-io -r -f raw -c 'read -P 0x11 0 1M' "iscsi://10.77.3.2/$(b lun list ds/d --json | jq -r '.[0].target')/0"
run_check a up --insecure
run_check a snapshot list ds/d --json
check "now a asks b" jq -e 'map(.name) | contains(["heard"])' "$T/out"
check 'at the port of before' [ "$(a datastore info ds --json | jq -r '.hosts[] | select(.self) | .address' | sed 's/.*://')" = "$port" ]

# --- with TLS: the data mover of another machine wants a certificate of its own site, which comes with the URL
run_check a down
run_check b down
for h in a b; do
    printf '{"disks": {"*": {"initiators": ["*"]}}}\n' > "$T/$h/conf/access.json"
    chmod 600 "$T/$h/conf/access.json"
done
run_check a up --portal 10.77.3.1:3260 --mover 10.77.3.1:0
run_check b up --portal 10.77.3.2:3260 --mover 10.77.3.2:0
run_check on a "$T/a" qemu-io -f raw -c 'write -P 0x11 0 1M' "iscsi://10.77.3.1/$(a lun list ds/d --json | jq -r '.[0].target')/0"
url=$(b lun list ds/d --json | jq -r '.[0]."nbd-url"')
check "it is a's mover" sh -c "case '$url' in nbds://10.77.3.1:*/ds/d*$H/state/movers/*) ;; *) false ;; esac"
dir=$(echo "$T/b/state/movers/"*)
check 'the folder is named by the whole of its key' [ "${#dir}" = $((${#T} + 16 + 44)) ] # "/b/state/movers/"
check 'the key is for its owner' [ "$(stat -c %a "$dir/client-key.pem")" = 600 ]
check 'it is signed there, for b' sh -c "cmp '$dir/ca-cert.pem' '$T/a/conf/pki/ca-cert.pem' && ! cmp -s '$dir/client-cert.pem' '$T/a/conf/pki/client-cert.pem'"
head -c 1M /dev/zero | tr '\0' '\21' > "$T/elevens"
run_check on b "$T/b" nbdcopy "$url" "$T/d.img"
check "read over another machine's mover" cmp -n 1048576 "$T/d.img" "$T/elevens"
check 'the second time it is there' [ "$(b lun list ds/d --json | jq -r '.[0]."nbd-url"')" = "$url" ]
own=$(a lun list ds/d --json | jq -r '.[0]."nbd-url"')
run_mustfail 1 'handshake|certificate|TLS' on b "$T/b" nbdinfo --size "$own" # b's own site is not a's

run_check b down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
