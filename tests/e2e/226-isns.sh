#!/bin/bash
# Targets in a real iSNS server (isnsd): registered, kept up to date, taken off; a server that is away holds nothing up.
. "$(dirname "$0")/lib.sh"
requires jq isnsd isnsadm iscsi-inq
port=$(free_port)
mkdir "$T/isns"
cat > "$T/isns/isnsd.conf" << EOF
SourceName = iqn.2026-11.org.example:isns
Database = $T/isns/db
Security = 0
BindAddress = 127.0.0.1:$port
ControlSocket = $T/isns/ctl
PIDFile = $T/isns/pid
RegistrationPeriod = 10m
DefaultDiscoveryDomain = 1
EOF
cat > "$T/isns/isnsadm.conf" << EOF
SourceName = iqn.2026-11.org.example:admin
Security = 0
ControlSocket = $T/isns/ctl
EOF
holds() { isnsadm -c "$T/isns/isnsadm.conf" --local --list "$1" 2> /dev/null | sed -n "s/.*$2 = \"*\([^\"]*\)\"*\$/\1/p" | sort | tr '\n' ' '; }
nodes() { holds nodes 'iSCSI name'; }
nodes_are() { [ "$(nodes)" = "$1" ]; }
a=iqn.2026-11.local.granary:ds:a b=iqn.2026-11.local.granary:ds:b c=iqn.2026-11.local.granary:ds:c

run_check granary datastore create ds "$T/ds.img" --size 256M
for d in a b; do run_check granary disk create ds/$d --size 8M; done
run_mustfail 1 'is not HOST' granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --isns '[::1'

# the server is not there yet: everything works without it, and the log says so once
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --isns "127.0.0.1:$port"
url=$(granary lun list ds/a --json | jq -er '.[0]."iscsi-url"')
run_check iscsi-inq "$url"
wait_for 10 grep -q "iSNS server 127.0.0.1:$port: Connection refused; it is tried again" "$GRANARY_HOME/log/storaged.log"
check 'nothing is registered' sh -c 'granary status --json | jq -e ".. | objects | select(has(\"isns-targets\")) | .\"isns-targets\" == -1"'

# it comes: all of it is there
start isnsd isnsd -c "$T/isns/isnsd.conf" -f
wait_for 30 nodes_are "$a $b "
check 'the address of the portal' [ "$(holds portals 'Portal TCP\/UDP port')" = "$(echo "$url" | cut -d/ -f3 | cut -d: -f2)/tcp " ]
check 'one entity' [ "$(holds entities 'Entity identifier' | wc -w)" = 1 ]

# a new disk, a masked one
run_check granary disk create ds/c --size 8M
run_check granary lun mask ds/a
wait_for 30 nodes_are "$b $c "
run_check granary lun unmask ds/a
wait_for 30 nodes_are "$a $b $c "

# another portal, and the first one goes
ports_are() { [ "$(holds portals 'Portal TCP\/UDP port')" = "$1" ]; }
port_of() { echo "${1##*:}"; }
first=$(granary status --json | jq -r .portal)
run_check granary portal add 127.0.0.1:0 --json
second=$(jq -er .portal "$T/out")
wait_for 30 ports_are "$(printf '%s/tcp\n' "$(port_of "$first")" "$(port_of "$second")" | sort | tr '\n' ' ')"
run_check granary portal remove "$first"
wait_for 30 ports_are "$(port_of "$second")/tcp "
check 'the targets are there' nodes_are "$a $b $c "

# at the end it is taken off; killed, it is there once after the next start
run_check granary down
check 'nothing is left' nodes_are ''
run_check granary up
wait_for 30 nodes_are "$a $b $c "
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary disk delete ds/b
run_check granary up
wait_for 30 nodes_are "$a $c "
run_check granary down
run_check granary up --isns off
check 'no server any more' sh -c 'granary status --json | jq -e ".. | objects | select(has(\"isns\")) | .isns == \"\""'
run_check granary down
check 'one line about the server that was away' [ "$(grep -c 'it is tried again' "$GRANARY_HOME/log/storaged.log")" = 1 ]
