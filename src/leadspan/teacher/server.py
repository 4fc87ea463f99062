"""Log-probabilities of a prompt: the client of a served teacher that requests them, and what is read of an answer.

An engine returns the likeliest tokens of every position and nothing of the rest, so no entropy follows, and no
normaliser of another temperature. Position `t` of a sequence of `T` tokens has seen tokens `0 .. t` and is about token
`t + 1`, so there are `T - 1` of them.

**Sources**: vLLM's OpenAI-compatible server (`vllm/entrypoints/openai/completion/protocol.py`: `prompt` as token ids,
`prompt_logprobs`; in the answer `choices[0].prompt_logprobs`, null for the first token, then mappings from the token id
as text to `{"logprob": ...}`; `/tokenize` with `prompt` or `messages`, answered with `tokens` and `max_model_len`).
SGLang's native API (`/generate` with `input_ids`, `return_logprob`, `logprob_start_len`, `top_logprobs_num`; in the
answer `meta_info.input_token_logprobs` and `.input_top_logprobs`, entries `[logprob, token id, text]`; with
`token_ids_logprob` also `.input_token_ids_logprobs`, the same entries for these tokens at every position).
"""

import http.client
import itertools
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from leadspan.data.sections import Renderer
from leadspan.errors import LeadspanError, SettingsError, TargetsError
from leadspan.teacher.codecs import Arrays, pack_entries
from leadspan.teacher.settings import AnyTeacher, Precision, Served, ServedTeacher

logger = logging.getLogger(__name__)

# Statuses of a server that is busy, restarting or behind a proxy that lost it: the same request may succeed later.
_MAY_PASS = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_SHOWN = 320  # characters of a failure in a message
PromptLogprobs = Sequence[Mapping[int, float] | None]
"""Nothing for the first token, then for each token of the prompt a mapping from token id to log-probability, of the
likeliest tokens and of the token itself."""
# Precision of 1 minus the sum of float32 probabilities; a tail of 0 would make divergences infinite that need its
# logarithm.
_LEAST_TAIL = 2.0**-24
_MASS_TOLERANCE = 1e-3  # log-probabilities that a server computed in bfloat16 may add up to a little more than 1
# Texts on which tokenizers commonly differ: digits, spaces, punctuation, characters of two and more bytes, code.
_CHAT = ({"role": "user", "content": "What is 17 + 25?"},)
_TEXT = "What is 17 + 25?\n\nLet x = 3.5e-2, so f(x) \u2264 \u00e9\u4e16\u754c;\tthen\n    return {x: [1, 2]}"


