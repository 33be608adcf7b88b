#!/bin/bash
# Who may log in: masks, access lists, CHAP one way and both ways, live and while the daemon is down; nothing of it shown.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-inq iscsi-ls qemu-io
url_of() { granary lun list "$1" --json | jq -er '.[0]."iscsi-url"'; }
in_ok() { run_check iscsi-inq -i "$1" "$2"; }
in_refused() { if iscsi-inq -i "$1" "$2" > "$T/out" 2> "$T/err"; then fail "$1 was let in to $2"; fi; }
me=iqn.2026-11.org.example:me other=iqn.2026-11.org.example:other

run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary disk create ds/a --size 8M
run_check granary disk create ds/b --size 8M
# a portal that others can reach wants rules
run_mustfail 1 'not a loopback' granary up --portal 0.0.0.0:0 --mover 127.0.0.1:0
# before the daemon runs
run_check granary lun acl ds/a --allow $me
run_mustfail 1 'not an initiator name' granary lun acl ds/a --allow 'somebody'
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
a=$(url_of ds/a) b=$(url_of ds/b)
in_ok $me "$a"
in_refused $other "$a"
in_ok $other "$b"
run_check iscsi-ls -i $other "${a%/iqn*}"
check 'a listing shows what may be used' grep -q 'ds:b' "$T/out"
if grep -q 'ds:a' "$T/out"; then fail 'a listing shows a disk of somebody else'; fi
run_check granary lun acl ds/a --allow "$other*" --json
check 'the list' jq -e '.initiators == ["'$me'", "'$other'*"]' "$T/out"
in_ok $other:1 "$a"
run_check granary lun acl ds/a --deny "$other*"
in_refused $other:1 "$a"
run_mustfail 1 'not in its list' granary lun acl ds/a --deny "$other*"
run_mustfail 1 'not served' granary lun acl ds/none --allow $me

# masks; sessions end at once
run_check granary lun mask ds/b
in_refused $other "$b"
run_check granary lun unmask ds/b
in_ok $other "$b"

# the login process is confined, and replaced when it dies; sessions do not notice
storaged=$(cat "$GRANARY_HOME/run/storaged.pid")
login=$(ps -o pid=,comm= --ppid "$storaged" | awk '$2 == "granary-login" { print $1 }')
check 'it runs under seccomp' grep -q '^Seccomp:.*2' "/proc/$login/status"
check 'it cannot gain rights' grep -q '^NoNewPrivs:.*1' "/proc/$login/status"
[ "$(id -u)" != 0 ] || check 'it is nobody' grep -q '^Uid:.*65534.*65534.*65534' "/proc/$login/status"
start user qemu-io -f raw -c 'read 0 4k' -c 'sleep 3000' -c 'read 4k 4k' "$b"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 1"'
kill -KILL "$login"
wait_for 20 iscsi-inq -i $other "$b"
wait_for 10 grep -q 'offset 4096' "$T/user.log"
stop user

# CHAP
printf 'a-long-enough-secret\n' > "$T/secret"; printf 'quite-another-secret\n' > "$T/mutual"; printf 'short\n' > "$T/short"
chmod 644 "$T/secret"
run_mustfail 1 'readable|group|others' granary lun chap ds/b --user joe --secret-file "$T/secret"
chmod 600 "$T/secret" "$T/mutual" "$T/short"
run_mustfail 1 '12 to 255' granary lun chap ds/b --user joe --secret-file "$T/short"
run_mustfail 1 'must differ' granary lun chap ds/b --user joe --secret-file "$T/secret" --mutual-user us --mutual-secret-file "$T/secret"
run_mustfail 2 'give --user' granary lun chap ds/b --user joe
run_check granary lun chap ds/b --user joe --secret-file "$T/secret" --mutual-user us --mutual-secret-file "$T/mutual"
with() { echo "${b/iscsi:\/\//iscsi:\/\/$1@}${2:-}"; }
in_refused $other "$b"
in_ok $other "$(with 'joe%a-long-enough-secret')"
in_refused $other "$(with 'joe%a-wrong-secret-here')"
in_refused $other "$(with 'ann%a-long-enough-secret')"
in_ok $other "$(with 'joe%a-long-enough-secret' '?target_user=us&target_password=quite-another-secret')"
in_refused $other "$(with 'joe%a-long-enough-secret' '?target_user=us&target_password=something-else-entirely')"
if granary lun list --json | grep -q 'long-enough'; then fail 'a secret is listed'; fi
if grep -rq 'long-enough' "$GRANARY_HOME" 2> /dev/null; then fail 'a secret of a disk is anywhere but in its datastore'; fi

