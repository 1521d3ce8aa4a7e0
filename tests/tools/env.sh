# shellcheck shell=bash
# Sourced by the scripts beside it: into the checkout, with its virtual environment and its collections.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_HOME="$PWD/.ansible"

title() { printf '\n== %s\n' "$*"; }
