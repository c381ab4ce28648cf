#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the product below DESTDIR: a virtual environment of its own, commands, units. Usage: PREFIX=/usr DESTDIR= tools/install.sh
set -eu
cd "$(dirname "$0")/.."
: "${PREFIX:=/usr/local}" "${DESTDIR:=}"

# Debian's own interpreter, so that Debian's BCC package fits it.
python=/usr/bin/python3
home=$PREFIX/lib/rainlb
units=${UNITDIR:-/lib/systemd/system}
case $PREFIX in /*) ;; *) echo "install: PREFIX must be absolute, not '$PREFIX'" >&2; exit 1 ;; esac

# Built where it can be built, then told where it will be: a virtual environment knows its own place.
rm -rf "$DESTDIR$home"
mkdir -p "$DESTDIR$home"
$python -m venv "$DESTDIR$home"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, because building leaves files in the source tree. setuptools takes what is in these folders.
cp -r lb sync ebpf tools pyproject.toml README.md LICENSES "$work"
constraint=""
if [ -x .venv/bin/pip ]; then
    # The versions that were tested are the ones that are shipped.
    .venv/bin/pip freeze --exclude-editable --disable-pip-version-check > "$work/tested.txt"
    constraint="-c $work/tested.txt"
fi
env -u PYTHONDONTWRITEBYTECODE "$DESTDIR$home/bin/pip" install -q --disable-pip-version-check $constraint "$work"
site=$("$DESTDIR$home/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
ln -sfn /usr/lib/python3/dist-packages/bcc "$site/bcc"

share=$DESTDIR$PREFIX/share
# Debian's zsh looks for packages' completions in a folder of their own.
case $PREFIX in /usr) zsh=vendor-completions ;; *) zsh=site-functions ;; esac
mkdir -p "$share/bash-completion/completions" "$share/zsh/$zsh" "$share/fish/vendor_completions.d"
completion() { "$DESTDIR$home/bin/python" -m tools.lbctl.completion "$1"; }
completion bash > "$share/bash-completion/completions/lbctl"
completion zsh > "$share/zsh/$zsh/_lbctl"
completion fish > "$share/fish/vendor_completions.d/lbctl.fish"
# Not needed at run time.
"$DESTDIR$home/bin/python" -m pip uninstall -q -y --disable-pip-version-check setuptools pip
rm -rf "$DESTDIR$home/include"
find "$DESTDIR$home/bin" -mindepth 1 ! -name 'python*' ! -name lbd ! -name lbctl ! -name lb-api -delete
if [ -n "$DESTDIR" ]; then
    grep -rlI --exclude-dir=__pycache__ -- "$DESTDIR$home" "$DESTDIR$home/bin" "$DESTDIR$home/pyvenv.cfg" |
        xargs -r sed -i "s|$DESTDIR$home|$home|g"
    find "$DESTDIR$home" -name direct_url.json -delete
fi
for version in "$DESTDIR$home"/lib/python3.*; do
    # Compiled for the place where it will be: a daemon that cannot write there would compile at every start.
    find "$version" -name __pycache__ -prune -exec rm -rf {} +
    $python -m compileall -q -s "$DESTDIR" -p / "$version" || true
done

mkdir -p "$DESTDIR$PREFIX/bin"
for command in lbd lbctl lb-api; do
    ln -sfn "../lib/rainlb/bin/$command" "$DESTDIR$PREFIX/bin/$command"
done
mkdir -p "$DESTDIR$units" "$DESTDIR/usr/lib/sysusers.d" "$DESTDIR/usr/lib/tmpfiles.d" "$DESTDIR$PREFIX/share/doc/rainlb"
for unit in lbd.service lb-api.service run-lb-bpf.mount; do
    sed "s|@BINDIR@|$PREFIX/bin|" "lb/systemd/$unit" > "$DESTDIR$units/$unit"
    chmod 644 "$DESTDIR$units/$unit"
done
install -m 644 lb/systemd/rainlb.sysusers "$DESTDIR/usr/lib/sysusers.d/rainlb.conf"
install -m 644 lb/systemd/rainlb.tmpfiles "$DESTDIR/usr/lib/tmpfiles.d/rainlb.conf"
for page in docs/man/*.[1-8]; do
    section=$DESTDIR$PREFIX/share/man/man${page##*.}
    mkdir -p "$section"
    gzip -9nc "$page" > "$section/$(basename "$page").gz"
done
cp -r docs/examples LICENSES README.md CHANGELOG.md "$DESTDIR$PREFIX/share/doc/rainlb/"
echo "installed below ${DESTDIR:-/}: $PREFIX/bin/lbd, $units/lbd.service; examples in $PREFIX/share/doc/rainlb/examples"
