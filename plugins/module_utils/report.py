# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's Echo as ``echo_info`` shows it: the stack, its data, its backup sets."""

from __future__ import annotations

import os
import traceback

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.echo_music.ops.plugins.module_utils import stack as echo_stack
from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import list_sets
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.outcomes import read_outcomes
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import nearest

try:
    import jmespath

    JMESPATH_IMPORT_ERROR = None
except ImportError:
    JMESPATH_IMPORT_ERROR = traceback.format_exc()


def report(engine, gather, root, query=None, contents_of=None, contents_depth=1, **where):
    """Gather what is asked for, and apply the query to the whole. ``where`` goes to ``discover``."""
    expression = compiled(query)
    found = echo_stack.discover(engine, **where)
    result = dict(
        stack=echo_stack.describe(
            engine,
            found,
            sizes="sizes" in gather,
            database="database" in gather or "tables" in gather,
            tables="tables" in gather,
        )
    )
    if "backup_sets" in gather:
        result.update(backup_sets=list_sets(root), backup_space=_space(root), runs=read_outcomes(root))
    if contents_of:
        result["contents"] = echo_stack.contents(echo_stack.volume_of(found, contents_of), contents_depth)
    if expression:
        result["result"] = expression.search(result)
    return result


def _space(root):
    """Return ``{"free", "total"}`` of the file system that the root is, or would be, on."""
    status = os.statvfs(nearest(root))
    return dict(free=status.f_bavail * status.f_frsize, total=status.f_blocks * status.f_frsize)


def compiled(query):
    """Return the parsed JMESPath expression, None for no query; a wrong one fails before any work."""
    if not query:
        return None
    if JMESPATH_IMPORT_ERROR:
        raise EchoError(
            missing_required_lib("jmespath"),
            "Debian and Ubuntu have it as the package python3-jmespath.",
            exception=JMESPATH_IMPORT_ERROR,
        )
    try:
        return jmespath.compile(query)
    except jmespath.exceptions.JMESPathError as error:
        raise EchoError("The query is not JMESPath: %s." % error, "The language is explained at https://jmespath.org.")
