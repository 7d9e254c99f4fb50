"""The sentences of the stand-in, in every language.

Every language has every text. `answers.py` fills in `{question}`, `{turn}`, `{count}`, `{number}` and `{result}`, and
decides when each text is said.
"""

from typing import Final, NamedTuple


class Texts(NamedTuple):
    """All texts in one language; the names say when each is used."""

    intro: str
    outro: str
    long: str
    thinking: str
    nothing: str
    history: str
    tool_intro: str
    tool_name: str
    tool_arguments: dict[str, str]
    tool_result: str
    poem: str
    lesson: str


ENGLISH: Final = Texts(
    intro="""\
You asked: “{question}”

I am the stand-in model inside the gateway. I cannot think, but I can show how an answer travels: \
it reaches you piece by piece, about thirty pieces a second, just as a real model sends it. 🌊

While this text grows:

1. Reload the page. The answer goes on where it was, and nobody pays for it twice.
2. Press Stop (or Esc). The model hears of it at once.""",
    outro="""\
Programs talk to the same gateway:

```sh
curl -N localhost:8080/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "demo", "stream": true, "messages": [{{"role": "user", "content": "Hi"}}]}}'
```

Words I understand: /think /tool /long /slow /fast /history /error /busy /cut /stall

This was question {turn} of our conversation. For real answers, change the url of the upstream in config.yaml. ✨""",
    long="{number}. A long answer is many short ones. Each goes into the stream's log first and is sent from there, "
    "so a phone that loses its network in a tunnel asks for what came after the last piece it saw and reads on. 🚇",
    thinking="The user wants to see reasoning. First I look at the question, then I decide how long the answer should "
    "be, and then I check that it mentions reloading and stopping. That will do.",
    nothing="(nothing in particular)",
    history="Messages I was sent: {count}",
    tool_intro="Let me look up the weather.",
    tool_name="get_weather",
    tool_arguments={"city": "Hangzhou", "unit": "celsius"},
    tool_result="The tool answered: {result}",
    poem="""\
> Word by word it flows,
> a river through a small gate –
> nothing lost at dusk.

*A haiku by the stand-in model, which knows this one alone.* 🌊""",
    lesson=r"""The roots of $ax^2 + bx + c = 0$ are

$$x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

The part below the root says how many there are:

| $b^2 - 4ac$ | real roots |
|---|---|
| above 0 | two |
| 0 | one |
| below 0 | none |

```python
from math import sqrt

def roots(a, b, c):
    part = b * b - 4 * a * c
    if part < 0:
        return []
    return [(-b + sign * sqrt(part)) / (2 * a) for sign in (1, -1)]
```
""",
)

CHINESE: Final = Texts(
    intro="""\
你问的是：“{question}”

我是网关自带的演示模型，不会思考，但可以让你看到回答是怎样到达的：\
每秒大约三十个片段，和真正的大模型一样。🌊

趁这段文字还在增长，可以试两件事：

1. 刷新页面。回答会从中断的地方继续，不丢字、不重复，也不会重新计费。
2. 点“停止”（或按 Esc）。网关会立刻通知模型，不再产生新的内容。""",
    outro="""\
程序也可以直接调用同一个网关：

```sh
curl -N localhost:8080/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "demo", "stream": true, "messages": [{{"role": "user", "content": "你好"}}]}}'
```

我认识这些暗号：/think /tool /long /slow /fast /history /error /busy /cut /stall

这是本次对话的第 {turn} 个问题。想要真正的回答，把 config.yaml 里上游的 url 换成你的模型服务即可。✨""",
    long="{number}、长回答就是许多短片段。每个片段先写进这条流的日志，再从日志发给浏览器；手机在隧道里断了网，出来以后只要说出最后收到的位置，"
    "就能从那里接着读，既不会漏掉一个字，也不会重复一个字。🚇",
    thinking="用户想看推理过程。先读懂问题，再决定回答的长短，最后检查有没有提到刷新和停止。好，可以开始回答了。",
    nothing="（没有具体问题）",
    history="我收到的消息：{count} 条",
    tool_intro="我来查一下天气。",
    tool_name="get_weather",
    tool_arguments={"city": "杭州", "unit": "celsius"},
    tool_result="工具的回答是：{result}",
    poem="""\
> 字字入长河，
> 小小闸门轻放过，
> 一滴未曾落。

*这是替身模型会写的唯一一首短诗。* 🌊""",
    lesson=r"""方程 $ax^2 + bx + c = 0$ 的根是

$$x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

根号下的部分决定实根的个数：

| $b^2 - 4ac$ | 实根 |
|---|---|
| 大于 0 | 两个 |
| 等于 0 | 一个 |
| 小于 0 | 没有 |

```python
from math import sqrt

def roots(a, b, c):
    part = b * b - 4 * a * c
    if part < 0:
        return []
    return [(-b + sign * sqrt(part)) / (2 * a) for sign in (1, -1)]
```
""",
)

TEXTS: Final = {"en": ENGLISH, "zh": CHINESE}
