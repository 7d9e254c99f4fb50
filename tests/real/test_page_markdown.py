"""The chat page shows an answer's Markdown, whatever a model makes of it: in pieces, hostile, or without end (H10)."""

import re
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.kit.upstream import LAST_CHUNK, OPENAI_DONE, OPENAI_STOP, Pause, chunk, openai_delta, sse_head
from tests.real.browsing import browser_fixture
from tests.real.test_page import ask, reach
from tests.web.stage import Stage, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITE = """
async ([text, step]) => {
  const { Prose, ready } = await import("/page/markdown.js");
  await ready;
  const root = document.querySelector("main").appendChild(document.createElement("div"));
  root.className = "text";
  const prose = new Prose(root);
  const costs = [];
  for (let end = step; end < text.length; end += step) {
    const begun = performance.now();
    prose.write(text.slice(0, end), true);
    costs.push(performance.now() - begun);
  }
  const grown = root.innerHTML;
  prose.write(text);
  const once = document.createElement("div");
  new Prose(once).write(text);
  return {html: root.innerHTML, once: once.innerHTML, grown, costs};
}
"""


browser = browser_fixture()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("gateway"), [{"path": "/api/chat"}]) as stage:
        yield stage


@pytest.fixture
def heard() -> list[str]:
    """What the page asked for and complained of."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser, stage: Stage, heard: list[str]) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context(base_url=stage.gateway.url) as context:
        context.on("weberror", lambda error: heard.append(str(error.error)))
        context.on("console", lambda line: heard.append(line.text))
        context.on("dialog", lambda dialog: heard.append(dialog.message))
        context.on("request", lambda request: heard.extend([] if stage.gateway.url in request.url else [request.url]))
        yield context


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext) -> Page:
    page = await context.new_page()
    await page.goto("/")
    return page


async def answered(page: Page, stage: Stage, text: str, size: int = 7) -> Any:
    """The answer on the page, after it came in pieces."""
    pieces = [
        step for start in range(0, len(text), size) for step in (openai_delta(text[start : start + size]), Pause(0.001))
    ]
    await ask(page, stage.plays([sse_head(), *pieces, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]))
    await reach(page, "done")
    return page.locator(".answer .text").last


async def write(page: Page, text: str, step: int) -> Any:
    return await page.evaluate(WRITE, [text, step])


async def test_page_shows_what_models_write(page: Page, stage: Stage) -> None:
    text = "# 标题\n\n1. one\n   - **two**\n\n| 列 | n |\n|-|-:|\n| a | 1 |\n\n> quote\n\n`x` ~~y~~ [z](https://example.com/)\n\n---\n"
    shown = await answered(page, stage, text)
    for selector, words in {
        "h3": "标题",
        "ol ul strong": "two",
        "td.right": "1",
        "blockquote": "quote",
        "code": "x",
        "s": "y",
    }.items():
        await expect(shown.locator(selector)).to_have_text(words)
    link = shown.get_by_role("link", name="z")
    assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert (await link.get_attribute("target"), await link.get_attribute("href")) == ("_blank", "https://example.com/")
    await expect(shown.locator("hr")).to_have_count(1)


async def test_page_shows_emphasis_beside_chinese_punctuation(page: Page, stage: Stage) -> None:
    shown = await answered(page, stage, "这是**「重点」**的说明，**注意：**不要漏掉。*（斜体）*也一样。")
    assert await shown.locator("strong").all_inner_texts() == ["「重点」", "注意："]
    await expect(shown.locator("em")).to_have_text("（斜体）")


async def test_page_shows_which_model_answered(page: Page, stage: Stage) -> None:
    """As text, and after a reload."""
    named = chunk('data: {"model":"<b>qwen3-8b</b>","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n')
    await ask(page, stage.plays([sse_head(), named, OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]))
    await expect(page.locator(".actions .model")).to_have_text("<b>qwen3-8b</b>")
    await page.reload()
    await expect(page.locator(".actions .model")).to_have_text("<b>qwen3-8b</b>")


HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)><iframe src="https://evil.example/"></iframe>

![beacon](https://evil.example/b.png) ![inline](data:image/svg+xml,<svg/onload=alert(3)>)

[a](javascript:alert(4)) [b](JaVaScRiPt:alert(5)) [c](data:text/html,<script>alert(6)</script>) [d](vbscript:x)
[e](/streams/x)

<a href="javascript:alert(7)" onclick="alert(8)">f</a> <style>*{display:none}</style> <https://ok.example/>

[ref]: javascript:alert(9)
[g][ref] &lt;script&gt;alert(10)&lt;/script&gt; `<b>`

```html
<script>alert(11)</script>
"""


