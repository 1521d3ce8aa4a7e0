#!/usr/bin/env bash
# The test images, from Debian packages alone: no registry is asked for anything.
#   build-images.sh [IMAGE...]     all of them, or those named
# An image whose sources have not changed is kept: its label holds their hash.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
images_dir=$(cd "$tools/../images" && pwd)
label=echo-test.content
all=(echo-test-postgres:15 echo-test-postgres:17 echo-test-redis:7 echo-test-app:1 echo-test-app:2 echo-test-app:2-broken
  echo-test-app:2-halfway echo-test-app:2-crashing echo-test-app:2-forgetful echo-test-host:13 echo-test-browser:13)

built_from() {
  docker image inspect -f "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null || true
}

hash_of() { sha256sum | cut -c1-32; }

# base TAG SUITE
base() {
  local tag=$1 suite=$2 content
  local options=(
    --variant=minbase
    --aptopt='Acquire::Languages "none"'
    --aptopt='Acquire::Retries "5"'
    --dpkgopt=path-exclude='/usr/share/doc/*'
    --dpkgopt=path-exclude='/usr/share/man/*'
    --dpkgopt=path-exclude='/usr/share/locale/*'
  )
  content=$(echo "$suite ${options[*]}" | hash_of)
  if [ "$(built_from "$tag")" = "$content" ]; then return; fi
  echo "building $tag"
  local scratch=${TMPDIR:-/tmp}
  if [ -w /dev/shm ]; then scratch=/dev/shm; fi
  # Half a tree imports without a complaint, so it must not keep the label.
  if ! TMPDIR=$scratch mmdebstrap --quiet "${options[@]}" "$suite" - "$("$tools/debian-mirror.sh")" \
    | docker import --change 'CMD ["bash"]' --change "LABEL $label=$content" - "$tag" >/dev/null; then
    docker image rm "$tag" >/dev/null 2>&1 || true
    exit 1
  fi
}

# image TAG FOLDER BASE [BUILD_ARG...]
image() {
  local tag=$1 folder=$images_dir/$2 from=$3 content args=()
  shift 3
  content=$({
    docker image inspect -f '{{.Id}}' "$from"
    printf '%s\n' "$@"
    cd "$folder"
    find . -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
    find . -type f -not -name '*.pyc' -printf '%m %p\n' | sort
  } | hash_of)
  if [ "$(built_from "$tag")" = "$content" ]; then return; fi
  echo "building $tag"
  local argument
  for argument in "$@"; do args+=(--build-arg "$argument"); done
  local output
  # BuildKit would need a plugin that Debian's client does not bring.
  if ! output=$(DOCKER_BUILDKIT=0 docker build --force-rm --build-arg "BASE=$from" "${args[@]}" \
    --label "$label=$content" -t "$tag" "$folder" 2>&1); then
    printf '%s\n' "$output" >&2
    exit 1
  fi
}

exec 9>"/tmp/echo-test-images.$(id -u).lock"
flock 9

for wanted in "${@:-${all[@]}}"; do
  case $wanted in
    echo-test-postgres:15)
      base echo-test-base:12 bookworm
      image "$wanted" postgres echo-test-base:12 PG_MAJOR=15
      ;;
    echo-test-postgres:17)
      base echo-test-base:13 trixie
      image "$wanted" postgres echo-test-base:13 PG_MAJOR=17
      ;;
    echo-test-redis:7)
      base echo-test-base:12 bookworm
      image "$wanted" redis echo-test-base:12
      ;;
    echo-test-browser:13)
      base echo-test-base:13 trixie
      image "$wanted" browser echo-test-base:13
      ;;
    echo-test-host:13)
      base echo-test-base:13 trixie
      image "$wanted" host echo-test-base:13
      ;;
    echo-test-app:2-halfway | echo-test-app:2-crashing | echo-test-app:2-forgetful)
      base echo-test-base:12 bookworm
      image echo-test-app:2 echo-app echo-test-base:12 ECHO_VERSION=2.0.0
      image "$wanted" echo-app-bad echo-test-app:2 "BAD_VERSION=2.0.0-${wanted##*-}"
      ;;
    echo-test-app:*)
      base echo-test-base:12 bookworm
      # The tag 2-broken stands for version 2.0.0-broken.
      version=${wanted#*:}
      image "$wanted" echo-app echo-test-base:12 "ECHO_VERSION=${version/[0-9]/${version:0:1}.0.0}"
      ;;
    *)
      echo "no image is named $wanted; there are: ${all[*]}" >&2
      exit 2
      ;;
  esac
done
