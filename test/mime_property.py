#!/usr/bin/python3
"""mime_property.py: what kliv_mail composes, read back by two parsers.

Makes messages at random (scripts of the world, emoji sequences, long words,
control characters, sizes around every limit, attachments up to 5 MB), has
kliv_mail._compose() write them through psql, checks the bytes against the rules
of the wire, and compares every field that Python's email package and GMime read
back with what was given.

    mime_property.py --count 200 --seed 1 PSQL [psql options]

Prints one line at the end; leaves 1 at the first difference, with the seed and
the message's number, which make it again.
"""
import argparse
import base64
import email
import email.header
import email.policy
import email.utils
import quopri
import random
import re
import subprocess
import sys

import gi

gi.require_version("GMime", "3.0")
from gi.repository import GMime  # noqa: E402

GMime.init()

SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    "éèêüöäßñçøåÆŁžčőİıſ",
    "АБВГДабвгдЖжЩщЪъЫы", "ΑΒΓΔαβγδς", "אבגדהוזחטי", "ابتثجحخدذرزسش",
    "हिन्दीकखगघङ", "ไทยกขฃคฅฆง", "日本語漢字請求書領収書", "ひらがなカタカナｶﾅ",
    "한국어조선말", "𠮷𩸽𝔘𝔫𝔦𐍈", "ÀÉ̂ô", "①㈱㍻～－￥",
]
SEQUENCES = ["👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👍🏽", "❤️", "🇯🇵", "می‌خواهم", "क्‍ष"]
ODD = ["=?utf-8?B?SGk=?=", "=?", "?=", "_", "=20", "%41", "'", "\"", "\\", "(", ")", "<", ">",
       "@", ",", ";", ":", "&amp;", "--", ".", "..", "http://x.example/?a=1&b=2"]
SPACES = [" ", " ", " ", " ", "  ", "   ", "　", " "]
DOMAINS = [("example.com", "example.com"), ("EXAMPLE.org", "example.org"),
           ("a.b.c.example.co.jp", "a.b.c.example.co.jp"),
           ("exämple.com", "xn--exmple-cua.com"), ("例え.jp", "xn--r8jz45g.jp"),
           ("straße.de", "xn--strae-oqa.de")]
LOCALS = [("ana", "ana"), ("first.last+tag", "first.last+tag"), ("a..b", '"a..b"'), ("a.", '"a."'),
          (".a", '".a"'), ('"a b"', '"a b"'), ('"q\\"x"', '"q\\"x"'), ("!#$%&'*+-/=?^_`{|}~",) * 2,
          ("x" * 64, "x" * 64)]
LIMITS = [0, 1, 2, 44, 45, 46, 56, 57, 58, 59, 60, 61, 62, 63, 64, 72, 73, 74, 75, 76, 77, 78, 79,
          80, 150, 151, 152, 153, 154, 255, 256]