async def test_hostile_answer_is_only_text(page: Page, stage: Stage, heard: list[str]) -> None:
    shown = await answered(page, stage, HOSTILE, size=3)
    assert await shown.locator("script, img, iframe, style, svg, object, form, input").count() == 0
    assert "<script>alert(1)</script>" in await shown.inner_text()
    schemes = "nodes => nodes.map((node) => node.getAttribute('href')?.split(':')[0] ?? '')"
    assert set(await shown.locator("a").evaluate_all(schemes)) <= {"https", "http", ""}
    handlers = "nodes => nodes.flatMap((node) => node.getAttributeNames()).filter((name) => name.startsWith('on'))"
    assert await shown.locator("*").evaluate_all(handlers) == []
    for link in await shown.locator("a:not([href])").all():
        await link.click()
    await expect(shown.locator(".code code")).to_have_text("<script>alert(11)</script>\n")
    assert heard == []


NESTS = {
    "quotes": ">" * 20_000 + " deep",
    "nested quotes": "> " * 10_000 + "deep",
    "lists": "- " * 10_000 + "deep",
    "indented lists": "".join(" " * 2 * level + "- x\n" for level in range(400)),
    "brackets": "[" * 20_000,
    "stars": "*a " * 10_000,
    "star run": "*" * 80_000 + "a",
    "line of stars": "a " + "**" * 40_000 + "a",
    "strikes": "a " + "~" * 80_000 + "a",
    "emphasis": "**a_" * 8_000,
    "deep emphasis": "*a " * 3_000 + "b* " * 3_000,
    "ticks": "`" * 9_999 + "a",
    "line of ticks": "a " + "`" * 80_000 + "a",
    "runs of ticks": "a " + " ".join("`" * length for length in range(1, 400)),
    "links": "[a](" * 8_000,
    "table": "|a" * 400 + "\n" + "|-" * 400 + "\n" + "|b" * 400,
    "wide table": "|a" * 10_000 + "\n" + "|-" * 10_000 + "\n" + ("|b" * 10_000 + "\n") * 3,
    "rows": "|a|b|\n|-|-|\n" + "|1|2|\n" * 1_000,
    "empty rows": "|a" * 1_000 + "\n" + "|-" * 1_000 + "\n" + "|\n" * 20_000,
    "fence": "```\n" + "unclosed\n" * 3_000,
    "named fence": "```" + "x" * 80_000,
    "entities": "&amp;" * 8_000,
    "paragraphs": "a\n\n" * 4_000,
    "braces of a formula": "$$" + "{" * 80_000,
    "short formulas": "$x$ " * 20_000,
    "unclosed formulas": "\\(a " * 20_000,
    "dollars": "a $" * 20_000 + "$" * 20_000,
    "unclosed blocks": "$$\na\n\n\\[\nb\n\n" * 4_000,
}


