"""Providers' words for a refusal, and what they mean. One table; a new word is one more row.

    meaning(Said(status=400, message="Your credit balance is too low …"))   # Meaning.SPENT

- `NAMES` are for machine words: a code, a type, a reason. They are compared in snake_case.
- `SENTENCES` are for what is said to people. They are written so that a user's bad request does not fit: they are whole
  phrases and no single words, and what stands in quotation marks is not looked at, unless it is one word.
- Within each, the first row that fits is heard, and names are heard before sentences. A row is believed only with a
  status that suits its meaning (`BELIEVED`).
- Every row has its source: a thread `owner/repo#number`, or a page of a provider's documentation, as `provider: page`.

This file does not know where in an answer the words stand (`failures.py`), nor what follows (`core/retry.py`).
"""

import re
from enum import Enum
from typing import Final, NamedTuple


class Meaning(Enum):
    """What a provider means by a refusal."""

    TOO_LONG = "the conversation does not fit into the model's context"
    FILTERED = "a content filter refused it"
    ACCOUNT = "the gateway's key, account, organisation or region is not accepted"
    SPENT = "the gateway's account has no money, credit or quota left"
    LIMITED = "a limit for a time, which passes"
    BUSY = "the provider has no capacity now, which passes"
    NO_MODEL = "the model is not there"


class Said(NamedTuple):
    """What a provider said, as far as it matters here.

    Attributes:
        status: the HTTP status, or the one that the report names; 0 where there is none.
        names: its machine words, as it wrote them.
        message: its sentence.
        param: the part of the request that it named, "" for none.
        patient: whether it said when to come back.
    """

    status: int = 0
    names: tuple[str, ...] = ()
    message: str = ""
    param: str = ""
    patient: bool = False


class Row(NamedTuple):
    """One row of the table: what fits the pattern has the meaning."""

    meaning: Meaning
    pattern: "re.Pattern[str]"
    source: str


TOO_LONG, FILTERED, ACCOUNT, SPENT, LIMITED, BUSY, NO_MODEL = Meaning