class Generator:
    def __init__(self, seed, number):
        self.random = random.Random(f"{seed}/{number}")
        self.number = number

    def chance(self, share):
        return self.random.random() < share

    def word(self, size=None):
        r = self.random
        if size is None:
            size = r.choice([1, 2, 3, 5, 8, 13, 21]) if r.random() < 0.97 else r.choice(LIMITS) or 1
        kind = r.random()
        if kind < 0.08:
            return r.choice(ODD)
        if kind < 0.14:
            return "".join(r.choice(SEQUENCES) for _ in range(max(1, size // 4)))
        script = SCRIPTS[0] if kind < 0.5 else r.choice(SCRIPTS)
        return "".join(r.choice(script) for _ in range(size))

    def line(self, words=None, spaces=SPACES):
        if words is None:
            words = self.random.choice([0, 1, 1, 2, 3, 5, 8, 13, 30])
        return "".join(self.word() + self.random.choice(spaces) for _ in range(words))

    def subject(self):
        r = self.random
        kind = r.random()
        if kind < 0.05:
            return r.choice(["", " ", "   ", "\t", "\u2028", "\u0085", " x", "x ", "a\tb", "é" * 200,
                             "👨‍👩‍👧‍👦" * 60, "=?utf-8?B?SGk=?=", "a  b", "é  é", "x" * 998, "x" * 3000])
        if kind < 0.3:
            return "".join(r.choice(SCRIPTS[0] + " ") for _ in range(r.choice(LIMITS)))
        if kind < 0.4:
            return r.choice(["é", "日", "𠮷", "x"]) * r.choice(LIMITS)
        text = self.line()
        if r.random() < 0.5:
            text = text.strip(" ")
        if r.random() < 0.1:
            text += r.choice(["\t", "\u2028", "\u0085", " ", ""]) + self.word()
        return text

    def name(self):
        text = self.line(self.random.choice([1, 1, 2, 2, 3, 8]), [" ", " ", " ", "  ", "　"])
        while len(text.encode()) > 1000:
            text = text[1:]
        # A joiner without a neighbour to join is refused.
        return text.strip(" 　 \u200c\u200d")

    def mailbox(self, utf8_local):
        """As given, the name and the address expected."""
        r = self.random
        local, wire_local = r.choice(LOCALS) if r.random() < 0.3 else (("".join(
            r.choice("abcdefghijklmnopqrstuvwxyz0123456789_-") for _ in range(r.randint(1, 30))),) * 2)
        if utf8_local:
            local = wire_local = "jösé日本"
        domain, wire_domain = r.choice(DOMAINS)
        address = f"{local}@{domain}"
        wire = f"{wire_local}@{wire_domain}"
        if r.random() < 0.4:
            return address, "", wire
        name = self.name()
        quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{quoted} <{address}>", name, wire

    def mailboxes(self, count, utf8_local):
        found = {}
        for _ in range(count):
            given, name, wire = self.mailbox(utf8_local)
            found.setdefault(wire, (given, name, wire))
        return list(found.values())

    def body(self):
        r = self.random
        lines = []
        for _ in range(r.choice([0, 1, 1, 2, 5, 10, 40])):
            kind = r.random()
            if kind < 0.3:
                lines.append("".join(r.choice(SCRIPTS[0] + "    =") for _ in range(r.choice(LIMITS))))
            elif kind < 0.4:
                lines.append(r.choice([".", "..", ".x", "From x", "From ", "--", "-- ", " ", "\t", "",
                                       "x ", "x\t", "=", "=3D", "MAIL FROM:<e@v>", "--=_0_00", "é "]))
            elif kind < 0.47:
                lines.append(r.choice("x=é日") * r.choice([994, 995, 996, 997, 998, 999, 1000, 5000]))
            elif kind < 0.52:
                lines.append("".join(chr(r.choice([*range(1, 10), 11, 12, *range(14, 32), 127, 0x85,
                                                   0x2028, 0xFEFF, 0x10FFFF, 0x41])) for _ in range(8)))
            else:
                lines.append(self.line())
        ends = r.choice([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r", "\n\r"]])
        text = "".join(line + r.choice(ends) for line in lines)
        if lines and r.random() < 0.5:
            text += lines[0]
        return text

    def header_value(self):
        r = self.random
        kind = r.random()
        if kind < 0.4:
            return self.subject()
        if kind < 0.6:
            return r.choice("xé") * r.choice([70, 75, 76, 77, 78, 890, 899, 900, 901, 990, 998, 2000])
        return " ".join(self.word() for _ in range(r.choice([1, 5, 40])))

    def filename(self):
        r = self.random
        stem = r.choice([self.word(), self.line(3), "a" * 200, "日" * 80, "é" * 30, "a\"b", "a=?b", "a'b",
                         "100%", "a;b", "x y"])
        stem = stem.replace("/", "-").replace("\\", "-").replace(":", "-").strip(" .") or "x"
        name = stem + r.choice([".pdf", ".txt", ".png", ".csv", "", ".xyz", ".JPG"])
        while len(name.encode()) > 255:
            name = name[1:]
        # A joiner without a neighbour to join is refused; one parser trims spaces.
        return name.strip().lstrip("\u200c\u200d") or "x"

    def attachment(self):
        r = self.random
        size = r.choice(LIMITS) if r.random() < 0.9 else r.choice([1000, 4096, 57 * 1000, 100001])
        if self.number % 200 == 199:
            size = 2 * 1024 * 1024
        content = r.randbytes(size)
        cid = None
        if r.random() < 0.4:
            cid = "".join(r.choice("abcdefghijklmnopqrstuvwxyz0123456789._-@") for _ in range(r.randint(1, 20)))
            cid = cid.replace("@", "-", max(0, cid.count("@") - 1))
            cid = re.sub(r"[.@]*@[.@]*", "@", re.sub(r"\.+", ".", cid)).strip(".@") or "c"
        kind = r.choice([None, None, "application/x-test", "text/calendar; method=REQUEST", "image/png"])
        return {"filename": self.filename(), "type": kind, "cid": cid, "content": content}

    def message(self):
        r = self.random
        utf8_local = r.random() < 0.05
        m = {"subject": self.subject(), "text": None, "html": None, "headers": {}}
        kind = r.random()
        if kind < 0.8:
            m["text"] = self.body()
        m["attachments"] = [self.attachment() for _ in range(r.choice([0, 0, 0, 1, 2, 5]))]
        seen = set()
        for a in m["attachments"]:
            if a["cid"] in seen:
                a["cid"] = None
            seen.add(a["cid"])
        if kind > 0.4:
            m["html"] = "<p>" + self.body() + "</p>"
            for a in m["attachments"]:
                if a["cid"] and r.random() < 0.7:
                    m["html"] += f'<img src="cid:{a["cid"]}">'
        m["to"] = self.mailboxes(r.choice([0, 1, 1, 2, 5, 40]), utf8_local)
        m["cc"] = self.mailboxes(r.choice([0, 0, 1, 3]), False)
        m["from"] = self.mailboxes(1, False)
        m["reply_to"] = self.mailboxes(r.choice([0, 1, 2]), False)
        m["smtputf8"] = utf8_local and bool(m["to"])
        for number in range(r.choice([0, 0, 1, 3])):
            m["headers"][f"X-{'N' * r.choice([1, 1, 20, 42])}-{number}"] = self.header_value()
        if r.random() < 0.2:
            m["headers"]["References"] = " ".join(f"<{'r' * r.randint(1, 60)}@example.com>"
                                                  for _ in range(r.choice([1, 3, 30])))
        return m


def sql_text(text):
    if text is None:
        return "NULL"
    escaped = "".join(c if c.isprintable() and c not in "\\'" else
                      f"\\U{ord(c):08X}" for c in text)
    return f"E'{escaped}'"


def sql_json(headers):
    pairs = ", ".join(f"{sql_text(n)}, {sql_text(v)}::text" for n, v in headers.items())
    return f"jsonb_build_object({pairs})" if headers else "NULL"


def sql_list(mailboxes):
    return sql_text(", ".join(given for given, _, _ in mailboxes)) if mailboxes else "NULL"


def sql_attachments(attachments):
    calls = [f"kliv_mail.attach({sql_text(a['filename'])}, '\\x{a['content'].hex()}', "
             f"{sql_text(a['type'])}, {sql_text(a['cid'])})" for a in attachments]
    return f"ARRAY[{', '.join(calls)}]" if calls else "NULL"


def statement(m):
    return (f"SELECT kliv_mail._compose({sql_text(m['subject'])}, {sql_text(m['text'])}, "
            f"{sql_text(m['html'])}, {sql_list(m['to'])}, {sql_list(m['cc'])}, "
            f"{sql_json(m['headers'])}, {sql_attachments(m['attachments'])}, "
            f"{sql_list(m['from'])}, {sql_list(m['reply_to'])});\n")


class Different(Exception):
    pass


def same(what, got, expected):
    if isinstance(got, list) and len(got) == len(expected):
        for number, (one, other) in enumerate(zip(got, expected)):
            if one != other:
                raise Different(f"{what} {number}:\n  got      {one!r:.600}\n  expected {other!r:.600}")
    if got != expected:
        raise Different(f"{what}:\n  got      {got!r:.600}\n  expected {expected!r:.600}")


def require(condition, what):
    if not condition:
        raise Different(what)


def lines_of(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


ENCODED_WORD = re.compile(rb"=\?utf-8\?([QB])\?([^?\s]*)\?=")


def check_wire(raw, m):
    require(raw.endswith(b"\r\n"), "the end is no CRLF")
    bare = re.sub(rb"\r\n", b"", raw)
    require(b"\r" not in bare and b"\n" not in bare, "a bare CR or LF")
    require(b"\0" not in raw, "a NUL")
    lines = raw.split(b"\r\n")
    require(max(map(len, lines)) <= 998, "a line over 998")
    header, _, body = raw.partition(b"\r\n\r\n")
    if not m["smtputf8"]:
        require(raw.isascii(), "8-bit bytes")
    require(body.isascii(), "8-bit bytes in the body")

    # Every header block, those of the parts too: they hold no empty line.
    blocks = [header] + [part.partition(b"\r\n\r\n")[0]
                         for part in re.split(rb"\r\n--=_\d_[0-9a-f]{24}\r\n", raw)[1:]]
    for block in (b.rstrip(b"\r\n") for b in blocks):
        for line in block.split(b"\r\n"):
            require(line.strip() != b"", "a header line of white space")
            if len(line) > 78:
                content = re.sub(rb"^[!-9;-~]+:", b"", line).strip()
                # A fold is possible only at a single space; quoted file names stay whole.
                foldable = re.search(rb"[^ \t] [^ \t]", content)
                require(not foldable or content.startswith(b"filename="), f"foldable and long: {line!r}")
        for word in ENCODED_WORD.finditer(re.sub(rb"\r\n", b"", block)):
            require(len(word.group(0)) <= 75, "an encoded word over 75")
            text = (base64.b64decode(word.group(2)) if word.group(1) == b"B" else
                    quopri.decodestring(word.group(2), header=True))
            text.decode()
        for line in block.split(b"\r\n"):
            if ENCODED_WORD.search(line):
                require(len(line) <= 76 or b"<" in line, f"encoded words on a long line: {line!r}")
    for line in body.split(b"\r\n"):
        require(len(line) <= 78 or line.startswith((b" filename=", b"Content-Disposition", b"filename")),
                f"a body line of {len(line)}")


def expected_parts(m):
    """The leaves in order: (type, content or None, filename, content id)."""
    parts = []
    text = m["text"]
    if text is not None or m["html"] is None:
        text = lines_of(text or "")
    parts.append(("text/plain", text, None, None))
    inlined = []
    if m["html"] is not None:
        parts.append(("text/html", lines_of(m["html"]), None, None))
        inlined = [a for a in m["attachments"]
                   if a["cid"] and re.search("cid:" + re.escape(a["cid"]) + r"(?![A-Za-z0-9@._%+-])", m["html"])]
    for a in inlined + [a for a in m["attachments"] if a not in inlined]:
        parts.append(((a["type"] or "").partition(";")[0] or None, a["content"], a["filename"], a["cid"]))
    return parts


def compare_parts(parser, got, m):
    expected = expected_parts(m)
    same(f"{parser}: number of parts", len(got), len(expected))
    for number, (g, e) in enumerate(zip(got, expected)):
        what = f"{parser}: part {number}"
        if e[0]:
            same(f"{what}: type", g[0], e[0])
        if e[1] is not None:
            content = lines_of(g[1].decode()) if isinstance(e[1], str) else g[1]
            # A text that is the whole message must end with a line end on the wire.
            if len(expected) == 1 and not e[1].endswith("\n"):
                content = content.removesuffix("\n")
            same(f"{what}: content", content, e[1])
        same(f"{what}: file name", g[2], e[2])
        same(f"{what}: content id", g[3], e[3])


def unquoted(address):
    local, _, domain = address.rpartition("@")
    if local.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return f"{local}@{domain}"


def read_python(raw, m):
    message = email.message_from_bytes(raw, policy=email.policy.default)
    old = email.message_from_bytes(raw, policy=email.policy.compat32)
    same("python: subject", str(message["Subject"]), m["subject"])
    for field, mailboxes in (("From", m["from"]), ("Reply-To", m["reply_to"]), ("Cc", m["cc"]),
                             ("To", [] if m["smtputf8"] else m["to"])):
        if not mailboxes:
            continue
        # The library drops quotes that only RFC 5321 needs, so compare what is inside.
        got = [(a.display_name, f"{a.username}@{a.domain}") for a in message[field].addresses]
        # Before 3.13 this API keeps the space between two encoded words of a
        # name, which RFC 2047 takes out; the older one is right.
        legacy = [str(email.header.make_header(email.header.decode_header(name)))
                  for name, _ in email.utils.getaddresses([old[field]])]
        got = [(old_name if name != old_name and name.replace(" ", "") == old_name.replace(" ", "") else name, addr)
               for (name, addr), old_name in zip(got, legacy, strict=True)]
        same(f"python: {field}", got, [(name, unquoted(wire)) for _, name, wire in mailboxes])
    for name, value in m["headers"].items():
        same(f"python: {name}", str(message[name]), value)
    require(str(message["Date"]).endswith("+0000"), "python: date")
    got = []
    for part in message.walk():
        if not part.is_multipart():
            cid = part["Content-ID"]
            got.append((part.get_content_type(), part.get_payload(decode=True), part.get_filename(),
                        str(cid)[1:-1] if cid else None))
    compare_parts("python", got, m)

    # The reader that message_from_bytes() gives unless told otherwise, and name=, which others look at.
    for part, (_, _, filename, _) in zip([p for p in old.walk() if not p.is_multipart()], got, strict=True):
        same("compat32: file name", part.get_filename(), filename)
        name = part.get_param("name")
        if filename is not None and name is not None:
            same("compat32: name=", str(email.header.make_header(email.header.decode_header(name))), filename)
        elif filename is not None:
            require(filename.isascii(), "a name that is not ASCII without name=")
    for part in message.walk():
        for name, value in part.items():
            defects = [d for d in getattr(value, "defects", ())
                       # An encoded word in quotes (name=, for old readers) and an id without "@" are meant.
                       if name != "Content-ID" and not (name == "Content-Type" and " name=" in value)]
            # Dots at odd places are obsolete syntax; folded encoded words in phrases are no defect.
            defects = [d for d in defects if "obsolete" not in type(d).__name__.lower()]
            if not m["smtputf8"]:
                require(not defects, f"python: defects in {name}: {defects} {value!r}")
        require(not part.defects, f"python: defects {part.defects}")


def gmime_content(part):
    stream = GMime.StreamMem.new()
    part.get_content().write_to_stream(stream)
    return bytes(stream.get_byte_array())


def read_gmime(raw, m):
    stream = GMime.StreamMem.new_with_buffer(raw)
    message = GMime.Parser.new_with_stream(stream).construct_message(None)
    same("gmime: subject", message.get_subject() or "", m["subject"])
    for name, kind in (("from", GMime.AddressType.FROM), ("reply_to", GMime.AddressType.REPLY_TO),
                       ("to", GMime.AddressType.TO), ("cc", GMime.AddressType.CC)):
        addresses = message.get_addresses(kind)
        got = []
        for i in range(addresses.length()):
            a = addresses.get_address(i)
            if isinstance(a, GMime.InternetAddressMailbox):
                got.append((a.get_name() or "", a.get_idn_addr()))
        same(f"gmime: {name}", got, [(shown, wire) for _, shown, wire in m[name]])
    for name, value in m["headers"].items():
        same(f"gmime: {name}", message.get_header(name), value)
    got = []

    def walk(part):
        if isinstance(part, GMime.Multipart):
            for i in range(part.get_count()):
                walk(part.get_part(i))
        else:
            got.append((part.get_content_type().get_mime_type(), gmime_content(part), part.get_filename(),
                        part.get_content_id()))
    walk(message.get_mime_part())
    compare_parts("gmime", got, m)


def cases():
    """What has gone wrong elsewhere: one message each, by name."""
    special = "①㈱髙﨑ｱｲｳ～∥－"
    names = ["請求書 2026年.pdf", "売上一覧.xlsx", "résumé.pdf", special + ".csv", "長" * 83 + ".pdf", "a\"b.txt", "🎉 party 🎉.png",
             "=?utf-8?Q?x?=.txt", "plain name.pdf"]
    domain = f"{'d' * 60}.{'e' * 60}.{'f' * 60}.example"
    many = [(f'"{"名" * 58}{number:02d}" <{"r" * 50}{number:02d}@{domain}>', f"{'名' * 58}{number:02d}",
             f"{'r' * 50}{number:02d}@{domain}") for number in range(50)]
    wide = "".join("." if column % 998 == 997 else "x" for column in range(200_000))
    references = " ".join(f"<{number:04d}{'r' * 40}@example.com>" for number in range(270))
    plain = {"subject": "s", "text": "t", "html": None, "headers": {}, "attachments": [], "to": [("a@example.com", "", "a@example.com")],
             "cc": [], "from": [("b@example.com", "", "b@example.com")], "reply_to": [], "smtputf8": False}
    found = {f"subject {subject[:3]!r}": {"subject": subject}
             for subject in ("あ" * 300, "🎉" * 300, ("あ a " * 100).strip(), " あ ", "あ  い", "a " * 70 + "あ", "あ" * 9 + " " * 60 + "い")}
    found["50 long addresses with long names"] = {"to": many}
    found["names of files"] = {"attachments": [{"filename": name, "type": "application/pdf", "cid": None, "content": b"%PDF"}
                                               for name in names]}
    found["characters that ISO-2022-JP lacks"] = {
        "subject": special, "text": special, "html": f"<p>{special}</p>", "headers": {"X-Company": special},
        "from": [(f'"{special}" <b@example.com>', special, "b@example.com")],
        "to": [(f'"{special}" <a@example.com>', special, "a@example.com")],
        "attachments": [{"filename": special + ".txt", "type": "text/plain", "cid": None, "content": special.encode()}]}
    found["a line of 200,000 characters"] = {"html": f"<p>{wide}</p>", "text": wide}
    found["lone CRs"] = {"text": "a\rb\r\nc\nd\r\r\ne"}
    found["headers without a space"] = {"headers": {"X-Long": "x" * 900, "X-Longer": "y" * 3000, "References": references}}
    return {name: {**plain, **changes} for name, changes in found.items()}


def check_cases(command, wanted):
    for name, m in cases().items():
        if wanted and name != wanted:
            continue
        script = "SET client_encoding = 'UTF8'; SET bytea_output = 'hex';\n" + statement(m)
        run = subprocess.run(command, input=script.encode(), capture_output=True)
        if run.returncode != 0:
            sys.exit(f"{name}: {run.stderr.decode():.1000}")
        raw = bytes.fromhex(run.stdout.decode().strip()[2:])
        try:
            check_wire(raw, m)
            read_python(raw, m)
            read_gmime(raw, m)
        except Different as difference:
            sys.exit(f"{name}: {difference}\n{raw.decode('utf-8', 'replace'):.3000}")
    print("each case arrives as it was given")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--cases", nargs="?", const="", help="the known cases (all, or one by name) instead")
    parser.add_argument("psql", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.psql + ["-XAtq", "-v", "ON_ERROR_STOP=1"]
    if options.cases is not None:
        check_cases(command, options.cases)
        return
    batch = 50
    for start in range(options.first, options.first + options.count, batch):
        numbers = range(start, min(start + batch, options.first + options.count))
        messages = [Generator(options.seed, number).message() for number in numbers]
        script = "SET client_encoding = 'UTF8'; SET bytea_output = 'hex';\n" + "".join(map(statement, messages))
        run = subprocess.run(command, input=script.encode(), capture_output=True)
        results = run.stdout.decode().split("\n")[:-1]
        for number, m, result in zip(numbers, messages, results):
            raw = bytes.fromhex(result[2:])
            try:
                check_wire(raw, m)
                read_python(raw, m)
                read_gmime(raw, m)
            except Different as difference:
                sys.exit(f"seed {options.seed}, message {number}: {difference}\n{raw.decode('utf-8', 'replace'):.3000}")
        if run.returncode != 0 or len(results) != len(messages):
            sys.exit(f"seed {options.seed}, message {start + len(results)}: {run.stderr.decode():.1000}"
                     f"{statement(messages[min(len(results), len(messages) - 1)]):.3000}")
    print(f"{options.count} messages, seed {options.seed}: both parsers read what was given")


main()
