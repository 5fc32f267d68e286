#!/usr/bin/python3
# smtp_server.py: the SMTP server of the tests.
#
# It keeps a ledger of what it accepted, a transcript of what clients said, and
# plays every fault that a real server has, chosen by the recipient's local
# part, for everybody by an option, or while it runs through a control socket.
# It is an asyncio protocol of its own, and not built on a server library,
# because half the faults are things that no well-behaved server can do: half
# a reply, a reply of 70 kB, a connection dropped between dot and reply while
# the next envelope is already read.
#
# It binds port 0 on 127.0.0.1, prints one line of JSON ({"plain": 40123,
# "starttls": ..., "tls": ..., "pid": ...}) and closes its standard output.
#
# Files in --dir:
#   ledger.jsonl    one event a line, in order: connect, auth, message, refused,
#                   violation, end; each with time (epoch), mono (seconds of
#                   CLOCK_MONOTONIC) and conn (number of the connection)
#   messages.raw    the messages, end to end; a ledger line names offset and size
#   transcript.txt  "conn tls|clear > line" for each command line as it came
#                   (credentials too), "< line" for each reply line
#   clear.raw       with --record-clear: every byte that came outside of TLS
#   control.sock    lines of JSON, see class Control
#
# Faults by the recipient's local part; "+anything" after it keeps addresses
# apart, "once-" before it plays the fault at that address's first attempt only:
#   STAGE-CODE[-STATUS]   rcpt-550-5.1.1  mail-451  data-451  dot-552  dot-251
#                         (a 421 also closes the connection)
#   drop-STAGE            closed instead of the reply; at the dot the message
#                         was accepted and is in the ledger
#   reset-STAGE           the same with a TCP reset
#   drop-before-dot       closed at the dot, not accepted; reset-before-dot
#   stall-STAGE           no reply, nothing more is read; at the dot not accepted
#   stall-after-dot       the same, accepted
#   hold-STAGE            no reply until the control socket says resume; at the
#                         dot accepted
#   stall-body            354, then nothing more is read
#   half-STAGE            half a reply line, then closed (dot: accepted)
#   long-STAGE[-CODE]     a reply of 70 kB in many lines
#   nul-STAGE[-CODE]      a reply with NUL, escape and 8-bit bytes
#   garbage-STAGE         a line that is no reply
#   extra-STAGE           the reply twice: the client's count is out of step
#   slow-STAGE-MS         the reply after so many milliseconds
#   drip-STAGE            a line of the reply each 100 ms, never the last one
#   early-CODE            a reply in the middle of the body, then closed
#   grey[-N]              451 4.7.1 at RCPT for the first N (1) attempts
#   close-idle            accepted, then closed after the reply
#   421-idle              accepted, then an unasked 421 and closed
#   451-idle              accepted, then 451 4.4.2 to the next MAIL and closed, as Amazon SES does
#   half-reply, long-reply, nul-reply   at the dot;   421-mid   at RCPT
# STAGE is mail, rcpt, data or dot.  MAIL comes before the recipient is known:
# faults at MAIL look ahead in what a pipelining client sent, and also go by the
# local part of the sender's address.
#
# Copyright (c) 2026, the kliv_mail developers

import argparse
import asyncio
import base64
import binascii
import collections
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import struct
import sys
import time

STAGES = ("mail", "rcpt", "data", "dot")
ALIASES = {"half-reply": "half-dot", "long-reply": "long-dot", "nul-reply": "nul-dot",
           "421-mid": "rcpt-421-4.3.2"}
FAULT = re.compile(r"(drop|reset|stall|hold|half|long|nul|garbage|extra|slow|drip)"
                   r"-(mail|rcpt|data|dot|before-dot|after-dot|body)(?:-(\d+))?\Z")
REPLY = re.compile(r"(mail|rcpt|data|dot)-([2-5]\d\d)(?:-(\d\.\d{1,3}\.\d{1,3}))?\Z")
MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?<?([^>\r\n]*)", re.I | re.M)
PATH = re.compile(rb"(FROM|TO):[ ]*<((?:\"(?:[^\"\\]|\\.)*\"|[^\">])*)>(.*)\Z", re.I | re.S)

