#!/usr/bin/env bash
# Compose v2 as a plugin of the docker client: does nothing where one answers.
# Debian 12 has no such package; the one of Debian 13 runs there as well, so only its binary is taken out of it.
set -euo pipefail

if docker compose version >/dev/null 2>&1; then exit 0; fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
plugin_dir=/usr/local/lib/docker/cli-plugins
if [ "$(id -u)" -ne 0 ]; then plugin_dir=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins; fi

exec 9>"/tmp/ensure-compose.$(id -u).lock"
flock 9
if docker compose version >/dev/null 2>&1; then exit 0; fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v apt-get >/dev/null || [ ! -r "$keyring" ]; then
  echo "The tests need Compose v2: install your system's docker-compose-plugin, then run again." >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=$keyring] $("$tools/debian-mirror.sh") trixie main" >"$work/sources.list"
options=(
  -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache"
  -o Acquire::Retries=5 -o Acquire::Languages=none -o APT::Sandbox::User=root
)

cd "$work"
apt-get "${options[@]}" update -qq
apt-get "${options[@]}" download -qq docker-compose
dpkg-deb -x docker-compose_*.deb tree
install -D -m 755 tree/usr/libexec/docker/cli-plugins/docker-compose "$plugin_dir/docker-compose"
docker compose version
