#!/usr/bin/python3
"""aiosmtpd_server.py CERTIFICATE KEY USER:PASSWORD: a second real server, with
STARTTLS and AUTH on one port and TLS from the first byte on another.

Prints both ports, then for each mail a line "mail RECIPIENT USER tls" and a line
"bytes RECIPIENT HEX"; ends with its standard input.

Copyright (c) 2026, the kliv_mail developers
"""
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Handler:
    async def handle_DATA(self, server, session, envelope):
        for recipient in envelope.rcpt_tos:
            secure = "tls" if session.ssl or server.transport.get_extra_info("sslcontext") else "clear"
            user = session.auth_data.login.decode() if session.auth_data else "-"
            print("mail", recipient, user, secure, flush=True)
            print("bytes", recipient, envelope.original_content.hex(), flush=True)
        return "250 2.0.0 Ok: queued"


def main(certificate, key, login):
    user, password = (part.encode() for part in login.split(":", 1))

    def authenticate(server, session, envelope, mechanism, data):
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (user, password)
        return AuthResult(success=good, auth_data=data if good else None)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    common = dict(authenticator=authenticate, auth_required=True)

    class StartTls(Controller):
        def factory(self):
            return SMTP(self.handler, tls_context=context, require_starttls=True, **common)

    class Tls(Controller):
        def factory(self):
            # The library does not see that its transport is inside TLS already.
            return SMTP(self.handler, auth_require_tls=False, **common)

    servers = [StartTls(Handler(), hostname="127.0.0.1", port=free_port()),
               Tls(Handler(), hostname="127.0.0.1", port=free_port(), ssl_context=context)]
    for server in servers:
        server.start()
    print(*(server.port for server in servers), flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop()


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


main(*sys.argv[1:4])
