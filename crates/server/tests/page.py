"""Uses the page as people do, in a real Chromium. Prints a line for each thing that works; the first that fails ends it."""

import json
import sys
import time
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

BASE, KEYED, BROWSER = sys.argv[1:4]
STARTED = time.monotonic()
STORY = "Tell me a story about a brave hedgehog."
WEATHER = "Get the weather in Lisbon with days 3."
TOOLS = [{"name": "get_weather", "description": "Get the weather.", "parameters": {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city."},
                   "days": {"type": "integer", "description": "Number of days."}},
    "required": ["city", "days"],
}}]
# What a model may say to harm who reads it, and what it says to be read.
HOSTILE = """# Title

Some **bold**, *soft* and `code <b>`, [a link](https://example.org/a_(b)) and [no link](javascript:alert(1)).

<script>window.harmed = 1</script><img src=x onerror="window.harmed = 1">

- one
- two
  1. inner

> quoted

| a | b |
|---|---|
| 1 | 2 |

```js
const a = "<i>";
```

[https://example.net/b](https://example.net/b)

""" + "#" + " " * 200_000 + "x\n\nx" + "`" * 19_000 + "\n"
CHAT = "**/v1/chat/completions"
LONG_MS = 60_000  # for the slowest machine
WATCH = "addEventListener('securitypolicyviolation', (e) => console.error('CSP ' + e.violatedDirective + e.blockedURI))"
# Storage as a browser has it that was told to keep nothing.
BLOCKED = """for (const name of ['localStorage', 'sessionStorage'])
    Object.defineProperty(window, name, { get() { throw new DOMException('blocked', 'SecurityError'); } });"""
NO_SIDEWAYS = "document.scrollingElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"


def ok(what):
    print("ok", what, f"({time.monotonic() - STARTED:.1f} s)", flush=True)


def opened(browser, base, script="", **options):
    """A page at `base`, what it complained of, and what it asked for."""
    context = browser.new_context(**options)
    context.add_init_script(WATCH + ";" + script)
    page = context.new_page()
    page.set_default_timeout(LONG_MS)
    faults, hosts = [], set()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(base)
    return page, faults, hosts


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def answered(page, count):
    """The last of so many answers, when it is complete."""
    answers = page.locator("article.assistant")
    expect(answers).to_have_count(count)
    expect(answers.last).to_have_attribute("aria-busy", "false")
    return answers.last


def settings(page, **values):
    page.get_by_role("button", name="Settings").click()
    for name, value in values.items():
        page.locator(f"#settings [name={name}]").fill(value)
    page.get_by_role("button", name="Save").click()


def until(page, condition, known=None):
    """Waits in the page, whose policy forbids what Playwright does for that."""
    holds = page.evaluate(f"""async known => {{
        const end = performance.now() + {LONG_MS};
        while (!({condition})) {{
            if (performance.now() > end) return false;
            await new Promise((done) => setTimeout(done, 10));
        }}
        return true;
    }}""", known)
    assert holds, f"not within {LONG_MS / 1000:.0f} s: {condition}"


def without_end(route):
    """An answer that ends where somebody stops it: before that, its context has to be full."""
    body = json.loads(route.request.post_data) | {"ignore_eos": True, "max_tokens": 100_000}
    route.continue_(post_data=json.dumps(body))


def text_of(answer):
    return answer.locator(".text").inner_text()


def chats(page):
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#model")).to_have_text("demo")
    settings(page, temperature="0")
    send(page, "What is your name?")
    answer = answered(page, 1)
    assert len(text_of(answer)) > 10, text_of(answer)
    expect(answer.locator(".acts")).to_contain_text("tokens/s")
    expect(page.locator("#said")).to_contain_text("Answer: ")
    ok("a question and its answer")

    page.get_by_label("Message", exact=True).fill("one")
    page.get_by_label("Message", exact=True).press("Shift+Enter")
    assert page.locator("article").count() == 2
    page.get_by_label("Message", exact=True).press("Control+a")
    page.route(CHAT, without_end)
    send(page, STORY)
    until(page, "document.querySelector('article:last-child .text').textContent.length > 8")
    page.keyboard.press("Escape")
    answer = answered(page, 2)
    page.unroute(CHAT, without_end)
    expect(answer.locator(".acts")).to_contain_text("stopped")
    begun = text_of(answer)
    ok("a stop in the middle")

    answer.get_by_role("button", name="Continue").click()
    answer = answered(page, 2)
    expect(answer.locator(".acts")).not_to_contain_text("stopped")
    whole = text_of(answer)
    answer.get_by_role("button", name="Regenerate").click()
    again = text_of(answered(page, 2))
    # On a slow machine the stop may come after the place where the story ends by itself.
    assert begun.startswith(again) or whole == again and whole.startswith(begun), (begun, whole, again)
    ok("an answer continued and made again")

    question = page.locator("article.user").first
    question.hover()
    question.get_by_role("button", name="Edit").click()
    page.get_by_label("The message").fill("Tell me about the sea.")
    page.get_by_label("The message").press("Enter")
    answered(page, 1)
    expect(page.locator("article.user .text")).to_have_text(["Tell me about the sea."])
    ok("a question edited")


