# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, in words for the person who has to mend it."""

from __future__ import annotations


class EchoError(Exception):
    """Something failed: which object, how, and what to do about it.

    ``what`` names the object and the failure in one sentence; ``remedy`` is the next step
    for a person. Extra keywords become keys of a failed module's result (JSON types only).
    """

    def __init__(self, what, remedy=None, **details):
        super(EchoError, self).__init__(what)
        self.what = what
        self.remedy = remedy
        self.details = details

    def __str__(self):
        if not self.remedy:
            return self.what
        return "%s%s %s" % (self.what, "" if self.what.endswith((".", "!", "?", ":")) else ".", self.remedy)

    def as_result(self):
        """Return the keywords for ``fail_json``: ``msg``, ``error`` (the kind), ``remedy`` and the details."""
        return dict(self.details, msg=str(self), error=type(self).__name__, remedy=self.remedy)


class EngineError(EchoError):
    """The Docker Engine can't be reached, or refused a call."""


class StackError(EchoError):
    """No Echo, several of them, or one that lacks a part which the operation needs."""


class CommandError(EngineError):
    """A command in a container ended with an error, or its stream was cut short."""


class DatabaseError(EchoError):
    """PostgreSQL refused, or what it delivered is not whole."""


class ArchiveError(EchoError):
    """A volume or folder could not be archived, or an archive is not what it claims."""


class SetError(EchoError):
    """A backup set can't be opened, published or read."""


class SpaceError(SetError):
    """There is not enough room for what is about to be written."""
