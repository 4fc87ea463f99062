"""A served teacher, as the source of targets in training and as the engine of a capture."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from accelerate import Accelerator

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import Batch
from leadspan.data.sections import Renderer
from leadspan.errors import TargetsError
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.server import PromptLogprobs, TeacherServer, read_support
from leadspan.teacher.settings import AnyTeacher, Served, ServedTeacher, TopK
from leadspan.teacher.source import TeacherSource
from leadspan.teacher.targets import SparseTargets, Targets

# Texts on which tokenizers commonly differ: digits, spaces, punctuation, characters of two and more bytes, code.
_CHAT = ({"role": "user", "content": "What is 17 + 25?"},)
_TEXT = "What is 17 + 25?\n\nLet x = 3.5e-2, so f(x) \u2264 \u00e9\u4e16\u754c;\tthen\n    return {x: [1, 2]}"


class Servers:
    """The servers of a teacher: one for all examples, or one for each name that they have."""

    def __init__(self, settings: Served):
        by_name = {"": settings} if isinstance(settings, ServedTeacher) else settings.by_name
        self._by_name = {name: TeacherServer(teacher) for name, teacher in by_name.items()}
        self._identity, self.window = settings.identity, None

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

    def check_tokenizers(self, renderer: Renderer) -> int | None:
        """Compare the tokenizer of each with the data's; returns the shortest window, where the servers report one.

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
        return self.window

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


class RemoteTeacher(TeacherSource):
    """A teacher that runs on a server: `k` log-probabilities per position, requested batch by batch."""

    def __init__(self, settings: Served):
        self.settings, self.servers, self.kept_targets = settings, Servers(settings), settings.kept_targets
        self._num_tokens = 0
        self._device = torch.device("cpu")
        self._pending: dict[tuple[str, bytes], Future[PromptLogprobs]] = {}

    def check_origin(self, renderer: Renderer, teacher: AnyTeacher | None) -> None:
        """Compare the server's tokenizer, and its chat template if it applies one, with those of the data."""
        self.servers.check_tokenizers(renderer)

    def check_serves(self, examples: Examples, indices: Sequence[int]) -> None:
        """Look for the server of every example, and compare the longest with the window."""
        for name in {examples.teachers[i] for i in indices}:
            self.servers.of(name)
        longest = max((examples.lengths[i] for i in indices), default=0)
        self.check_window(longest, "set data.max_tokens: {}")

    def check_window(self, num_tokens: int, remedy: str) -> None:
        """As `Servers.check_window`."""
        self.servers.check_window(num_tokens, remedy)

    def shared_tokens(self, student_rows: int, tokenizer_size: int) -> int | None:
        """None, so all rows of the student's head: tokens outside the teacher's support are one outcome for both."""
        self._num_tokens = student_rows
        return None

    def prepare(self, accelerator: Accelerator) -> None:
        """Targets go where training runs."""
        self._device = accelerator.device

    def ask_ahead(self, batches: Sequence[Batch]) -> None:
        """Request the targets of later batches, so that the server works while the student does."""
        for batch in batches:
            for name, input_ids, _ in _sequences(batch):
                if (key := (name, input_ids.tobytes())) not in self._pending:
                    self._pending[key] = self._ask(name, input_ids)

    def _ask(self, name: str, input_ids: np.ndarray) -> Future[PromptLogprobs]:
        return self.servers.of(name).ask(input_ids.tolist(), self.settings.k, self.end_ids)

    def targets(self, batch: Batch) -> Targets:
        """The likeliest tokens at the weighted positions of a batch, with the mass of all others.

        Where the tokens that end a turn are one outcome, those of them that the server names are in the support too.

        Raises:
            TargetsError: The server does not answer, or its answer is unusable.
        """
        sequences = list(_sequences(batch))
        # Requested ahead in training; a validation asks for the first time here.
        futures = [self._pending.pop((name, ids.tobytes()), None) or self._ask(name, ids) for name, ids, _ in sequences]
        k, ends = self.settings.k, self.end_ids
        supports = [
            (read_support(future.result(), ids, k, self.servers.of(name).name, "teacher.k", ends), positions)
            for future, (name, ids, positions) in zip(futures, sequences, strict=True)
        ]

        def joined(column: str) -> torch.Tensor:
            rows = np.concatenate([getattr(support, column)[positions] for support, positions in supports])
            return torch.from_numpy(rows).to(self._device)

        token_ids, log_probs = joined("token_ids"), joined("log_probs")
        # Tokens of the teacher's head that the student's head lacks join the tail.
        is_beyond, outside = token_ids >= self._num_tokens, joined("outside")
        outside += torch.where(is_beyond, log_probs.exp(), 0.0).sum(1)
        return SparseTargets(
            token_ids=torch.where(is_beyond, 0, token_ids),
            log_probs=torch.where(is_beyond, -torch.inf, log_probs),
            # The server returns log p and no logits, so the normaliser is that of log p: 0.
            logsumexp={1.0: torch.zeros_like(outside)},
            tail_mass={1.0: outside},
            label_log_probs=joined("label_log_probs"),
        )


class ServedEngine:
    """Requests packs of sequences from a served teacher, for a capture."""

    def __init__(self, settings: Served, codec: TopK, num_tokens: int, renderer: Renderer, longest: int):
        """Compare the server with the data and the longest sequence; the distributions are over `num_tokens` tokens."""
        self.codec, self.num_tokens, self.servers = codec, num_tokens, Servers(settings)
        self.servers.check_tokenizers(renderer)
        self.servers.check_window(longest, "let the longest sequence have {}: data.max_tokens, rollout.max_new_tokens")

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        k, servers = self.codec.k, [self.servers.of(example.teacher) for example in sequences]
        # All requests go out before the first answer is read, so that the server can batch them.
        futures = [server.ask(e.input_ids.tolist(), k) for server, e in zip(servers, sequences, strict=True)]
        rows = []
        for server, future, example in zip(servers, futures, sequences, strict=True):
            support = read_support(future.result(), example.input_ids, k, server.name, "capture.codec.k")
            highest = int(support.token_ids.max(initial=0))
            if highest >= self.num_tokens:
                raise TargetsError(
                    f"{server.name}: token {highest} is among the {k} likeliest, and the student's head has "
                    f"{self.num_tokens} rows; lower capture.codec.k, or train with the teacher live"
                )
            rows.append(support.columns(self.codec.precision))
        return rows


def _sequences(batch: Batch) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each example with weighted positions: its teacher, its tokens to the last that is predicted, the positions."""
    input_ids, positions = batch["input_ids"][0].cpu().numpy(), batch["positions"].cpu().numpy()
    borders = np.searchsorted(positions, batch["borders"])
    for name, start, first, end in zip(batch["teachers"], batch["borders"], borders, borders[1:], strict=False):
        if first < end:
            weighted = positions[first:end] - start
            # Up to the token that the last weighted position predicts.
            yield name, input_ids[start : start + weighted[-1] + 2], weighted
