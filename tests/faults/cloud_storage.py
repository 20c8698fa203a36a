"""A stand-in for Cloud Storage on this machine, which answers badly when it is told to.

It speaks as much of the JSON and XML interfaces (https://cloud.google.com/storage/docs/json_api) as TensorStore,
TensorFlow and google-cloud-storage use. TensorFlow has no setting for the address of a store: there the stand-in is
also the proxy of all https addresses, with a certificate of its own.
"""

import contextlib
import datetime
import email.utils
import http.server
import itertools
import json
import os
import re
import signal
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS = ("429", "503", "slow", "cut", "lost")
_HOSTS = ("storage.googleapis.com", "www.googleapis.com")
_SLOW = 0.3  # seconds of a slow answer
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(?:/rewriteTo/b/[^/]+/o/([^/]+))?")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o/?")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)/?")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o/?")
_XML = re.compile(r"/([^/]+)/(.+)")


class Store(http.server.ThreadingHTTPServer):
    """One bucket, in memory.

    Args:
        folder: for the certificate.
        bucket: its name.

    Attributes:
        objects: `{name: (content, generation)}`.
        plan: what goes wrong: `{"every": n, "kinds": [...]}` spoils every n-th answer, with the kinds (`FAULTS`) in
            turns; `{"kill": pattern, "pid": id, "stored": bool}` kills that process when it writes an object of such a
            name, before or after the object is stored.
        spoiled: how many answers of each kind were spoiled.
        asked: how many requests came by each way: "json", "xml" and "upload".
    """

    daemon_threads = True

    def __init__(self, folder: Path, bucket: str = "runs"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket, self.lock = bucket, threading.RLock()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.plan: dict[str, Any] = {}
        self.spoiled: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.asked: dict[str, int] = {}
        self.counter, self.generations = itertools.count(1), itertools.count(1)
        self.uploads: dict[str, str] = {}
        self.certificate = folder / "certificate.pem"
        self.certificate.write_bytes(_certificate())
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate)

    def environment(self) -> dict[str, str]:
        """The variables that send a process here, whichever library it asks with."""
        here = f"http://127.0.0.1:{self.server_port}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": here,
            "STORAGE_EMULATOR_HOST": here,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "GOOGLE_CLOUD_PROJECT": "nothing",
            "NO_GCE_CHECK": "true",
            "https_proxy": here,
            "HTTPS_PROXY": here,
            "http_proxy": "",
            "HTTP_PROXY": "",
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": str(self.certificate),
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "10000",
        }

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        plan = self.plan
        kills = plan.get("pid") and re.search(plan["kill"], name)
        if kills and not plan["stored"]:
            self._kill()
        with self.lock:
            self.objects[name] = content, next(self.generations)
        if kills and plan["stored"]:
            self._kill()
        return self.describe(name)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.plan["pid"], signal.SIGKILL)
        self.plan = {"killed": True}
        raise ConnectionAbortedError

    def describe(self, name: str) -> dict[str, Any]:
        content, generation = self.objects[name]
        about = {"kind": "storage#object", "bucket": self.bucket, "name": name, "size": str(len(content))}
        when = "2026-01-01T00:00:00.000Z"
        return about | {"generation": str(generation), "metageneration": "1", "updated": when, "timeCreated": when}

    def spoil(self) -> str | None:
        """Returns how to spoil the answer to the next request."""
        plan, number = self.plan, next(self.counter)
        if not plan.get("every") or number % plan["every"]:
            return None
        kind = plan["kinds"][number // plan["every"] % len(plan["kinds"])]
        self.spoiled[kind] += 1
        return kind


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    server: Store

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            super().handle()

    def do_CONNECT(self) -> None:  # noqa: N802
        """From here on the connection is one with an https host, which this is too."""
        self.send_response(200)
        self.end_headers()
        self.connection = self.request = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.connection.close()

    def _any(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        content = self._content()
        if url.path == "/-/plan":  # from the test, never spoiled
            self.server.plan = json.loads(content)
            self._answer(200, b"")
            return
        if url.path == "/-/state":
            state = {"spoiled": self.server.spoiled, "plan": self.server.plan, "asked": self.server.asked}
            self._answer(200, json.dumps(state | {"names": sorted(self.server.objects)}).encode())
            return
        kind = self.server.spoil()
        if kind in ("429", "503"):
            self._answer(int(kind), b'{"error": {"message": "Try again."}}')
            return
        if kind == "cut" and self.command != "GET":  # before anything is stored
            self.close_connection = True
            return
        if kind == "slow":
            time.sleep(_SLOW)
        status, body, headers = self._found(url.path, query, content)
        if kind == "lost" and self.command != "GET":  # stored, and nobody hears of it
            self.close_connection = True
            return
        self._answer(status, body, headers, cut=kind in ("cut", "lost"))

    do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (1 if cut else 0)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def _found(self, path: str, query: dict[str, str], content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Returns the status, content and headers of an answer."""
        store, way = self.server, "json"
        if match := _UPLOAD.fullmatch(path):
            way, found = "upload", self._upload(query, content)
        elif match := _OBJECT.fullmatch(path):
            found = self._object(unquote(match.group(2)), query, unquote(match.group(3) or ""))
        elif match := _LIST.fullmatch(path):
            found = 200, json.dumps(self._list(query)).encode(), {}
        elif match := _BUCKET.fullmatch(path):
            about = {"kind": "storage#bucket", "id": store.bucket, "name": store.bucket, "location": "HERE"}
            found = 200, json.dumps(about).encode(), {}
        elif match := _XML.fullmatch(path):
            way, found = "xml", self._object(unquote(match.group(2)), {"alt": "media"})
        else:
            found = 404, b"{}", {}
        store.asked[way] = store.asked.get(way, 0) + 1
        return found if match and match.group(1) == store.bucket else (404, b"{}", {})

    def _object(self, name: str, query: dict[str, str], target: str = "") -> tuple[int, bytes, dict[str, str]]:
        store = self.server
        with store.lock:
            if name not in store.objects:
                return 404, b"{}", {}
            content, generation = store.objects[name]
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                return 412, b"{}", {}
            if query.get("ifGenerationNotMatch") == str(generation):
                return 304, b"", {}
            if self.command == "DELETE":
                del store.objects[name]
                return 204, b"", {}
        if target:
            moved = store.put(target, content)
            return 200, json.dumps({"kind": "storage#rewriteResponse", "done": True, "resource": moved}).encode(), {}
        if query.get("alt") != "media":
            return 200, json.dumps(store.describe(name)).encode(), {}
        headers = {"x-goog-generation": str(generation), "ETag": f'"{generation}"'}
        headers["Last-Modified"] = email.utils.formatdate(usegmt=True)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, content, headers
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if begin >= len(content):
            return 416, b"", headers
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return 206, content[begin:end], headers

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.server.lock:
            names = sorted(name for name in self.server.objects if name.startswith(prefix))
        names = [name for name in names if name >= query.get("startOffset", "")]
        if "endOffset" in query:
            names = [name for name in names if name < query["endOffset"]]
        items: dict[str, str] = {}
        for name in names:
            rest = name[len(prefix) :]
            cut = rest.find(delimiter) if delimiter else -1
            items[name if cut < 0 else prefix + rest[: cut + 1]] = "name" if cut < 0 else "prefix"
        most, begin = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        page = [name for name in sorted(items) if name > begin]
        found: dict[str, Any] = {"kind": "storage#objects"}
        if len(page) > most:
            page = page[:most]
            found["nextPageToken"] = page[-1]
        with self.server.lock:
            there = self.server.objects
            found["items"] = [self.server.describe(n) for n in page if items[n] == "name" and n in there]
        found["prefixes"] = [n for n in page if items[n] == "prefix"]
        return found

    def _upload(self, query: dict[str, str], content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """An object as a whole, or in two requests of which the first names a session."""
        store = self.server
        if "upload_id" in query:
            name = store.uploads[query["upload_id"]]
            if (self.headers.get("Content-Range") or "").startswith("bytes */") and not content:
                if name in store.objects:  # how far is it?
                    return 200, json.dumps(store.describe(name)).encode(), {}
                if self.headers["Content-Range"] != "bytes */0":
                    return 308, b"", {}
        elif query.get("uploadType") == "resumable":
            name = query.get("name") or json.loads(content)["name"]
            session = str(next(store.generations))
            store.uploads[session] = name
            host = self.headers["Host"]
            scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            base = f"{scheme}://{host}/upload/storage/v1/b/{store.bucket}/o"
            return 200, b"", {"Location": f"{base}?uploadType=resumable&upload_id={session}"}
        else:
            name = query["name"]
        wanted = query.get("ifGenerationMatch")
        with store.lock:
            generation = store.objects[name][1] if name in store.objects else 0
            if wanted is not None and int(wanted) != generation:
                return 412, b"{}", {}
        return 200, json.dumps(store.put(name, content)).encode(), {}


def _certificate() -> bytes:
    """A key and a certificate for the hosts of Cloud Storage, signed by itself, for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in _HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + made.public_bytes(serialization.Encoding.PEM)