_NAMES: Final[dict[Meaning, tuple[tuple[str, str], ...]]] = {
    # Money stands before limits: `exceeded_current_quota_error` is no limit that passes.
    SPENT: (
        (r"insufficient_(user_|account_)?(quota|balance|credit|fund)", "openai: guides/error-codes"),
        (r"insufficient_balance_error", "modelscope/modelscope#1691"),
        (r"exceeded_current_quota", "MoonshotAI/Kimi-K2#5"),
        (r"^billing_(not_active|hard_limit_reached)$", "BerriAI/litellm#2743"),
        (r"^billing_error$", "anthropic: api/errors"),
        (r"arrearage|overdue", "alibaba/spring-ai-alibaba#1146"),
        (r"unpurchased", "earendil-works/pi#7588"),
        (r"free_tier_only", "help.aliyun.com: model-studio/error-code"),
        (r"^budget_exceeded$", "litellm: proxy/users"),
        (r"^payment_required|^(out_of|no)_credits?", "openrouter: api/errors"),
        (r"^(1113|1309)$", "docs.bigmodel.cn: api-code"),
        (r"^1008$", "MiniMax-AI/MiniMax-M2#62"),
        (r"^(30001|30011)$", "FoundationAgents/OpenManus#438"),
    ),
    LIMITED: (
        (r"rate_?limit|too_?many_?requests", "openai: guides/rate-limits"),
        (r"throttl", "hyunhwan-bcm/MARRVEL_MCP#225"),
        (r"limit_requests|requests_limit", "help.aliyun.com: model-studio/error-code"),
        (r"too_many_tokens|_quota_exceeded$|^queue_exceeded$", "cerebras: support/error"),
        (r"resource_?exhausted", "dcdpr/jp#1061"),
        (r"concurrency", "moonshot: api/errors"),
        (r"^(1302|1303|1304|1308|1310)$", "docs.bigmodel.cn: api-code"),
        (r"^2056$", "MiniMax-AI/MiniMax-M2.7#36"),
    ),
    BUSY: (
        (r"overload", "MoonshotAI/MoonshotAI-Cookbook#16"),
        (r"capacity", "laravel/ai#925"),
        (r"^(service_|server_)?unavailable(_error|_exception)?$|_busy$", "google: rpc.Code"),
        (r"^(1305|1312)$", "docs.bigmodel.cn: api-code"),
    ),
    FILTERED: (
        (r"content_?(filter|policy)|moderation|safety", "openai/openai-python#331"),
        (r"responsible_?ai", "compl-ai/compl-ai#20"),
        (r"data_?inspection", "QwenLM/qwen-code#2905"),
        (r"sensitive_?content|prohibited_?content|content_?(blocked|violation)", "volcengine: ark/error-codes"),
        (r"^1301$", "docs.bigmodel.cn: api-code"),
        (r"^(1026|1027)$", "minimax: api/errorcode"),
    ),
    TOO_LONG: (
        (r"context_?(length|window|size|limit)|context_(exceeded|overflow)", "ggml-org/llama.cpp#14566"),
        (r"(prompt|input)_(is_)?too_(long|large)|prompt_limit", "fengshao1227/ccg-workflow#69"),
        (r"max_prompt_tokens", "jjleng/copilot-more#35"),
        (r"^tokens_(limit_reached|too_long)$", "github: models; baidu: qianfan"),
        (r"^1261$", "zeroclaw-labs/zeroclaw#4124"),
        (r"^(3051|model_cap_exceeded)$", "mistral: api/errors"),
        (r"^1039$", "minimax: api/errorcode"),
    ),
    NO_MODEL: (
        (r"model_?not_?(found|exist|available|supported)", "openai: guides/error-codes"),
        (r"deployment_?not_?found", "azure: openai/reference"),
        (r"endpoint_or_model_not_found", "volcengine: ark/error-codes"),
        (r"^(invalid|unknown|unsupported|no_such)_model(_error|_id|_name)?$", "decolua/9router#1187"),
        (r"^model_(decommissioned|deprecated|retired)$", "groq: docs/deprecations"),
        (r"^1211$", "docs.bigmodel.cn: api-code"),
        (r"^20012$", "anyme123/Any-code#1"),
    ),
    ACCOUNT: (
        (r"authenti|unauthori[sz]ed|permission|forbidden", "anthropic: api/errors"),
        (r"access_?(denied|terminated)|unrecognized_?client", "aws: bedrock/api-errors"),
        (r"(invalid|wrong|incorrect|missing|expired|revoked|no)_(x_)?api_?key", "openai: guides/error-codes"),
        (r"api_?key_(\w+_)?(invalid|expired|error|missing|not_found|disabled|revoked)", "continuedev/continue#10290"),
        (r"(invalid|expired|missing)_(access_|iam_|auth_)?(token|credentials?)$|^expired_token", "baidu: qianfan"),
        (r"^token_(not_found|expired)", "litellm: proxy/virtual_keys"),
        (
            r"^(organi[sz]ation|account|project)_(restricted|disabled|deactivated|suspended|blocked)",
            "groq: docs/errors",
        ),
        (r"country_?region|unsupported_(country|region)", "openai: guides/error-codes"),
        (r"^2049$", "MiniMax-AI/MiniMax-01#37"),
    ),
}
"""For codes, types and reasons. A number is here only where no other provider uses it for something else."""

