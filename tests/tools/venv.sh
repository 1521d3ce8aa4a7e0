#!/usr/bin/env bash
# The virtual environment .venv with what requirements-dev.txt pins.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed. Install one and name it: make venv PYTHON=python3.12" >&2
  exit 1
fi

create() { "$python" -m venv --clear .venv; }

# Debian keeps what `-m venv` needs in a package of its own.
if [ ! -x .venv/bin/pip ] && ! create >/dev/null 2>&1; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "$python can't make virtual environments. Install that part, for example: sudo apt-get install python3-venv" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o Acquire::Retries=5 update -qq
  apt-get -o Acquire::Retries=5 install -y -qq --no-install-recommends python3-venv >/dev/null
  create
fi

.venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
