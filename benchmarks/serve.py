"""`vadapter serve` under load: many clients at once beside one after the other, and good requests among bad ones.

python benchmarks/serve.py --bundle bundles/owl --clients 64
python benchmarks/serve.py --bundle bundles/owl --mixed 1000

Starts a server of its own on a free port. The first form asks the same captions one by one and from all clients at the
same time, in turns, and prints JSON: seconds of a request (median and 95th of a hundred), new tokens a second, the
ratio of the rounds, and whether all texts are equal. The second form sends good and bad requests in a fixed order from
16 clients, compares every answer with what it has to be, and prints what was wrong (nothing), the statuses, and the
server's memory on the way. The exit status is 1 if anything was wrong.
"""

import argparse
import base64
import http.client
import io
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PICTURES = 8
Answer = tuple[int, Any]


class Server:
    """A server of one model, as a process of its own."""

    def __init__(self, bundle: str, rows: int, clients: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "vadapter", "serve", "--bundle", f"m={bundle}", f"--port={self.port}"]
        command += [f"--rows={rows}", f"--max_requests={2 * clients}", "--max_body_mb=4", "--max_megapixels=4"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        for line in self._process.stdout:
            if "vadapter serves" in line:
                return
        sys.exit(f"the server ended with {self._process.wait()}")

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> Answer:
        """Sends a request and returns status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def hang_up(self, body: bytes) -> None:
        """Asks for a stream, reads its beginning, and is gone."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            connection.recv(64)

    @property
    def resident_mb(self) -> float:
        """Memory of the process, on Linux."""
        with open(f"/proc/{self._process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> int:
        """Tells the server to end, and returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


def picture(seed: int, size: int = 96) -> str:
    """A PNG of noise and blocks, as a data URL."""
    from PIL import Image

    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randrange(256) for _ in range(3)))
    for _ in range(6):
        x, y, side = rng.randrange(size), rng.randrange(size), rng.randrange(8, 40)
        image.paste(tuple(rng.randrange(256) for _ in range(3)), (x, y, x + side, y + side))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def bomb() -> str:
    """A PNG of few bytes that claims 50,000 x 50,000 pixels, as a data URL."""
    head = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk).decode()


def request(url: str | None = None, words: str = "", model: str = "m", **fields: Any) -> bytes:
    """The body of a request with a picture, with words, or with both."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}] if url is not None else []
    parts += [{"type": "text", "text": words}] if words else []
    return json.dumps({"model": model, "messages": [{"role": "user", "content": parts}], **fields}).encode()


def text_of(answer: Answer) -> str:
    """The text of an answer."""
    status, found = answer
    if status != 200:
        raise SystemExit(f"expected an answer; found {status}: {found}")
    return found["choices"][0]["message"]["content"]


def beside_one_by_one(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Times the same requests from all clients at once, and one after the other."""
    bodies = [request(picture(i % PICTURES), max_tokens=args.new_tokens) for i in range(args.clients)]

    def timed(workers: int) -> dict[str, Any]:
        def one(body: bytes) -> tuple[float, Answer]:
            start = time.perf_counter()
            return (answer := server.post(body)) and (time.perf_counter() - start, answer)

        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(one, bodies))
        return {
            "seconds": time.perf_counter() - start,
            "latencies": [latency for latency, _ in found],
            "texts": [text_of(answer) for _, answer in found],
            "tokens": sum(answer[1]["usage"]["completion_tokens"] for _, answer in found),
        }

    timed(args.clients)  # whatever is compiled at the first request
    rounds = [{"one_by_one": timed(1), "at_once": timed(args.clients)} for _ in range(args.rounds)]
    ratios = [r["one_by_one"]["seconds"] / r["at_once"]["seconds"] for r in rounds]
    return {
        "question": "how many times sooner all answers are there, of paired rounds",
        "times_sooner": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "equal_texts": all(r["one_by_one"]["texts"] == r["at_once"]["texts"] for r in rounds),
        **{
            way: {
                "new_tokens_per_second": statistics.median(r[way]["tokens"] / r[way]["seconds"] for r in rounds),
                "request_seconds": _latency([x for r in rounds for x in r[way]["latencies"]]),
            }
            for way in ("one_by_one", "at_once")
        },
        "sizes": {"clients": args.clients, "rows": args.rows, "new_tokens": args.new_tokens, "rounds": args.rounds},
    }


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "95th": sorted(seconds)[int(0.95 * (len(seconds) - 1))]}


def mixed(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Sends good and bad requests, and compares every answer with what it has to be."""
    urls = [picture(i) for i in range(PICTURES)]
    expected = [text_of(server.post(request(url))) for url in urls]
    asked = text_of(server.post(request(urls[0], "what is this ?")))
    huge = picture(0, 2400)  # more than 4 megapixels
    cut = urls[1][: len(urls[1]) // 2]
    part = {"type": "image_url", "image_url": {"url": urls[0]}}
    ten = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part] * 10}]}).encode()

    def good(i: int) -> str | None:
        answer = server.post(request(urls[i % PICTURES]))
        return None if answer[0] == 200 and text_of(answer) == expected[i % PICTURES] else f"caption {i}: {answer}"

    def question(i: int) -> str | None:
        answer = server.post(request(urls[0], "what is this ?"))
        return None if answer[0] == 200 and text_of(answer) == asked else f"question {i}: {answer}"

    def refused(body: bytes, *statuses: int) -> Callable[[int], str | None]:
        def send(i: int) -> str | None:
            status, found = server.post(body)
            clear = isinstance(found.get("error"), dict) and found["error"].get("message")
            counts[status] += 1
            return None if status in statuses and clear else f"request {i}: {status} {found}"

        return send

    def gone(i: int) -> str | None:
        server.hang_up(request(urls[i % PICTURES], stream=True))
        return None

    counts: Counter[int] = Counter()
    bad = [
        refused(b"{", 400),
        refused(b"[]", 400),
        refused(b'{"model": "m"}', 400),
        refused(request(urls[0], model="other"), 404),
        refused(request("data:image/png;base64,AAAA"), 400),
        refused(request(cut), 400),
        refused(request(huge), 400),
        refused(request(bomb()), 400),
        refused(request("data:text/html;base64," + base64.b64encode(b"<html>").decode()), 400),
        refused(ten, 400),
        refused(request("http://127.0.0.1/x.png"), 400),
        refused(request("/etc/hostname"), 400),
        refused(request(urls[0], max_tokens=10**6), 400),
        refused(request(urls[0], temperature=-1), 400),
        refused(request(urls[0], n=3), 400),
        refused(request(urls[0], "word " * 20_000), 400),
        refused(b"x" * (5 << 20), 413),
        gone,
    ]
    rng = random.Random(args.seed)
    plan = [rng.choice([good, question, good, *rng.sample(bad, 2)]) for _ in range(args.mixed)]
    memory, wrong = [server.resident_mb], []
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(plan), 100):
            found = pool.map(lambda i: plan[i](i), range(start, min(start + 100, len(plan))))
            wrong += [x for x in found if x]
            memory.append(server.resident_mb)
    return {
        "question": "is every answer right, or a clear refusal",
        "requests": len(plan),
        "good": sum(send in (good, question) for send in plan),
        "hung up": plan.count(gone),
        "refused": {str(status): count for status, count in sorted(counts.items())},
        "wrong": wrong[:20],
        "server_mb_every_100": [round(x, 1) for x in memory],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="a bundle or a run")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8, help="of the server (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed", type=int, default=0, metavar="N", help="send N good and bad requests instead")
    parser.add_argument("--seed", type=int, default=0, help="of the order of --mixed")
    args = parser.parse_args()
    server = Server(args.bundle, args.rows, args.clients)
    try:
        found = mixed(server, args) if args.mixed else beside_one_by_one(server, args)
    finally:
        status = server.stop()
    print(json.dumps({**found, "server_ended_with": status, "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}))
    sys.exit(1 if status or found.get("wrong") or found.get("equal_texts") is False else 0)


if __name__ == "__main__":
    main()
