"""A server of the tiny bundle for tests: a real one, on a free port, in a thread of this process."""

import base64
import contextlib
import http.client
import io
import json
import threading

import jax
import numpy as np
import uvicorn
from PIL import Image

import vadapter
from tests import tiny_bundle
from vadapter.partitioning import Partitioner, make_mesh
from vadapter.serving import app, server
from vadapter.serving.engine import Engine
from vadapter.serving.limits import Limits


def load(folder, name="tiny", **settings):
    """A tiny model on one device."""
    path = tiny_bundle.write_bundle(folder, name, **settings)
    return vadapter.load(path, partitioner=Partitioner(make_mesh(devices=jax.devices()[:1])))


class Client:
    """Speaks plain HTTP with a server."""

    def __init__(self, port: int):
        self.port = port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def send(self, method, path, body=None, headers=None):
        """Returns (status, content, headers)."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.headers)

    def get(self, path, **headers):
        status, content, _ = self.send("GET", path, headers=headers)
        return status, content.decode()

    def ask(self, *parts, model="tiny", **fields):
        """Asks for a completion of one turn. Returns (status, JSON)."""
        body = {"model": model, "messages": [{"role": "user", "content": list(parts)}], **fields}
        status, content, _ = self.send("POST", "/v1/chat/completions", json.dumps(body))
        return status, json.loads(content)

    def text(self, *parts, **fields) -> str:
        status, found = self.ask(*parts, **fields)
        assert status == 200, found
        return found["choices"][0]["message"]["content"]

    def figure(self, name: str) -> float:
        """The sum of a metric over all its labels that start with a name, such as 'vadapter_requests_total{...}'."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def serving(models, limits=None, decoding=None, **settings):
    """Yields a `Client` of a server of these models."""
    limits = limits or Limits()
    made = app.make(Engine(models, limits, decoding), limits, **settings)
    found = server.bind("127.0.0.1", 0)
    found.listen()  # who comes before the server runs is let in when it does
    config = uvicorn.Config(made, http=server.Protocol, ws="none", log_level="error", timeout_graceful_shutdown=60)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([found],))
    thread.start()
    try:
        yield Client(found.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join()


def picture(seed=0, size=20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def url(content: bytes, kind="image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def part(address: str, kind="image") -> dict:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": address}}


def shown(seed=0) -> dict:
    """The part of a picture."""
    return part(url(png(picture(seed))))


def text(words: str) -> dict:
    return {"type": "text", "text": words}