class TeacherServer:
    """A server with a teacher. Requests run in threads; once one fails for good, all others fail at once too."""

    def __init__(self, settings: ServedTeacher):
        self.settings = settings
        self.name = f"teacher {settings.model} at {settings.url}"
        self.pool = ThreadPoolExecutor(max_workers=settings.concurrency, thread_name_prefix="teacher")
        self._has_failed = threading.Event()
        self._failure: LeadspanError | None = None

    def score(self, prompt: Sequence[int] | str, k: int, others: Sequence[int] = ()) -> PromptLogprobs:
        """Log-probabilities of a prompt: of the `k` likeliest tokens of every position, and of the prompt's own.

        Args:
            prompt: Token ids, or a text that the server turns into some.
            k: Tokens.
            others: Further tokens at every position, where the server's API can name them (SGLang's).

        Raises:
            TargetsError: The server does not answer with log-probabilities.
            SettingsError: The server's key is not in the environment.
        """
        path, is_sglang = "/v1/completions", self.settings.api == "sglang"
        body: dict[str, Any] = {"model": self.settings.model, "prompt": prompt, "prompt_logprobs": k, "max_tokens": 1}
        # The data's special tokens are in the prompt already.
        body |= {"temperature": 1.0, "add_special_tokens": False}
        if is_sglang:
            path = "/generate"
            body = {"text" if isinstance(prompt, str) else "input_ids": prompt, "return_logprob": True}
            body |= {"logprob_start_len": 0, "top_logprobs_num": k}
            body["sampling_params"] = {"max_new_tokens": 1, "temperature": 1.0}
            body |= {"token_ids_logprob": list(others)} if others else {}
        answer = self._post(path, body)
        try:
            if not is_sglang:
                entries = answer["choices"][0]["prompt_logprobs"]
                return [e and {int(token): float(value["logprob"]) for token, value in e.items()} for e in entries]
            # The lists are as long as the prompt; entries of the first token have no log-probability.
            meta = answer["meta_info"]
            tokens, tops = meta["input_token_logprobs"], meta["input_top_logprobs"]
            named = meta.get("input_token_ids_logprobs") or [[]] * len(tokens)
            rows = zip(tokens[1:], tops[1:], named[1:], strict=True)
            # The prompt's own token is added, since it need not be among the likeliest.
            return [None, *({int(i): float(lp) for lp, i, *_ in (*top, *also, own)} for own, top, also in rows)]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise TargetsError(
                f"{self.name}: the answer of {path} has no log-probabilities of the prompt; take a server that "
                f"returns them, with the teacher.api it speaks (now {self.settings.api})"
            ) from None

    def tokenize(self, text: str | Sequence[Mapping[str, str]]) -> tuple[list[int], int | None] | None:
        """The server's token ids of a text or of a conversation, and its window; None where it has no `/tokenize`.

        Raises:
            TargetsError: There is no answer.
        """
        body: dict[str, Any] = {"model": self.settings.model, "add_special_tokens": False}
        if isinstance(text, str):
            body["prompt"] = text
        else:
            body |= {"messages": list(text), "add_generation_prompt": True}
        # What servers without the path, or without a chat template, answer with.
        answer = self._post("/tokenize", body, unless=(400, 404, 405, 422, 501))
        try:
            if answer is None:
                return None
            window = answer.get("max_model_len")
            return [int(i) for i in answer["tokens"]], None if window is None else int(window)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _post(self, path: str, body: dict[str, Any], unless: Sequence[int] = ()) -> Any:
        """The server's answer as JSON; None for a status in `unless`."""
        number, wait = self.settings.retries + 1, _FIRST_WAIT
        for attempt in itertools.count(1):
            if self._failure is not None:
                raise self._failure
            try:
                answer, failure = self._attempt(path, json.dumps(body).encode(), unless)
                if failure and attempt == number:
                    raise TargetsError(
                        f"{self.name}: {path} failed {number} times, at last with {failure}; start the server again, "
                        "or raise teacher.timeout or teacher.retries, and resume"
                    )
            except LeadspanError as error:
                self._failure = self._failure or error  # all requests end with the first
                self._has_failed.set()
                raise self._failure from None
            if not failure:
                return answer
            logger.warning("%s: %s (%d of %d); again in %g s", self.name, failure, attempt, number, wait)
            # Not `time.sleep`: this wait ends as soon as another request has failed for good.
            self._has_failed.wait(wait)
            wait = min(_LONGEST_WAIT, 2 * wait)

    def _attempt(self, path: str, content: bytes, unless: Sequence[int]) -> tuple[Any, str]:
        """An answer, or the reason why there is none where another attempt may succeed."""
        name, may_pass = self.settings.api_key_env, True
        key = os.environ.get(name or "", "").strip()
        if name is not None and not key:
            raise SettingsError(f"teacher.api_key_env: the environment has no {name}; export it, or leave it out")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            # http.client follows no redirect, so the key goes to the named host alone.
            url = urlsplit(self.settings.url)
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            with closing(kind(url.hostname or "", url.port, timeout=self.settings.timeout)) as connection:
                connection.request("POST", f"{url.path}{path}", content, headers)
                response = connection.getresponse()
                status, text = response.status, response.read()
            if status == 200:
                return json.loads(text), ""
            if status in unless:
                return None, ""
            failure = f"status {status}: {' '.join(text.decode(errors='replace').split())}"
            may_pass = status in _MAY_PASS
        except RecursionError:
            raise TargetsError(f"{self.name}: {path} answers with JSON that is nested too deeply") from None
        except TimeoutError:
            failure = f"no answer in {self.settings.timeout:g} s"
        except (OSError, http.client.HTTPException, ValueError) as error:  # dead, dying, or cut off in its JSON
            failure = f"{type(error).__name__}: {error}"
        # A server or proxy may repeat the request in its error page. Cut afterwards: a part of a key is not recognised.
        failure = (failure.replace(key, "***") if key else failure)[:_SHOWN]
        if not may_pass:
            raise TargetsError(f"{self.name}: {path} is refused with {failure}")
        return None, failure


