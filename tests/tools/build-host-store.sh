#!/usr/bin/env bash
# A volume with an Engine's store that holds the given images; each test host gets a copy of it.
#   build-host-store.sh IMAGE...     prints the volume's name; the store of older such images goes
set -euo pipefail

host=echo-test-host:13
ids=$(docker image inspect -f '{{.Id}}' "$host" "$@")
store=echo-test-store-$(echo "$ids" | sha256sum | cut -c1-16)
label="echo-test.store=$*"

exec 9>"/tmp/echo-test-store.$(id -u).lock"
flock 9
if docker volume inspect "$store" >/dev/null 2>&1 \
  && docker run --rm -v "$store:/store:ro" "$host" test -e /store/.complete; then
  echo "$store"
  exit 0
fi

docker volume ls -q --filter "label=$label" | xargs -r docker volume rm >/dev/null
docker volume create --label "$label" "$store" >/dev/null

filler=$store-filler
trap 'docker rm -f "$filler" >/dev/null 2>&1 || true' EXIT
docker rm -f "$filler" >/dev/null 2>&1 || true
docker run -d --name "$filler" --network none --cap-add ALL --cap-drop SYS_RESOURCE \
  --security-opt seccomp=unconfined --security-opt apparmor=unconfined --cgroupns host \
  -v /sys/fs/cgroup:/sys/fs/cgroup:rw -v "$store:/var/lib/docker" --tmpfs /run:exec \
  "$host" sh -c 'mount -o remount,rw /proc/sys && exec dockerd' >/dev/null
for _ in $(seq 240); do
  if docker exec "$filler" docker version >/dev/null 2>&1; then break; fi
  sleep 0.5
done
docker save "$@" | docker exec -i "$filler" docker load >/dev/null
docker exec "$filler" touch /var/lib/docker/.complete
docker stop --time 20 "$filler" >/dev/null
echo "$store"
