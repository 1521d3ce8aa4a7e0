#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_volume_backup
short_description: Archive one volume or folder of an Echo stack
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Writes one Docker volume, or one bind-mounted folder, to one tar archive, in a single pass and with flat memory.
  - Members are named C(./…) and keep numeric owner, mode, time in full precision, hard links, symbolic links, holes,
    extended attributes and ACLs. C(tar tzf) of GNU tar and of busybox reads the result.
  - The archive is written as C(DEST.partial), made durable and then renamed. O(dest) is therefore whole or, after a
    failure, what it was before. Its mode is 0600.
  - Files that change or vanish while they are read cause the archive to be made anew, O(retries) times; those that
    still do so are listed in RV(changed_files). Each run writes the archive, so RV(ignore:changed) is always V(true).
options:
  volume:
    description:
      - Name of the Docker volume.
      - Exactly one of O(volume) and O(path) is required.
    type: str
  path:
    description:
      - Absolute folder on the host of the Docker Engine, such as a bind mount.
    type: path
  mountpoint:
    description:
      - Where the files of O(volume) lie on the host of the Docker Engine, as M(echo_music.ops.echo_info) tells it
        (C(source)). The engine is asked nothing then, unless the files can only be read through it.
    type: path
  dest:
    description:
      - The archive, on the host where the module runs, or an existing folder for it.
      - In a folder the file is named after O(component), else O(volume), else the last part of O(path), and the
        codec, for example C(uploads.tar.gz).
      - It must not lie in the folder that is archived.
    type: path
    required: true
  component:
    description:
      - Role of the data in a backup set, such as V(uploads), V(config) or V(data).
    type: str
  codec:
    description:
      - V(gzip) stores blocks that don't compress, as those of covers and music, and compresses the others fast.
        With the Python library isal it takes a quarter of the CPU time that it takes with Python's own zlib.
      - V(zstd) needs the Python library zstandard.
      - V(none) leaves the tar stream as it is.
    type: str
    choices: [gzip, zstd, none]
    default: gzip
  exclude:
    description:
      - Patterns of what to leave out, relative to the root of the volume, where matching starts.
      - The signs V(*), V(?) and V([…]) match as in a shell, but V(*) and V(?) match a C(/) too.
        V(cache) leaves out C(cache) at the root with all that is in it, but not C(covers/cache); V(*.log) leaves out
        every file that ends so, at any depth.
      - What a restore keeps of the data it replaced (C(.echo-restore-*) at the root) is left out in any case.
    type: list
    elements: str
    default: []
  after_snapshot:
    description:
      - Begin only when this file exists. M(echo_music.ops.echo_pg_dump) writes it as soon as the snapshot of the
        database stands, so that the volume then holds every file that the dump speaks of.
      - Fails at once if the dump wrote there that it failed.
    type: path
  snapshot_timeout:
    description:
      - How many seconds to wait for O(after_snapshot).
    type: int
    default: 120
  retries:
    description:
      - How many times to make the archive anew when files change while they are read.
    type: int
    default: 2
  forerunner:
    description:
      - An earlier set, the folder that has its C(manifest.json). If no file of the volume changed since that set's
        archive of the same name was made, it becomes O(dest) by a hard link, and nothing is read or written.
      - A volume is known again by a fingerprint of the names, inodes, sizes and times of change of all its files and
        folders, with the codec and O(exclude). It is recorded in RV(artifact.fingerprint).
      - The archive is written as ever where the volume is not on a file system of this machine, where something is
        mounted in it, where no link can be made, where the earlier archive is not the file that its manifest tells
        of, and where the set's last verification failed.
      - Sets that share an archive can be deleted one by one. They have one copy of it on the disk, though.
    type: path
  rehash:
    description:
      - Read the archive of O(forerunner) and compare its SHA-256 with the manifest before it is used again. A damaged
        one is told in a warning, and a new one is written.
    type: bool
    default: false
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.progress
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Counts the bytes and files that would be archived and writes nothing.
  diff_mode:
    support: none
    details: Archives are not compared.
  platform:
    platforms: posix
requirements:
  - GNU tar 1.28 or later, for everything but the Engine API's way
  - isal (optional, Debian package python3-isal), for speed
  - zstandard (for O(codec=zstd), Debian package python3-zstandard) >= 0.20
notes:
  - A volume is read at its mount point where the module runs as root on the engine's own host; so is a folder, without
    root only if no container mounts it, for containers write as other users. Otherwise the data comes through the Engine API out of a container that
    mounts it, running or not. The engine leaves out fractions of seconds, extended attributes, ACLs, holes and
    sockets, and its way takes several times as long.
  - Sockets, named pipes and devices are not archived; they are listed in RV(skipped).
  - Files with holes are stored in the GNU sparse format 1.0, which GNU tar, bsdtar and Python restore. busybox lists
    them but can't extract them.
seealso:
  - module: echo_music.ops.echo_pg_dump
  - module: echo_music.ops.echo_backup_set
