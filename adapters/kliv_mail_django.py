"""kliv_mail_django: Django's mail through kliv_mail, in the transaction that sends it.

    EMAIL_BACKEND = "kliv_mail_django.EmailBackend"
    KLIV_MAIL_DATABASE = "default"      # the alias of the database that sends

A mail, a password reset's included, is queued when the transaction commits, and
never when it rolls back. What send() knows and EmailMessage does not goes into an
attribute of the message: message.kliv_mail = {"idempotency_key": "welcome-41"}.

Copyright (c) 2026, the kliv_mail developers
"""
import base64
import json
import mimetypes

from django.conf import settings
from django.core.mail.backends.base import BaseEmailBackend
from django.db import DatabaseError, connections, transaction

# Django's default for DEFAULT_FROM_EMAIL: nobody has said who sends.
NOBODY = "webmaster@localhost"


class EmailBackend(BaseEmailBackend):
    def __init__(self, fail_silently=False, using=None, **kwargs):
        super().__init__(fail_silently=fail_silently, **kwargs)
        self.using = using or getattr(settings, "KLIV_MAIL_DATABASE", "default")

    def send_messages(self, email_messages):
        return sum(self._send(message) for message in email_messages if message.recipients())

    def _send(self, message):
        if not self.fail_silently:
            return self._queue(message)
        try:
            # A savepoint, since an error would end the caller's transaction.
            with transaction.atomic(using=self.using):
                return self._queue(message)
        except (DatabaseError, ValueError):
            return 0

    def _queue(self, message):
        with connections[self.using].cursor() as cursor:
            cursor.execute("SELECT kliv_mail.send(%s::jsonb)", [json.dumps(mail_of(message))])
        return 1


def mail_of(message):
    """What send() takes, of a django.core.mail.EmailMessage."""
    headers = {str(name): str(value) for name, value in message.extra_headers.items()}
    own = {name.lower(): headers.pop(name) for name in list(headers) if name.lower() in ("from", "reply-to")}
    sender = own.get("from", str(message.from_email))
    mail = {
        "to": [str(address) for address in message.to],
        "cc": [str(address) for address in message.cc],
        "bcc": [str(address) for address in message.bcc],
        "reply_to": own.get("reply-to") or [str(address) for address in message.reply_to],
        "subject": str(message.subject),
        "html" if message.content_subtype == "html" else "text": str(message.body or ""),
        "headers": headers,
        "attachments": [file_of(attachment) for attachment in message.attachments],
    }
    if sender != NOBODY:
        mail["from"] = sender
    if message.content_subtype not in ("plain", "html"):
        raise ValueError(f"kliv_mail sends no body of type text/{message.content_subtype}")
    for content, mimetype in getattr(message, "alternatives", None) or []:
        if mimetype != "text/html" or "html" in mail:
            raise ValueError(f"kliv_mail sends one alternative, of type text/html, and not this one of type {mimetype}")
        mail["html"] = str(content)
    if "html" in mail and not mail.get("text"):
        mail.pop("text", None)      # it is made of the HTML
    mail.update(getattr(message, "kliv_mail", {}))
    return mail


def file_of(attachment):
    """A file for send(), of a tuple of EmailMessage.attach() or a part of Python's email package."""
    if isinstance(attachment, tuple):
        filename, content, mimetype = attachment
        file = {"filename": filename, "content_type": mimetype}
    else:
        file = {"filename": attachment.get_filename(), "content_type": attachment.get_content_type()}
        content = attachment.get_payload(decode=True)
        if content is None:
            raise ValueError(f"kliv_mail attaches no part of type {attachment.get_content_type()}")
        charset = attachment.get_content_charset()
        if charset and file["content_type"].startswith("text/"):
            file["content_type"] += f"; charset={charset}"
        if attachment["Content-ID"]:
            file["content_id"] = attachment["Content-ID"].strip("<> ")
    if not file["filename"]:
        file["filename"] = "attachment" + (mimetypes.guess_extension(file["content_type"] or "") or ".bin")
    if isinstance(content, str):
        if (file["content_type"] or "text/").startswith("text/"):
            return {**file, "text": content}
        content = content.encode()
    elif not isinstance(content, (bytes, bytearray, memoryview)):
        content = content.message().as_bytes() if hasattr(content, "message") else content.as_bytes()
    return {**file, "content": base64.b64encode(content).decode()}
