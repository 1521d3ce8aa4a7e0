# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a text in the place of another in a file of any kind, which keeps its size: FILE OLD NEW."""

from __future__ import annotations

import sys

path, old, new = sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode()
with open(path, "rb") as source:
    content = source.read()
if content.count(old) != 1 or len(new) > len(old):
    sys.exit("%s is not there once, or the new text is longer." % old)
with open(path, "wb") as target:
    target.write(content.replace(old, new.ljust(len(old))))
