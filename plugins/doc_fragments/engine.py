# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that every module shares: which engine, and which Echo on it."""

from __future__ import annotations


class ModuleDocFragment:
    """``echo_music.ops.engine`` and ``echo_music.ops.engine.stack``."""

    DOCUMENTATION = r"""
options:
  docker_host:
    description:
      - The Docker Engine, as a URL such as V(unix:///var/run/docker.sock) or V(tcp://nas:2375).
      - Without it, the environment variable E(DOCKER_HOST) counts, then the local socket.
    type: str
requirements:
  - docker (Python SDK for Docker, Debian package python3-docker) >= 5.0
"""

    STACK = r"""
options:
  project:
    description:
      - The Compose project of the Echo stack. Needed only where a host runs more than one.
    type: str
  database_container:
    description:
      - Name of the PostgreSQL container, where neither Compose's labels nor the name V(echo-postgres) tell.
    type: str
  app_container:
    description:
      - Name of Echo's app container, where neither Compose's labels nor the names V(echo-app) and V(echo) tell.
    type: str
"""
