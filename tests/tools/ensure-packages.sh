#!/usr/bin/env bash
# The command-line tools the tests use, from apt where we are root and one is missing.
set -euo pipefail

"$(dirname "$0")/ensure-promtool.sh" >/dev/null

declare -A package_of=(
  [rsync]=rsync [busybox]=busybox [zstd]=zstd [setfacl]=acl [setfattr]=attr [mmdebstrap]=mmdebstrap
  [shellcheck]=shellcheck [restic]=restic [rclone]=rclone [age]=age
)

missing=()
for tool in "${!package_of[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package_of[$tool]}")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "The tests need these packages: ${missing[*]}. Install them, then run again." >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
exec 9>/tmp/ensure-packages.lock
flock 9
apt-get -o Acquire::Retries=5 update -qq
apt-get -o Acquire::Retries=5 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