class Servers:
    """The servers of a teacher: one for all examples, or one for each name that they have."""

    def __init__(self, settings: Served):
        by_name = {"": settings} if isinstance(settings, ServedTeacher) else settings.by_name
        self._by_name = {name: TeacherServer(teacher) for name, teacher in by_name.items()}
        self._identity = settings.identity
        self.window: int | None = None

    def of(self, name: str) -> TeacherServer:
        """The server for examples that name this teacher.

        Raises:
            TargetsError: There is none.
        """
        server = self._by_name.get("") or self._by_name.get(name)
        if server is None:
            raise TargetsError(
                f"a trace names the teacher {name!r}, and teacher.by_name has {', '.join(self._by_name)}: add it, or "
                "leave such traces out"
            )
        return server

    def ask(self, name: str, input_ids: np.ndarray, k: int, others: Sequence[int] = ()) -> "Future[PromptLogprobs]":
        """Request the `k` likeliest tokens at every position of a sequence from the server of a teacher, in a thread.

        Raises:
            TargetsError: There is no such server.
        """
        server = self.of(name)
        return server.pool.submit(server.score, input_ids.tolist(), k, others)

    def check_origin(self, renderer: Renderer, teacher: AnyTeacher | None = None) -> None:
        """Compare the tokenizer of each with the data's, and note the shortest `window`, where they report one.

        Both tokenise a text with every added token, and both chat templates render a conversation. A server without
        `/tokenize` returns log-probabilities of the text instead, which name its tokens.

        Raises:
            TargetsError: Token ids differ, or there is no answer.
        """
        tokenizer, prompt, windows = renderer.tokenizer, renderer.prompt_text(_CHAT), []
        added = sorted(map(str, tokenizer.added_tokens_decoder.values()))  # pyright: ignore[reportAttributeAccessIssue]  # every tokenizer has it
        text = _TEXT + "".join(added) + prompt
        ours = tokenizer.encode(text, add_special_tokens=False)
        for server in self._by_name.values():
            tokenized = server.tokenize(text)
            if tokenized is None:
                answer = server.score(text, 1)
                same = len(answer) == len(ours) and all(
                    entry is None or token in entry for entry, token in zip(answer, ours, strict=True)
                )
                theirs = ours if same else []
            else:
                theirs = tokenized[0]
                windows += [] if tokenized[1] is None else [tokenized[1]]
            if theirs != ours:
                pairs = itertools.zip_longest(theirs, ours, fillvalue="none")
                at, there, here = next((at, there, here) for at, (there, here) in enumerate(pairs) if there != here)
                raise TargetsError(
                    f"{server.name}: its tokenizer is not that of the data: token {at} of a text with the data's "
                    f"special tokens is {there} there and {here} here; models distilled over the vocabulary need one "
                    "tokenizer"
                )
            chat = server.tokenize(_CHAT) if tokenized is not None and server.settings.check_template else None
            if chat is not None and chat[0] != tokenizer.encode(prompt, add_special_tokens=False):
                raise TargetsError(
                    f"{server.name}: its chat template writes prompts differently from the data's: "
                    f"{tokenizer.decode(chat[0])!r} there, {prompt!r} here; set data.rendering.chat_template to the "
                    "server's, or teacher.check_template: false where that is meant"
                )
        self.window = min(windows, default=None)

    def check_window(self, num_tokens: int, remedy: str) -> None:
        """Compare the longest sequence with the window; `remedy` has `{}` for the most tokens that it may have.

        Raises:
            TargetsError: The window of a server is shorter.
        """
        # The server must generate at least one token after the prompt.
        if self.window is not None and num_tokens >= self.window:
            raise TargetsError(
                f"teacher {self._identity}: its window has {self.window} tokens, and an example up to {num_tokens} "
                f"besides the one that a server must draw; {remedy.format(self.window - 1)}, or serve it with a "
                "longer window"
            )


