# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Echo's tables by what they hold, as both layouts name them."""

from __future__ import annotations

# What people made. Nobody can bring it back.
USER_TABLES = (
    "users",
    "playlists",
    "playlist_tracks",
    "user_ratings",
    "play_history",
    "user_play_stats",
    "play_queue",
    "bookmarks",
    "shares",
    "radio_stations",
)
# Of these what comes and goes as they are used.
TRANSIENT_TABLES = ("play_queue",)
# What a scan of the music folder makes anew.
LIBRARY_TABLES = ("artists", "albums", "tracks")
