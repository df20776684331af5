#!/bin/sh
# Says in one line of JSON what is in maintenance (the file that says so, in base64), whether the running nginx knows
# of maintenance at all, which one it goes by, and what time it is.
#
# maintenance.sh STATE_FILE STATUS_PORT
set -eu
export LC_ALL=C

ask='exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /maintenance HTTP/1.0\r\n\r\n" >&3 && cat <&3'
answer=$(timeout 5 bash -c "$ask" "$2" 2>/dev/null | tr -d '\r' || :)
known=false
case $answer in "HTTP/1.1 200 "*) known=true ;; esac
running=$(printf '%s\n' "$answer" | tail -n 1 | grep -x '[0-9a-f]\{64\}' || :)

state=
[ ! -e "$1" ] || state=$(base64 -w 0 "$1")

printf '{"known": %s, "running": "%s", "now": "%s", "state": "%s"}\n' \
    "$known" "$running" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$state"