# What the control socket may set, with what it is at the start; every one is
# also an option (underscores become dashes).
DEFAULTS = {
    "greeting_delay": 0,            # ms before the greeting
    "silent": False,                # accept connections, say nothing
    "starttls_offered": True,
    "starttls_silent": False,       # agree to STARTTLS and shake no hands
    "auth_offered": True,
    "auth_in_clear": False,         # offer AUTH without TLS: a trap
    "auth_mechanisms": "PLAIN LOGIN",
    "ignore_initial": False,        # AUTH LOGIN: ask for the user name though it was given
    "close_after_ehlo": False,      # answer EHLO and be gone
    "pipelining": True,
    "chunking": True,               # BDAT; its reply is the dot's
    "bdat_known": True,             # 502 to it otherwise, offered or not
    "bdat_silent": False,           # from BDAT on all is done and nothing said
    "smtputf8": False,
    "eightbitmime": True,
    "dsn": False,
    "size": 52428800,               # 0: SIZE without a number; -1: no SIZE
    "messages_per_connection": 0,   # then limit_reply at limit_stage
    "limit_close": False,           # then close after the reply instead
    "limit_reply": "421 4.7.0 Too many messages on this connection",
    "limit_stage": "mail",          # where it is said: mail, rcpt, data (and BDAT) or dot
    "max_connections": 0,           # then 421 as the greeting
    "lax_data": False,              # 354 though no recipient was accepted
    "delay_dot": 0,                 # ms; the connection waits as a real one does
    "link_delay": 0,                # ms that every answer travels
    "command_limit": 0,             # octets of a command, then 500; 512 is RFC 5321's
    "quit_binary": False,           # answer QUIT with bytes that are no reply
    # For everybody: a reply text ("\\r\\n" between lines), or drop, reset,
    # stall, hold, half, long, nul, garbage, extra, drip, slow-MS.  auth_reply answers every
    # attempt, auth_failure the wrong credentials.
    "greeting_reply": "", "ehlo_reply": "", "starttls_reply": "", "auth_reply": "",
    "auth_failure": "535 5.7.8 Error: authentication failed",
    "mail_reply": "", "rcpt_reply": "", "data_reply": "", "dot_reply": "",
    "plays": {},                    # local part -> [stage, reply or fault]
    # Further listeners, each with settings of its own on top of these; --variant
    # NAME={"kind": "plain", "greeting_reply": "drop"} opens one.  The control
    # socket gives one others: {"set": {"variants": {"NAME": {}}}}.
    "variants": {},
}


class Ledger:
    """The files.  Appended with single writes, so a kill leaves whole lines."""

    def __init__(self, directory, durable, transcript, record_clear):
        def append(name):
            return os.open(os.path.join(directory, name),
                           os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.ledger = append("ledger.jsonl")
        self.messages = append("messages.raw")
        self.offset = os.fstat(self.messages).st_size
        self.transcript = append("transcript.txt") if transcript else None
        self.clear = append("clear.raw") if record_clear else None
        self.durable = durable
        self.waiting = []           # (line, body, function to call when it is safe)
        self.count = 0

    def event(self, kind, conn, **fields):
        entry = {"event": kind, "conn": conn, "time": time.time(), "mono": time.monotonic()}
        entry.update(fields)
        write_all(self.ledger, json.dumps(entry).encode() + b"\n")

    def accept(self, entry, body, done):
        """Record an accepted message, then call done; grouped when durable."""
        entry["offset"] = self.offset
        self.offset += len(body)
        self.count += 1
        line = json.dumps(entry).encode() + b"\n"
        if not self.durable:
            write_all(self.messages, body)
            write_all(self.ledger, line)
            done()
            return
        self.waiting.append((line, body, done))
        if len(self.waiting) == 1:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self):
        batch, self.waiting = self.waiting, []
        write_all(self.messages, b"".join(body for _, body, _ in batch))
        write_all(self.ledger, b"".join(line for line, _, _ in batch))
        os.fdatasync(self.messages)
        os.fdatasync(self.ledger)
        for _, _, done in batch:
            done()


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def local_part(address):
    """The name of a fault in an address, and whether it is played only once."""
    name = address.rpartition("@")[0].strip('"').lower().partition("+")[0]
    once = name.startswith("once-")
    if once:
        name = name[5:]
    return ALIASES.get(name, name), once


class Server:
    def __init__(self, options, config):
        self.options = options
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.users = dict(pair.split(":", 1) for pair in options.auth)
        self.ledger = Ledger(options.dir, options.durable, not options.no_transcript,
                             options.record_clear)
        self.connections = set()
        self.number = 0
        self.peak = 0
        self.attempts = {}          # address -> times that its fault was met
        self.held = []              # functions that let held connections go on
        self.context = None
        if options.cert:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            if options.tls_max:
                self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
                self.context.minimum_version = ssl.TLSVersion.TLSv1
                self.context.maximum_version = getattr(
                    ssl.TLSVersion, "TLSv" + options.tls_max.replace(".", "_"))
            self.context.load_cert_chain(options.cert, options.key)

    def set(self, changes):
        for variant, settings in changes.pop("variants", {}).items():
            if any(name not in DEFAULTS for name in settings):
                raise ValueError("unknown setting of " + variant)
            self.config["variants"][variant].clear()
            self.config["variants"][variant].update(settings)
        for name in changes:
            if name not in DEFAULTS and name not in ("cert", "key", "auth"):
                raise ValueError("unknown setting " + name)
        changes = dict(changes)
        cert, key = changes.pop("cert", None), changes.pop("key", None)
        if cert:
            self.context.load_cert_chain(cert, key)
        if "auth" in changes:
            self.users = dict(pair.split(":", 1) for pair in changes.pop("auth"))
        self.config.update(changes)

    def fault_is_named(self, stage, address, config):
        """Does the address itself choose a fault at this stage?"""
        name, _ = local_part(address)
        return name in config["plays"] or named_fault(stage, name) is not None

    def fault(self, stage, address, config):
        """What to play instead of stage's own reply: (what, text or number) or None."""
        name, once = local_part(address)
        found = None
        if name in config["plays"]:
            play_stage, what = config["plays"][name]
            if play_stage == stage:
                found = parse_fault(what)
        elif "-" in name or name == "grey":
            found = named_fault(stage, name)
        if found is None:
            text = config[stage + "_reply"]
            return parse_fault(text) if text else None
        limit = found[1] if found[0] == "grey" else 1 if once else 0
        if limit:
            key = (stage, address)
            met = self.attempts[key] = self.attempts.get(key, 0) + 1
            if met > limit:
                return None
        if found[0] == "grey":
            return ("reply", "451 4.7.1 Greylisted, please try again later")
        return found