@dataclass(frozen=True, slots=True)
class Support:
    """The likeliest tokens at every position of one sequence.

    Attributes:
        token_ids: The likeliest tokens by falling log-probability, int64, [T - 1, k]; then `end_ids`, where given.
        log_probs: Theirs, float32; at most 0, and -inf of an end token that is unknown or among the likeliest.
        outside: Mass of all other tokens, float32, [T - 1]; at least 2^-24.
        label_log_probs: Log-probability of the sequence's own next token, float32, [T - 1].
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    outside: np.ndarray
    label_log_probs: np.ndarray

    def columns(self, precision: Precision) -> Arrays:
        """The columns of a store with codec `top_k`."""
        packed: dict[str, Any] = pack_entries(self.token_ids.reshape(-1), self.log_probs.reshape(-1), precision)
        return packed | {"outside": self.outside, "label_log_prob": self.label_log_probs}


def read_support(
    answer: PromptLogprobs | None, input_ids: np.ndarray, k: int, who: str, setting: str, end_ids: Sequence[int] = ()
) -> Support:
    """The `k` likeliest tokens of every position, and what the answer says of some others.

    Args:
        answer: What an engine returned for the sequence.
        input_ids: The sequence, [T].
        k: Tokens requested.
        who: The engine, for errors.
        setting: The setting that says how many tokens are requested.
        end_ids: Tokens to keep besides, where the answer has them.

    Raises:
        TargetsError: The answer is of another length or of other tokens, has fewer than `k`, or holds no
            log-probabilities or ids that no token has.
    """
    if answer is None or len(answer) != len(input_ids):
        num_returned = "none" if answer is None else len(answer)
        raise TargetsError(f"{who} returned {num_returned} prompt log-probabilities for {len(input_ids)} tokens")
    shape = (len(input_ids) - 1, k + len(end_ids))
    ids, log_probs, labels = np.empty(shape, np.int64), np.empty(shape), np.empty(shape[0])
    ids[:, k:] = end_ids
    # The first token has no log-probability, since nothing precedes it.
    for t, (entry, token) in enumerate(zip(answer[1:], input_ids[1:].tolist(), strict=True)):
        # Servers add the prompt's own token to the likeliest; it is cut off where it is not among them.
        likeliest = sorted(entry.items(), key=lambda item: -item[1])[:k] if entry else []
        if len(likeliest) < k or entry is None or token not in entry:
            has = "with" if entry and token in entry else "without"
            remedy = f"it must return them all: lower {setting} or raise what the server allows (vLLM: --max-logprobs)"
            if len(likeliest) == k:  # it always returns the text's own token
                remedy = "it scored another text: check which model it serves, and any proxy in between"
            raise TargetsError(
                f"{who} returned {len(likeliest)} of {k} tokens at position {t}, {has} the data's token {token}; "
                f"{remedy}"
            )
        tokens, log_probs[t, :k] = zip(*likeliest, strict=True)
        if not 0 <= min(tokens) <= max(tokens) < 2**31:
            raise TargetsError(
                f"{who} returned tokens {min(tokens)} to {max(tokens)} at position {t}: no ids of tokens"
            )
        ids[t, :k] = tokens
        log_probs[t, k:] = [-np.inf if i in ids[t, :k] else entry.get(i, -np.inf) for i in end_ids]
        labels[t] = entry[token]
    mass = np.exp(log_probs).sum(1)
    is_wrong = ~np.isfinite(mass) | (mass > 1 + _MASS_TOLERANCE) | ~np.isfinite(labels)
    if is_wrong.any():
        t = int(is_wrong.argmax())
        raise TargetsError(
            f"{who} returned no log-probabilities at position {t}: their exponentials add up to {mass[t]:.6g} "
            f"(that of the data's token: {labels[t]:.6g}); look at its weights, and at its --logprobs-mode"
        )
    return Support(
        token_ids=ids,
        log_probs=np.minimum(log_probs, 0.0).astype(np.float32),
        outside=np.clip(1.0 - mass, _LEAST_TAIL, 1.0).astype(np.float32),
        label_log_probs=np.minimum(labels, 0.0).astype(np.float32),
    )
