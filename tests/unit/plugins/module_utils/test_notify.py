# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Alarms reach real servers over HTTP and SMTP; one that can't is a warning that quotes no secret."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import socket
import socketserver
import threading

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import notify as notify_module
from ansible_collections.echo_music.ops.plugins.module_utils.notify import BODY_LIMIT, notify

SECRET = "s3cr3t-t0ken"


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent, and answers as it is told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.answers = [], []
        self.url = "http://127.0.0.1:%d/%s" % (self.server_port, SECRET)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body.decode("utf-8")))
        code = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.server.requests.append(("GET " + self.path, {}, ""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *unused):
        pass


class MailServer(socketserver.ThreadingTCPServer):
    """As much of a mail server as a client asks for."""

    def __init__(self, offers=(), refuse=()):
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.offers, self.refuse, self.mails, self.lines = offers, refuse, [], []


class MailHandler(socketserver.StreamRequestHandler):
    def handle(self):
        self.say("220 mail.example.org")
        for line in iter(lambda: self.rfile.readline().decode().strip(), ""):
            self.server.lines.append(line)
            word = line.split()[0].upper()
            if word == "EHLO":
                self.say("250-mail.example.org\r\n250%s" % "".join("-%s\r\n250" % o for o in self.server.offers) + " HELP")
            elif word == "DATA":
                self.say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))
                self.say("250 done")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("550 no" if any(address in line for address in self.server.refuse) else "250 fine")

    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")


def served(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def receiver():
    yield from served(Receiver())


@pytest.fixture
def mail_server():
    yield from served(MailServer(refuse=["nobody@"]))


def told(targets, event="failure", **options):
    """Notify without waiting; nothing that comes back may show a secret."""
    pauses = []
    result = notify(targets, event, options.pop("operation", "backup"), "nas", pause=pauses.append, **options)
    assert SECRET not in repr(result)
    return dict(result, pauses=pauses)


def mail(port, **more):
    to = ["admin@example.org", "second@example.org"]
    return dict({"type": "mail", "host": "127.0.0.1", "port": port, "secure": "none", "from": "echo@nas", "to": to}, **more)


# -- HTTP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("event, path", [("start", "/start"), ("success", ""), ("alarm", "/fail"), ("failure", "/fail")])
def test_healthchecks(receiver, event, path):
    result = told([dict(type="healthchecks", url=receiver.url + "/")], event, text="The disk is full.", alarms=["It shrank."])
    assert result["told"] == ["healthchecks (target 1)"] and result["changed"]
    assert [(at, body) for at, unused_headers, body in receiver.requests] == [
        ("/" + SECRET + path, "The disk is full.\n- It shrank.")
    ]


def test_the_path_comes_before_the_query(receiver):
    told([dict(type="healthchecks", url=receiver.url + "?rid=1")])
    assert receiver.requests[0][0] == "/%s/fail?rid=1" % SECRET


def test_ntfy(receiver):
    told([dict(type="ntfy", url=receiver.url, token=SECRET)], text="Está lleno.", operation="café\r\nX-Bad: 1")
    path, headers, body = receiver.requests[0]
    assert (path, body) == ("/" + SECRET, "Está lleno.")
    assert headers["Authorization"] == "Bearer " + SECRET
    assert headers["Priority"] == "high" and "X-Bad" not in headers
    title = email.header.make_header(email.header.decode_header(headers["Title"]))
    assert str(title) == "Echo café X-Bad: 1 of nas: FAILED"


def test_a_webhook_gets_everything_as_json(receiver):
    target = dict(type="webhook", url=receiver.url, headers={"X-Key": SECRET})
    told([target], "alarm", text="Made.", alarms=["It shrank."], facts={"id": "backup_1"})
    unused_path, headers, body = receiver.requests[0]
    assert headers["X-Key"] == SECRET and headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "event": "alarm",
        "operation": "backup",
        "subject": "nas",
        "title": "Echo backup of nas: done, but look at it",
        "text": "Made.",
        "alarms": ["It shrank."],
        "facts": {"id": "backup_1"},
    }


@pytest.mark.parametrize(
    "kind, events",
    [
        ("healthchecks", ["start", "success", "alarm", "failure"]),
        ("ntfy", ["alarm", "failure"]),
        ("webhook", ["success", "alarm", "failure"]),
    ],
)
def test_each_kind_is_told_what_it_needs(receiver, kind, events):
    for event in notify_module.EVENTS:
        told([dict(type=kind, url=receiver.url, events=None)], event)
    assert len(receiver.requests) == len(events)
    assert [event for event in notify_module.EVENTS if told([dict(type=kind, url=receiver.url)], event)["told"]] == events


def test_a_target_says_what_it_wants_to_know(receiver):
    target = dict(type="ntfy", url=receiver.url, events=["success"])
    assert told([target], "failure")["told"] == []
    assert told([target], "success")["told"] == ["ntfy (target 1)"]
    assert receiver.requests[0][2] == "Echo backup of nas: done"


