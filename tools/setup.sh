#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Brings a bare Debian machine to where the project runs: Debian packages, virtual environment, BCC made visible.
# Idempotent; a second run only compares and takes well under a second.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "setup: needs root (network namespaces, BPF, packages): run as root" >&2; exit 1; }

# What the product needs at run time, then what the lab, the tests and the benchmarks need.
PACKAGES="python3 python3-venv python3-bpfcc linux-libc-dev libbpf1
  iproute2 nftables ethtool tcpdump curl wrk nginx-light haproxy iputils-ping gcc libc6-dev procps
  bird2 keepalived conntrackd conntrack libnetfilter-conntrack-dev corosync libcpg-dev
  spin chromium prometheus systemd man-db"

missing=""
for package in $PACKAGES; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "setup: installing Debian packages:$missing"
    # The daemons that come with the packages are compared with, never run as services.
    guard=/usr/sbin/policy-rc.d
    made_guard=""
    if [ ! -e "$guard" ]; then printf '#!/bin/sh\nexit 101\n' > "$guard"; chmod 755 "$guard"; made_guard=yes; fi
    log=$(mktemp)
    status=0
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } \
        > "$log" 2>&1 || status=$?
    [ -z "$made_guard" ] || rm -f "$guard"
    if [ "$status" != 0 ]; then tail -20 "$log" >&2; echo "setup: apt-get failed; whole log: $log" >&2; exit "$status"; fi
    rm -f "$log"
fi

stamp=.venv/.rainlb-setup
wanted=$(sha256sum pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "setup: building the virtual environment"
    # Debian's own interpreter, so that Debian's BCC package fits it.
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check -e '.[test]'
    # Only BCC is taken from the system: the whole of the system's packages would shadow the pinned ones.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    ln -sfn /usr/lib/python3/dist-packages/bcc "$site/bcc"
    .venv/bin/python -c 'import bcc' || { echo "setup: BCC is not importable; is python3-bpfcc installed?" >&2; exit 1; }
    echo "$wanted" > "$stamp"
fi
