#!/bin/sh
# Prepares what cannot come from the controller, and says in one line of JSON what the host is like:
# is nginx installed, which version (or which would be), is there IPv6, which self-signed certificate there is,
# does systemd start nginx at boot, which configuration does the running one say that it has, what is in maintenance, which modules and caches there are, which name
# servers, and which web servers of ours have to give way.
#
# Ends with an error, and has done nothing, when nginx comes from elsewhere than it should.
#
# host.sh check|apply PACKAGES CONFIGURATION LOGS LOG_OWNER CERTIFICATE DAYS STATUS_PORT CACHES SOURCE LOOK_FOR RIVALS LIMITS OPEN_FILES LOG_RULES LOG_RULES_TEXT [SITE...] -- [HOST_FILE...] -- [SERVER_NAME...]
#
# Needs the functions of shared.sh, which is read before it.
set -eu
umask 077
export LC_ALL=C

mode=$1 packages=$2 configuration=$3 logs=$4 log_owner=$5 certificate=$6 days=$7 status_port=$8 cached=$9
shift 9
source=$1 look_for=$2
rivals=$(look_at_rivals "$3")
limits=$4 open_files=$5 log_rules=$6 log_rules_text=$7
shift 7
changed=false

# Puts a text into a file that has another one; a run that is killed leaves nothing that systemd or logrotate would read.
put() {
    [ "$(cat "$1" 2>/dev/null)" != "$2" ] || return 0
    changed=true
    [ "$mode" = check ] || (umask 022 && mkdir -p "${1%/*}" && printf '%s\n' "$2" >"$1~" && mv "$1~" "$1")
}

has_package() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

installed=true
for package in $packages; do
    has_package "$package" || installed=false
done

# Debian's nginx is two packages, nginx.org's is one.
if has_package nginx; then
    is=nginx.org
    ! has_package nginx-common || is=distribution
    if [ "$is" != "$source" ]; then
        cat >&2 <<END
The nginx of this host is that of $is, but nginx_package is $source; nothing was changed. The one takes the place of the other
with the sites down for a while, so that is yours to begin: take the host out of service, remove what it has
(apt-get remove nginx nginx-common), and run this again. Or set nginx_package to $is.
END
        exit 1
    fi
fi
found=false
[ -z "$look_for" ] || [ ! -e "$look_for" ] || found=true

about=$(nginx -V 2>&1 || :)
version=$(printf '%s\n' "$about" | sed -n 's|^nginx version: nginx/\([0-9.]*\).*|\1|p')
openssl=$(printf '%s\n' "$about" | sed -n 's|^built with OpenSSL \([0-9.]*\).*|\1|p')
# what not every nginx has: as the program says, and as others have enabled
modules=
case $about in *--with-http_v3_module*) modules=$modules' "http_v3",' ;; esac
for module in "$configuration"/modules-enabled/*brotli-static*.conf; do
    [ ! -e "$module" ] || modules=$modules' "brotli_static",'
done
[ -n "$version" ] || version=$(apt-cache policy nginx 2>/dev/null | sed -n 's/^  Candidate: \([0-9]*:\)*\([0-9.]*\).*/\2/p')

ipv6=false
! grep -q . /proc/net/if_inet6 2>/dev/null || ipv6=true

# The package starts nginx with a welcome page on IPv4 and IPv6, which fails the installation where there is no IPv6.
# It adds that page only where sites-enabled/default does not exist; nginx.org's is conf.d/default.conf.
for default in "$configuration/sites-enabled/default" "$configuration/conf.d/default.conf"; do
    [ "$source" = nginx.org ] || [ "${default##*/}" = default ] || continue
    if [ "$mode" = apply ] && [ "$installed" = false ] && [ ! -e "$default" ] && [ ! -L "$default" ]; then
        install -d -m 0755 "${default%/*}"
        install -m 0644 /dev/null "$default"
        changed=true
    fi
done
# a directory of Debian's package
if [ "$source" = nginx.org ] && [ ! -d "$cached" ]; then
    changed=true
    [ "$mode" = check ] || install -d -m 0755 "$cached"
