#!/usr/bin/env bash
# Everything that can be said about the files without running them; goes on after a failure to show them all.
set -uo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
failed=()

check() {
  local what=$1
  shift
  title "$what"
  "$@" || failed+=("$what")
}

importer() {
  ansible-galaxy collection build --output-path "$temp" || return
  # ansible-lint and ansible-test have runs of their own.
  (cd "$temp" && GALAXY_IMPORTER_CHECK_REQUIRED_TAGS=true GALAXY_IMPORTER_RUN_ANSIBLE_LINT=false \
    GALAXY_IMPORTER_RUN_ANSIBLE_TEST=false python -m galaxy_importer.main ./*.tar.gz >importer.log 2>&1)
  local code=$?
  grep -E 'ERROR|WARNING' "$temp/importer.log"
  [ $code -eq 0 ] && ! grep -q ERROR "$temp/importer.log"
}

check "ansible-lint, profile production" ansible-lint
check "yamllint" yamllint --strict .
check "shellcheck" shellcheck .ci/run tests/tools/*.sh
check "documentation" antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self \
  --disallow-unknown-collection-refs .
check "changelog" antsibull-changelog lint
check "build and Galaxy's importer" importer

if [ ${#failed[@]} -gt 0 ]; then
  printf '\nlint failed:\n' >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi
printf '\nlint passed\n'