_SENTENCES: Final[dict[Meaning, tuple[tuple[str, str], ...]]] = {
    # Limits stand before money: some of them speak of quota and billing, but pass.
    LIMITED: (
        (r"error-code#token-limit|allocated quota exceeded", "help.aliyun.com: model-studio/error-code"),
        (r"exceeded your current requests|rate increased too quickly", "help.aliyun.com: model-studio/rate-limit"),
        (r"(tokens?|requests?|calls?) ?(/|per) ?(second|min(ute)?|hour|day)\b", "groq: docs/rate-limits"),
        (r"\([IO]?[TR]P[MD]\)|\b[TR]PM limit", "ITSpecialist111/ai_automation_suggester#61"),
        (r"rate[ -]?limit(s|ed|ing)? (has been |was |is |were )?(exceeded|reached|hit)", "PaddlePaddle/ERNIE#1031"),
        (r"^rate[ -]?limit(ed|ing)?[.,!:;]?( (please|try|retry)\b.*)?$", "minimax: api/errorcode"),
        (r"(exceed\w*|reached|hit|due to) [^.]{0,40}rate[ -]?limit", "anthropics/claude-code#49036"),
        (r"too many (concurrent )?requests\b", "huggingface/huggingface_hub#2175"),
        (r"too many tokens, please wait", "hyunhwan-bcm/MARRVEL_MCP#225"),
        (r"^resource (has been )?exhausted|^quota exceeded for", "google: rpc.Code"),
        (r"\brequest limit reached", "ConnectAI-E/Feishu-Wenxin#11"),
        (r"reached max (organization )?concurrency", "moonshot: api/errors"),
        (r"usage limit (exceeded|reached)", "MiniMax-AI/MiniMax-M2.7#36"),
        (r"速率限制|(请求|调用|访问)(过于|太|的)?.{0,3}(频繁|频率(过高|超))|频率过高", "docs.bigmodel.cn: api-code"),
        (r"并发(数)?(过高|超)|触发.{0,4}(流量限制|限流)|今日调用次数", "docs.bigmodel.cn: api-code"),
    ),
    BUSY: (
        (r"\b(engine|model|servers?|service|system|api|backend)\b[^.,:]{0,40}\boverloaded\b", "MoonshotAI/Kimi-K2#127"),
        (r"\b(engine|model|servers?|service|system|api|backend)\b[^.,:]{0,20}\bbusy\b", "deepseek: error_codes"),
        (r"^overloaded\b", "anthropic: api/errors"),
        (r"experiencing high (traffic|demand|load)", "cerebras: support/error"),
        (r"(tier )?capacity exceeded|\b(at|out of|insufficient) capacity\b", "mistral: api/errors"),
        (r"is currently loading", "huggingface/transformers#23793"),
        (r"maximum pending requests exceeded", "ollama: faq"),
        (r"no available channel|无可用渠道", "QuantumNous/new-api: docs"),
        (r"(系统|服务|服务器|引擎|模型|当前).{0,8}(繁忙|过载|负载.{0,4}(过高|饱和))", "docs.bigmodel.cn: api-code"),
        (r"(访问|请求|使用)(量|人数)过(大|多)|请求过多|资源.{0,4}紧张", "docs.bigmodel.cn: api-code"),
    ),
    SPENT: (
        (r"credit balance is too low", "theopenco/llmgateway#3297"),
        (
            r"not enough (credits?|balance|funds|quota)|(balance|credits?) (is |are )?not enough",
            "openrouter: api/errors",
        ),
        (r"(monthly|daily|current|your|the) quota (is |has been |was )?(exceeded|exhausted)", "google: gemini-api"),
        (r"exceeded (your |the )?quota for this month", "cohere: errors"),
        (r"please (top up|recharge)|in arrears|out of quota|no remaining (balance|credits?)", "7836246/cursor2api#30"),
        (r"\bcredits? (is |are |has been |have been )?depleted", "google: gemini-api/billing"),
        (r"requires? billing|billing to be enabled|payment method", "google: gemini-api/billing"),
        (r"billing account [^.]{0,40}(disabled|not found|closed|not active)", "google: gemini-api/billing"),
        (r"insufficient (account |usd |paid )*(balance|credits?|funds?|quota)", "7836246/cursor2api#30"),
        (
            r"(?<!_)(balance|credits?|funds) (is |are )?(insufficient|exhausted|too low|depleted)\b",
            "FoundationAgents/OpenManus#438",
        ),
        (r"out of credits?\b|no credits? (left|remaining|available)", "openrouter: api/errors"),
        (r"requires? (at least )?more credits|can only afford", "QwenLM/qwen-code#73"),
        (r"\bcredits (have )?expired", "nvidia: build.nvidia.com"),
        (r"exceeded your (monthly )?(current |included )?(quota|credits|spending)", "huggingface/agents-course#386"),
        (r"check (your )?(plan and )?billing", "mckaywrigley/chatbot-ui#1187"),
        (r"billing (hard limit|is not active)|(must|need to) enable billing", "openai: guides/error-codes"),
        (r"\bspend(ing)? limit", "fireworks: guides/errors"),
        (r"specified api usage limits", "anthropic: api/rate-limits"),
        (r"limited to [\d,]+ (api )?(calls?|requests?) ?(/|per) ?month", "cohere: rate-limits"),
        (r"budget has been exceeded", "litellm: proxy/users"),
        (r"\b(free (tier|quota)|trial)\b[^.]{0,60}(exhausted|used up|expired)", "tencentmusic/supersonic#1572"),
        (r"overdue (balance|payment|account)", "RooCodeInc/Roo-Code#12309"),
        (r"account is in good standing", "infiniflow/ragflow#1552"),
        (r"^payment (is )?required\b|unpaid invoice|past invoices", "fireworks: guides/errors"),
        (r"余[额量].{0,4}(不足|已?用尽)|请.{0,4}充值|无可用资源包", "continuedev/continue#11823"),
        (r"欠费|套餐已到期|(额度|配额).{0,6}(不足|用尽|用完|耗尽|失败)", "docs.bigmodel.cn: api-code"),
    ),
    ACCOUNT: (
        (
            r"\b(incorrect|invalid|wrong|missing|bad|expired|revoked|disabled|no)"
            r"( or (missing|invalid|expired|unrecognized|disabled))*( x-| )api[ -]key\b",
            "continuedev/continue#10778",
        ),
        (
            r"\bapi[ -]?key\b:?( \S+)?( was| has been| is)?"
            r" (not valid|invalid|not found|expired|missing|required|disabled|revoked|incorrect|reported as leaked)",
            "babaohuang/GeminiProChat#142",
        ),
        (
            r"\b(invalid|expired|unrecognized|malformed|incorrect)( or (expired|unrecognized|invalid))*"
            r" (access|auth\w*|bearer|security|proxy server|id|api) token\b",
            "pollinations/pollinations#2860",
        ),
        (r"^(\[\w+\] ?)?invalid token( \(.*)?\.?$", "Sakura520222/Sakura-AI#428"),
        (
            r"(security|access|auth\w*) token (included in the request )?(is )?(invalid|expired)",
            "aws: bedrock/api-errors",
        ),
        (r"access token invalid or no longer valid", "immersive-translate/immersive-translate#1800"),
        (r"the token seems invalid", "huggingface: inference-providers"),
        (r"\bapi_key client option must be set", "BerriAI/litellm#8612"),
        (r"\b(provide|supply|include|specify) (an |your |a valid )+api key", "openai: guides/error-codes"),
        (
            r"\bapi key\b[^.:'\"`]{0,40}"
            r"\b(not authorized|restriction|not allowed|appears to be invalid|disabled|suspended)",
            "google: gemini-api/api-key",
        ),
        (r"^unauthorized\b|no auth credentials|^token (is )?(expired|invalid|incorrect)\b", "openrouter: api/errors"),
        (r"(member of an organi[sz]ation|your organi[sz]ation does not have access)", "openai: guides/error-codes"),
        (r"^unsupported (country|region)\b(?! (param|value|field))", "openai: guides/error-codes"),
        (r"\b(invalid|incorrect|wrong) api_key\b|^(the )?api_key is (invalid|incorrect|not valid)", "openclaw: docs"),
        (r"^invalid credentials?\b", "cohere: errors"),
        (
            r"\b(subscription|membership) (has )?(expired|required)|upgrade your (plan|subscription)",
            "minimax: plans",
        ),
        (r"your plan does not include", "perplexity: docs"),
        (r"(project|account) is not authorized|api has not been used in project", "google: rpc.Code"),
        (r"(地区|区域).{0,6}(不支持|不可用)|不支持.{0,6}(地区|区域)", "docs.bigmodel.cn: api-code"),
        (r"^authentication (fails|failed|error|required)\b", "opendatalab/MinerU#2229"),
        (r"^(invalid|failed|no|missing) (authentication|authorization)\b", "moonshot: api/errors"),
        (r"invalid subscription key", "azure: openai/reference"),
        (
            r"\b(this|your|the) (organi[sz]ation|account|project|workspace|team)\b[^.:]{0,80}"
            r"\b(suspended|deactivated|disabled|not active|inactive|restricted|blocked|terminated|locked|banned)\b",
            "anthropics/claude-code#8327",
        ),
        (r"\borgani[sz]ation must be verified", "lobehub/lobehub#9385"),
        (r"^organi[sz]ation has been (restricted|disabled)", "groq: docs/errors"),
        (r"^account \S+ is suspended", "fireworks: guides/errors"),
        (r"user location is not supported", "google-gemini/gemini-cli#1993"),
        (r"country,? region,? or territory not supported", "openai: guides/error-codes"),
        (r"not (supported|available) in (your|this) (country|region|location)", "anthropic: supported-countries"),
        (r"(身份|权限)(验证|认证)(失败|不通过)|鉴权失败|认证失败", "docs.bigmodel.cn: api-code"),
        (r"无效的? ?(令牌|密钥|api ?key)", "QuantumNous/new-api#4712"),
        (r"令牌.{0,40}(无效|过期|失效|不存在|已?禁用|非法)", "yuruotong1/autoMate#96"),
        (
            r"(api ?key|密钥|authentication token).{0,40}(无效|错误|不正确|非法|已?过期|不存在|未提供|禁用|失效)",
            "docs.bigmodel.cn: api-code",
        ),
        (r"(错误|不正确|非法)的? ?(令牌|密钥|api ?key)|提供.{0,4}错误的", "linweiyuan/go-chatgpt-api#190"),
        (r"账[户号].{0,10}(锁定|停用|封禁|禁用|冻结|非活动|不存在|异常)", "docs.bigmodel.cn: api-code"),
    ),
    FILTERED: (
        (r"blocked by.{0,20}content.{0,2}filter", "anthropic: api/errors"),
        (r"content management policy", "openai/openai-python#331"),
        (r"content exists risk", "666ghj/BettaFish#108"),
        (r"considered high risk", "666ghj/BettaFish#228"),
        (r"\bnew_sensitive\b", "minimax: api/errorcode"),
        (
            r"contains? (potentially )?(inappropriate|unsafe|sensitive|prohibited|harmful) (content|information)",
            "QwenLM/qwen-code#2905",
        ),
        (
            r"(rejected|blocked|refused|flagged)[^.]{0,60}(safety system|moderation|content polic|usage polic)",
            "openai: guides/safety",
        ),
        (r"violat\w+ [^.]{0,40}(usage|content|safety) polic", "openai: guides/safety"),
        (r"your (input|prompt|request) was flagged", "openrouter: api/errors"),
        (
            r"(敏感|不安全|违规|不合规|违法).{0,8}(内容|信息|词)|内容.{0,8}(违规|不合规|敏感)",
            "docs.bigmodel.cn: api-code",
        ),
        (r"策略阻止|审核未通过", "docs.bigmodel.cn: api-code"),
    ),
    TOO_LONG: (
        (r"maximum context length (is|of) [\d,]+", "vllm-project/vllm#20409"),
        (
            r"exceed\w* (the |this |your )?(model'?s )?max(imum)? context (length|window|size)",
            "anomalyco/opencode#25230",
        ),
        (
            r"exceed\w* (the |this )?(available |model'?s )*context (length|window|size|limit)",
            "ggml-org/llama.cpp#16109",
        ),
        (r"context (length|window|size|limit) (has been |was |is )?exceed", "openclaw/openclaw#58839"),
        (r"exceed context window of \d+", "abetlen/llama-cpp-python#416"),
        (r"exceed\w* context (limit|length|window)", "openclaw/openclaw#20539"),
        (r"context window exceeds limit|context overflow", "minimax: api/errorcode"),
        (r"\b(prompt|conversation|context) (is |was )?too (long|large)\b", "stackblitz/bolt.new#1748"),
        (
            r"^(\w+: )?input is too long|input is too long for (the |this )?(requested )?model",
            "aws-samples/bedrock-chat#95",
        ),
        (r"input (token )?length (is )?too long", "moonshot: api/errors"),
        (r"maximum prompt length is [\d,]+", "cline/cline#3120"),
        (r"prompt exceeds max(imum)? length", "zeroclaw-labs/zeroclaw#4124"),
        (r"range of input length should be", "QwenLM/qwen-code#98"),
        (r"inputs`? tokens \+ `?max_new_tokens`? must be", "huggingface/text-generation-inference#628"),
        (r"`?inputs`? must have less than \d+ tokens", "huggingface/text-generation-inference#695"),
        (r"(longer|larger|bigger) than the (maximum |model'?s )+(context|model) (length|size)", "QwenLM/Qwen3#1321"),
        (r"input length .{0,40}exceeds the maximum (allowed )?(input )?length", "sgl-project/sglang#4048"),
        (r"(request|prompt|context) length [\d+ ]+is greater than max_seq_len", "SillyTavern/SillyTavern#3543"),
        (r"^context shift is disabled", "ikawrakow/ik_llama.cpp#2051"),
        (r"trying to keep the first \d+ tokens", "lmstudio-ai/lmstudio-bug-tracker#237"),
        (r"greater than the context length", "lmstudio-ai/lmstudio-bug-tracker#546"),
        (r"reduce the (length|number of tokens) (of|in) (the|your) (messages|prompt|input)", "cline/cline#5140"),
        (
            r"^(the |your )?messages? (are |is )?too long|too (long|large) for [^.]{0,30}context",
            "letta: error_utils",
        ),
        (r"prompt has [\d,]+ tokens?, but|at most [\d,]+ tokens, but the (prompt|input)", "earendil-works/pi#5929"),
        (r"(prompt|input) length \(?[\d,]+\)?.{0,30}(exceeds|is longer than) the max", "vllm-project/vllm#20409"),
        (r"(input|prompt) tokens?( count| length)?( \(?[\d,]+\)?)? exceed", "foreveryh/claude-code-switch#12"),
        (r"requested [\d,]+ tokens exceeds the model", "anomalyco/opencode#35920"),
        (
            r"^(?!.*(max_\w*tokens|output|completion)).*\b(request|messages|conversation|prompt|input)\b"
            r"[^.]{0,40}\bexceed\w* (the )?max[^.]{0,40}\b(tokens|length)\b",
            "letta: error_utils",
        ),
        (r"tokens in the (conversation|prompt|messages)[^.]{0,40}exceed", "mistral: api/errors"),
        (r"\b(input|prompt|conversation|context) length exceeded|^token limit exceeded", "letta: error_utils"),
        (r"\bcontext_(window|length)_exceeded\b", "google: gemini-api"),
        (r"contains [\d,]+ tokens, which exceeds the limit", "google: vertex-ai"),
        (r"input length [\d,]+ exceeds|(prompt|input) is longer than the (model|max)", "sgl-project/sglang#4048"),
        (r"\binput_tokens [\d,]+ > ", "anthropic: api/errors"),
        (r"内容过长|超[出过].{0,4}最大(长度|上下文)|最大上下文长度", "letta: error_utils"),
        (r"input token count.{0,40}exceeds the maximum", "google-gemini/gemini-cli#6678"),
        (r"input token count.{0,40}only supports up to", "google-gemini/gemini-cli#19727"),
        (r"prompt token count of \d+ exceeds", "jjleng/copilot-more#35"),
        (r"length of prompt_tokens .{0,20}must be less than", "chatboxai/chatbox#2060"),
        (r"exceeded model token limit|tokens in request more than max", "anomalyco/opencode#35920"),
        (r"too large for model with \d+ maximum context", "mistral: api/errors"),
        (r"too many tokens: |total tokens .{0,40}exceeds the model", "cohere-ai/sandbox-topically#4"),
        (r"request body too large for .{1,60} model", "github: models"),
        (r"exceeded this model context window limit", "cloudflare: workers-ai/errors"),
        (r"max(imum)? (number of )?input tokens?( limit)?", "openclaw/openclaw#58839"),
        (r"too many total text bytes", "anthropic: api/errors"),
        (r"number of (input|prompt) tokens [\d,]+ cannot exceed", "ibm: watsonx/troubleshooting"),
        (r"total number of tokens \(prompt and prediction\)", "cohere: errors"),
        (r"max input characters is|prompt tokens? too long", "ai.baidu.com: WENXINWORKSHOP/tlmyncueh"),
        (r"exceed max message tokens", "volcengine: ark/error-codes"),
        (r"(输入|上下文|提示词?|prompt|对话|消息|请求).{0,6}(长度)?(过长|超长|超限)", "fengshao1227/ccg-workflow#69"),
        (r"(输入|上下文|对话|prompt|token).{0,8}(超出|超过).{0,12}(限制|上限|最大|长度)", "docs.bigmodel.cn: api-code"),
    ),
    NO_MODEL: (
        (
            r"\bmodels?\b(/\S+| id| name)?:? ?(`[^`]{1,200}`|'[^']{1,200}'|\"[^\"]{1,200}\"|[\w.:/@-]{1,200})? ?"
            r"(was |is |has been |does |could )?"
            r"(not found|doesn'?t exist|not exist|not be found|decommissioned|retired)",
            "continuedev/continue#10832",
        ),
        (r"is not a valid model", "maxnowack/anthropic-proxy#4"),
        (
            r"^(the )?(requested )?model (`[^`]{1,200}`|'[^']{1,200}'|[\w.:/@-]{1,200}) is not (supported|available)"
            r"(?! (with|when|if|by|in))",
            "help.aliyun.com: model-studio/coding-plan-faq",
        ),
        (r"no endpoints found for", "openrouter: api/errors"),
        (r"\b(invalid|unknown|no such) model\b(?! (parameter|setting|argument|option|input))", "decolua/9router#1187"),
        (r"^model: \S+$", "anthropic: api/errors"),
        (r"not found the model", "moonshot: api/errors"),
        (r"model identifier is invalid", "iOfficeAI/AionCore#377"),
        (r"requested model is not (supported|available)|unable to access model", "together: docs/error-codes"),
        (r"no models? (is |are )?loaded", "lmstudio: docs/api"),
        (r"deployment for this resource does not exist", "azure: openai/reference"),
        (r"模型.{0,40}不存在|(未找到|找不到).{0,6}模型", "docs.bigmodel.cn: api-code"),
    ),
}
"""For what is said to people."""


