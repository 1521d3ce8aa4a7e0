# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells people, and what watches for them, how an operation ended.

A target that can't be reached is told as a problem and never an exception: whoever is to be
alarmed must not keep the operation from ending as it ended. An address may be a secret as a
whole, so no problem quotes one.
"""

from __future__ import annotations

import base64
import email.message
import email.utils
import http.client
import json
import smtplib
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

START, SUCCESS, ALARM, FAILURE = EVENTS = ("start", "success", "alarm", "failure")
# What a kind of target is told unless it says otherwise.
TOLD = {
    "healthchecks": EVENTS,
    "ntfy": (ALARM, FAILURE),
    "webhook": (SUCCESS, ALARM, FAILURE),
    "mail": (ALARM, FAILURE),
}
KINDS = tuple(sorted(TOLD))
WORDS = {START: "under way", SUCCESS: "done", ALARM: "done, but look at it", FAILURE: "FAILED"}
PATHS = {START: "/start", SUCCESS: "", ALARM: "/fail", FAILURE: "/fail"}
# Healthchecks and ntfy cut off or refuse what is longer.
BODY_LIMIT = 3500
TIMEOUT = 10
PAUSES = (1, 3)


def notify(targets, event, operation, subject, text="", alarms=(), facts=None, check=False, pause=time.sleep):
    """Tell every target that wants to know of the event; return the module's result."""
    report = dict(
        event=event,
        operation=operation,
        subject=subject,
        title="Echo %s of %s: %s" % (operation, subject, WORDS[event]),
        text=text,
        alarms=list(alarms),
        facts=facts or {},
    )
    told, failures = [], []
    for number, target in enumerate(targets, 1):
        if not _wants(target, event, operation):
            continue
        name = "%s (target %d)" % (target["type"], number)
        problem = None if check else _told(target, report, pause)
        if problem:
            failures.append(dict(target=name, problem=problem))
        else:
            told.append(name)
    return dict(
        changed=bool(told),
        title=report["title"],
        told=told,
        failures=failures,
        warnings=["The alarm did not reach %(target)s: %(problem)s" % failure for failure in failures],
    )


def _wants(target, event, operation):
    """A drill that went well must not pass for the backup that a watchdog waits for."""
    operations = target.get("operations") or (["backup"] if target["type"] == "healthchecks" else None)
    return event in (target.get("events") or TOLD[target["type"]]) and (not operations or operation in operations)


def _told(target, report, pause):
    """Send, and again after a pause; return what kept the last try from working, or None."""
    send = _mail if target["type"] == "mail" else _post
    problem = None
    for wait in PAUSES + (None,):
        problem = send(target, report)
        if problem is None or wait is None:
            return problem
        pause(wait)


def text_of(report):
    """Return the text with what a person is to look at, no longer than any target takes."""
    lines = [report["text"]] if report["text"] else []
    lines += ["- " + alarm for alarm in report["alarms"]]
    encoded = "\n".join(lines).encode("utf-8", "replace")
    if len(encoded) > BODY_LIMIT:
        return encoded[: BODY_LIMIT - 4].decode("utf-8", "ignore") + "\n..."
    return encoded.decode("utf-8")


# -- HTTP -------------------------------------------------------------------------------------


def request_for(target, report):
    """Return ``(URL, headers, body)`` of what a target is sent."""
    url, headers = target["url"], dict(target.get("headers") or {})
    if target.get("token"):
        headers["Authorization"] = "Bearer " + target["token"]
    if target["type"] == "healthchecks":
        return _with_path(url, PATHS[report["event"]]), dict(headers, **PLAIN), text_of(report).encode("utf-8")
    if target["type"] == "ntfy":
        headers.update(PLAIN, Title=_header(report["title"]), Tags=TAGS[report["event"]])
        if report["event"] == FAILURE:
            headers["Priority"] = "high"
        return url, headers, (text_of(report) or report["title"]).encode("utf-8")
    headers["Content-Type"] = "application/json"
    return url, headers, json.dumps(report, sort_keys=True).encode("utf-8")


PLAIN = {"Content-Type": "text/plain; charset=utf-8"}
TAGS = {START: "hourglass", SUCCESS: "white_check_mark", ALARM: "warning", FAILURE: "rotating_light"}


def _with_path(url, path):
    """Add to the path of a URL, before its query."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def _header(text):
    """Return a header's value that any text survives, in the way of RFC 2047 where it isn't plain."""
    text = " ".join(text.split())
    if all(" " <= letter <= "~" for letter in text):
        return text
    return "=?utf-8?B?%s?=" % base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")


def _post(target, report):
    try:
        url, headers, body = request_for(target, report)
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            return "its URL is none of http or https."
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        with urllib.request.build_opener(_Straight).open(request, timeout=TIMEOUT) as answer:
            answer.read(BODY_LIMIT)
        return None
    except urllib.error.HTTPError as error:
        error.close()
        return "it answered %d." % error.code
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (ValueError, http.client.InvalidURL):
        # What urllib says of a wrong URL or header quotes it.
        return "its URL or a header is not valid."
    except Exception as error:
        return _reason(error)


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirection, which would turn the report into a question and take the token elsewhere."""

    def redirect_request(self, *unused_args, **unused_keywords):
        return None


def _reason(error):
    if isinstance(error, socket.timeout):
        return "no answer within %d s." % TIMEOUT
    if isinstance(error, OSError):
        return "%s." % (error.strerror or type(error).__name__)
    return "%s." % type(error).__name__


# -- mail -------------------------------------------------------------------------------------


def mail_for(target, report):
    """Return the mail that a target is sent."""
    mail = email.message.EmailMessage()
    mail["Subject"] = " ".join(report["title"].split())
    mail["From"] = target["from"]
    mail["To"] = ", ".join(target["to"])
    mail["Date"] = email.utils.formatdate()
    mail["Message-ID"] = email.utils.make_msgid()
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content((text_of(report) or report["title"]) + "\n")
    return mail


def _mail(target, report):
    try:
        context = ssl.create_default_context()
        secure, host = target["secure"], target["host"]
        port = target.get("port") or PORTS[secure]
        if secure == "tls":
            client = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=context)
        else:
            client = smtplib.SMTP(host, port, timeout=TIMEOUT)
        with client:
            if secure == "starttls":
                client.starttls(context=context)
            if target.get("username"):
                if secure == "none":
                    return "it has a username, whose password would go over the network in the open."
                client.login(target["username"], target.get("password") or "")
            refused = client.send_message(mail_for(target, report))
        return "it refused %d of the addresses." % len(refused) if refused else None
    except smtplib.SMTPResponseException as error:
        return "it answered %d." % error.smtp_code
    except smtplib.SMTPNotSupportedError:
        return "it doesn't offer what is asked of it (secure: %s)." % target["secure"]
    except Exception as error:
        return _reason(error)


PORTS = {"starttls": 587, "tls": 465, "none": 25}
