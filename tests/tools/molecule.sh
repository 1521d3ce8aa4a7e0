#!/usr/bin/env bash
# Molecule scenarios, all or the named ones, three at a time: while one waits, the others work. After one that fails, none
# is begun. What a scenario says comes in one piece, when it has ended.
set -uo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

export MOLECULE_GLOB='molecule/*/molecule.yml'
lanes=${LANES:-3}

# These two bring up the same stack, so they run one after the other.
shared=" default unified "

# The longest begin, so that in the end none is waited for alone.
longest=(migrate migrate_faults faults offsite crash upgrade_hosts)

scenarios=("$@")
if [ ${#scenarios[@]} -eq 0 ]; then
  scenarios=("${longest[@]}")
  for file in $MOLECULE_GLOB; do
    name=$(basename "$(dirname "$file")")
    if [ -e "$file" ] && [[ " ${longest[*]} " != *" $name "* ]]; then scenarios+=("$name"); fi
  done
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

run() {
  local scenario=$1 started=$SECONDS code
  if [[ $shared == *" $scenario "* ]]; then
    exec 9>"$logs/shared.lock"
    flock 9
  fi
  molecule test --scenario-name "$scenario" >"$logs/$scenario.log" 2>&1 9>&-
  code=$?
  (
    flock 8
    title "molecule: $scenario"
    cat "$logs/$scenario.log"
    printf '\nmolecule: %s, exit code %d after %d s\n' "$scenario" "$code" "$((SECONDS - started))"
  ) 8>"$logs/output.lock"
  echo "$code" >"$logs/$scenario.code"
}

failures() { grep -Lx 0 "$logs"/*.code 2>/dev/null | xargs -rn1 basename -s .code | tr '\n' ' '; }

for scenario in "${scenarios[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$lanes" ]; do sleep 1; done
  if [ -n "$(failures)" ]; then break; fi
  run "$scenario" &
done
wait

passed=$(cat "$logs"/*.code 2>/dev/null | grep -cx 0)
failed=$(failures)
printf '\nmolecule: %d passed, %d failed' "$passed" "$(wc -w <<<"$failed")"
[ -z "$failed" ] || printf ' (%s)' "${failed% }"
printf ' of %d scenarios\n' "${#scenarios[@]}"
[ "$passed" -eq "${#scenarios[@]}" ] && [ "$passed" -gt 0 ]
