#!/usr/bin/env bash
# Prometheus' promtool, which checks metrics and alert rules; prints its path. It is taken out of Debian's package, which
# would bring a server that runs.
set -euo pipefail

if command -v promtool; then exit 0; fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/echo_music.ops
tool=$folder/promtool
mkdir -p "$folder"
exec 9>"$folder/promtool.lock"
flock 9
if [ ! -x "$tool" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "The tests need promtool. Install Prometheus, then run again." >&2
    exit 1
  fi
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  chmod 755 "$scratch"
  cd "$scratch"
  download() { apt-get -o Acquire::Retries=5 download -qq prometheus >/dev/null 2>&1; }
  if ! download; then
    if [ "$(id -u)" -eq 0 ]; then apt-get -o Acquire::Retries=5 update -qq; fi
    download
  fi
  dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract --to-stdout ./usr/bin/promtool >promtool
  chmod 755 promtool
  ./promtool --version >/dev/null 2>&1
  mv promtool "$tool"
fi
echo "$tool"
