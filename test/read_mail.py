#!/usr/bin/python3
"""read_mail.py: what a mail on standard input says, as JSON, by Python's email.

Copyright (c) 2026, the kliv_mail developers
"""
import email
import email.policy
import hashlib
import json
import sys


def main():
    message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
    for part in message.walk():
        if part.defects:
            sys.exit(f"defects: {part.defects}")

    def mailbox(address):
        return [address.display_name, address.addr_spec]

    def body(kind):
        part = message.get_body((kind,))
        return part.get_payload(decode=True).decode(part.get_content_charset("us-ascii")) if part else None

    files = []
    for part in message.walk():
        name = part.get_filename()
        if name is not None:
            content_id = (part["Content-ID"] or "").strip("<>")
            digest = hashlib.sha256(part.get_payload(decode=True)).hexdigest()
            files.append([name, part.get_content_type(), content_id, digest])
    print(json.dumps({
        "subject": message["Subject"],
        "from": mailbox(message["From"].addresses[0]),
        "to": [mailbox(address) for address in message["To"].addresses],
        "text": body("plain"),
        "html": body("html"),
        "files": files,
    }))


main()
