#!/usr/bin/env bash
# Drops root, listens for the other containers, then becomes the command.
set -euo pipefail

if [ "${1:0:1}" = '-' ]; then set -- redis-server "$@"; fi

if [ "$1" = redis-server ]; then
  set -- "$@" --protected-mode no
  if [ "$(id -u)" = 0 ]; then
    find . \! -user redis -exec chown redis:redis '{}' +
    exec setpriv --reuid=redis --regid=redis --init-groups "$@"
  fi
fi

exec "$@"
