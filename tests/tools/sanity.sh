#!/usr/bin/env bash
# ansible-test sanity on a copy of what git would take: it refuses a tree that it reaches through a link,
# and wants …/ansible_collections/echo_music/ops with a repository of its own.
set -euo pipefail
# shellcheck source=tests/tools/env.sh
. "$(dirname "$0")/env.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/echo_music.ops/sanity/$(printf %s "$PWD" | sha256sum | cut -c1-12)
tree=$cache/ansible_collections
copy=$tree/echo_music/ops
python_version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Only tests/output stays from one run to the next: it has the virtual environments.
mkdir -p "$copy/tests/output" "$tree/community"
find "$copy" -mindepth 1 -maxdepth 1 ! -name tests -exec rm -rf {} +
find "$copy/tests" -mindepth 1 -maxdepth 1 ! -name output -exec rm -rf {} +
git ls-files --cached --others --exclude-standard --deduplicate -z \
  | while IFS= read -r -d '' file; do if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi; done \
  | tar --create --null --files-from=- | tar --extract --directory "$copy"
git -C "$copy" init --quiet
ln -sfn "$(python -c 'import ansible_collections, os; print(os.path.abspath(list(ansible_collections.__path__)[0]))')/community/docker" \
  "$tree/community/docker"

# ansible-test loads a script that puts pip into its environments. Where that bootstrap script can't be
# downloaded, Python's own ensurepip does the same; a process of its own keeps TLS settings intact.
bootstrap() {
  local script=$HOME/.ansible/test/cache/get_pip_24_2.py
  local url=https://ci-files.testing.ansible.com/ansible-test/get-pip-24.2.py
  if [ -e "$script" ] || python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' "$url" 2>/dev/null; then
    return
  fi
  mkdir -p "$(dirname "$script")"
  cat >"$script" <<'PYTHON'
import subprocess, sys
subprocess.check_call([sys.executable, "-m", "ensurepip"], stdout=subprocess.DEVNULL)
args = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "-q", *args]))
PYTHON
}

bootstrap
cd "$copy"
exec ansible-test sanity --venv --python "$python_version" --color yes "$@"