def _rows(table: dict[Meaning, tuple[tuple[str, str], ...]]) -> tuple[Row, ...]:
    return tuple(
        Row(meaning, re.compile(pattern, re.IGNORECASE), source)
        for meaning, rows in table.items()
        for pattern, source in rows
    )


NAMES: Final = _rows(_NAMES)
SENTENCES: Final = _rows(_SENTENCES)

BELIEVED: Final = {
    TOO_LONG: frozenset({0, 400, 413, 422}),
    FILTERED: frozenset({0, 400, 403, 404, 409, 422, 451}),
    ACCOUNT: frozenset({0, 400, 404, 412, 422, 429}),
    SPENT: frozenset({0, 400, 412, 422, 429}),
    LIMITED: frozenset({0, 400, 413, 429, 498}),
    BUSY: frozenset({0, 400, 429, 498}),
    NO_MODEL: frozenset({0, 400, 404, 410, 422}),
}
"""Statuses with which a meaning is believed. A failure of the server (5xx) may stand for any of `BY_SERVERS` too."""
BY_SERVERS: Final = frozenset({TOO_LONG, ACCOUNT, SPENT, LIMITED, BUSY})

_QUOTED: Final = re.compile(
    r"(?<!\w)(?:'[^']{0,400}\s[^']{0,400}'|\"[^\"]{0,400}\s[^\"]{0,400}\"|`[^`]{0,400}\s[^`]{0,400}`|“[^”]*\s[^”]*”)(?!\w)"
)
"""Several words in quotation marks: what a client wrote, and not what the provider says."""
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORD: Final = re.compile(r"[^a-z0-9]+")
_CLIENTS: Final = re.compile(r"^(messages|tools|tool_choice|functions?|input|prompt|response_format|metadata|stop)\b")
"""Parts of a request that a client wrote. A complaint about one of them is not about the gateway's account."""
_FETCHED: Final = re.compile(r"\b(download|fetch|retriev)\w*\b|\b(image|file|video|audio)[ _]url\b", re.IGNORECASE)
"""A provider that could not fetch what a client linked to may say that the other server wants a key."""
_ANSWER_TOO_LONG: Final = re.compile(
    r"\bmax(?:_completion|_output|_new)?_tokens\b.{0,60}too large: ?(\d+).{0,80}?context length is (\d+)"
)
"""vLLM's words for a `max_tokens` that does not fit. Source: vllm-project/vllm, entrypoints/openai."""