def test_a_drill_does_not_pass_for_the_backup_that_a_check_waits_for(receiver):
    check = dict(type="healthchecks", url=receiver.url)
    assert told([check], "success", operation="verify")["told"] == []
    assert told([dict(check, operations=["verify"])], "success", operation="verify")["told"] == ["healthchecks (target 1)"]
    assert told([dict(check, operations=["verify"])], "success")["told"] == []
    assert told([dict(type="webhook", url=receiver.url)], operation="verify")["told"] == ["webhook (target 1)"]


def test_what_is_too_long_is_cut_off(receiver):
    told([dict(type="healthchecks", url=receiver.url)], text="ñ" * BODY_LIMIT)
    body = receiver.requests[0][2]
    assert len(body.encode()) <= BODY_LIMIT and body.endswith("ñ\n...")


def test_a_target_that_fails_once_is_told(receiver):
    receiver.answers = [500]
    result = told([dict(type="webhook", url=receiver.url)])
    assert (result["told"], result["failures"], result["pauses"]) == (["webhook (target 1)"], [], [1])


def test_a_target_that_fails_keeps_no_other_from_being_told(receiver):
    receiver.answers = [404, 404, 404]
    result = told([dict(type="webhook", url=receiver.url), dict(type="ntfy", url=receiver.url)])
    assert result["told"] == ["ntfy (target 2)"]
    assert result["failures"] == [dict(target="webhook (target 1)", problem="it answered 404.")]
    assert result["warnings"] == ["The alarm did not reach webhook (target 1): it answered 404."]


def test_redirections_are_not_followed(receiver):
    receiver.answers = [302, 302, 302]
    result = told([dict(type="webhook", url=receiver.url, token=SECRET)])
    assert result["failures"][0]["problem"] == "it answered 302."
    assert not any(path.startswith("GET") for path, unused_headers, unused_body in receiver.requests)


@pytest.mark.parametrize(
    "url, problem",
    [
        ("file:///etc/" + SECRET, "its URL is none of http or https."),
        (SECRET, "its URL is none of http or https."),
        ("http://127.0.0.1:port/" + SECRET, "its URL or a header is not valid."),
        ("http://[" + SECRET, "its URL or a header is not valid."),
        ("http://127.0.0.1:1/" + SECRET, "Connection refused."),
    ],
)
def test_an_address_that_leads_nowhere(url, problem):
    result = told([dict(type="webhook", url=url)])
    assert [failure["problem"] for failure in result["failures"]] == [problem]
    assert not result["changed"]


def test_a_host_without_a_name():
    (failure,) = told([dict(type="webhook", url="http://%s.invalid/" % SECRET)])["failures"]
    assert failure["problem"]


def test_a_header_that_is_none(receiver):
    result = told([dict(type="webhook", url=receiver.url, headers={"X": SECRET + "\r\nY: 1"})])
    assert result["failures"][0]["problem"] == "its URL or a header is not valid."


def test_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(notify_module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (failure,) = told([dict(type="webhook", url="http://127.0.0.1:%d/" % silent.getsockname()[1])])["failures"]
    assert failure["problem"].startswith("no answer within")


def test_check_mode_says_who_would_be_told(receiver):
    result = told([dict(type="webhook", url=receiver.url), dict(type="mail", to=[])], "success", check=True)
    assert result["told"] == ["webhook (target 1)"] and receiver.requests == []


# -- mail -------------------------------------------------------------------------------------


def test_mail(mail_server):
    result = told([mail(mail_server.server_address[1])], text="Está lleno.", alarms=["It shrank."])
    assert result["failures"] == []
    (received,) = mail_server.mails
    assert received["Subject"] == "Echo backup of nas: FAILED"
    assert received["To"] == "admin@example.org, second@example.org"
    assert received["Auto-Submitted"] == "auto-generated" and received["Date"] and received["Message-ID"]
    assert received.get_content().replace("\r\n", "\n") == "Está lleno.\n- It shrank.\n"


def test_a_mail_that_one_address_refuses_is_told(mail_server):
    result = told([mail(mail_server.server_address[1], to=["admin@example.org", "nobody@example.org"])])
    assert result["failures"][0]["problem"] == "it refused 1 of the addresses."


def test_a_mail_without_a_taker(mail_server):
    result = told([mail(mail_server.server_address[1], to=["nobody@example.org"])])
    assert result["failures"][0]["problem"] == "SMTPRecipientsRefused."


def test_a_password_never_goes_in_the_open(mail_server):
    result = told([mail(mail_server.server_address[1], username="echo", password=SECRET)])
    assert "in the open" in result["failures"][0]["problem"]
    assert not any(SECRET in line or "AUTH" in line for line in mail_server.lines)


def test_a_mail_server_without_what_is_asked_of_it(mail_server):
    result = told([mail(mail_server.server_address[1], secure="starttls", username="echo", password=SECRET)])
    assert result["failures"][0]["problem"] == "it doesn't offer what is asked of it (secure: starttls)."
    assert mail_server.mails == []


def test_a_mail_server_that_is_away():
    result = told([mail(1)])
    assert result["failures"] == [dict(target="mail (target 1)", problem="Connection refused.")]
    assert result["pauses"] == [1, 3]
