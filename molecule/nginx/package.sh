#!/bin/sh
# Makes a repository of the shape of nginx.org's in /srv/repository, from Debian's own nginx: one package, without sites-enabled, with a
# welcome page in conf.d, a user of its own in the rules for its logs, and a version that Debian does not have. Signed by the key in
# /root/signing.asc.
#
# package.sh SUITE
set -eu
suite=$1 version=9.9.9-1~test
export GNUPGHOME=/root/signing DEBIAN_FRONTEND=noninteractive
install -d -m 0700 "$GNUPGHOME"
gpg --batch --quiet --import /root/signing.asc

rm -rf /srv/repository && mkdir -p /srv/repository/pool /root/debs && cd /root/debs
apt-get download -q nginx nginx-common >/dev/null 2>&1
tree=$(mktemp -d)
for deb in *.deb; do
    dpkg-deb -x "$deb" "$tree"
done
rm -rf "$tree/etc/nginx/sites-available" "$tree/etc/nginx/sites-enabled" "$tree/etc/nginx/modules-enabled" "$tree/var/lib/nginx"
mkdir -p "$tree/DEBIAN" "$tree/etc/nginx/conf.d"
sed -i 's/create 0640 .*/create 0640 nginx adm/' "$tree/etc/logrotate.d/nginx"
cat >"$tree/etc/nginx/nginx.conf" <<END
events {}
http { include /etc/nginx/conf.d/*.conf; }
END
echo 'server { listen 80; server_name localhost; return 200 welcome; }' >"$tree/etc/nginx/conf.d/default.conf"
architecture=$(dpkg --print-architecture)
cat >"$tree/DEBIAN/control" <<END
Package: nginx
Version: $version
Architecture: $architecture
Maintainer: nobody <nobody@example.com>
Depends: $(dpkg-deb -f nginx_*.deb Depends | sed 's/, *nginx-common[^,]*//g; s/^nginx-common[^,]*, *//')
Conflicts: nginx-common, nginx-core
Replaces: nginx-common, nginx-core
Description: nginx, as nginx.org would package it
END
(cd "$tree" && find etc -type f -printf '/%p\n') >"$tree/DEBIAN/conffiles"
printf '#!/bin/sh\nsystemctl daemon-reload; systemctl enable --now --quiet nginx || :\n' >"$tree/DEBIAN/postinst"
printf '#!/bin/sh\nsystemctl disable --now --quiet nginx || :\n' >"$tree/DEBIAN/prerm"
chmod 0755 "$tree" "$tree/DEBIAN/postinst" "$tree/DEBIAN/prerm"
dpkg-deb --build --root-owner-group "$tree" /srv/repository/pool/nginx.deb >/dev/null

cd "/srv/repository"
packages=nginx/binary-$architecture/Packages
mkdir -p "dists/$suite/${packages%/*}"
{
    cat "$tree/DEBIAN/control"
    echo "Filename: pool/nginx.deb"
    echo "Size: $(stat -c %s pool/nginx.deb)"
    echo "SHA256: $(sha256sum pool/nginx.deb | cut -d ' ' -f 1)"
} >"dists/$suite/$packages"
cd "dists/$suite"
cat >Release <<END
Origin: nginx
Label: nginx
Suite: $suite
Codename: $suite
Date: $(date -Ru)
Architectures: $architecture
Components: nginx
SHA256:
 $(sha256sum "$packages" | cut -d ' ' -f 1) $(stat -c %s "$packages") $packages
END
gpg --batch --quiet --yes --clearsign --digest-algo SHA512 --output InRelease Release
rm -rf "$tree"
