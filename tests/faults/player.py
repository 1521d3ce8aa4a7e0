# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that plays music all the time, at an Echo's old address and then at its new one, and remembers what it was promised.

    python tests/faults/player.py --host root@172.29.5.11:4567 --host root@172.29.5.21:4567 --key KEY --stop FILE --out FILE

An app listens on its host's own address only, so the way there is SSH's port forwarding. A play counts as acknowledged
with its 201 and id; one whose answer was lost may have been written or not. A host that doesn't answer is left for the
next, as a client does that follows a change of addresses. Ends when the stop file is there.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
import uuid

USER = "ana"
TRACKS = 500
PAUSE = 0.05
FIRST_PORT = 21000


class Host:
    """An Echo behind a forwarded port."""

    def __init__(self, place, key, number):
        self.login, port = place.rsplit(":", 1)
        self.port = FIRST_PORT + os.getpid() % 10000 * 2 + number
        self.forward = ["ssh", "-N", "-i", key, "-L", "127.0.0.1:%d:127.0.0.1:%s" % (self.port, port)]
        for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"):
            self.forward += ["-o", option]
        for option in ("ServerAliveInterval=3", "ServerAliveCountMax=2", "ExitOnForwardFailure=yes", "BatchMode=yes"):
            self.forward += ["-o", option]
        self.ssh = None

    def play(self, track):
        """Return the id of the play; raise ``Refused`` if it surely wasn't written, ``OSError`` if that isn't known."""
        self.connect()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            try:
                connection.connect()
            except OSError as error:
                raise Refused(str(error))
            try:
                connection.request("POST", "/api/plays", json.dumps({"user": USER, "track": track}))
                answer = connection.getresponse()
                content = json.loads(answer.read())
            except (http.client.HTTPException, ValueError) as error:
                raise OSError(str(error))
            if answer.status != 201:
                raise Refused("%d: %s" % (answer.status, content))
            return content["id"]

    def connect(self):
        if self.ssh and self.ssh.poll() is None:
            return
        self.ssh = subprocess.Popen(self.forward + [self.login], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for unused in range(50):
            with contextlib.suppress(OSError), contextlib.closing(socket.create_connection(("127.0.0.1", self.port), 1)):
                return
            if self.ssh.poll() is not None:
                raise Refused("no way there")
            time.sleep(0.1)

    def close(self):
        if self.ssh:
            self.ssh.terminate()
            self.ssh.wait()


class Refused(Exception):
    """The play was not written."""


def play(places, key, stop, out):
    """Play until the stop file is there; write and return what was promised."""
    hosts = [Host(place, key, number) for number, place in enumerate(places)]
    told = dict(acknowledged=[], unknown=0, refused=0, by_host=[0] * len(hosts), longest_silence=0.0)
    here, last = 0, time.monotonic()
    try:
        while not os.path.exists(stop):
            track = str(uuid.uuid5(uuid.NAMESPACE_URL, "echo/track/%d" % (len(told["acknowledged"]) % TRACKS)))
            try:
                told["acknowledged"].append(hosts[here].play(track))
                told["by_host"][here] += 1
                told["longest_silence"] = max(told["longest_silence"], time.monotonic() - last)
                last = time.monotonic()
            except Refused:
                told["refused"] += 1
                here = (here + 1) % len(hosts)
            except OSError:
                told["unknown"] += 1
                here = (here + 1) % len(hosts)
            time.sleep(PAUSE)
    finally:
        for host in hosts:
            host.close()
        with open(out, "w", encoding="utf-8") as file:
            json.dump(told, file)
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="append", required=True, dest="places", metavar="LOGIN@HOST:PORT")
    parser.add_argument("--key", required=True)
    parser.add_argument("--stop", required=True)
    parser.add_argument("--out", required=True)
    play(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
