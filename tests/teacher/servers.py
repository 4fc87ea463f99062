"""A real HTTP server on loopback that answers from a real tiny model in the shapes that vLLM and SGLang document."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Fault = Callable[[Any], Any]
"""What becomes of an answer: another one, a status with a text, or bytes that end too early."""


class TeacherOnLoopback(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, paths: tuple[str, ...]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokenizer, self.paths = model, tokenizer, paths
        self.faults: list[Fault] = []  # of the next answers with log-probabilities, one each
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ids(self, prompt: Any) -> list[int]:
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            text = body.get("prompt") or self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=False
            )
            ids = self.ids(text)
            return {"tokens": ids, "count": len(ids), "max_model_len": self.model.config.max_position_embeddings}
        ids = self.ids(body["prompt"] if path == "/v1/completions" else body.get("text") or body["input_ids"])
        k = body["prompt_logprobs"] if path == "/v1/completions" else body["top_logprobs_num"]
        with torch.no_grad():
            log_p = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].double(), -1)
        tops = [list(zip(*(x.tolist() for x in row.topk(k)), strict=True)) for row in log_p[:-1]]
        own = [float(row[token]) for row, token in zip(log_p, ids[1:], strict=False)]
        if path == "/generate":
            tokens = [[None, ids[0], None], *([lp, token, None] for lp, token in zip(own, ids[1:], strict=True))]
            shown = [None, *([[lp, token, None] for lp, token in top] for top in tops)]
            meta = {"input_token_logprobs": tokens, "input_top_logprobs": shown}
            if named := body.get("token_ids_logprob"):
                of_named = [[[float(row[i]), i, None] for i in named] for row in log_p[:-1]]
                meta["input_token_ids_logprobs"] = [None, *of_named]
            return {"text": "a", "meta_info": meta}
        rows = [
            {str(i): {"logprob": value, "rank": 1, "decoded_token": ""} for value, i in [*top, (lp, token)]}
            for top, lp, token in zip(tops, own, ids[1:], strict=True)
        ]
        return {"id": "cmpl-1", "choices": [{"index": 0, "text": "a", "prompt_logprobs": [None, *rows]}]}


class _Handler(BaseHTTPRequestHandler):
    server: TeacherOnLoopback

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        if self.path not in self.server.paths:
            return self.reply(404, b"{}")
        answer = self.server.answer(self.path, body)
        if self.path != "/tokenize" and self.server.faults:
            answer = self.server.faults.pop(0)(answer)
        if isinstance(answer, tuple):
            return self.reply(answer[0], answer[1].encode())
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return self.reply(200, content, len(content) + isinstance(answer, bytes))

    def reply(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    paths: tuple[str, ...] = ("/v1/completions", "/generate", "/tokenize"),
) -> Iterator[TeacherOnLoopback]:
    server = TeacherOnLoopback(model.eval(), tokenizer, paths)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
