#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds dist/rainlb_VERSION_ARCH.deb from what `make install` installs.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
architecture=$(dpkg --print-architecture)
minor=$(/usr/bin/python3 -c 'import sys; print(sys.version_info.minor)')
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

PREFIX=/usr DESTDIR="$root" tools/install.sh

mkdir -p "$root/DEBIAN" "$root/etc/rainlb"
cat > "$root/DEBIAN/control" <<CONTROL
Package: rainlb
Version: $version
Architecture: $architecture
Maintainer: The rainlb developers <rainlb@localhost>
Section: net
Priority: optional
Depends: python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), python3-bpfcc, linux-libc-dev, libbpf1
Recommends: systemd
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Description: packet-level load balancer whose cluster state does not die with a machine
 Gateways with an XDP packet path that share connections, virtual addresses and
 configuration over a ring, so that the death of one is a hiccup for clients.
CONTROL
for script in postinst prerm postrm; do
    install -m 755 "lb/systemd/$script" "$root/DEBIAN/$script"
done
mkdir -p dist
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "dist/rainlb_${version}_${architecture}.deb"
