#!/usr/bin/env bash
# The Debian mirror that this machine's own apt uses, from deb822 files and one-line lists.
set -euo pipefail
shopt -s nullglob

files=(/etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list)
found=''
if [ ${#files[@]} -gt 0 ]; then
  found=$(awk '
    found { next }
    /^URIs:/ || /^deb[ \t]/ {
      for (i = 2; i <= NF; i++) if (!found && $i ~ /^https?:.*\/debian\/?$/) found = $i
    }
    END { print found }' "${files[@]}" 2>/dev/null || true)
fi
echo "${found:-http://deb.debian.org/debian}"
