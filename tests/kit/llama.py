"""A real llama-server (llama.cpp, from the package xllamacpp) with a model of 33,000 random weights, made here.

The model says nonsense, in letters, and the same at every start. It is a llama of one layer whose vocabulary is single
characters. The server starts in half a second.

Source: the GGUF specification, version 3.
"""

import os
import random
import signal
import struct
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kit.program import ROOT, Program, free_port

MODEL = "tiny"
WIDTH, HIDDEN, HEADS = 32, 64, 4
U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
ALIGNMENT = 32
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

# The kinds of a token: 1 a text, 2 unknown, 3 control, 6 a byte.
TOKENS = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
TOKENS += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
TOKENS += [(text, 1) for text in ("\u2581", *LETTERS)]

FACTS: dict[str, tuple[int, Any]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, MODEL),
    "llama.context_length": (U32, 2048),
    "llama.embedding_length": (U32, WIDTH),
    "llama.block_count": (U32, 1),
    "llama.feed_forward_length": (U32, HIDDEN),
    "llama.attention.head_count": (U32, HEADS),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "llama.rope.dimension_count": (U32, WIDTH // HEADS),
    "tokenizer.ggml.model": (STRING, "llama"),
    "tokenizer.ggml.tokens": (STRING, [text for text, _ in TOKENS]),
    "tokenizer.ggml.scores": (F32, [0.0] * len(TOKENS)),
    "tokenizer.ggml.token_type": (I32, [kind for _, kind in TOKENS]),
    "tokenizer.ggml.bos_token_id": (U32, 1),
    "tokenizer.ggml.eos_token_id": (U32, 2),
    "tokenizer.ggml.unknown_token_id": (U32, 0),
    "tokenizer.chat_template": (STRING, TEMPLATE),
}
TENSORS = {
    "token_embd.weight": (WIDTH, len(TOKENS)),
    "output.weight": (WIDTH, len(TOKENS)),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH, WIDTH),
    "blk.0.attn_v.weight": (WIDTH, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (WIDTH, HIDDEN),
    "blk.0.ffn_up.weight": (WIDTH, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, WIDTH),
}


def write_model(path: Path) -> None:
    """Writes the model's file, 130 KB."""
    facts = b"".join(_string(key) + _fact(kind, value) for key, (kind, value) in FACTS.items())
    described, data = b"", b""
    for name, shape in TENSORS.items():
        described += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += _padded(array("f", _weights(name, shape)).tobytes())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(FACTS)) + facts + described
    path.write_bytes(_padded(head) + data)


def _weights(name: str, shape: tuple[int, ...]) -> Iterator[float]:
    chance = random.Random(name)
    first_letter = len(TOKENS) - len(LETTERS)
    for row in range(shape[1] if len(shape) > 1 else 1):
        for _ in range(shape[0]):
            weight = chance.gauss(0, 0.3)
            # Every score but those of letters is 0, and the highest of the letters' is above it: so it says letters.
            yield 0.0 if name == "output.weight" and row < first_letter else weight


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _fact(kind: int, value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_value(kind, item) for item in value)
    return struct.pack("<I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    return _string(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", F32: "<f"}[kind], value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


class LlamaServer(Program):
    """The server.

    Args:
        directory: for the model's file.

    Attributes:
        url: its base URL, with /v1.
    """

    def __init__(self, directory: Path) -> None:
        model = directory / f"{MODEL}.gguf"
        write_model(model)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        super().__init__([sys.executable, "-m", "tests.kit.llama", str(model), str(port)], cwd=ROOT)

    async def ready(self) -> None:
        """Return when it said that it listens."""
        await self.said(lambda line: line.startswith("listening on"), "that it listens")


def serve(model: str, port: int) -> None:
    """Serves until a TERM; answers have 40 tokens where a request names no limit."""
    import xllamacpp  # type: ignore[import-untyped]

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 512
    params.n_parallel = 1
    params.n_predict = 40
    params.warmup = False
    params.sampling.temp = 0.0
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
