#!/usr/bin/env bash
# What the role echo_schedule installs on a test host, as wheels for its Python (3.13): prints their folder. So hosts
# that can't reach PyPI, or don't trust what this machine trusts, install the same as others do.
set -euo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

core=ansible-core==$(python -c 'import ansible.release; print(ansible.release.__version__)')
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/echo_music.ops/wheels-$({ echo "$core"; cat requirements.txt; } | sha256sum | cut -c1-12)
mkdir -p "$(dirname "$wheels")"
exec 9>"$wheels.lock"
flock 9
if [ ! -d "$wheels" ]; then
  machine=$(uname -m)
  scratch=$(mktemp -d "$wheels.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  pip download --quiet --disable-pip-version-check --dest "$scratch" --only-binary=:all: --python-version 3.13 \
    --implementation cp --abi cp313 --abi abi3 --abi none \
    --platform "manylinux2014_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" \
    "$core" --requirement requirements.txt >&2
  mv "$scratch" "$wheels"
fi
echo "$wheels"
