#!/usr/bin/python3
"""django_mail.py HOST PORT USER: Django's own mail through adapters/kliv_mail_django.py.

Password resets by Django's view, in requests that commit and in one that fails; a
message with everything; and one that fails silently inside a transaction.

Copyright (c) 2026, the kliv_mail developers
"""
import email.mime.image
import email.mime.text
import os
import sys

import django
from django.conf import settings

host, port, user = sys.argv[1:4]
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(here, "..", "..", "adapters"), here]
settings.configure(
    SECRET_KEY="of the tests",
    DEBUG=False,
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF="django_urls",
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
                    "django.contrib.messages", "django.contrib.admin"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "HOST": host, "PORT": port,
                           "USER": user, "ATOMIC_REQUESTS": True}},
    EMAIL_BACKEND="kliv_mail_django.EmailBackend",
)
django.setup()

from django.contrib.auth.models import User                                         # noqa: E402
from django.core import mail                                                        # noqa: E402
from django.core.management import call_command                                     # noqa: E402
from django.db import transaction                                                   # noqa: E402
from django.test import Client                                                      # noqa: E402

call_command("migrate", verbosity=0, skip_checks=True)
for name in ("kept", "lost"):
    User.objects.create_user(name, f"django-{name}@example.com", "the old one")

# ---- the password reset ----

client = Client(raise_request_exception=False)
for name, path, status in (("kept", "/reset/", 302), ("lost", "/reset-and-fail/", 500)):
    response = client.post(path, {"email": f"django-{name}@example.com"})
    assert response.status_code == status, f"{path}: {response.status_code}"

# ---- everything that a message may have ----

message = mail.EmailMultiAlternatives(
    "領収書 No. 7", "お買い上げ", '"山田, 太郎" <app@example.com>', ["django-all@example.com", "花子 <hanako@example.com>"],
    bcc=["django-bcc@example.com"], cc=["cc@example.com"], reply_to=["help@example.com"], headers={"X-Order": 7})
message.attach_alternative('<p>お買い上げ <img src="cid:logo"></p>', "text/html")
message.attach("売上.csv", "品名,金額\n煎茶,3\n", "text/csv")
message.attach("bytes.bin", bytes(range(256)), "application/octet-stream")
message.attach(None, b"%PDF-1.4", "application/pdf")
image = email.mime.image.MIMEImage(b"\x89PNG\r\n\x1a\n", "png")
image.add_header("Content-ID", "<logo>")
image.add_header("Content-Disposition", "inline", filename="logo.png")
message.attach(image)
message.kliv_mail = {"tags": ["receipt"], "idempotency_key": "receipt-django"}
assert message.send() == 1
assert mail.send_mail("Plain", "from nobody in particular", None, ["django-plain@example.com"]) == 1
assert mail.send_mail("HTML", "", None, ["django-html@example.com"], html_message="<p>only <b>HTML</b></p>") == 1

# ---- what fails ----

with transaction.atomic():
    User.objects.create_user("silent", "django-silent@example.com", "x")
    assert mail.send_mail("s", "b", None, ["no address"], fail_silently=True) == 0
    assert mail.send_mail("after", "b", None, ["django-silent@example.com"]) == 1
assert User.objects.filter(username="silent").exists()
for wrong in ({"to": ["no address"]}, {"to": ["a@example.com"], "headers": {"To": "list@example.com"}}):
    try:
        mail.EmailMessage("s", "b", **wrong).send()
        sys.exit(f"{wrong}: no error")
    except django.db.DataError:
        pass
message = mail.EmailMultiAlternatives("s", "b", None, ["a@example.com"])
message.attach_alternative("BEGIN:VCALENDAR", "text/calendar")
try:
    message.send()
    sys.exit("an alternative was lost")
except ValueError:
    pass
print("ok")
