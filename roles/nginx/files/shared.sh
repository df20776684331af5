# What host.sh of every role with a web server needs: it is read before that.

# Prints the names, as JSON has them, of those web servers of ours that are still on the host: UNIT:TREE ... are the unit of
# each and whose its files are. One that we did not set up is none of our business.
look_at_rivals() {
    for rival in $1; do
        ! grep -qsx ' "files": {' "/var/lib/wsgi-fleet/tree/${rival#*:}.json" || printf ' "%s",' "${rival%:*}"
    done
}

# Key and certificate are in one file, so that one rename replaces both.
# Its first line says what it was made for; every reader skips text before the PEM blocks.
is_good() {
    [ -s "$certificate" ] || return 1
    IFS= read -r made_for <"$certificate" || return 1
    [ "$made_for" = "$purpose" ] || return 1
    left=$((days / 3 < 30 ? days / 3 : 30)) # days before its end at which it is renewed
    openssl x509 -in "$certificate" -noout -checkend $((left * 86400)) >/dev/null 2>&1 || return 1
    [ "$(openssl x509 -in "$certificate" -noout -pubkey 2>&1)" = "$(openssl pkey -in "$certificate" -pubout 2>&1)" ]
}

make() {
    directory=${certificate%/*}
    [ -d "$directory" ] || install -d -m 0755 "$directory"
    rm -rf "$directory"/.new.* # of a run that was killed
    new=$(mktemp -d "$directory/.new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    {
        printf '%s\n' '[req]' 'prompt = no' 'distinguished_name = name' 'x509_extensions = usage' \
            '[name]' 'CN = self-signed by wsgi.fleet' \
            '[usage]' 'basicConstraints = critical,CA:FALSE' 'keyUsage = critical,digitalSignature' \
            'extendedKeyUsage = serverAuth' 'subjectAltName = @hosts' '[hosts]'
        number=0
        for name in "$@"; do
            number=$((number + 1))
            case $name in
                *[!0-9.]*) printf 'DNS.%d = %s\n' "$number" "$name" ;;
                *) printf 'IP.%d = %s\n' "$number" "$name" ;;
            esac
        done
    } >"$new/request"
    openssl req -x509 -config "$new/request" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" \
        -keyout "$new/key" -out "$new/certificate" 2>"$new/messages" || {
        cat "$new/messages" >&2
        echo "The self-signed certificate $certificate could not be made. openssl's own words are above." >&2
        exit 1
    }
    { printf '%s\n' "$purpose" && cat "$new/key" "$new/certificate"; } >"$new/pair"
    sync "$new/pair"
    mv -f "$new/pair" "$certificate"
}

# Makes the certificate for these names where there is none that is good, and says which there is: $fingerprint, $changed.
look_at_certificate() {
    fingerprint=
    purpose="days: $days names: $*"
    [ $# -gt 0 ] || return 0
    if ! is_good; then
        changed=true
        # a bare host has no openssl yet; this runs again once it has
        [ "$mode" = check ] || ! command -v openssl >/dev/null || make "$@"
    fi
    fingerprint=new
    ! is_good || fingerprint=$(openssl x509 -in "$certificate" -noout -fingerprint -sha256 | tr -d : | sed 's/.*=//')
    # the key is nobody's but root's, whatever happened to it
    [ "$mode" = check ] || [ ! -f "$certificate" ] || chmod 0600 "$certificate"
}
