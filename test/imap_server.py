#!/usr/bin/env python3
"""imap_server.py: an IMAP server that misbehaves on demand, for the tests.

Usage: imap_server.py --dir DIR --cert FILE --key FILE

Listens on a free port of 127.0.0.1 with TLS from the first byte, and writes that
port to DIR/port.  One user, whose password is in DIR/password.  The inbox are the
files of DIR/inbox, each named by its UID; what is moved goes to DIR/filed.  Every
command, without the login's data, is appended to DIR/commands.

DIR/mood, read anew at each command, says how it answers, a line each:
    capability WORDS        what CAPABILITY says behind IMAP4rev1
    uidvalidity NUMBER
    COMMAND no              ... that it will not (COMMAND as "SELECT" or "UID FETCH")
    COMMAND busy            ... that it cannot now, as RFC 5530 has it
    COMMAND crowded         ... that it cannot now, as Gmail has it
    COMMAND hang            ... nothing, until the client goes
    COMMAND drop            ... by closing the connection
    COMMAND endless         ... untagged lines for ever
    COMMAND oneline         ... a line without an end
    COMMAND huge            ... a literal that goes on for ever
    COMMAND garbage         ... what is no IMAP

Ends when its standard input does.

Copyright (c) 2026, the kliv_mail developers
"""
import argparse
import base64
import os
import re
import shutil
import socket
import ssl
import sys
import threading

arguments = argparse.ArgumentParser()
for name in ('dir', 'cert', 'key'):
    arguments.add_argument('--' + name, required=True)
arguments = arguments.parse_args()
folder = arguments.dir


def path(*names):
    return os.path.join(folder, *names)


def read(name):
    try:
        with open(path(name)) as file:
            return file.read()
    except FileNotFoundError:
        return ''


def mood():
    moods = {}
    for line in read('mood').splitlines():
        if line.startswith(('capability ', 'uidvalidity ')):
            key, value = line.split(' ', 1)
        else:
            key, value = line.rsplit(' ', 1)
        moods[key] = value
    return moods


def inbox():
    return sorted(int(name) for name in os.listdir(path('inbox')))


def members(numbers):
    """The UIDs of a set such as 3,5:*."""
    there = inbox()
    found = set()
    for part in numbers.split(','):
        low, _, high = part.partition(':')
        if high == '*':
            found.update(uid for uid in there if uid >= int(low))
            found.update(there[-1:])
        else:
            found.update(uid for uid in there if int(low) <= uid <= int(high or low))
    return sorted(found)


class Client(threading.Thread):
    def __init__(self, connection):
        super().__init__(daemon=True)
        self.connection = connection

    def send(self, data):
        self.connection.sendall(data if isinstance(data, bytes) else data.encode() + b'\r\n')

    def run(self):
        try:
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.file = self.connection.makefile('rb')
            self.send('* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready')
            while True:
                line = self.file.readline()
                if not line or not self.answer(line.decode('latin-1').rstrip('\r\n')):
                    break
        except (OSError, ssl.SSLError, ValueError):
            pass
        self.connection.close()

    def misbehave(self, how, tag):
        if how == 'no':
            self.send(tag + ' NO not now')
            return True
        if how == 'busy':
            self.send(tag + ' NO [UNAVAILABLE] maximum number of connections exceeded')
            return True
        if how == 'crowded':
            self.send(tag + ' NO [ALERT] Too many simultaneous connections. (Failure)')
            return True
        if how == 'hang':
            self.connection.recv(1)
        elif how == 'endless':
            while True:
                self.send(b'* OK nothing to say\r\n' * 1000)
        elif how == 'oneline':
            self.send('* SEARCH 1 OK ' if 'SEARCH' in tag else '* OK ')
            while True:
                self.connection.sendall(b'x' * 65536)
        elif how == 'huge':
            self.send('* 1 FETCH (UID 1 BODY[]<0> {999999999999}')
            while True:
                self.connection.sendall(b'x' * 65536)
        elif how == 'garbage':
            self.connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n\0\xff\r\n')
            return True
        return False

    def answer(self, line):
        tag, _, rest = line.partition(' ')
        words = rest.split(' ')
        command = words[0].upper()
        if command == 'UID':
            command += ' ' + words[1].upper()
            words = words[1:]
        with open(path('commands'), 'a') as file:
            file.write((command if command in ('LOGIN', 'AUTHENTICATE') else rest) + '\n')
        moods = mood()
        if command in moods:
            return self.misbehave(moods[command], tag)
        if command == 'CAPABILITY':
            self.send('* CAPABILITY IMAP4rev1 ' + moods.get('capability', 'AUTH=PLAIN MOVE UIDPLUS'))
        elif command == 'AUTHENTICATE':
            self.send('+ ')
            given = self.file.readline().strip()
            if base64.b64decode(given).split(b'\0')[2].decode() != read('password').strip():
                self.send(tag + ' NO [AUTHENTICATIONFAILED] what you sent was ' +
                          base64.b64decode(given).split(b'\0')[2].decode())
                return True
        elif command == 'LOGIN':
            if '"%s"' % read('password').strip() not in rest:
                self.send(tag + ' NO [AUTHENTICATIONFAILED] failed')
                return True
        elif command == 'SELECT':
            self.send('* %d EXISTS' % len(inbox()))
            self.send('* OK [UIDVALIDITY %s] valid' % moods.get('uidvalidity', '7'))
        elif command == 'UID SEARCH':
            found = members(words[2])
            self.send('* SEARCH' + ''.join(' %d' % uid for uid in found))
        elif command == 'UID FETCH':
            for uid in members(words[1]):
                with open(path('inbox', str(uid)), 'rb') as file:
                    body = file.read(1048576)
                self.send(b'* 1 FETCH (UID %d BODY[]<0> {%d}\r\n' % (uid, len(body)) + body + b')\r\n')
        elif command in ('UID MOVE', 'UID COPY'):
            for uid in members(words[1]):
                if command == 'UID MOVE':
                    shutil.move(path('inbox', str(uid)), path('filed', str(uid)))
                else:
                    shutil.copy(path('inbox', str(uid)), path('filed', str(uid)))
        elif command == 'UID STORE':
            with open(path('deleted'), 'a') as file:
                file.writelines('%d\n' % uid for uid in members(words[1]))
        elif command == 'UID EXPUNGE':
            deleted = set(int(uid) for uid in re.findall(r'\d+', read('deleted')))
            for uid in members(words[1]):
                if uid in deleted:
                    os.unlink(path('inbox', str(uid)))
        elif command == 'LOGOUT':
            self.send('* BYE bye')
            self.send(tag + ' OK bye')
            return False
        elif command not in ('STATUS', 'CREATE'):
            self.send(tag + ' BAD unknown')
            return True
        self.send(tag + ' OK done')
        return True


for name in ('inbox', 'filed'):
    os.makedirs(path(name), exist_ok=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(arguments.cert, arguments.key)
listener = socket.create_server(('127.0.0.1', 0))
with open(path('port.new'), 'w') as file:
    file.write(str(listener.getsockname()[1]))
os.rename(path('port.new'), path('port'))


def serve():
    while True:
        Client(listener.accept()[0]).start()


threading.Thread(target=serve, daemon=True).start()
sys.stdin.read()
