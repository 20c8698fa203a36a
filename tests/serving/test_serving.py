"""A server gives what the library gives, and says in one sentence what is wrong with anything else."""

import base64
import json
import socket
import threading
import zlib
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from tests.data import media_files
from tests.serving import served
from tests.serving.served import part, shown, text
from vadapter.data.reading.conversations import Conversation, File
from vadapter.data.rows.prompts import OBJECT
from vadapter.generation.config import DecodingConfig
from vadapter.serving import server
from vadapter.serving.answer_text import AnswerText
from vadapter.serving.engine import Engine
from vadapter.serving.limits import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served.load(tmp_path_factory.mktemp("serving"), lengths={"inputs": 32, "targets": 32})


@pytest.fixture(scope="module")
def client(model):
    limits = Limits(rows=2, new_tokens=40, body_bytes=1 << 20, pixels=10_000, media=2)
    with served.serving({"tiny": model, "other": model}, limits) as found:
        yield found


def test_a_picture_alone_is_captioned_as_by_the_library(model, client):
    expected = model.caption([served.picture(0), served.picture(1)])
    assert expected[0] and expected[0] != expected[1]
    assert [client.text(shown(0)), client.text(shown(1))] == expected


def test_words_are_a_question_about_the_picture(model, client):
    expected = model.answer(served.picture(0), "what is red ?")
    assert client.text(shown(0), text("what is red ?")) == expected
    assert client.text(text("what is red ?"), shown(0)) == expected


def test_a_video_is_captioned_as_by_the_library(model, client, tmp_path):
    path = tmp_path / "clip.mp4"
    media_files.movie(path, [0, 80, 160, 240])
    assert client.text(part(served.url(path.read_bytes(), "video/mp4"), "video")) == model.caption(str(path))


def test_a_conversation_goes_on_and_the_system_speaks_first(model, client):
    first, second = {"role": "user", "content": [shown(0), text("red ?")]}, {"role": "user", "content": "blue ?"}
    turns = [{"role": "system", "content": "a"}, first, {"role": "assistant", "content": "one"}, second]
    path = {"type": "image", "image": served.picture(0)}
    asked = [{**first, "content": [path, text("red ?")]}, *turns[2:]]
    for messages, expected in (([first, *turns[2:]], model.chat(asked)), (turns, model.chat([turns[0], *asked]))):
        body = {"model": "tiny", "messages": messages, "max_tokens": 32}
        status, content, _ = client.send("POST", "/v1/chat/completions", json.dumps(body))
        assert (status, json.loads(content)["choices"][0]["message"]["content"]) == (200, expected)


def test_an_answer_says_why_it_ended_and_what_it_cost(client):
    status, found = client.ask(shown(), max_tokens=5)
    assert status == 200 and found["object"] == "chat.completion" and found["model"] == "tiny"
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 5
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 5


def events(client, *parts, **fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}], "stream": True, **fields}
    status, content, headers = client.send("POST", "/v1/chat/completions", json.dumps(body))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    found = content.decode().split("\n\n")
    assert found[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in found[:-2]]


def test_a_stream_has_the_same_text_in_pieces(client):
    found = events(client, shown(), max_tokens=20, stream_options={"include_usage": True})
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in found if chunk["choices"]]
    assert len(pieces) > 4 and "".join(pieces) == client.text(shown(), max_tokens=20)
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in found if chunk["choices"]][-1] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 20 and not found[-1]["choices"]
    assert len({chunk["id"] for chunk in found}) == 1


def test_a_text_ends_before_a_stop(client):
    whole = client.text(shown(), max_tokens=30)
    stop = whole.split()[4]
    expected = whole[: whole.find(stop)].rstrip()
    status, found = client.ask(shown(), max_tokens=30, stop=["never said", stop])
    assert (found["choices"][0]["message"]["content"], found["choices"][0]["finish_reason"]) == (expected, "stop")
    pieces = events(client, shown(), max_tokens=30, stop=stop)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces) == expected


def test_a_text_is_whole_where_the_tokenizer_takes_back_what_it_said():
    decoded = ["", "it", "it is", "it's not", "it's not red"]
    vocabulary: Any = SimpleNamespace(decode=lambda ids: decoded[len(ids)])
    found = AnswerText(vocabulary)
    assert [found.add([0], last=i == 3) for i in range(4)] == ["it", " is", "", ""]
    assert found.text == "it's not red"


def test_a_seed_draws_the_same_text_and_no_temperature_draws_none(model, client):
    one = [client.text(shown(), temperature=1.5, seed=seed) for seed in (7, 7, 2**32 - 1, 2**32 - 1, -1, 8)]
    assert one[0] == one[1] and one[2] == one[3] == one[4] and len({one[0], one[2], one[5]}) == 3
    sampled = model.caption(served.picture(), decoding=DecodingConfig("sample", temperature=1.5, seed=7, top_p=0.8))
    assert client.text(shown(), temperature=1.5, seed=7, top_p=0.8) == sampled
    assert len({client.text(shown(), temperature=1.5) for _ in range(4)}) > 1
    assert client.text(shown(), temperature=0, seed=7) == client.text(shown())