"""

EXAMPLES = r"""
# At once, for all Echo hosts:
# ansible echo -m echo_music.ops.echo_volume_backup -a 'volume=echo-uploads dest=/root/echo-uploads.tar.gz'

- name: Archive the covers, without thumbnails
  echo_music.ops.echo_volume_backup:
    volume: echo-uploads
    component: uploads
    dest: /var/backups/echo/
    exclude:
      - covers/thumbnails

- name: Archive a bind-mounted data folder once the database snapshot stands
  echo_music.ops.echo_volume_backup:
    path: /srv/echo/data
    component: data
    dest: /var/backups/echo/.backup_2026-11-24_03-00-00.partial/
    codec: zstd
    after_snapshot: /var/backups/echo/.backup_2026-11-24_03-00-00.partial/.snapshot.json

- name: Archive the covers, or use the last set's archive again if none changed
  echo_music.ops.echo_volume_backup:
    volume: echo-uploads
    component: uploads
    dest: /var/backups/echo/.backup_2026-11-25_03-00-00.partial/
    forerunner: /var/backups/echo/latest
"""

RETURN = r"""
dest:
  description: The archive.
  returned: success
  type: str
  sample: /root/echo-uploads.tar.gz
source:
  description: The volume's name, or the folder.
  returned: success
  type: str
  sample: echo-uploads
method:
  description: V(mount) if the files were read where they lie, V(api) if the Engine API delivered them.
  returned: success
  type: str
  sample: mount
artifact:
  description: What was written, as M(echo_music.ops.echo_backup_set) takes it.
  returned: when the archive was written
  type: dict
  contains:
    role:
      description: O(component), else the name of the volume or folder.
      type: str
    file:
      description: Name of the archive without its folder.
      type: str
    source:
      description: The volume's name, or the folder.
      type: str
    bytes_in:
      description: Size of the tar stream before it was packed.
      type: int
    bytes_out:
      description: Size of the archive.
      type: int
    members:
      description: Number of files, folders and links in it.
      type: int
    codec:
      description: How it is packed.
      type: str
    sha256:
      description: SHA-256 of the archive.
      type: str
    seconds:
      description: How long it took.
      type: float
    fingerprint:
      description:
        - What the volume's files are known by, V(null) where that can't be told, or where something changed within
          the last two seconds before the archive was begun or while it was made.
      type: str
    reused:
      description: The set whose archive was used again, V(null) if this one was written.
      type: str
  sample:
    role: uploads
    file: uploads.tar.gz
    source: echo-uploads
    bytes_in: 1132593152
    bytes_out: 1076171996
    members: 20448
    codec: gzip
    sha256: cc1c2c0bd107a2275c2a0166b800504e7474c9ae6825e20ef0b8e1ef6e37fa3c
    seconds: 2.122
    fingerprint: f02bade1ef8b63a18b23276114e94ad90f4052ddab4fed42bceb24f4b22b1b02
    reused: null
reused:
  description: Whether the archive of O(forerunner) was used again, or would be in check mode.
  returned: success
  type: bool
  sample: true
bytes_written:
  description: What was written to the disk, V(0) for an archive that was used again.
  returned: when the archive was written
  type: int
  sample: 0
skipped:
  description: Sockets, named pipes and devices, which are not archived.
  returned: success
  type: list
  elements: dict
  sample:
    - name: run/app.sock
      type: socket
      reason: A socket holds no data and is not archived.
changed_files:
  description: Files that changed or vanished while they were read, in the last pass too. Their contents may be mixed.
  returned: when the archive was written
  type: list
  elements: str
  sample: [logs/app.log]
bytes:
  description: Size of the files that would be archived. Unknown (null) if only the Engine API can read them.
  returned: in check mode
  type: int
  sample: 1086324736
files:
  description: Number of files that would be archived. Unknown (null) if only the Engine API can read them.
  returned: in check mode
  type: int
  sample: 20346
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: SpaceError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Make room in /root.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.archive import back_up
from ansible_collections.echo_music.ops.plugins.module_utils.codec import SUFFIXES
from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError


ARGUMENTS = dict(
    volume=dict(type="str"),
    path=dict(type="path"),
    mountpoint=dict(type="path"),
    dest=dict(type="path", required=True),
    component=dict(type="str"),
    codec=dict(type="str", choices=list(SUFFIXES), default="gzip"),
    exclude=dict(type="list", elements="str", default=[]),
    after_snapshot=dict(type="path"),
    snapshot_timeout=dict(type="int", default=120),
    retries=dict(type="int", default=2),
    forerunner=dict(type="path"),
    rehash=dict(type="bool", default=False),
    **ENGINE_ARGUMENTS,
)


def main():
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_one_of=[("volume", "path")],
        mutually_exclusive=[("volume", "path")],
        required_by=dict(mountpoint="volume"),
        supports_check_mode=True,
    )
    try:
        result = back_up(Engine(module.params.pop("docker_host")), check_mode=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
