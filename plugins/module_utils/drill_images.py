# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images of this host a drill uses: those of the set, or such as fit. None is ever pulled."""

from __future__ import annotations

import re

from ansible_collections.echo_music.ops.plugins.module_utils.errors import StackError

# The official image of PostgreSQL, and those made after it, tell their release this way.
MAJOR = "PG_MAJOR"
NUMBER = re.compile(r"\d+")
# Proposed for a dump that doesn't tell its release.
NEWEST = 17


def server_image(engine, needed, recorded=None, live=None, version=None, reference=None):
    """Return the image of the PostgreSQL that a dump of the release ``needed`` is read with.

    ``recorded`` is what the manifest says of the database's image, ``live`` the live
    stack's database container; both may be None. ``version``, a major release, or
    ``reference`` choose another one. Raises ``StackError`` where no image fits.
    """
    if version and version < needed:
        raise StackError(
            "A dump of PostgreSQL %d can't be loaded into PostgreSQL %d." % (needed, version),
            "Choose %d or newer, or leave server_version out." % needed,
        )
    if reference:
        surely, others = [engine.image(reference)], []
        if surely[0] is None:
            raise StackError("There is no image %s on this host." % reference, "'docker pull %s' brings it." % reference)
    else:
        surely, others = _known(engine, recorded, live), sorted(engine.images(), key=lambda image: major_of(image) or 0)
    fitting = [image for image in surely if _fits(image, needed, version, unknown=not version)]
    fitting += [image for image in others if _fits(image, needed, version, unknown=False)]
    exact = [image for image in fitting if major_of(image) in (None, version or needed)]
    if fitting:
        return (exact or fitting)[0]
    majors = sorted(set(filter(None, map(major_of, surely + others))))
    raise StackError(
        "There is no image of PostgreSQL %d%s on this host; there are those of: %s."
        % (version or needed, "" if version else " or newer", ", ".join(map(str, majors)) or "none"),
        "'docker pull postgres:%d-alpine' brings one; server_image names one that doesn't tell its release."
        % (version or needed or NEWEST),
        releases=majors,
    )


def recorded_image(engine, recorded, live=None):
    """Return the image that a manifest tells of, or that the live container has; None if neither is here."""
    known = _known(engine, recorded, live)
    return known[0] if known else None


def named(image, known_as=None):
    """Return how to speak of an image, of whose names ``known_as`` may be one."""
    names = image["tags"] + image["digests"]
    return known_as if known_as in names else next(iter(names), image["id"])


def major_of(image):
    """Return the major release of PostgreSQL in an image, None where it doesn't tell."""
    number = NUMBER.match(image["env"].get(MAJOR, ""))
    return int(number.group()) if number else None


def _known(engine, recorded, live):
    """The images that the set or the live stack speaks of, the surest first."""
    names = []
    if recorded:
        # By content first: a tag may have moved on to another release.
        names += list(recorded["digests"]) + [recorded["image_id"], recorded["image"]]
    if live:
        names.append(live["image_id"])
    return [image for image in map(engine.image, dict.fromkeys(names)) if image]


def _fits(image, needed, version, unknown):
    """Tell whether an image serves; ``unknown`` is the answer for one that doesn't tell its release."""
    major = major_of(image)
    if major is None:
        return unknown
    return major == version if version else major >= needed