def test_clients_at_once_each_get_their_own_text(model, client):
    expected = model.caption([served.picture(seed) for seed in range(6)])
    found = {}

    def ask(i):
        name = ("tiny", "other")[i % 2]
        if i % 3:
            found[i] = client.text(shown(i % 6), model=name)
        else:
            pieces = events(client, shown(i % 6), model=name)
            found[i] = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: expected[i % 6] for i in range(12)}


PNG = served.png(served.picture())
_HEAD = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + PNG[24:29]
BOMB = PNG[:12] + _HEAD + zlib.crc32(_HEAD).to_bytes(4, "big") + PNG[33:]
WRONG = [
    ({"model": "large"}, 404, "no model 'large' here; there is tiny, other"),
    ({"model": None}, 400, "model is missing"),
    ({"messages": []}, 400, "messages has no turns"),
    ({"messages": "hi"}, 400, "expected a list of turns"),
    ({"messages": [{"role": "user"}]}, 400, "neither a text nor a list of parts"),
    ({"messages": [{"role": "judge", "content": "hi"}]}, 400, "judge"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "user's"),
    ({"content": [text("word " * 100)]}, 400, "the model reads 64 tokens: shorten them"),
    ({"content": [text("word " * 50_000)]}, 400, "the model reads 64 tokens: shorten them"),
    ({"content": [shown()] * 10}, 400, "more images and videos than the 2"),
    ({"content": [{"type": "input_audio", "input_audio": {}}]}, 400, "not one of the types text, image_url"),
    ({"content": [{"type": "image", "image": "/etc/hostname"}]}, 400, "not one of the types text, image_url"),
    ({"content": [{"type": "text", "text": 5}]}, 400, "not one of the types text"),
    ({"content": [{"type": "image_url"}]}, 400, "has no address"),
    ({"content": [part("/etc/hostname")]}, 400, "files of the server are not read"),
    ({"content": [part("file:///etc/hostname")]}, 400, "files of the server are not read"),
    ({"content": [part("http://127.0.0.1/a.png")]}, 400, "fetches none"),
    ({"content": [part("HTTPS://example.com/a.png")]}, 400, "fetches none"),
    ({"content": [part("data:image/png,abc")]}, 400, "not of base64"),
    ({"content": [part("data:image/png;base64,%%%")]}, 400, "damaged"),
    ({"content": [part(served.url(b"hello"))]}, 400, "Image 1 of 1 cannot be read"),
    ({"content": [part(served.url(PNG[:60]))]}, 400, "Image 1 of 1 cannot be read"),
    ({"content": [part(served.url(b"hello"), "video")]}, 400, "Video 1 of 1 cannot be read"),
    ({"content": [part(served.url(served.png(served.picture(size=101))))]}, 400, "101x101 pixels"),
    ({"content": [part(served.url(BOMB))]}, 400, "far more than the 10000 pixels"),
    ({"content": [part(served.url(b"<html>", "text/html"))]}, 400, "look like a page of the web"),
    ({"content": [part("data:image/png;base64,")]}, 400, "without content"),
    ({"content": [part(served.url(PNG), "video")]}, 400, "Video 1 of 1 cannot be read"),
    ({"content": []}, 400, "turn 1, the user's, is empty"),
    ({"content": [text("")] * 1001}, 400, "Turn 1 has 1001 parts"),
    ({"max_tokens": 41}, 400, "gives 1 to 40 tokens"),
    ({"max_completion_tokens": 0}, 400, "gives 1 to 40 tokens"),
    ({"max_tokens": True}, 400, "gives 1 to 40 tokens"),
    ({"temperature": -1}, 400, "temperature is -1"),
    ({"temperature": "hot"}, 400, "temperature is 'hot'"),
    ({"temperature": 10**400}, 400, "temperature is 1000"),
    ({"top_p": 0}, 400, "top_p is 0"),
    ({"seed": 1.5}, 400, "seed is 1.5"),
    ({"stop": ["a"] * 5}, 400, "up to 4 texts"),
    ({"stream": "yes"}, 400, "stream is 'yes'"),
    ({"min_tokens": 5}, 400, "nothing with min_tokens"),
    ({"n": 2}, 400, "nothing with n"),
    ({"tools": [{"type": "function"}]}, 400, "nothing with tools"),
    ({"response_format": {"type": "json_object"}}, 400, "nothing with response_format"),
]