def meaning(said: Said) -> Meaning | None:
    """What these words mean; None where no row fits, or none is believed with this status."""
    names = [_NOT_WORD.sub("_", _CAMEL.sub("_", name).lower()).strip("_") for name in said.names]
    named = (row.meaning for row in NAMES if _fits(row.meaning, said) and any(map(row.pattern.search, names)))
    found = next(named, None)
    if found in (None, SPENT):
        sentence = _QUOTED.sub(" ", said.message)
        heard = (row.meaning for row in SENTENCES if _fits(row.meaning, said) and row.pattern.search(sentence))
        in_words = next(heard, None)
        # DashScope calls its limit of tokens per minute `insufficient_quota`; only its sentence says so.
        found = in_words if found is None or in_words is LIMITED else found
    if found is SPENT and said.patient:
        return LIMITED  # Gemini says the same of every quota, also of one that is back in 26 s
    return found


def _fits(meaning: Meaning, said: Said) -> bool:
    """Whether this meaning is believed with this status, and about this part of the request."""
    if said.status >= 500:
        if meaning not in BY_SERVERS:
            return False
    elif said.status not in BELIEVED[meaning]:
        return False
    if meaning in (ACCOUNT, SPENT):
        return not (_CLIENTS.match(said.param) or _FETCHED.search(said.message))
    return meaning is not TOO_LONG or not _is_about_the_answer(said)


def _is_about_the_answer(said: Said) -> bool:
    """Whether the client asked for an answer that no context could hold, whatever the length of its messages."""
    found = _ANSWER_TOO_LONG.search(said.message)
    return found is not None and int(found[1]) >= int(found[2])