def calls(page):
    settings(page, tools="{")
    expect(page.locator("#tools-error")).to_be_visible()
    page.locator("#settings [name=tools]").fill(json.dumps(TOOLS))
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="New chat").click()
    send(page, WEATHER)
    answer = answered(page, 1)
    card = page.get_by_role("region", name="Call of get_weather")
    assert json.loads(card.locator("pre").inner_text()) == {"city": "Lisbon", "days": 3}, card.inner_text()
    card.get_by_label("Result").fill('{"temperature": 21, "status": "sunny"}')
    answer.get_by_role("button", name="Send results").click()
    assert text_of(answered(page, 2))
    expect(card).to_contain_text("sunny")
    settings(page, tools="")
    ok("a call, its result, and what is made of it")


def looks(page):
    page.get_by_role("button", name="Live view").click()
    heat = page.locator("#heat")
    until(page, "document.getElementById('heat').ariaLabel.includes('Busiest')")
    before = heat.get_attribute("aria-label")
    send(page, STORY)
    until(page, "document.getElementById('heat').ariaLabel !== known", before)
    colours = page.evaluate("""() => {
        const canvas = document.getElementById('heat');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }""")
    assert colours > 20, colours
    expect(page.locator("#f-memory")).to_contain_text("planned")
    expect(page.locator("#f-hits")).not_to_have_text("–")
    page.get_by_text("By layer").click()
    expect(page.locator("#heat-rows tr")).to_have_count(8)
    answered(page, 3)
    ok("the live view lives")


def keeps(page):
    expect(page.locator("#chats li")).to_have_count(2)
    page.reload()
    page.locator("#chats .pick").first.click()
    expect(page.locator("article")).not_to_have_count(0)
    row = page.locator("#chats li").first
    row.hover()
    row.get_by_role("button", name="Delete").click()
    expect(page.locator("#chats li")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#chats li")).to_have_count(2)
    ok("conversations are kept, deleted and brought back")


def reads(page):
    chat = {"id": "h", "title": "Hostile", "changed": 9e15,
            "messages": [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": HOSTILE, "reasoning": "Hm."}]}
    page.evaluate("chat => localStorage.setItem('tidemill.chat.h', chat)", json.dumps(chat))
    page.reload()
    page.locator("#chats .pick").first.click()
    text = page.locator("article.assistant .text")
    for tag, count in {"h2": 2, "strong": 1, "em": 1, "li": 3, "ol": 1, "blockquote": 1, "td": 2, "a": 2}.items():
        expect(text.locator(tag)).to_have_count(count)
    for tag in ["script", "img", "b", "i"]:
        expect(text.locator(tag)).to_have_count(0)
    expect(text.locator("a").first).to_have_attribute("href", "https://example.org/a_(b)")
    expect(text.locator("pre")).to_have_text('const a = "<i>";')
    assert page.evaluate("window.harmed") is None
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text.get_by_role("button", name="Copy the code").click()
    until(page, "await navigator.clipboard.readText() === known", 'const a = "<i>";')
    expect(page.locator("details.thoughts")).not_to_have_attribute("open", "")
    ok("what a model says is text")


def fits(browser):
    page, faults, _ = opened(browser, BASE, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    send(page, "What is your name? " + "x" * 200)
    answered(page, 1)
    assert page.evaluate(NO_SIDEWAYS), "the conversation"
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Live view", exact=True).click()
    expect(page.locator("#f-queue")).to_contain_text("running")
    assert page.evaluate(NO_SIDEWAYS), "the live view"
    page.keyboard.press("Escape")
    expect(page.locator("#live")).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate(NO_SIDEWAYS), "the settings"
    page.keyboard.press("Escape")
    ok("a phone's width is enough")

    light = "name => getComputedStyle(document.body)[name].match(/[0-9.]+/g).slice(0, 3).every((part) => part > 128)"
    assert not page.evaluate(light, "backgroundColor") and page.evaluate(light, "color")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(light, "backgroundColor") and not page.evaluate(light, "color")
    assert faults == [], faults
    ok("dark and light")


def unlocks(browser):
    page, _, hosts = opened(browser, KEYED)
    field = page.get_by_label("API key")
    field.fill("schlüssel")
    field.press("Enter")
    expect(page.get_by_text("A key has letters, digits and signs of ASCII, and no spaces.")).to_be_visible()
    field.fill("wrong")
    field.press("Enter")
    expect(page.get_by_text("That key was not taken.")).to_be_visible()
    field.fill("secret")
    field.press("Enter")
    expect(page.locator("#model")).to_have_text("demo")
    send(page, "What is your name?")
    assert text_of(answered(page, 1))
    kept = page.evaluate("[sessionStorage['tidemill.key'], JSON.stringify(localStorage).includes('secret')]")
    assert kept == ["secret", False] and hosts == {urlsplit(KEYED).netloc}, (kept, hosts)
    ok("a key is asked for")


def stores_nothing(browser):
    page, faults, _ = opened(browser, KEYED, script=BLOCKED)
    page.get_by_label("API key").fill("secret")
    page.get_by_label("API key").press("Enter")
    send(page, "What is your name?")
    assert text_of(answered(page, 1))
    expect(page.locator("#notice")).to_contain_text("full or blocked")
    assert all("401" in fault for fault in faults), faults
    ok("a browser that keeps nothing is enough")


expect.set_options(timeout=LONG_MS)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--disable-dev-shm-usage"])
    page, faults, hosts = opened(browser, BASE, viewport={"width": 1280, "height": 800})
    for each in (chats, calls, looks, keeps, reads):
        each(page)
    assert faults == [], faults
    assert hosts == {urlsplit(BASE).netloc}, hosts
    ok("nothing is broken, forbidden or asked of others")
    fits(browser)
    unlocks(browser)
    stores_nothing(browser)
    browser.close()
