# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small edits of a user's Compose file and ``.env``: the image of a service, the name of a volume.

The text is edited, not a parsed tree, so that comments, order and quoting stay as people wrote
them, and the next ``docker compose up`` by hand starts what the upgrade started. Compose itself
is asked afterwards what it makes of the result. What isn't understood is refused.
"""

from __future__ import annotations

import re

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError

KEY = re.compile(r"(?P<indent> *)(?P<quote>['\"]?)(?P<key>[^\s'\"#:][^'\":]*)(?P=quote)\s*:(?P<value>\s.*|)\Z")
SCALAR = re.compile(r"(?P<space>\s*)(?P<quote>['\"]?)(?P<text>.*?)(?P=quote)(?P<rest>\s+#.*|\s*)\Z")
VARIABLE = re.compile(r"\$(?:\{(?P<name>\w+)(?::?[-?+][^{}]*)?\}|(?P<bare>\w+))\Z")
BRACED = re.compile(r"\$\{[^{}]*\}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")


class ComposeFileError(EchoError):
    """A Compose file is written in a way that can't be edited safely."""


def is_digest(version):
    """Tell whether a version is an image's digest rather than a tag."""
    return bool(DIGEST.match(version))


def image_of(text, service):
    """Return a service's image as it is written in a Compose file, None if there is none in this file."""
    lines = text.split("\n")
    found = _find(lines, "services", service, "image")
    return None if found is None else _scalar(lines[found]).group("text")


def set_image(text, service, version, current):
    """Return ``(text, variables)`` with another version of a service's image.

    A version that stands in a variable is set there (``variables`` maps it to its new value),
    otherwise in the text. ``current`` is the reference that Compose makes of it now.
    """
    if not is_digest(version) and not TAG.match(version):
        raise ComposeFileError("%.80r is neither a tag nor a digest of an image." % version, "Digests start with sha256:.")
    lines = text.split("\n")
    found = _find(lines, "services", service, "image")
    if found is None:
        raise ComposeFileError("The service %s has no image in this Compose file." % service)
    written = _scalar(lines[found]).group("text")
    name, tag = split_reference(written)
    variable = _variable(written)
    if variable:
        return text, {variable: with_version(split_reference(current)[0], version)}
    variable = _variable(tag[1:])
    if variable and tag.startswith(":"):
        # A digest after a tag is a whole reference: the digest alone counts.
        old = split_reference(current)[1].partition("@")[0].lstrip(":") or "latest"
        return text, {variable: "%s@%s" % (old, version) if is_digest(version) else version}
    lines[found] = _with_scalar(lines[found], with_version(name, version))
    return "\n".join(lines), {}


def with_version(name, version):
    """Return the reference of an image's version."""
    return "%s%s%s" % (name, "@" if is_digest(version) else ":", version)


def split_reference(reference):
    """Split an image reference into its name and ``:tag``, ``@digest`` or both; variables count as text."""
    # Same length, so that the places stay.
    plain = BRACED.sub(lambda match: "_" * len(match.group()), reference)
    at = plain.find("@")
    end = len(plain) if at < 0 else at
    colon = plain.rfind(":", plain.rfind("/", 0, end) + 1, end)
    cut = colon if colon >= 0 else end
    return reference[:cut], reference[cut:]


def set_variables(text, variables):
    """Return the text of a ``.env`` with other values for variables; one that isn't there is added."""
    lines = text.split("\n")
    for name, value in sorted(variables.items()):
        assignment = re.compile(r"(\s*(?:export\s+)?%s\s*=).*\Z" % re.escape(name))
        matches = [index for index, line in enumerate(lines) if assignment.match(line)]
        for index in matches:
            lines[index] = assignment.match(lines[index]).group(1) + value
        if not matches:
            if lines and not lines[-1]:
                lines.pop()
            lines += ["%s=%s" % (name, value), ""]
    return "\n".join(lines)


def rename_volume(text, volume, name):
    """Return the text with another name for a volume of the file's own section of volumes."""
    lines = text.split("\n")
    found = _find(lines, "volumes", volume)
    if found is None:
        raise ComposeFileError("The volume %s is not declared in this Compose file." % volume)
    match = KEY.match(lines[found])
    if _scalar(lines[found]).group("text"):
        raise ComposeFileError(
            "The volume %s is declared in one line." % volume, "Write its keys below it, one per line, then try again."
        )
    if _find(lines, "volumes", volume, "external") is not None:
        raise ComposeFileError("The volume %s is external." % volume, "Declare another one, by hand.")
    named = _find(lines, "volumes", volume, "name")
    if named is not None:
        lines[named] = _with_scalar(lines[named], name)
    else:
        lines.insert(found + 1, "%s  name: %s" % (match.group("indent"), name))
    return "\n".join(lines)


def _variable(text):
    """Return the name of the variable if the text is one, and nothing else."""
    match = VARIABLE.match(text)
    return match and (match.group("name") or match.group("bare"))


def _find(lines, *path):
    """Return the number of the line with a key, by the keys above it; None if it isn't there."""
    begin, end, found = 0, len(lines), None
    for key in path:
        found = _child(lines, begin, end, key, top=begin == 0)
        if found is None:
            return None
        begin, end = found + 1, _end_of(lines, found, end)
    return found


def _child(lines, begin, end, key, top):
    indent = 0 if top else None
    for index in range(begin, end):
        match = KEY.match(lines[index].rstrip("\r"))
        if not lines[index].strip() or lines[index].lstrip().startswith("#"):
            continue
        if "\t" in lines[index][: len(lines[index]) - len(lines[index].lstrip())]:
            raise ComposeFileError("Line %d is indented by a tab." % (index + 1), "YAML wants blanks.")
        if indent is None:
            indent = len(lines[index]) - len(lines[index].lstrip())
        if match and len(match.group("indent")) == indent and match.group("key").strip() == key:
            return index
    return None


def _end_of(lines, start, end):
    """Return the number of the first line after the block of a key."""
    indent = len(KEY.match(lines[start].rstrip("\r")).group("indent"))
    for index in range(start + 1, end):
        line = lines[index]
        if line.strip() and not line.lstrip().startswith("#") and len(line) - len(line.lstrip()) <= indent:
            return index
    return end


def _scalar(line):
    match = SCALAR.match(KEY.match(line.rstrip("\r")).group("value"))
    if match.group("text")[:1] in ("*", "&", "|", ">", "{", "[", "!"):
        raise ComposeFileError(
            "This is not a plain value: %s" % line.strip(), "Write it plainly on one line, then try again."
        )
    return match


def _with_scalar(line, value):
    ending = "\r" if line.endswith("\r") else ""
    line = line.rstrip("\r")
    scalar = _scalar(line)
    kept = line[: len(line) - len(KEY.match(line).group("value"))]
    quote = scalar.group("quote")
    return kept + (scalar.group("space") or " ") + quote + value + quote + scalar.group("rest") + ending
