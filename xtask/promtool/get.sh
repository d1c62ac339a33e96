#!/usr/bin/env bash
# get.sh CACHE    prints the path of a promtool in CACHE, taken out of Debian's package `prometheus`
# (downloaded and unpacked, not installed: nobody wants its service).
set -euo pipefail
cache=$(mkdir -p "$1/promtool" && cd "$1/promtool" && pwd)
exec 9>"$cache/lock"; flock 9
if [[ ! -x $cache/promtool ]]; then
    work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
    cd "$work"
    apt-get -q download prometheus >&2 || { ${SUDO:-} apt-get -q update >&2; apt-get -q download prometheus >&2; }
    dpkg-deb -x ./prometheus_*.deb .
    mv usr/bin/promtool "$cache/promtool"
fi
echo "$cache/promtool"
