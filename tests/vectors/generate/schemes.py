"""How providers sign, written from their documentation and from nothing of Hooklatch.

A scheme signs a request and says, by reading the request back, whether a signature is good. Where a provider has a library, that
library judges the cases and `good` only has to agree; where it has none, `good` is the judge.
"""

import base64
import binascii
import datetime
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from email.utils import format_datetime

NOW = 1_760_000_000


def seeded(name: str, length: int) -> bytes:
    """Bytes that look random and are always the same."""
    out = b""
    while len(out) < length:
        out += hashlib.sha256(f"hooklatch case {name} {len(out)}".encode()).digest()
    return out[:length]


def text_secret(name: str) -> str:
    return base64.b32encode(seeded(name, 20)).decode().lower()


@dataclass
class Request:
    method: str
    url: str
    headers: list
    body: bytes

    def copy(self, **change):
        new = Request(self.method, self.url, [list(pair) for pair in self.headers], self.body)
        for key, value in change.items():
            setattr(new, key, value)
        return new

    def get(self, name):
        """A header as HTTP joins it; None where there is none."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(found) if found else None

    def put(self, name, value):
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        if value is not None:
            self.headers.append([name, value])

    def edit(self, name, change):
        for pair in self.headers:
            if pair[0].lower() == name.lower():
                pair[1] = change(pair[1])


def encode(kind: str, raw: bytes) -> str:
    if kind == "hex":
        return raw.hex()
    if kind == "base64":
        return base64.b64encode(raw).decode()
    if kind == "base64url":
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")
    raise ValueError(kind)


def moment(unit: str, seconds: float) -> str:
    """A time as a provider writes it."""
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    if unit == "s":
        return str(int(seconds))
    if unit == "ms":
        return str(int(seconds) * 1000 + 17)
    if unit == "iso":
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if unit == "iso-offset":
        return (at - datetime.timedelta(hours=7)).strftime("%Y-%m-%dT%H:%M:%S-07:00")
    if unit == "iso-bare":
        return at.strftime("%Y-%m-%dT%H:%M:%S.%f")
    if unit == "http":
        return format_datetime(at, usegmt=True)
    raise ValueError(unit)


def seconds_of(unit: str, text: str):
    try:
        if unit in ("s", "ms"):
            if not text.isascii() or not text.isdigit():
                return None
            return int(text) / (1000 if unit == "ms" else 1)
        if unit == "http":
            return datetime.datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=datetime.timezone.utc).timestamp()
        at = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)).timestamp()
    except ValueError:
        return None


@dataclass
class Time:
    """Where the signed time stands (`header`, or `field` of the signature header), its unit, and how far off it may be, if at all."""

    unit: str
    header: str = None
    field: str = None
    past: int = None
    future: int = None


@dataclass
class Scheme:
    name: str
    docs: str
    judges: list = field(default_factory=list)
    facts: list = field(default_factory=list)
    event: dict = field(default_factory=lambda: {"id": "evt_5f2c0e7a", "type": "order.created"})
    url: str = None
    method: str = "POST"
    content_type: str = "application/json"
    params: dict = field(default_factory=dict)
    public_key: str = None
    # Kinds of cases that the provider's own rules leave open.
    skip: set = field(default_factory=set)
    # Whether `good` can judge beside a library: it knows one key at a time.
    agrees: bool = True

    def __post_init__(self):
        self.url = self.url or f"https://hooks.example.com/in/{self.name}"

    # -- what a scheme says of itself --

    def secret(self, n: int) -> str:
        return text_secret(f"{self.name} {n}")

    def body(self, n: int) -> bytes:
        """The n-th body: 0 plain, 1 full of what does not survive re-writing, 2 with CRLF, 3 another plain one."""
        event = dict(self.event)
        if n == 1:
            head = ", ".join(f"{json.dumps(key)} : {json.dumps(value)}" for key, value in event.items())
            return ("{ " + head + ', "text":"café \\u00e9 😀 e\\u0301 \\/ <&> \u2028","n":1.0,"e":1E3,"big":12345678901234567890 ,"z":null }\n').encode()
        event["note"] = {0: "plain", 2: "lines", 3: "another"}[n]
        if n == 2:
            return json.dumps(event, indent=2).replace("\n", "\r\n").encode() + b"\r\n"
        return json.dumps(event, separators=(",", ":")).encode()

    def draft(self, body: bytes) -> Request:
        headers = [["Content-Type", self.content_type], ["User-Agent", "sender/1.0"]]
        return Request(self.method, self.url, headers + [list(fact) for fact in self.facts], body)

    def signed(self, body: bytes, secret: str = None, at: float = NOW, **over) -> Request:
        request = self.draft(body)
        self.sign(request, self.secret(1) if secret is None else secret, at, **over)
        return request

    def sign(self, request: Request, secret: str, at: float, **over):
        raise NotImplementedError

    def good(self, request: Request, secret: str, now: float) -> bool:
        raise NotImplementedError


def key_utf8(secret: str) -> bytes:
    return secret.encode()


def key_hex(secret: str) -> bytes:
    return bytes.fromhex(secret)


def key_whsec(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


@dataclass
class Mac(Scheme):
    """A MAC, or a plain digest with the secret in it, over a template.

    The template's letters: `{b}` body, `{t}` time, `{i}` id, `{m}` method, `{u}` URL, `{s}` secret.
    """

    header: str = None
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""
    # None, or ("list", separator, version), ("pairs", separator, assign, field), ("first-is-time", separator)
    form: tuple = None
    template: str = "{b}"
    time: Time = None
    id_header: str = None
    key: object = key_utf8
    digest: bool = False  # a plain digest instead of a MAC

    def secret(self, n):
        return seeded(f"{self.name} {n}", 32).hex().upper() if self.key is key_hex else super().secret(n)

    def content(self, request, t, i, secret) -> bytes:
        out = b""
        rest = self.template
        known = {"b": request.body, "t": (t or "").encode(), "i": (i or "").encode(), "m": request.method.encode(), "u": request.url.encode(), "s": secret.encode()}
        while rest:
            at = rest.find("{")
            if at < 0:
                return out + rest.encode()
            out += rest[:at].encode() + known[rest[at + 1]]
            rest = rest[at + 3:]
        return out

    def tag(self, request, secret, t, i, algorithm=None) -> bytes:
        content = self.content(request, t, i, secret)
        if self.digest:
            return hashlib.new(algorithm or self.algorithm, content).digest()
        return hmac.new(self.key(secret), content, algorithm or self.algorithm).digest()

    def write(self, tags: list, t: str) -> str:
        """The signature header's value."""
        texts = [self.prefix + tag for tag in tags]
        if self.form is None:
            return texts[0]
        kind, separator, *more = self.form
        if kind == "list":
            return separator.join(more[0] + text for text in texts)
        if kind == "first-is-time":
            return separator.join([t] + texts)
        assign, name = more
        items = [f"{name}{assign}{text}" for text in texts]
        if self.time and self.time.field:
            items.insert(0, f"{self.time.field}{assign}{t}")
        return separator.join(items)

    def sign(self, request, secret, at, *, tags=None, algorithm=None, over=None, identity="msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", t=None, encoding=None):
        """`over`: another request to sign instead; `tags`: these instead of the right one; `t`: the time's text."""
        if self.time:
            t = moment(self.time.unit, at) if t is None else t
            if self.time.header:
                request.put(self.time.header, t)
        if self.id_header:
            request.put(self.id_header, identity)
        tag = encode(encoding or self.encoding, self.tag(over or request, secret, t, identity if self.id_header else None, algorithm))
        self.dress(request, [tag] if tags is None else [tag if text is None else text for text in tags], t)

    def dress(self, request, tags, t):
        request.put(self.header, self.write(tags, t))

    def read(self, request):
        """The time and the signatures of a request; None where it has none."""
        value = request.get(self.header)
        if not value:
            return None
        t = request.get(self.time.header) if self.time and self.time.header else None
        if self.form is None:
            found = [value]
        else:
            kind, separator, *more = self.form
            items = [item.strip() for item in value.split(separator)]
            if kind == "list":
                found = [item[len(more[0]):] for item in items if item.startswith(more[0])]
            elif kind == "first-is-time":
                t, found = items[0], items[1:]
            else:
                assign, name = more
                pairs = [item.split(assign, 1) for item in items if assign in item]
                found = [text for key, text in pairs if key == name]
                if self.time and self.time.field:
                    times = [text for key, text in pairs if key == self.time.field]
                    t = times[0] if len(times) == 1 else None
        found = [text[len(self.prefix):] for text in found if text.startswith(self.prefix)]
        return t, found

    def good(self, request, secret, now):
        parsed = self.read(request)
        if parsed is None:
            return False
        t, found = parsed
        i = None
        if self.time:
            at = seconds_of(self.time.unit, t) if t else None
            if at is None:
                return False
            if self.time.past is not None and now - at > self.time.past:
                return False
            if self.time.future is not None and at - now > self.time.future:
                return False
        if self.id_header:
            i = request.get(self.id_header)
            if not i:
                return False
        wanted = encode(self.encoding, self.tag(request, secret, t, i))
        return any(hmac.compare_digest(text.encode(), wanted.encode()) for text in found)


