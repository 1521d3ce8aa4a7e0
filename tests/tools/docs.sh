#!/usr/bin/env bash
# The documentation of all plugins and roles as HTML in docs/build, without a network.
set -euo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

rm -rf docs/build
mkdir -p docs/build
antsibull-docs sphinx-init --use-current --dest-dir docs/build --squash-hierarchy --lenient --fail-on-error \
  --project "echo_music.ops" --title "Echo Operations Collection" --sphinx-theme alabaster echo_music.ops >/dev/null
# References to Ansible's own documentation would be looked up on its site.
sed -i '/^intersphinx_mapping = {/,/^}/c intersphinx_mapping = {}' docs/build/conf.py
(cd docs/build && ./build.sh >build.log 2>&1) || { tail -n 30 docs/build/build.log >&2; exit 1; }
echo "docs/build/build/html/index.html"
