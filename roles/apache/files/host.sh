#!/bin/sh
# Makes what cannot come from the controller, and says in one line of JSON what the host is like: is Apache installed, which
# OpenSSL there is, which self-signed certificate, does systemd start Apache at boot, which configuration does the running one
# say that it has, and which web servers of ours have to give way.
#
# host.sh check|apply PACKAGES CERTIFICATE DAYS STATUS_PORT RIVALS [SERVER_NAME...]
#
# Needs the functions of shared.sh, which is read before it.
set -eu
umask 077
export LC_ALL=C

mode=$1 packages=$2 certificate=$3 days=$4 status_port=$5
rivals=$(look_at_rivals "$6")
shift 6
changed=false

installed=true
for package in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || installed=false
done
openssl=$(openssl version 2>/dev/null | sed -n 's/^OpenSSL \([0-9.]*\).*/\1/p')

look_at_certificate "$@"

enabled=true
systemctl --quiet is-enabled apache2.service 2>/dev/null || enabled=false

# A SHA-256 or nothing: no answer within five seconds is a wrong answer.
ask='exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /config HTTP/1.0\r\n\r\n" >&3 && cat <&3'
running=$(timeout 5 bash -c "$ask" "$status_port" 2>/dev/null | tail -n 1 | grep -x '[0-9a-f]\{64\}' || :)

printf '{"changed": %s, "installed": %s, "openssl": "%s", "certificate": "%s", "enabled": %s, "running": "%s", "rivals": [%s]}\n' \
    "$changed" "$installed" "$openssl" "$fingerprint" "$enabled" "$running" "${rivals%,}"
