#!/usr/bin/env bash
# A Docker Engine that answers: does nothing where one does, installs and starts one where we are root.
set -euo pipefail

log=/var/log/dockerd.log

up() { docker version >/dev/null 2>&1; }

up && exit 0

if [ "$(id -u)" -ne 0 ]; then
  cat >&2 <<MESSAGE
No Docker Engine answers (DOCKER_HOST is "${DOCKER_HOST:-unset}").
Start one and make sure that $(id -un) may use it, for example:
  sudo systemctl start docker && sudo usermod -aG docker $(id -un)
then log in again. As root, this script installs and starts one by itself.
MESSAGE
  exit 1
fi

exec 9>/tmp/ensure-docker.lock
flock 9
up && exit 0

if ! command -v dockerd >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o Acquire::Retries=5 update -qq
  packages=(docker.io iptables ca-certificates)
  # Debian 13 has the client in a package of its own.
  if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
  apt-get -o Acquire::Retries=5 install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ -d /run/systemd/system ]; then
  systemctl start docker
elif ! up; then
  setsid --fork dockerd </dev/null >>"$log" 2>&1 9>&-
fi

for _ in $(seq 120); do
  if up; then exit 0; fi
  sleep 0.5
done
echo "dockerd does not answer after 60 s. The end of $log:" >&2
tail -n 20 "$log" >&2
exit 1
