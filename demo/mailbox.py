#!/usr/bin/python3
"""mailbox.py MAILDIR COUNT: wait for so many mails and print them, decoded.

Copyright (c) 2026, the kliv_mail developers
"""
import email
import email.policy
import pathlib
import sys
import time

SHOWN = ("From", "To", "Subject", "Date", "Message-ID")


def mails(folder, count):
    end = time.monotonic() + 30
    while True:
        files = sorted(folder.glob("new/*"), key=lambda file: file.stat().st_mtime_ns)
        if len(files) >= count:
            return files
        if time.monotonic() > end:
            sys.exit(f"{len(files)} mails arrived, not {count}")
        time.sleep(0.05)


def main():
    for file in mails(pathlib.Path(sys.argv[1]), int(sys.argv[2])):
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        lines = [f"{name}: {message[name]}" for name in SHOWN]
        received = " ".join(message["Received"].split())
        lines += [f"Received: {received}", ""]
        lines += message.get_body(("plain",)).get_content().rstrip().splitlines()
        print("\n".join("    | " + line for line in lines), end="\n\n")


main()