# discovery asks for its own proof; logins to targets do not change; a wrong proof is answered late, a right one at once
list() { LIBISCSI_CHAP_USERNAME=${1:-} LIBISCSI_CHAP_PASSWORD=${2:-} iscsi-ls -i $other "${b%/iqn*}" > "$T/out" 2> "$T/err"; }
list || fail 'a listing without a rule'
run_mustfail 1 'must differ' granary lun chap discovery --user reader --secret-file "$T/secret" --mutual-user us --mutual-secret-file "$T/secret"
run_check granary lun chap discovery --user reader --secret-file "$T/secret"
check 'rules that are no disk'"'"'s are private' [ "$(stat -c %a "$GRANARY_HOME/conf/access.json")" = 600 ]
if list; then fail 'targets are listed without a proof'; fi
if list reader a-wrong-secret-here; then fail 'targets are listed for a wrong proof'; fi
begin=${EPOCHREALTIME/./}
in_refused $other "$(with 'joe%a-wrong-secret-here')"
check 'a wrong proof costs a second' [ $((${EPOCHREALTIME/./} - begin)) -ge 1000000 ]
list reader a-long-enough-secret || fail 'targets are not listed for a right proof'
check 'and all that may be used are there' grep -q 'ds:b' "$T/out"
in_ok $other "$(with 'joe%a-long-enough-secret')"
run_check granary lun chap discovery --off
list || fail 'a listing with the rule off'

# a portal that others can reach, now that there are rules, still refuses disks without
run_check granary down
run_check granary lun chap ds/b --off
run_check granary lun acl ds/a --deny $me
run_check granary lun acl ds/a --allow $me
run_check granary up --portal 0.0.0.0:0 --mover 127.0.0.1:0
address=$(hostname -I | awk '{ print $1 }')
if [ -n "$address" ]; then
    port=$(url_of ds/a | sed 's|iscsi://[^:]*:\([0-9]*\)/.*|\1|')
    in_ok $me "iscsi://$address:$port/iqn.2026-11.local.granary:ds:a/0"
    in_refused $me "iscsi://$address:$port/iqn.2026-11.local.granary:ds:b/0"
    in_ok $me "iscsi://127.0.0.1:$port/iqn.2026-11.local.granary:ds:b/0"
fi
run_check granary down

# the same over IPv6
if grep -qs '^0\{31\}1 ' /proc/net/if_inet6; then
    run_check granary up --portal '[::1]:0' --mover '[::1]:0'
    a=$(url_of ds/a)
    nbd=$(granary lun list --json | jq -r '.[] | select(.disk == "ds/a") | ."nbd-url"')
    check 'the URL of the mover has the address' [ "${nbd#nbds://\[::1\]:}" != "$nbd" ]
    at=${nbd#nbds://\[::1\]:}
    run_check qemu-img info --object tls-creds-x509,id=t,endpoint=client,dir="$GRANARY_HOME/conf/pki" \
        --image-opts "driver=nbd,host=::1,port=${at%%/*},export=ds/a,tls-creds=t"
    check 'the URL has the address' [ "${a#iscsi://\[::1\]:}" != "$a" ]
    in_ok $me "$a"
    in_refused $other "$a"
    run_check iscsi-ls -i $me "${a%/iqn*}"
    check 'and so has the listing' grep -q 'ds:a Portal:\[::1\]' "$T/out"
    run_check granary down
fi