def named_fault(stage, name):
    match = REPLY.match(name)
    if match:
        if match[1] != stage:
            return None
        status = match[3] or {"2": "2.0.0", "3": "3.0.0", "4": "4.3.0", "5": "5.3.0"}[match[2][0]]
        return ("reply", "%s %s played by the test server" % (match[2], status))
    match = FAULT.match(name)
    if match:
        kind, where, number = match[1], match[2], int(match[3] or 0)
        if where == stage:
            return (kind, number)
        if stage == "dot" and where in ("before-dot", "after-dot"):
            return (kind + "-" + where.partition("-")[0], number)
        if stage == "data" and where == "body" and kind == "stall":
            return ("stall-body", 0)
        return None
    if stage == "data" and name.startswith("early-"):
        return ("early", int(name[6:]))
    if stage == "rcpt" and (name == "grey" or re.match(r"grey-\d+\Z", name)):
        return ("grey", int(name[5:] or 1))
    if stage == "dot" and name in ("close-idle", "421-idle", "451-idle"):
        return (name, 0)
    return None


def parse_fault(text):
    """A fault for everybody: a reply text, or a name with a number."""
    if re.match(r"[2-5]\d\d\D", text):
        return ("reply", text)
    kind, _, number = text.rpartition("-")
    if kind and number.isdigit():
        return (kind, int(number))
    return (text, 0)