@pytest.mark.alone
@pytest.mark.parametrize("name", NESTS)
async def test_endless_markup_costs_little(page: Page, heard: list[str], name: str) -> None:
    said = await write(page, NESTS[name], max(1, len(NESTS[name]) // 8))
    assert said["html"] == said["once"]
    assert max(said["costs"]) < 1000
    assert heard == []


async def test_elements_of_an_answer_are_bounded(page: Page) -> None:
    """In number and in depth; what is too much is shown as it is written, and none of it is lost."""
    measure = """
    async (text) => {
      const { Prose, ready } = await import("/page/markdown.js");
      await ready;
      const root = document.createElement("div");
      new Prose(root).write(text);
      let depth = 0;
      for (const node of root.querySelectorAll("*")) {
        let level = 0;
        for (let at = node; at !== root; at = at.parentNode) level += 1;
        depth = Math.max(depth, level);
      }
      return [root.querySelectorAll("*").length, depth, root.textContent.split("x").length - 1];
    }
    """
    for text in ("*x " * 2_000 + "b* " * 2_000, "|x" * 10_000 + "\n" + "|-" * 10_000 + ("\n" + "|x" * 10_000) * 3):
        count, depth, shown = await page.evaluate(measure, text)
        assert (count < 60_000, depth < 100, shown) == (True, True, text.count("x"))
    count, depth, shown = await page.evaluate(measure, "x\n\n" * 90_000)
    assert (count < 60_000, depth, shown) == (True, 1, 90_000)


SHOWN = """
async (texts) => {
  const { Prose, ready } = await import("/page/markdown.js");
  await ready;
  return texts.map((text) => {
    const root = document.querySelector("main").appendChild(document.createElement("div"));
    root.className = "text";
    new Prose(root).write(text);
    const formulas = [...root.querySelectorAll("math")].map((node) => (node.getAttribute("display") ?? "inline"));
    const parts = [...root.querySelectorAll(".math *")];
    const names = new Set(parts.flatMap((node) => [node.localName, ...node.getAttributeNames()]));
    for (const node of root.querySelectorAll("math")) node.replaceWith("@");
    const shown = root.innerText.trim().replace(/\\n+/g, "\\n");
    root.remove();
    return { formulas, shown, names: [...names] };
  });
}
"""
FORMULAS = {
    "中文$x^2$中文": (["inline"], "中文@中文"),
    "Let $f(x)=\\frac{a_1}{b_1}$ and $y$.": (["inline", "inline"], "Let @ and @."),
    "**$a*b*c$**，$5x+3$、$100$": (["inline"] * 3, "@，@、@"),
    "in \\(a_1 * b_1\\) words": (["inline"], "in @ words"),
    "so $$x_1 * x_2$$ it is": (["block"], "so\n@\nit is"),
    "$$\nx\n$$": (["block"], "@"),
    "$$\n\nx\n\n$$": (["block"], "@"),
    "因此：\n\\[\n\\begin{aligned}\na&=b\\\\[4pt]\nc&=d\n\\end{aligned}\n\\]\n完": (["block"], "因此：\n@\n完"),
    "- one \\(x\\)\n- \\[ y \\]\n\n  $$z$$": (["inline", "block", "block"], "one @\n@\n@"),
    "> $$x$$\n\n| a |\n|-|\n| $x$ |": (["block", "inline"], "@\na\n@"),
    r"$\$5 + x$": (["inline"], "@"),
}
PLAIN = (
    "$5 and $6",
    "between $5-$6",
    "$5 (was $6), $7",
    "it is $5/month or 10$/month",
    "票价$100元，另一个是200$。",
    "US$5 and A$6",
    "echo $HOME and $PATH",
    "$HOME/bin:$PATH",
    "costs $20.",
    "$ 5 $",
    "$$$ is dear, $$ is not",
    "$$ moderate, $$ dear",
    "$$ 便宜，$$ 贵",
    "a $ b $ c",
    "$x",
)
REFUSED = (
    r"\href{javascript:alert(1)}{x}",
    r"\includegraphics{https://evil.example/x.png}",
    r"\url{https://evil.example}",
    r"\class{a}{b}",
    r"\style{color:red}{b}",
    r"\htmlData{a=b}{c}",
    r"\def\a{\a\a}\a",
    r"\newcommand{\a}{\a\a}\a",
    r"\let\a=\b",
    "\\mathchoice{" * 20 + "x" + "}" * 20,
    "\\llap{" * 20 + "x" + "}" * 20,
    "\\cancelto{x}{" * 20 + "x" + "}" * 20,
    "\\ce{A <=>>[$" * 20 + "x" + "$] B}" * 20,
    "{" * 900 + "x" + "}" * 900,
    "\\sqrt" * 300 + "{x}",
    r"\nosuch{x}",
    r"\frac{a}{",
)


async def test_page_shows_formulas(page: Page, heard: list[str]) -> None:
    shown = await page.evaluate(SHOWN, [*FORMULAS])
    assert {text: (one["formulas"], one["shown"]) for text, one in zip(FORMULAS, shown, strict=True)} == FORMULAS
    assert heard == []


async def test_prices_and_variables_are_no_formulas(page: Page) -> None:
    shown = await page.evaluate(SHOWN, PLAIN)
    assert [(one["formulas"], one["shown"]) for one in shown] == [([], text) for text in PLAIN]


async def test_hostile_formula_is_shown_as_it_is_written(page: Page, heard: list[str]) -> None:
    shown = await page.evaluate(SHOWN, [f"$${formula}$$" for formula in REFUSED])
    assert [(one["formulas"], one["shown"]) for one in shown] == [([], formula) for formula in REFUSED]
    assert heard == []


async def test_formula_has_no_style_and_no_link(page: Page, heard: list[str]) -> None:
    text = r"$$\color{red}{x} \boxed{y} \hskip 999em \rule{999em}{9em} \kern-50em \raisebox{99em}{z} \text{<b>w</b>}$$"
    (shown,) = await page.evaluate(SHOWN, [text])
    assert shown["formulas"] == ["block"]
    assert set(shown["names"]) & {"style", "href", "src", "id", "a", "b", "script", "img"} == set()
    assert heard == []


GROWN = """
async (texts) => {
  const { Prose, ready } = await import("/page/markdown.js");
  await ready;
  return texts.map((text) => {
    const root = document.createElement("div");
    const prose = new Prose(root);
    let states = "";
    for (let end = 1; end <= text.length; end += 1) {
      prose.write(text.slice(0, end), true);
      const state = root.querySelector("math") ? "m" : root.querySelector(".source") ? "s" : "t";
      if (!states.endsWith(state)) states += state;
    }
    return states;
  });
}
"""


async def test_half_a_formula_is_shown_as_it_is_written(page: Page) -> None:
    """Once: it is text, then half a formula, then a formula, and never goes back."""
    texts = [
        r"so \(\frac{a}{b_1}\) is",
        r"so $\frac{a}{b_1}$ is",
        "so $$\\frac{a}{b}$$ is",
        "\\[\n\\frac{a}{b}\n\\]\nis",
    ]
    assert await page.evaluate(GROWN, texts) == ["tsm", "tsm", "tsm", "tsm"]
    assert await page.evaluate(GROWN, ["$5 and $6 are prices", "the $x", "$$ is cheap"]) == ["t"] * 3


WORK = """
async ([text, step]) => {
  const { Prose, ready } = await import("/page/markdown.js");
  const { parser } = await import("/page/lib/markdown.js");
  await ready;
  let parsed = 0, made = 0;
  const [parse, create] = [parser.parse, document.createElement];
  parser.parse = (source, env) => ((parsed += source.length), parse.call(parser, source, env));
  document.createElement = (tag) => ((made += 1), create.call(document, tag));
  const prose = new Prose(document.createElement("div"));
  for (let end = step; end < text.length; end += step) prose.write(text.slice(0, end), true);
  prose.write(text);
  [parser.parse, document.createElement] = [parse, create];
  return [parsed, made];
}
"""
SHAPES = {
    "one line": "a longer run of plain words, and then a **bold** one ",
    "one list": "- an item with a few words and *one* that matters in it\n",
    "one fence": "some code here\n",
    "paragraphs": "A paragraph with some words, of which **these** are bold.\n\n",
}
BEGINNINGS = {"one fence": "```js\n"}


@pytest.mark.parametrize("name", SHAPES)
async def test_work_grows_with_the_length_of_an_answer(page: Page, name: str) -> None:
    """200 KB in small pieces are about four times as much to parse and to build as 50 KB, not sixteen times."""
    parsed, made = [], []
    for size in (50_000, 200_000):
        text = BEGINNINGS.get(name, "") + SHAPES[name] * (size // len(SHAPES[name]))
        work = await page.evaluate(WORK, [text, 100])
        parsed.append(work[0])
        made.append(work[1])
    assert parsed[1] < 6 * parsed[0]
    assert made[1] < 6 * made[0] + 100


async def test_page_answers_a_click_while_a_long_answer_comes(page: Page, stage: Stage) -> None:
    """200 KB of one list, in small pieces, and a button that is clicked in the middle of it."""
    text = SHAPES["one list"] * (200_000 // len(SHAPES["one list"]))
    pieces: list[Any] = [openai_delta(text[at : at + 200]) for at in range(0, len(text), 200)]
    await ask(page, stage.plays([sse_head(), *pieces, Pause(0.5), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]))
    await expect(page.locator(".answer .text").last).to_contain_text("an item")
    before = await page.evaluate("document.documentElement.dataset.theme")
    await page.locator("#theme").click()
    assert await page.evaluate("document.documentElement.dataset.theme") != before
    await reach(page, "done")
    assert await page.locator(".answer .text li").count() == text.count("item")


HOSTILE_INDEXES = [
    "1e8",
    "-1",
    "1.5",
    '"__proto__"',
    '"constructor"',
    '"0"',
    "[]",
    "{}",
    "true",
    "1e400",
    "127",
    "3",
    "null",
]


async def test_hostile_tool_indexes_leave_the_page_alive(page: Page) -> None:
    """Whatever an index is, calls with a sound one are shown, and the answer goes on to its end."""
    calls = [
        f'{{"index": {index}, "id": "i", "function": {{"name": "t", "arguments": "a"}}}}' for index in HOSTILE_INDEXES
    ]
    calls += [
        "null",
        "7",
        '"x"',
        '{"index": 3, "function": null}',
        '{"index": 3, "function": {"name": {}, "arguments": 7}}',
    ]
    blocks = ['event: connected\ndata: {"stream_id": "s1", "session_id": null, "resumed": false}\n\n']
    blocks += [f"event: tool\ndata: {call}\n\n" for call in calls]
    blocks += [
        "event: constructor\ndata: {}\n\n",
        "event: toString\ndata: {}\n\n",
        'event: token\ndata: {"text": 7}\n\n',
    ]
    blocks += ['event: token\ndata: {"text": "fine"}\n\n', 'event: done\ndata: {"finish_reason": "stop"}\n\n']
    stream = "".join(blocks)
    await page.route("**/api/chat", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    await ask(page, "call them")
    await reach(page, "done")
    await expect(page.locator(".answer .text").last).to_have_text("fine")
    await expect(page.locator(".tools li")).to_have_text(["t(a)"] * 3)
    await page.reload()
    await expect(page.locator(".tools li")).to_have_text(["t(a)"] * 3)


DOCUMENT = """\
## A heading

Text with **bold**, *italics*, `code`, a [link](https://example.com/) and 中文**强调**。
A second line.

1. first
2. second
   - inner *one*
   - inner two

   a paragraph of the second

3. third

```python
def f(x):
    return "**not bold**"
```

| a | b |
|:-:|---|
| 1 | `2` |

> quoted
lazily

Setext
------

    indented code

[ref] is defined below.

[ref]: https://example.com/ref

Then $a_1 * b_1$, \\(x\\) and $5 or $6.

$$
\\frac{a}{b}
$$

* * *

End.
"""


async def test_answer_that_grew_is_like_one_that_came_whole(page: Page) -> None:
    for step in (1, 2, 3, 7, 64):
        said = await write(page, DOCUMENT, step)
        assert said["html"] == said["once"]
    assert re.findall(r'<a href="(.*?)"', said["once"]) == ["https://example.com/", "https://example.com/ref"]


async def test_half_an_emphasis_shows_no_stars(page: Page) -> None:
    for text in ("It is **very impor", "It is **", "Say `cod", "It is ~~ol"):
        said = await write(page, f"{text}tant", len(text))
        assert not re.search(r"[*`~]", said["grown"])


@pytest.mark.alone
async def test_long_answer_costs_no_more_at_its_end(page: Page) -> None:
    said = await write(page, DOCUMENT.replace("[ref]: https://example.com/ref", "") * 300, 500)
    assert median(said["costs"][-40:]) < 4 * median(said["costs"][20:60]) + 4


async def test_visitor_copies_code_and_answer(page: Page, context: BrowserContext, stage: Stage) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = await answered(page, stage, "A **word**\n\n```python\nprint('你好')\n```\n")
    await expect(shown.locator(".language")).to_have_text("python")
    await shown.get_by_role("button", name="Copy").click()
    await expect(shown.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == "print('你好')\n"
    await page.get_by_role("button", name="Copy the answer").click()
    await page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('A **word**'))")


async def test_page_without_the_parser_shows_plain_text(context: BrowserContext, stage: Stage) -> None:
    await context.route("**/lib/markdown.js", lambda route: route.fulfill(status=404))
    page = await context.new_page()
    await page.goto("/")
    shown = await answered(page, stage, "A **word**\n\n<b>text</b>")
    assert await shown.inner_text() == "A **word**\n\n<b>text</b>"


async def test_page_refuses_markup_even_from_itself(page: Page) -> None:
    refused = "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } }"
    assert await page.evaluate(refused) == "TypeError"


GROW = """
async (text) => {
  const { Prose, ready } = await import("/page/markdown.js");
  await ready;
  const root = document.querySelector("main").appendChild(document.createElement("div"));
  root.className = "text";
  const prose = new Prose(root);
  const seen = new Set();
  for (let end = 1; end <= text.length; end += 1) {
    prose.write(text.slice(0, end), end < text.length);
    for (const block of root.children) if (!block.matches(".table")) seen.add(block.tagName + ":" + block.textContent);
  }
  const items = [...root.querySelectorAll("li.task")];
  const tasks = items.map((item) => [item.querySelector("input"), item.innerText.trim()]);
  const boxes = tasks.map(([box, text]) => [box.checked, box.disabled, text]);
  const margins = [...root.querySelectorAll("li > .code")].map((node) => getComputedStyle(node).marginLeft);
  return {seen: [...seen], boxes, margins, html: root.innerHTML};
}
"""


async def test_beginnings_of_tables_items_and_headings_do_not_flash(page: Page) -> None:
    table = (
        "Words:\n\n| one | two |\n|:---|---|\n| 1 | 2 |\n\nAnd\n- [ ] open\n- [x] done\n\n9. nine\n10. ten\n\n# Head"
    )
    grown = await page.evaluate(GROW, table)
    assert not [text for text in grown["seen"] if "|" in text], grown["seen"]
    assert not [text for text in grown["seen"] if re.search(r"[#\[-]|[0-9]\.?$", text.partition(":")[2])], grown["seen"]
    assert not [text for text in grown["seen"] if text.startswith("H") and not text.startswith("H3:H")], grown["seen"]
    assert grown["boxes"] == [[False, True, "open"], [True, True, "done"]]
    assert '<ol start="9">' in grown["html"]


async def test_code_in_an_item_stands_where_its_text_does(page: Page) -> None:
    assert (await page.evaluate(GROW, "- item\n\n  ```sh\n  ls\n  ```\n"))["margins"] == ["0px"]


COLOURED = "```python\ndef f(x):\n    return 'a' # <b>\n```\n"


async def test_code_has_its_language_s_colours_while_it_grows_and_after(page: Page) -> None:
    said = await write(page, COLOURED, 3)
    assert said["html"] == said["once"]
    for kind, text in (("keyword", "def"), ("keyword", "return"), ("string", "'a'"), ("comment", "# &lt;b&gt;")):
        assert f'<span class="hljs-{kind}">{text}</span>' in said["html"], said["html"]
    assert "hljs" in said["grown"]
    plain = await write(page, COLOURED.replace("python", "klingon") + COLOURED.replace("x", "x" * 10_000), 5_000)
    assert "hljs" not in plain["html"]