@pytest.mark.parametrize(("change", "status", "said"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_wrong_request_is_told_what_is_wrong(client, change, status, said):
    content = change.pop("content", [shown()])
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **change}
    found, answer, _ = client.send("POST", "/v1/chat/completions", json.dumps(body))
    error = json.loads(answer)["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"})
    assert said in error["message"]


def test_a_video_of_claims_is_refused(client, tmp_path):
    clip = served.url(media_files.claiming(tmp_path / "clip.mp4", 10**6), "video/mp4")
    status, found = client.ask(part(clip, "video"))
    assert status == 400 and "Video 1 of 1 cannot be read: has no frames" in found["error"]["message"]


def test_what_says_nothing_new_is_let_in(client):
    neutral = {"n": 1, "tools": [], "logprobs": False, "presence_penalty": 0.0, "response_format": {"type": "text"}}
    assert client.text(shown(), **neutral, user="me", store=False, top_k=-1, echo=False) == client.text(shown())
    assert isinstance(client.text(text("red <image> ?")), str)  # a mark in a text is only text, and no picture at all


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {}, 400, "not JSON"),
        (b"{", {}, 400, "not JSON"),
        (b"\xff\xfe", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (b"[]", {}, 400, "not a JSON object"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", {}, 400, "not JSON"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "not compressed"),
        (b" " * (1 << 20) + b"{}", {}, 413, "more than the 1048576 bytes"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_says_why(client, body, headers, status, said):
    found, answer, _ = client.send("POST", "/v1/chat/completions", body, headers)
    assert found == status and said in json.loads(answer)["error"]["message"]


def test_a_body_that_does_not_say_its_size_is_counted(client):
    parts = (b" " * 65536 for _ in range(17))
    status, answer, _ = client.send("POST", "/v1/chat/completions", parts)
    assert status == 413 and "1048576 bytes" in json.loads(answer)["error"]["message"]


def test_other_addresses(client):
    listed = json.loads(client.get("/v1/models")[1])
    assert [each["id"] for each in listed["data"]] == ["tiny", "other"]
    assert json.loads(client.get("/v1/models/other")[1])["id"] == "other"
    assert client.get("/v1/models/none")[0] == 404
    assert client.get("/health") == (200, '{"status":"ok"}')
    for path, status in (("/", 404), ("/v1/embeddings", 404), ("/v1/chat/completions", 405)):
        found, answer = client.get(path)
        assert found == status and json.loads(answer)["error"]["message"]


def test_metrics_count_what_was_done(client):
    before = [client.figure(name) for name in ("vadapter_generated_tokens_total", "vadapter_requests_total")]
    client.ask(shown(), max_tokens=7)
    client.ask(shown(), model="none")
    after = [client.figure(name) for name in ("vadapter_generated_tokens_total", "vadapter_requests_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 2]
    assert client.figure('vadapter_requests_total{model="",status="404"}') >= 1
    assert client.figure("vadapter_requests_running") == client.figure("vadapter_requests_waiting") == 0


def test_a_client_that_hangs_up_frees_its_row(model):
    with served.serving({"tiny": model}, Limits(rows=1, new_tokens=20_000)) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": [shown()]}], "max_tokens": 20_000}
        for stream in (True, False):
            connection = client.connect()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": stream}), headers)
            if stream:
                assert connection.getresponse().readline().startswith(b"data: ")
            connection.close()
        assert client.text(shown(), max_tokens=3)  # there is only one row
        assert client.figure('vadapter_requests_total{model="tiny",status="499"}') >= 1
        assert client.figure("vadapter_generated_tokens_total") < 20_000


def test_what_does_not_fit_in_is_told_to_come_again(model):
    with served.serving({"tiny": model}, Limits(requests=1, rows=1, new_tokens=20_000)) as client:
        first = client.connect()
        body = {"model": "tiny", "messages": [{"role": "user", "content": [shown()]}], "max_tokens": 20_000}
        headers = {"Content-Type": "application/json"}
        first.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), headers)
        assert first.getresponse().readline().startswith(b"data: ")
        status, answer, headers = client.send("POST", "/v1/chat/completions", json.dumps(body))
        assert status == 429 and headers["retry-after"] == "1" and "ask again" in json.loads(answer)["error"]["message"]
        first.close()


def test_a_request_has_its_time(model):
    with served.serving({"tiny": model}, Limits(seconds=0.2, rows=1, new_tokens=20_000)) as client:
        status, found = client.ask(shown(), max_tokens=20_000)
        assert status == 503 and "0.2 seconds" in found["error"]["message"]
        body = {"model": "tiny", "messages": [{"role": "user", "content": [shown()]}], "max_tokens": 20_000}
        status, content, _ = client.send("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}))
        last = content.decode().strip().split("\n\n")[-1]
        assert status in (200, 503) and "0.2 seconds" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(model):
    with served.serving({"tiny": model}, Limits(body_seconds=0.1)) as client:
        connection = client.connect()
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408 and "0.1 seconds" in json.loads(answer.read())["error"]["message"]


def test_a_head_that_does_not_come_is_not_waited_for(model, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    with served.serving({"tiny": model}) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
            assert slow.recv(1) == b""  # closed
        assert client.text(shown(), max_tokens=3)


def test_the_rest_of_a_body_that_has_its_answer_is_not_waited_for(model, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    with served.serving({"tiny": model}, key="secret") as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
            assert slow.recv(12) == b"HTTP/1.1 401"
            with pytest.raises(ConnectionError):  # however often something more of it comes
                for _ in range(10_000_000):
                    slow.sendall(b" ")
        assert client.get("/health")[0] == 200


def test_a_client_that_takes_no_answers_is_left(model, monkeypatch):
    monkeypatch.setattr(server, "TAKE_SECONDS", 0.05)
    with served.serving({"tiny": model}, page=True) as client:
        with socket.socket() as stuck:
            stuck.settimeout(60)
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", client.port))
            with pytest.raises(ConnectionError):
                for _ in range(100_000):
                    stuck.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        assert client.get("/health")[0] == 200


def test_a_key_is_asked_for(model):
    with served.serving({"tiny": model}, key="secret") as client:
        for headers in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer \xe9"},
        ):
            for path in ("/v1/models", "/metrics", "/nothing"):
                status, answer, _ = client.send("GET", path, headers=headers)
                assert status == 401 and json.loads(answer)["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models", Authorization="Bearer secret")[0] == 200
        assert client.get("/health")[0] == 200


def test_no_caption_waits_for_a_compiler(model, caplog, monkeypatch):
    monkeypatch.setattr("vadapter.generation.continuous.SHORTEST", 4)  # slots of a prompt that was read before
    engine = Engine({"tiny": model}, Limits(rows=3))
    decoder = engine.lanes["tiny"].decoder
    asked = Conversation("it", (("user", OBJECT), ("assistant", ".")), (File("image"),))

    def compiled(work):
        caplog.clear()
        with jax.log_compiles():
            work()
        return "Compiling jit" in caplog.text

    def caption():
        for seed in (1, 1, 2):
            decoder.submit(model.conversation(asked, lambda *_, seed=seed: pixels(seed)), 5)
            while decoder.busy:
                decoder.step()

    def pixels(seed):
        return np.asarray(served.picture(seed, model.sizes.image_size))

    assert compiled(engine.warm_up) and not compiled(caption)


def test_drafts_give_the_same_texts_in_fewer_calls(model, client, monkeypatch):
    made = []
    monkeypatch.setattr(served, "Engine", lambda *args: made.append(Engine(*args)) or made[-1])
    asked = [({}, shown(seed)) for seed in range(3)] + [({"temperature": 0.7, "seed": 4}, shown(0))]
    expected = [client.text(image, max_tokens=40, **choice) for choice, image in asked]
    limits, calls = Limits(rows=2, new_tokens=40), []
    for decoding in (DecodingConfig(), DecodingConfig(draft="prompt_lookup")):
        with served.serving({"tiny": model}, limits, decoding) as drafting:
            assert [drafting.text(image, max_tokens=40, **choice) for choice, image in asked] == expected
        calls.append(made[-1].lanes["tiny"].decoder.calls)
    assert calls[1] < calls[0]


def test_a_step_that_fails_costs_the_others_nothing(model, monkeypatch, caplog):
    with served.serving({"tiny": model}) as client:
        expected = client.text(shown(), max_tokens=3)
        monkeypatch.setattr("vadapter.generation.continuous.ContinuousDecoder._admit", lambda *_: 1 / 0)
        status, found = client.ask(shown(), max_tokens=3)
        assert status == 500 and "its log says why" in found["error"]["message"]
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert client.text(shown(), max_tokens=3) == expected


def test_the_client_of_openai_gets_the_same_text(model, client):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    with openai.OpenAI(base_url=client.address, api_key="none", max_retries=0) as stock:
        assert [each.id for each in stock.models.list()] == ["tiny", "other"]
        asked = {"model": "tiny", "messages": [{"role": "user", "content": [shown()]}]}
        assert stock.chat.completions.create(**asked).choices[0].message.content == model.caption(served.picture())
        chunks = list(stock.chat.completions.create(**asked, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == model.caption(served.picture())
        with pytest.raises(openai.NotFoundError, match="no model"):
            stock.chat.completions.create(**{**asked, "model": "none"})
        with pytest.raises(openai.BadRequestError, match="cannot be read"):
            broken = part("data:image/png;base64," + base64.b64encode(b"none").decode())
            stock.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [broken]}])
