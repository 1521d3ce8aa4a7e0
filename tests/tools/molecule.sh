#!/usr/bin/env bash
# Molecule scenarios one after the other, all or the named ones; the first that fails ends the run.
set -uo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

export MOLECULE_GLOB='molecule/*/molecule.yml'

scenarios=("$@")
if [ ${#scenarios[@]} -eq 0 ]; then
  for file in $MOLECULE_GLOB; do
    if [ -e "$file" ]; then scenarios+=("$(basename "$(dirname "$file")")"); fi
  done
fi

passed=0
failed=0
for scenario in "${scenarios[@]}"; do
  title "molecule: $scenario"
  if molecule test --scenario-name "$scenario"; then
    passed=$((passed + 1))
  else
    failed=1
    break
  fi
done

printf '\nmolecule: %d passed, %d failed' "$passed" "$failed"
[ "$failed" -eq 0 ] || printf ' (%s)' "$scenario"
printf ' of %d scenarios\n' "${#scenarios[@]}"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