fi

# systemd gives 1024 files to nginx's master, who opens the logs of all sites, and during a reload has the old ones as well.
# There before the package starts it; one that runs is given more without a restart.
put "$limits" "$(printf '# Managed by wsgi.fleet (nginx). Changes here are lost.\n[Service]\nLimitNOFILE=%s' "$open_files")"
master=
for said in $(systemctl show --property NeedDaemonReload --property MainPID nginx.service 2>/dev/null); do
    case $said in
    NeedDaemonReload=yes) [ "$mode" = check ] || systemctl daemon-reload ;;
    MainPID=[1-9]*) master=${said#MainPID=} ;;
    esac
done
if [ "$master" ] && [ "$(prlimit --pid "$master" --nofile --output SOFT --noheadings --raw)" -lt "$open_files" ]; then
    # a host that is a container may have a bound of its own
    [ "$mode" = apply ] && ! prlimit --pid "$master" --nofile="$open_files" 2>/dev/null || changed=true
fi

# A file of the package, which dpkg asks about where it is there before: once it is installed, it stays as it is here.
[ "$installed" = false ] || put "$log_rules" "$log_rules_text"

# nginx would make its logs readable by everybody on the host. logrotate makes them so; here they begin so.
while [ "$1" != -- ]; do
    for log in "$logs/$1.access.log" "$logs/$1.error.log"; do
        if [ -d "$logs" ] && [ ! -e "$log" ]; then
            changed=true
            [ "$mode" = check ] || install -o "${log_owner%:*}" -g "${log_owner#*:}" -m 0640 /dev/null "$log"
        fi
    done
    shift
done
shift

# Certificates that somebody else keeps: until one is there, ours stands in for it.
stand_ins=false
while [ "$1" != -- ]; do
    if [ ! -e "$1" ]; then
        changed=true
        stand_ins=true
        [ "$mode" = check ] || { (umask 022 && mkdir -p "${1%/*}") && ln -sfn "$certificate" "$1"; }
    fi
    shift
done
shift

look_at_certificate "$@"

enabled=true
systemctl --quiet is-enabled nginx.service 2>/dev/null || enabled=false

# A SHA-256 or nothing: no answer within five seconds is a wrong answer.
ask='exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /config HTTP/1.0\r\n\r\n" >&3 && cat <&3'
running=$(timeout 5 bash -c "$ask" "$status_port" 2>/dev/null | tail -n 1 | grep -x '[0-9a-f]\{64\}' || :)

# names and times that the entry point maintenance has written
in_maintenance=$(sed -n 's/^\([a-z][a-z0-9_-]*\) .*; # \(since [0-9TZ: until-]*\)$/\1 \2/p' \
    "$configuration"/wsgi-fleet/maintenance/*.map 2>/dev/null | paste -s -d , | sed 's/,/, /g')

# those that the host itself asks, as nginx writes them; one that belongs to an interface is none for nginx
resolvers=$(sed -n 's/^nameserver  *\([0-9.]*\) *$/ "\1",/p; s/^nameserver  *\([0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\) *$/ "[\1]",/p' \
    /etc/resolv.conf 2>/dev/null || :)

# of all sites that were cached, those of today included
caches=$(find "$cached" -mindepth 1 -maxdepth 1 -type d -name 'cache_site_*' -printf ' "%f",' 2>/dev/null || :)

printf '{"changed": %s, "installed": %s, "version": "%s", "openssl": "%s", "stand_ins": %s, "ipv6": %s, "certificate": "%s", "enabled": %s, "running": "%s", "maintenance": "%s", "modules": [%s], "caches": [%s], "resolvers": [%s], "found": %s, "rivals": [%s]}\n' \
    "$changed" "$installed" "$version" "$openssl" "$stand_ins" "$ipv6" "$fingerprint" "$enabled" "$running" "$in_maintenance" \
    "${modules%,}" "${caches%,}" "$(printf '%s' "${resolvers%,}" | tr -d '\n')" "$found" "${rivals%,}"
