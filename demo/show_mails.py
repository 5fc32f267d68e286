#!/usr/bin/python3
"""show_mails.py FOLDER COUNT: wait until the maildir FOLDER holds COUNT mails and
print them: the first as it came, every one as a mail program shows it.

Copyright (c) 2026, the kliv_mail developers
"""
import email
import email.policy
import mailbox
import os
import sys
import time


def main(folder, count):
    box = mailbox.Maildir(folder, create=False)
    end = time.monotonic() + 60
    while len(box) < count:
        if time.monotonic() > end:
            sys.exit(f"only {len(box)} of {count} mails arrived")
        time.sleep(0.05)
    keys = sorted(box.keys(), key=lambda key: os.stat(os.path.join(folder, "new", key)).st_mtime_ns)
    mails = [box.get_bytes(key) for key in keys]
    print("-- the first one, byte for byte")
    print(mails[0].decode(), end="")
    print("-- as a mail program shows them")
    for mail in mails:
        message = email.message_from_bytes(mail, policy=email.policy.default)
        for name in ("From", "To", "Subject"):
            print(f"{name}: {message[name]}")
        print(f"\n{message.get_body(('plain',)).get_content()}")


main(sys.argv[1], int(sys.argv[2]))
