"""The page in a real browser: a picture is dropped, and the models answer side by side, on phones and desktops.

Needs playwright (pip install playwright) and Chromium, the system's or playwright's own; skipped where they are not.
"""

import base64
import re
import shutil

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from tests.serving import served

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright and Chromium, for the page")

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 800}}
DROPPED = """([content, type]) => {
  const found = new DataTransfer();
  found.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "dropped", { type }));
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    where = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as running:
        try:
            found = running.chromium.launch(executable_path=where)
        except playwright.Error as e:
            pytest.skip(f"needs Chromium, for the page ({str(e).splitlines()[0]})")
        yield found
        found.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    lengths = {"inputs": 32, "targets": 32}
    return {name: served.load(folder, name, lengths=lengths, adapter=name) for name in ("perceiver", "mlp")}


@pytest.fixture(scope="module")
def client(models):
    with served.serving(models, page=True, key="secret") as found:
        yield found


@pytest.fixture
def opened(browser, client):
    """Returns a function that opens the page with the key, and checks at the end that nothing went wrong in it."""
    contexts, faults = [], []

    def open_page(size="desktop", scheme="light", key="secret"):
        contexts.append(browser.new_context(viewport=SIZES[size], color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.locator("#key").fill(key)
        page.locator("#key").blur()
        return page

    def asked(url):
        if not url.startswith((f"http://127.0.0.1:{client.port}/", "data:", "blob:")):
            faults.append(f"asked {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def drop(page, content, kind="image/png"):
    dropped = page.evaluate_handle(DROPPED, [base64.b64encode(content).decode(), kind])
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})


def show(page, content):
    """Drops a picture, and waits until the page has it."""
    image = page.locator("#image")
    before = image.get_attribute("src") or "none"
    drop(page, content)
    playwright.expect(image).to_have_attribute("src", re.compile("blob:"))
    playwright.expect(image).not_to_have_attribute("src", before)


def answers(page, count=2):
    """Asks, waits for all answers, and returns their texts by model."""
    page.locator("#go").click()
    page.locator("article").nth(count - 1).wait_for()
    page.locator("#go:enabled").wait_for()
    cards = page.locator("article")
    return {cards.nth(i).locator("h2").inner_text(): cards.nth(i).locator("p").first.inner_text() for i in range(count)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_dropped_picture_is_captioned_and_asked_about_by_both_models(opened, models, size, scheme):
    page = opened(size, scheme)
    expected = [{name: model.caption(served.picture(seed)) for name, model in models.items()} for seed in (0, 1)]
    texts = [text for each in expected for text in each.values()]
    assert len({*texts}) == len(texts)  # two models and two pictures: no text could be another's
    for seed in (0, 1):
        show(page, served.png(served.picture(seed)))
        assert page.locator("#image").is_visible() and answers(page) == expected[seed]
    page.locator("#question").fill("what is red ?")
    assert page.locator("#go").inner_text() == "Ask"
    assert answers(page) == {name: model.answer(served.picture(1), "what is red ?") for name, model in models.items()}
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]  # nothing sticks out
    tops = [page.locator("article").nth(i).bounding_box()["y"] for i in range(2)]
    assert (tops[0] == tops[1]) == (size == "desktop")  # side by side, or one above the other
    for element in ("p", ".note"):
        assert contrast(page.locator(f"article {element}").first) >= 4.5  # of WCAG 2.1, for text
    assert (luminance(page.locator("body"), "background-color") < 0.2) == (scheme == "dark")


def luminance(element, name):
    """Relative luminance of a colour, as of WCAG 2.1."""
    said = element.evaluate("(node, name) => getComputedStyle(node).getPropertyValue(name)", name)
    numbers = [int(x) / 255 for x in said[said.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in numbers]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(element):
    card = element.locator("xpath=ancestor::article")
    low, high = sorted([luminance(element, "color"), luminance(card, "background-color")])
    return (high + 0.05) / (low + 0.05)


def test_a_grey_picture_beside_says_whether_the_words_are_owed_to_the_picture(opened, models):
    page = opened()
    show(page, served.png(served.picture(0)))
    page.locator("#grey").check()
    answers(page)
    assert page.locator("article .note").last.inner_text() == "Another text."
    show(page, served.png(served.picture(0).point(lambda _: 0x80)))
    answers(page)
    assert page.locator("article .note").last.inner_text() == "The same text: it is not owed to the picture."


def test_what_goes_wrong_is_said_on_the_page(opened):
    page = opened(key="wrong")
    page.get_by_text("The API key is missing or is not the server's").wait_for()
    page.locator("#key").fill("secret")
    page.locator("#key").blur()
    page.locator("#served", has_text="perceiver, mlp").wait_for()
    page.locator("#go").click()
    page.get_by_text("Choose a picture or a clip first").wait_for()
    drop(page, b"%PDF-1.7", "application/pdf")
    page.get_by_text("dropped is neither a picture nor a video.").wait_for()
    show(page, b"no picture")
    answers(page)
    assert "cannot be read" in page.locator("article .bad").first.inner_text()
