#!/usr/bin/python3
"""read_names.py FILE...: the names of the files of each mail, as readers show them.

JSON: for each mail the names by Python's email (its policies compat32 and default) and by GMime.

Copyright (c) 2026, the kliv_mail developers
"""
import email
import email.policy
import json
import sys

import gi

gi.require_version("GMime", "3.0")
from gi.repository import GMime         # noqa: E402

GMime.init()


def by_gmime(raw):
    message = GMime.Parser.new_with_stream(GMime.StreamMem.new_with_buffer(raw)).construct_message(None)
    parts = GMime.PartIter.new(message)
    while parts.is_valid():
        part = parts.get_current()
        if isinstance(part, GMime.Part) and part.get_filename():
            yield part.get_filename()
        if not parts.next():
            break


def by_email(raw, policy):
    message = email.message_from_bytes(raw, policy=policy)
    return [part.get_filename() for part in message.walk() if part.get_filename() is not None]


def names(path):
    with open(path, "rb") as file:
        raw = file.read()
    return {"GMime": list(by_gmime(raw)), "Python, compat32": by_email(raw, email.policy.compat32),
            "Python, default": by_email(raw, email.policy.default)}


print(json.dumps([names(path) for path in sys.argv[1:]]))
