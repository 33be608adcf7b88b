#!/bin/bash
# Whoever changes something leaves a line in the audit log of each home it concerns: through the daemon, without one, and from another host
# over its link. What only asks leaves none, and no secret is in it.
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b array
line() { "$1" audit --json | jq -e --arg m "$2" "[.[] | select(.method == \$m)] | last | $3" > /dev/null || { "$1" audit; fail "$1: $2: $3"; }; }
lines() { "$1" audit --json | jq length; }

check 'nothing yet' [ "$(lines a)" = 0 ]
echo a-secret-of-the-array > "$T/secret"; chmod 600 "$T/secret"
port=$(free_port)

# --- without a daemon
run_check array lun add store "$T/store.img" --size 1G
run_check array lun chap store --user hosts --secret-file "$T/secret"
run_check array lun acl store --allow 'iqn.2026-11.local.granary:*'
run_mustfail 1 'is there|exist|already' array lun add store "$T/store.img"
line array lun.add '.result != "ok" and .uid == '"$(id -u)"' and .named.lun == "store"'
line array lun.chap '.result == "ok" and .named == {"disk":"store","user":"hosts"}'
run_check array lun acl store
line array lun.acl '.named.allow == ["iqn.2026-11.local.granary:*"]'

# --- with one
run_check array up --portal "127.0.0.1:$port"
run_check array lun chap store --user hosts --secret-file "$T/secret"
run_check array lun list
run_check array lun acl store
line array lun.chap '.result == "ok" and .named == {"disk":"store","user":"hosts"} and .pid > 0 and .uid == '"$(id -u)"
check 'four changes and a failure' [ "$(lines array)" = 5 ]
check 'mode 0600' [ "$(stat -c %a "$ARRAY/log/audit.log")" = 600 ]

# --- another host asks over its link
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
run_check a datastore create ds "$lun" --timing fast --user hosts --secret-file "$T/secret"
run_check b datastore join ds "$lun" --user hosts --secret-file "$T/secret"
line a datastore.create '.result == "ok" and .named.name == "ds" and .seconds > 0 and (now - .time | . > -5 and . < 120)'
run_check a disk create ds/d --size 16M
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check b disk resize ds/d 32M
line a disk.resize '.result == "ok" and .named.disk == "ds/d" and .from == "127.0.0.1" and has("pid") == false'
line b disk.resize '.result == "ok" and .pid > 0'
hb=$(a datastore info ds --json | jq -r '.hosts[] | select(.self | not) | .host')
ha=$(a datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')
line a disk.resize ".host == \"$hb\""
run_check a disk move ds/d "$hb"
line a disk.move ".named.host == \"$hb\""
line b disk.take ".host == \"$ha\""
run_mustfail 1 'nobody' a disk move ds/d nobody
line b disk.move '.result == "ENOENT" and .named.host == "nobody"'

# --- what is printed
run_check a audit
check 'as a table' grep -Eq '^20..-..-..T..:..:..Z +host .* disk.resize +ok .*disk=ds/d' "$T/out"
n=$(lines a)
run_check a datastore info ds
run_check a disk list ds
run_check a status
run_check a datastore check ds
check 'who only asks leaves no line' [ "$(lines a)" = "$n" ]
check 'later than now' [ "$(a audit --since 2099-01-01 --json | jq length)" = 0 ]
check 'of the last hour' [ "$(a audit --since 1h --json | jq length)" = "$n" ]
check 'since a time' [ "$(a audit --since "$(date -u +%Y-%m-%dT00:00:00Z -d yesterday)" --json | jq length)" = "$n" ]
run_mustfail 2 'so long ago' a audit --since yesterday
run_mustfail 2 'so long ago' a audit --since 12
check 'no secret' sh -c "! grep -rq a-secret '$A/log' '$B/log' '$ARRAY/log'"

# --- a log in the way is told, and stops nobody
mv "$A/log/audit.log" "$T/kept"
mkdir "$A/log/audit.log"
run_check a disk create ds/e --size 16M
check 'the daemon says so' grep -q '^<4>.*audit.log.*disk.create' "$A/log/storaged.log"
run_check a down
run_check a disk create ds/f --size 16M
check 'so does a command' grep -q 'warning.*audit.log' "$T/err"