class Connection(asyncio.Protocol):
    """One client.  Commands are taken from a buffer while nothing blocks."""

    def __init__(self, server, kind, settings=None):
        self.server = server
        self.config = collections.ChainMap(settings, server.config) if settings is not None \
            else server.config
        self.kind = kind
        self.secure = False
        self.transport = None
        self.buffer = bytearray()
        self.scanned = 0            # of the body, no dot before here
        self.out = []
        self.blocked = False        # a delay, a stall or the ledger's disk
        self.ended = None           # why it ended
        self.in_body = False
        self.silent = False         # says nothing any more
        self.chunk = None           # of BDAT: its octets, whether it is the last, what is to be played
        self.auth_step = None       # function for the next line of AUTH
        self.messages = 0
        self.idled = False
        self.user = None
        self.hello = False
        self.early = 0
        self.upgrading = False
        self.log = []
        self.reset()

    def reset(self):
        self.sender = None
        self.recipients = []
        self.parameters = ""
        self.utf8 = False
        self.chunks = bytearray()

    # ---- the transport ----

    def connection_made(self, transport):
        server = self.server
        self.transport = transport
        server.number += 1
        self.number = server.number
        server.connections.add(self)
        server.peak = max(server.peak, len(server.connections))
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.ledger.event("connect", self.number, listener=self.kind)
        if self.config["silent"]:
            self.blocked = True
        elif self.kind == "tls":
            self.start_tls(self.begin)
        else:
            self.begin()

    def begin(self):
        if self.config["greeting_delay"]:
            self.wait(self.config["greeting_delay"], self.greet)
        else:
            self.greet()
            self.flush()

    def start_tls(self, then):
        """Go over to TLS; what was read before it does not count."""
        if self.buffer:
            self.server.ledger.event("violation", self.number, what="before TLS",
                                     line=self.buffer.decode("latin-1"))
            self.buffer.clear()
        self.blocked = True
        self.upgrading = True
        # Its own task, so that the library's reader is set up before.
        self.task = asyncio.ensure_future(self.upgrade(then))

    async def upgrade(self, then):
        try:
            transport = await self.server.loop.start_tls(
                self.transport, self, self.server.context, server_side=True)
        except (OSError, ssl.SSLError) as error:
            self.ended = self.ended or "tls: %s" % error
            self.transport.abort()
            self.connection_lost(error)
            return
        if self.ended or transport is None:
            return
        self.transport = transport
        self.upgrading = False
        self.secure = True
        self.hello = False
        self.blocked = False
        self.reset()
        then()
        if not self.blocked and not self.ended:
            self.run()

    def greet(self):
        config = self.config
        if config["greeting_reply"]:
            self.play(parse_fault(config["greeting_reply"]), "220 test ESMTP")
        elif config["max_connections"] and len(self.server.connections) > config["max_connections"]:
            self.reply("421 4.7.0 Too many concurrent SMTP connections")
        else:
            self.reply("220 test.example ESMTP")

    def data_received(self, data):
        if self.ended:
            return
        if not (self.secure or self.upgrading) and self.server.ledger.clear is not None:
            write_all(self.server.ledger.clear, data)
        self.buffer += data
        if not self.blocked:
            self.run()

    def eof_received(self):
        if self.ended is None:
            self.ended = "eof"
        return False

    def connection_lost(self, error):
        server = self.server
        if self in server.connections:
            server.connections.discard(self)
            server.ledger.event("end", self.number, messages=self.messages,
                                reason=self.ended or ("lost" if error else "eof"),
                                body_open=self.in_body)
        self.ended = self.ended or "lost"
        self.write_log()

    def close(self, reason, reset=False):
        if self.ended:
            return
        self.flush()
        self.ended = reason
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif self.config["link_delay"]:
            self.server.loop.call_later(self.config["link_delay"] / 1000, self.transport.close)
        else:
            self.transport.close()

    # ---- answers ----

    def raw(self, data):
        if self.silent:
            return
        self.out.append(data)
        if self.server.ledger.transcript is not None:
            for line in data.decode("latin-1").split("\r\n"):
                if line:
                    self.note("<", line)

    def reply(self, text):
        """Answer; a 421 closes, as RFC 5321 has it."""
        self.raw(text.encode() + b"\r\n")
        if text.startswith("421"):
            self.close("421")

    def flush(self):
        if self.out and not self.ended:
            data = b"".join(self.out)
            delay = self.config["link_delay"]
            if delay:
                self.server.loop.call_later(delay / 1000, self.transport.write, data)
            else:
                self.transport.write(data)
        self.out.clear()
        self.write_log()

    def note(self, direction, line):
        self.log.append("%d %s %s %s\n" % (self.number, "tls" if self.secure else "clear",
                                           direction, line))

    def write_log(self):
        if self.log:
            if self.server.ledger.transcript is not None:
                write_all(self.server.ledger.transcript,
                          "".join(self.log).encode("utf-8", "surrogateescape"))
            self.log.clear()

    def block(self, function):
        """Block; what is returned goes on with function and what was read meanwhile."""
        self.blocked = True

        def go_on():
            if self.ended is None:
                self.blocked = False
                function()
                if not self.blocked and self.ended is None:
                    self.run()
        return go_on

    def wait(self, milliseconds, function):
        self.server.loop.call_later(milliseconds / 1000, self.block(function))

    def stall(self):
        self.flush()
        self.blocked = True

    def play(self, fault, text):
        """Play a fault in the place of the reply text; true if text's meaning holds."""
        kind, value = fault
        if kind == "reply":
            self.reply(value)
            return value[0] in "23"
        code = str(value) if value else text[:3]
        if kind == "drop":
            self.close("drop")
        elif kind == "reset":
            self.flush()
            # so that the client has read what was answered before
            self.wait(20, lambda: self.close("reset", reset=True))
        elif kind == "stall":
            self.stall()
        elif kind == "hold":
            self.flush()
            self.server.held.append(self.block(lambda: self.reply(text)))
        elif kind == "half":
            self.raw(text[:7].encode())
            self.close("half")
        elif kind == "long":
            line = "%s-%s\r\n" % (code, "a reply with very much to say, " * 15)
            self.raw((line * (70000 // len(line) + 1) + code + " end").encode() + b"\r\n")
        elif kind == "nul":
            self.raw(code.encode() + b"-nul \x00 escape \x1b[31mred\r\n" + code.encode() +
                     b" 8-bit \x80\xff bell \x07 cr \r end\r\n")
        elif kind == "garbage":
            self.raw(b"this is no reply at all\r\n")
        elif kind == "extra":
            self.raw((text + "\r\n" + text + "\r\n").encode())
        elif kind == "slow":
            self.wait(value, lambda: self.reply(text))
        elif kind == "drip":
            self.raw((code + "-please wait\r\n").encode())
            self.flush()
            self.wait(100, lambda: self.play(fault, text))
        else:
            raise ValueError("unknown fault %r" % (fault,))
        return code[0] in "23" and kind in ("long", "nul", "extra", "slow", "hold", "half")

    def answer(self, stage, address, text):
        """Reply, or what is to be played here; true if the stage succeeded."""
        fault = self.server.fault(stage, address, self.config)
        if fault is None:
            self.reply(text)
            return True
        good = self.play(fault, text)
        if not good:
            self.server.ledger.event("refused", self.number, stage=stage, fault=list(fault),
                                     mail_from=self.sender, rcpt=address)
        return good

    # ---- commands ----

    def run(self):
        buffer = self.buffer
        while not self.blocked and not self.ended:
            if self.chunk:
                if not self.take_chunk():
                    break
                continue
            if self.in_body:
                if not self.body():
                    break
                continue
            end = buffer.find(b"\n")
            if end < 0:
                if len(buffer) > 8192:
                    buffer.clear()
                    self.reply("500 5.5.2 line too long")
                break
            line = bytes(buffer[:end])
            del buffer[:end + 1]
            if line.endswith(b"\r"):
                line = line[:-1]
            else:
                self.server.ledger.event("violation", self.number, what="bare LF",
                                         line=line.decode("latin-1"))
            if self.server.ledger.transcript is not None:
                self.note(">", line.decode("utf-8", "surrogateescape"))
            if self.auth_step:
                step, self.auth_step = self.auth_step, None
                step(line)
                continue
            if buffer and not self.config["pipelining"]:
                self.server.ledger.event("violation", self.number, what="pipelining",
                                         line=line.decode("latin-1"))
            if 0 < self.config["command_limit"] < len(line) + 2:
                self.reply("500 5.5.2 line too long")
                continue
            verb, _, argument = line.partition(b" ")
            handler = self.commands.get(verb.upper())
            if handler:
                handler(self, argument)
            else:
                self.reply("500 5.5.2 command not recognized")
        if not self.ended:
            self.flush()

    def command_ehlo(self, argument):
        config = self.config
        if config["ehlo_reply"] and not self.play(parse_fault(config["ehlo_reply"]), "250 test"):
            return
        if config["ehlo_reply"]:
            self.hello = True
            return
        self.hello = True
        self.reset()
        lines = ["test.example"]
        if self.kind == "starttls" and config["starttls_offered"] and not self.secure:
            lines.append("STARTTLS")
        if config["auth_offered"] and self.server.users and (self.secure
                                                            or config["auth_in_clear"]):
            lines.append("AUTH " + config["auth_mechanisms"])
        if config["size"] >= 0:
            lines.append("SIZE %d" % config["size"] if config["size"] else "SIZE")
        for keyword in ("pipelining", "chunking", "smtputf8", "eightbitmime", "dsn"):
            if config[keyword]:
                lines.append("8BITMIME" if keyword == "eightbitmime" else keyword.upper())
        lines.append("ENHANCEDSTATUSCODES")
        self.raw("".join("250%s%s\r\n" % ("-" if line is not lines[-1] else " ", line)
                         for line in lines).encode())
        if config["close_after_ehlo"]:
            self.close("close_after_ehlo")

    def command_helo(self, argument):
        self.hello = True
        self.reset()
        self.reply("250 test.example")

    def command_starttls(self, argument):
        config = self.config
        if self.kind != "starttls" or self.secure or not config["starttls_offered"]:
            self.reply("502 5.5.1 STARTTLS not offered")
            return
        fault = parse_fault(config["starttls_reply"] or "220 2.0.0 go ahead")

        def go_on():
            self.flush()
            if config["starttls_silent"]:
                self.stall()
            else:
                self.start_tls(lambda: None)
        if fault[0] == "slow":
            self.wait(fault[1], lambda: (self.reply("220 2.0.0 go ahead"), go_on()))
        elif self.play(fault, "220 2.0.0 go ahead"):
            go_on()

    def command_auth(self, argument):
        config = self.config
        mechanism, _, initial = argument.decode("latin-1").partition(" ")
        mechanism = mechanism.upper()
        if not (config["auth_offered"] and self.server.users
                and (self.secure or config["auth_in_clear"])):
            self.server.ledger.event("auth", self.number, mechanism=mechanism, user=None,
                                     ok=False, tls=self.secure)
            self.reply("503 5.5.1 AUTH not offered")
            return
        if mechanism not in config["auth_mechanisms"].split():
            self.reply("504 5.5.4 unrecognized authentication type")
            return
        if mechanism == "LOGIN":
            if initial and not config["ignore_initial"]:
                self.login_user(initial.encode())
            else:
                self.auth_step = self.login_user
                self.reply("334 VXNlcm5hbWU6")
        elif initial:
            self.auth_once(mechanism, initial.encode())
        else:
            self.auth_step = lambda line: self.auth_once(mechanism, line)
            self.reply("334 ")

    def login_user(self, line):
        user = decode64(line)
        self.auth_step = lambda password: self.check("LOGIN", user, decode64(password))
        self.reply("334 UGFzc3dvcmQ6")

    def auth_once(self, mechanism, line):
        text = decode64(line) or ""
        if mechanism == "XOAUTH2":
            match = re.match("user=(.*?)\x01auth=Bearer (.*?)\x01\x01\\Z", text)
            user, password = match.groups() if match else (None, None)
        else:
            parts = text.split("\0")
            user, password = parts[1:] if len(parts) == 3 else (None, None)
        self.check(mechanism, user, password)

    def check(self, mechanism, user, password):
        config = self.config
        good = user is not None and self.server.users.get(user) == password
        fault = parse_fault(config["auth_reply"]) if config["auth_reply"] else None
        if fault and not (fault[0] == "reply" and fault[1][0] == "2"):
            good = good and fault[0] in ("slow", "long", "nul", "extra") and \
                (fault[0] == "slow" or str(fault[1] or 2)[0] == "2")
        self.server.ledger.event("auth", self.number, mechanism=mechanism, user=user, ok=good,
                                 tls=self.secure)
        if good:
            self.user = user
        if fault:
            self.play(fault, "235 2.7.0 Authentication successful")
        elif good:
            self.reply("235 2.7.0 Authentication successful")
        elif mechanism == "XOAUTH2":
            # The error comes as a challenge first, which the client answers
            # with an empty line.
            self.auth_step = lambda line: self.reply(config["auth_failure"])
            self.reply("334 " + base64.b64encode(
                b'{"status":"400","schemes":"bearer","scope":"https://mail.google.com/"}').decode())
        else:
            self.reply(config["auth_failure"])

    def command_mail(self, argument):
        config = self.config
        match = PATH.match(argument)
        if not self.hello:
            self.reply("503 5.5.1 send EHLO first")
        elif self.server.users and self.user is None:
            self.reply("530 5.7.0 Authentication required")
        elif self.sender is not None:
            self.reply("503 5.5.1 nested MAIL command")
        elif not match or match[1].upper() != b"FROM":
            self.reply("501 5.5.4 syntax: MAIL FROM:<address>")
        elif self.idled:
            self.reply("451 4.4.2 Timeout waiting for data from client.")
            self.close("idled")
        elif self.is_spent("mail"):
            self.reply(config["limit_reply"])
        else:
            sender = match[2].decode("utf-8", "surrogateescape")
            parameters = match[3].decode("utf-8", "replace").strip()
            problem = self.check_parameters(parameters, match[2])
            if problem:
                self.reply(problem)
                return
            # The recipient that a pipelining client has already sent.
            ahead = PATH.match(bytes(self.buffer[5:self.buffer.find(b"\r")])) \
                if self.buffer[:5].upper() == b"RCPT " else None
            rcpt = ahead[2].decode("utf-8", "replace") if ahead else ""
            address = rcpt if self.server.fault_is_named("mail", rcpt, self.config) else sender
            if self.answer("mail", address, "250 2.1.0 Ok"):
                self.sender = sender
                self.parameters = parameters

    def is_spent(self, stage):
        """Has it carried as many messages as it may, and is this where it says so?"""
        limit = self.config["messages_per_connection"]
        return limit and self.messages >= limit and self.config["limit_stage"] == stage

    def check_parameters(self, parameters, path):
        config = self.config
        utf8 = False
        for parameter in parameters.upper().split():
            name, _, value = parameter.partition("=")
            if name == "SIZE" and config["size"] >= 0 and value.isdigit():
                if config["size"] and int(value) > config["size"]:
                    return "552 5.3.4 Message size exceeds fixed limit"
            elif name == "BODY" and config["eightbitmime"] and value in ("7BIT", "8BITMIME"):
                pass
            elif name == "SMTPUTF8" and config["smtputf8"] and not value:
                utf8 = True
            elif name in ("RET", "ENVID") and config["dsn"]:
                pass
            elif name == "AUTH" and self.server.users:
                pass
            else:
                return "555 5.5.4 Unsupported option: " + parameter
        self.utf8 = utf8
        if not path.isascii() and not utf8:
            return "553 5.6.7 Non-ASCII address without SMTPUTF8"
        return None

    def command_rcpt(self, argument):
        match = PATH.match(argument)
        if self.sender is None:
            self.reply("503 5.5.1 need MAIL command")
        elif not match or match[1].upper() != b"TO" or not match[2]:
            self.reply("501 5.5.4 syntax: RCPT TO:<address>")
        elif match[3].strip() and not self.config["dsn"]:
            self.reply("555 5.5.4 Unsupported option")
        elif not match[2].isascii() and not self.utf8:
            self.reply("553 5.6.7 Non-ASCII address without SMTPUTF8")
        elif self.is_spent("rcpt"):
            self.reply(self.config["limit_reply"])
        else:
            address = match[2].decode("utf-8", "replace")
            if self.answer("rcpt", address, "250 2.1.5 Ok"):
                self.recipients.append(address)

    def command_data(self, argument):
        if self.sender is None:
            self.reply("503 5.5.1 need MAIL command")
            return
        if not self.recipients:
            if not self.config["lax_data"]:
                self.reply("554 5.5.1 no valid recipients")
                return
            self.reply("354 go on, for nobody")
        elif self.is_spent("data"):
            self.reply(self.config["limit_reply"])
            return
        else:
            address = self.recipients[0]
            fault = self.server.fault("data", address, self.config)
            if fault and fault[0] == "stall-body":
                self.reply("354 End data with <CR><LF>.<CR><LF>")
                self.stall_body(fault)
            elif fault and fault[0] == "early":
                self.early = fault[1]
                self.reply("354 End data with <CR><LF>.<CR><LF>")
            elif fault is None:
                self.reply("354 End data with <CR><LF>.<CR><LF>")
            elif not self.play(fault, "354 End data with <CR><LF>.<CR><LF>"):
                self.server.ledger.event("refused", self.number, stage="data",
                                         fault=list(fault), mail_from=self.sender, rcpt=address)
                return
        self.in_body = True
        self.scanned = 0

    def command_bdat(self, argument):
        """What follows is counted, and read whatever is said to it (RFC 3030, 2)."""
        octets, _, last = argument.partition(b" ")
        if not self.config["bdat_known"]:
            self.reply("502 5.5.1 command not implemented")
        elif not octets.isdigit() or last.strip().upper() not in (b"", b"LAST"):
            self.reply("501 5.5.4 syntax: BDAT octets [LAST]")
        else:
            if self.config["bdat_silent"]:
                self.silent = True
                self.out.clear()
            fault = self.server.fault("data", self.recipients[0], self.config) \
                if self.recipients else None
            self.chunk = [int(octets), bool(last), fault]
            if fault and fault[0] == "stall-body":
                self.stall_body(fault)

    def stall_body(self, fault):
        """Read no more of a message."""
        self.stall()
        self.transport.pause_reading()
        self.server.ledger.event("refused", self.number, stage="data", fault=list(fault),
                                 mail_from=self.sender, rcpt=self.recipients[0])

    def take_chunk(self):
        """Take BDAT's octets; false if more must be read."""
        octets, last, fault = self.chunk
        if len(self.buffer) < octets:
            return False
        data = bytes(self.buffer[:octets])
        del self.buffer[:octets]
        self.chunk = None
        if not self.recipients:
            self.note(">", "(%d octets)" % octets)
            self.reply("503 5.5.1 no valid recipients")
            return True
        self.chunks += data
        if not last:
            self.reply("250 2.0.0 Ok: %d octets" % octets)
            return True
        if self.is_spent("data"):
            self.reply(self.config["limit_reply"])
            self.reset()
        elif fault and fault[0] == "early":
            self.reply("%d 5.3.4 Message too big" % fault[1])
            self.close("early")
        elif fault and not (fault[0] == "reply" and fault[1][0] == "3") \
                and fault[0] not in ("slow", "hold", "long", "nul", "extra", "half"):
            self.play(fault, "554 5.3.0")
            self.server.ledger.event("refused", self.number, stage="data", fault=list(fault),
                                     mail_from=self.sender, rcpt=self.recipients[0])
            self.reset()
        else:
            self.dot(bytes(self.chunks), bdat=True)     # (what delays a 354 has nothing to delay)
        return True

    def body(self):
        """Take the body if its dot has come; false if more must be read."""
        buffer = self.buffer
        if self.early and buffer:
            self.reply("%d 5.3.4 Message too big" % self.early)
            self.close("early")
            return False
        if buffer.startswith(b".\r\n"):
            raw, rest = b"", 3
        else:
            end = buffer.find(b"\r\n.\r\n", max(0, self.scanned - 4))
            if end < 0:
                self.scanned = len(buffer)
                return False
            raw, rest = bytes(buffer[:end + 2]), end + 5
        del buffer[:rest]
        self.in_body = False
        if raw.startswith(b"."):
            raw = raw[1:]
        self.dot(raw.replace(b"\r\n.", b"\r\n"))
        return True

    def dot(self, body, bdat=False):
        server, config = self.server, self.config
        self.note(">", "(%d bytes and the dot)" % len(body))
        if not self.recipients:
            self.reply("554 5.5.1 no valid recipients")
            self.reset()
            return
        if config["size"] > 0 and len(body) > config["size"]:
            self.reply("552 5.3.4 Message size exceeds fixed limit")
            self.reset()
            return
        if self.is_spent("dot"):
            self.reply(config["limit_reply"])
            self.reset()
            return
        address = self.recipients[0]
        fault = server.fault("dot", address, config)
        accepted = fault is None or fault[0] in (
            "drop", "reset", "half", "slow", "hold", "extra", "stall-after", "close-idle",
            "421-idle", "451-idle") \
            or (fault[0] in ("long", "nul") and str(fault[1] or 250)[0] == "2") \
            or (fault[0] == "reply" and fault[1][0] == "2")
        name = "%x%07d" % (os.getpid(), server.ledger.count + 1)
        reply = "250 2.0.0 Ok: queued as " + name
        if not accepted:
            server.ledger.event("refused", self.number, stage="dot", fault=list(fault),
                                mail_from=self.sender, rcpt=address,
                                sha256=hashlib.sha256(body).hexdigest())
            self.finish(fault, reply)
            return
        head = body.find(b"\r\n\r\n") + 2 or len(body)
        found = MESSAGE_ID.search(body, 0, head)
        entry = {"event": "message", "conn": self.number, "time": time.time(),
                 "mono": time.monotonic(), "id": name, "mail_from": self.sender,
                 "rcpt": self.recipients, "parameters": self.parameters, "size": len(body),
                 "sha256": hashlib.sha256(body).hexdigest(),
                 "message_id": found[1].decode("utf-8", "replace") if found else None,
                 "tls": self.secure, "user": self.user, "ascii": body.isascii(),
                 "bare": body.count(b"\n") + body.count(b"\r") - 2 * body.count(b"\r\n"),
                 "nth": self.messages + 1, "bdat": bdat}
        self.messages += 1
        self.blocked = True

        def done():
            self.blocked = False
            if self.ended is None:
                self.finish(fault, reply)
                if not running[0] and not self.blocked and not self.ended:
                    self.run()
        running = [True]
        server.ledger.accept(entry, body, done)
        running[0] = False

    def finish(self, fault, reply):
        """Answer the dot."""
        config = self.config
        self.reset()
        if fault is None:
            if config["delay_dot"]:
                self.wait(config["delay_dot"], lambda: self.accepted(reply))
            else:
                self.accepted(reply)
            return
        kind = fault[0]
        if kind == "stall-after":
            self.stall()
        elif kind in ("drop-before", "drop-after"):
            self.close(kind)
        elif kind in ("reset-before", "reset-after"):
            self.play(("reset", 0), reply)
        elif kind == "close-idle":
            self.reply(reply)
            self.close(kind)
        elif kind == "421-idle":
            self.reply(reply)
            self.reply("421 4.4.2 timeout exceeded")
        elif kind == "451-idle":
            self.reply(reply)
            self.idled = True
        else:
            self.play(fault, reply)

    def accepted(self, reply):
        self.reply(reply)
        limit = self.config["messages_per_connection"]
        if limit and self.config["limit_close"] and self.messages >= limit:
            self.close("limit")

    def command_rset(self, argument):
        self.reset()
        self.reply("250 2.0.0 Ok")

    def command_noop(self, argument):
        self.reply("250 2.0.0 Ok")

    def command_vrfy(self, argument):
        self.reply("252 2.0.0 cannot verify")

    def command_quit(self, argument):
        self.raw(b"\0\0\0\x1a\0\0\0" if self.config["quit_binary"] else b"221 2.0.0 Bye\r\n")
        self.close("quit")

    commands = {b"EHLO": command_ehlo, b"HELO": command_helo, b"STARTTLS": command_starttls,
                b"AUTH": command_auth, b"MAIL": command_mail, b"RCPT": command_rcpt,
                b"DATA": command_data, b"BDAT": command_bdat, b"RSET": command_rset, b"NOOP": command_noop,
                b"VRFY": command_vrfy, b"QUIT": command_quit}


def decode64(line):
    try:
        return base64.b64decode(line, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None


class Control(asyncio.Protocol):
    """
    One JSON object a line, each answered by one:
      {"set": {"delay_dot": 50, ...}}   settings as in DEFAULTS, and cert, key, auth
      {"drop": true}                    close every connection
      {"release": true}                 drop the stalled and silent ones only
      {"resume": true}                  those on hold give their replies
      {"state": true}                   open connections, their peak, accepted messages
    """

    def __init__(self, server):
        self.server = server
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(json.loads(line))
            except (ValueError, KeyError, OSError, AttributeError) as error:
                answer = {"error": str(error)}
            # Behind what closes the connections, which the loop does when it comes to it.
            self.server.loop.call_soon(self.transport.write, json.dumps(answer).encode() + b"\n")

    def obey(self, request):
        server = self.server
        answer = {"ok": True}
        for verb, value in request.items():
            if verb == "set":
                server.set(value)
            elif verb in ("drop", "release"):
                for connection in list(server.connections):
                    if verb == "drop" or connection.blocked:
                        connection.close(verb)
            elif verb == "resume":
                held, server.held = server.held, []
                for go_on in held:
                    go_on()
            elif verb == "state":
                answer.update(open=len(server.connections), peak=server.peak,
                              connections=server.number, accepted=server.ledger.count)
                server.peak = len(server.connections)
            else:
                raise ValueError("unknown request " + verb)
        return answer


def parse_options():
    parser = argparse.ArgumentParser(description="ledger and fault-injecting SMTP server")
    parser.add_argument("--dir", required=True, help="folder for ledger, transcript, control")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--plain", action="store_true", help="a listener without TLS (default)")
    parser.add_argument("--starttls", action="store_true", help="a listener with STARTTLS")
    parser.add_argument("--tls", action="store_true", help="a listener with implicit TLS")
    parser.add_argument("--plain-port", type=int, default=0)
    parser.add_argument("--starttls-port", type=int, default=0)
    parser.add_argument("--tls-port", type=int, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--tls-max", help="newest TLS version, e.g. 1.1")
    parser.add_argument("--auth", action="append", default=[], metavar="USER:PASSWORD",
                        help="require AUTH; offered only inside TLS")
    parser.add_argument("--durable", action="store_true",
                        help="the ledger is on disk before the 250")
    parser.add_argument("--no-transcript", action="store_true")
    parser.add_argument("--record-clear", action="store_true")
    parser.add_argument("--control", action="store_true", help="listen on DIR/control.sock")
    parser.add_argument("--die-with-parent", action="store_true",
                        help="end at EOF of standard input or when the parent dies")
    parser.add_argument("--no-starttls", dest="starttls_offered", action="store_false")
    parser.add_argument("--no-auth", dest="auth_offered", action="store_false")
    parser.add_argument("--no-size", dest="size", action="store_const", const=-1)
    parser.add_argument("--play", action="append", default=[], metavar="LOCAL=STAGE:REPLY")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=JSON")
    for name, value in DEFAULTS.items():
        option = "--" + name.replace("_", "-")
        if name in ("starttls_offered", "auth_offered", "plays", "variants"):
            continue
        if value is True:
            parser.add_argument("--no-" + name.replace("_", "-"), dest=name,
                                action="store_false")
        elif value is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(value))
    parser.set_defaults(**DEFAULTS)
    options = parser.parse_args()
    config = {name: getattr(options, name) for name in DEFAULTS}
    config["plays"] = {}
    for play in options.play:
        local, _, rest = play.partition("=")
        config["plays"][local] = rest.split(":", 1)
    config["variants"] = {}
    for variant in options.variant:
        name, _, settings = variant.partition("=")
        config["variants"][name] = json.loads(settings)
    if not (options.starttls or options.tls or options.variant):
        options.plain = True
    if (options.starttls or options.tls) and not options.cert:
        parser.error("--starttls and --tls need --cert and --key")
    return options, config


async def main(options, config):
    loop = asyncio.get_running_loop()
    server = Server(options, config)
    stop = loop.create_future()

    def end():
        if not stop.done():
            stop.set_result(None)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if options.die_with_parent:
        loop.add_reader(0, lambda: end() if not os.read(0, 4096) else None)

    ports = {"pid": os.getpid()}
    for kind in ("plain", "starttls", "tls"):
        if getattr(options, kind):
            listener = await loop.create_server(
                lambda kind=kind: Connection(server, kind), options.address,
                getattr(options, kind + "_port"), backlog=1024)
            ports[kind] = listener.sockets[0].getsockname()[1]
    for name, settings in config["variants"].items():
        kind = settings.pop("kind", "plain")
        listener = await loop.create_server(
            lambda kind=kind, settings=settings: Connection(server, kind, settings),
            options.address, 0, backlog=1024)
        ports[name] = listener.sockets[0].getsockname()[1]
    if options.control:
        await loop.create_unix_server(lambda: Control(server),
                                      os.path.join(options.dir, "control.sock"))
    print(json.dumps(ports), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)    # whoever reads it sees its end
    await stop


if __name__ == "__main__":
    OPTIONS, CONFIG = parse_options()
    if OPTIONS.die_with_parent:
        PARENT = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)     # PR_SET_PDEATHSIG
        if os.getppid() != PARENT:
            sys.exit(1)
    asyncio.run(main(OPTIONS, CONFIG))