@dataclass
class Standard(Mac):
    """Standard Webhooks (spec/standard-webhooks.md), under another name of headers where `brand` says so."""

    brand: str = "webhook"

    def __post_init__(self):
        super().__post_init__()
        self.header = f"{self.brand}-signature"
        self.id_header = f"{self.brand}-id"
        self.time = self.time or Time("s", header=f"{self.brand}-timestamp", past=300, future=300)
        self.form = ("list", " ", "v1,")
        self.encoding = "base64"
        self.template = "{i}.{t}.{b}"

    def secret(self, n):
        if self.key is key_utf8:
            return super().secret(n)
        return "whsec_" + base64.b64encode(seeded(f"{self.name} {n}", 32)).decode()


@dataclass
class Token(Scheme):
    """A secret word in a header, or in a query parameter. It covers nothing of the body."""

    header: str = None
    query: str = None
    prefix: str = ""

    def sign(self, request, secret, at, **_):
        if self.query:
            request.url = f"{self.url}?{self.query}={secret}"
        else:
            request.put(self.header, self.prefix + secret)

    def good(self, request, secret, now):
        if self.query:
            values = [piece.split("=", 1)[1] for piece in request.url.partition("?")[2].split("&") if piece.startswith(self.query + "=")]
            return values == [secret]
        return request.get(self.header) == self.prefix + secret


@dataclass
class Basic(Scheme):
    """HTTP basic authentication (RFC 7617): the secret is `user:password`."""


    def secret(self, n):
        return f"gate{n}:" + text_secret(f"{self.name} {n}")

    def sign(self, request, secret, at, **_):
        request.put("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())

    def good(self, request, secret, now):
        kind, _, text = (request.get("Authorization") or "").partition(" ")
        try:
            return kind.lower() == "basic" and base64.b64decode(text, validate=True) == secret.encode()
        except (binascii.Error, ValueError):
            return False


@dataclass
class Box(Mac):
    """Box signs with two keys, a header for each."""

    agrees: bool = False

    def dress(self, request, tags, t):
        request.put("BOX-SIGNATURE-PRIMARY", tags[0])

