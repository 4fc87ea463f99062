"""From a trace to token ids with section borders, on the rendered conversation, before any cut.

The whole conversation is rendered once with the chat template and tokenised once; section borders are character offsets
mapped to tokens. Nothing is ever tokenised again after a cut: byte-pair encoding does not split at section borders.
Templates are checked: some drop the chain of thought from assistant turns, some empty it.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from unicodedata import normalize

import numpy as np
from tokenizers.normalizers import NFC
from transformers import BatchEncoding, PreTrainedTokenizerBase

from leadspan.data.config import Rendering
from leadspan.data.prompts import PromptRenderer
from leadspan.data.records import Refusal, Trace
from leadspan.data.truncation import Sections
from leadspan.errors import ModelError

_PROBE = Trace(
    messages=({"role": "user", "content": "What is two plus two?"},),
    cot="Two and two.\n\nThat makes four.",
    answer="The answer is four.",
)
_REMEDY = (
    "set data.rendering.assistant_turn: append (the template renders the prompt only), "
    "or data.rendering.chat_template: FILE with a template that keeps the chain of thought"
)


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A conversation as text, with section borders in characters.

    Attributes:
        text: The conversation, ending where the template ends it.
        prompt_end: End of the prompt, assistant header included.
        think_end: Start of the closing think tag.
        cot_end: End of the closing think tag.
        stop: Start of the end-of-turn token.
        steps: Starts of the steps of the chain of thought after the first.
    """

    text: str
    prompt_end: int
    think_end: int
    cot_end: int
    stop: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as token ids with its sections.

    Attributes:
        input_ids: Token ids, int32, shape [T].
        sections: Section borders in tokens.
        example_id: Hash of the token ids.
        question_id: Hash of the prompt's messages, for splits by question.
    """

    input_ids: np.ndarray
    sections: Sections
    example_id: str
    question_id: str


class Renderer(PromptRenderer):
    """Renders and tokenises traces for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering):
        """Check the tokenizer and its template on a probe conversation.

        Raises:
            ModelError: The tokenizer has no template or no offsets, or the template drops or changes the chain of
                thought or leaves the turn without an end; names the remedy.
        """
        super().__init__(tokenizer, rendering)
        if not tokenizer.is_fast:
            raise ModelError(f"tokenizer {self.name}: it is not a fast tokenizer, so it has no character offsets")
        self._stop_texts = (str(tokenizer.eos_token),) if tokenizer.eos_token else ()
        self._probe = self._check_template()
        stop = self._probe.text[self._probe.stop :]
        self._stop_texts += tuple(special for special in self._special_texts if stop.startswith(special))

    def _check_template(self) -> RenderedText:
        """Render the probe with the chain of thought as a field of its own, else inside the content."""
        fault = ""
        for as_field in (True, False):
            self._as_field = as_field
            probe = self.render(_PROBE)
            if isinstance(probe, RenderedText):
                return probe
            fault = probe.detail
        raise ModelError(f"chat template of {self.name}: {fault}; {_REMEDY}")

    def render(self, trace: Trace) -> RenderedText | Refusal:
        """Render one trace and find its sections by character.

        Returns:
            The text with its borders, or a refusal when the chain of thought did not survive the template.
        """
        trace = self._normalised(trace)
        for stop in self._stop_texts:
            if stop in trace.cot or stop in trace.answer:
                return Refusal("end-of-turn token inside the trace", f"the text contains {stop!r}", trace.place)
        try:
            header = self._header(trace)
            body = self._text(trace, header)
        except ModelError as error:
            return Refusal("chat template refuses the conversation", str(error), trace.place)
        if isinstance(body, Refusal):
            return body
        if not body.startswith(header):
            detail = "the rendered prompt with its generation header is not a prefix of the whole conversation"
            return Refusal("chat template changes the prompt", detail, trace.place)
        return self._locate(trace, body, len(header))

    def tokenise(self, rendered: Sequence[RenderedText], traces: Sequence[Trace]) -> list[Rendered]:
        """Token ids and token sections of a batch of rendered texts; a straddling token goes to the earlier section."""
        return [tokens for tokens, _ in self.tokenise_marked(rendered, traces, [()] * len(rendered))]

    def tokenise_marked(
        self, rendered: Sequence[RenderedText], traces: Sequence[Trace], marks: Sequence[Sequence[int]]
    ) -> list[tuple[Rendered, tuple[int, ...]]]:
        """The same, and for each text the indices of the tokens that hold some of its characters.

        Args:
            rendered: Texts.
            traces: The trace of each.
            marks: Positions of characters in each, none of them white space.
        """
        if not rendered:
            return []
        batch = self.tokenizer(
            [r.text for r in rendered], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [
            (_to_tokens(batch, i, text, trace), tuple(_token_of(batch, i, char, len(text.text)) for char in chars))
            for i, (text, trace, chars) in enumerate(zip(rendered, traces, marks, strict=True))
        ]

    @cached_property
    def stop_token_id(self) -> int:
        """Id of the token that ends the assistant turn in the rendered conversation."""
        tokens = self.tokenise([self._probe], [_PROBE])[0]
        return int(tokens.input_ids[tokens.sections.stop])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides token ids and borders."""
        return _hash(*self._tokenizer_parts, *self._template_parts)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer without its template."""
        return _hash(*self._tokenizer_parts)

    @cached_property
    def template_hash(self) -> str:
        """Hash of the chat template and the rendering settings."""
        return _hash(*self._template_parts)

    @property
    def _tokenizer_parts(self) -> tuple[str, ...]:
        return (self.tokenizer.backend_tokenizer.to_str(),)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]  # fast only

    @property
    def _template_parts(self) -> tuple[str, ...]:
        return self.template, self.rendering.model_dump_json(exclude={"chat_template"})

    def _normalised(self, trace: Trace) -> Trace:
        """Compose characters before rendering where the tokenizer does, so that decoding gives the rendered text."""
        if not isinstance(self.tokenizer.backend_tokenizer.normalizer, NFC):  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]  # fast only
            return trace
        messages = tuple({key: normalize("NFC", text) for key, text in m.items()} for m in trace.messages)
        return replace(trace, messages=messages, cot=normalize("NFC", trace.cot), answer=normalize("NFC", trace.answer))

    def _header(self, trace: Trace) -> str:
        """Prompt with generation header, less an opening think tag that the header may bring along."""
        header = self.prompt_text(trace.messages)
        bare = header.rstrip()
        return bare.removesuffix(self.rendering.think_open) if bare.endswith(self.rendering.think_open) else header

    def _text(self, trace: Trace, header: str) -> str | Refusal:
        opening, closing = self.rendering.think_open, self.rendering.think_close
        if self.rendering.assistant_turn == "append":
            end = self.tokenizer.eos_token
            if not end:
                detail = "the tokenizer has no end-of-sequence token to append"
                return Refusal("no end-of-turn token", detail, trace.place)
            return f"{header}{opening}\n{trace.cot}\n{closing}\n\n{trace.answer}{end}"
        message = {"role": "assistant", "content": f"{opening}\n{trace.cot}\n{closing}\n\n{trace.answer}"}
        if self._as_field:
            message = {"role": "assistant", "content": trace.answer, "reasoning_content": trace.cot}
        return self._apply([*trace.messages, message], header=False)

    def _locate(self, trace: Trace, text: str, prompt_end: int) -> RenderedText | Refusal:
        opening, closing = self.rendering.think_open, self.rendering.think_close
        at = prompt_end
        marks: list[int] = []
        for part in (opening, trace.cot.strip(), closing, trace.answer.strip()):
            at = _skip_space(text, at)
            if not text.startswith(part, at):
                shown = text[at : at + 40]
                detail = f"after the assistant header it should say {part[:40]!r} but says {shown!r}"
                return Refusal("chat template changes the chain of thought", detail, trace.place)
            marks.append(at)
            at += len(part)
        stop = _skip_space(text, at)
        if not text.startswith(self._special_texts, stop):
            return Refusal("no end-of-turn token", "no special token follows the answer", trace.place)
        steps = _step_starts(text, marks[1], marks[2], self.rendering.step_delimiter)
        return RenderedText(text, prompt_end, marks[2], marks[2] + len(closing), stop, steps)

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder  # pyright: ignore[reportAttributeAccessIssue]  # fast only
        return tuple({str(token) for token in added.values()} | set(self._stop_texts))


def _token_of(batch: BatchEncoding, index: int, char: int, end: int) -> int:
    """The token that holds a character, or the next one, where a tokenizer drops the character."""
    found = (batch.char_to_token(index, at) for at in range(char, end))
    return next(token for token in found if token is not None)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _step_starts(text: str, start: int, end: int, delimiter: str) -> tuple[int, ...]:
    found: list[int] = []
    at = text.find(delimiter, start, end)
    while at >= 0:
        at = _skip_space(text, at + len(delimiter))
        if at >= end:
            break
        found.append(at)
        at = text.find(delimiter, at, end)
    return tuple(found)


def _to_tokens(batch: BatchEncoding, index: int, text: RenderedText, trace: Trace) -> Rendered:
    input_ids = np.asarray(batch["input_ids"][index], dtype=np.int32)  # pyright: ignore[reportArgumentType, reportIndexIssue]

    def start_of(token: int) -> int:
        return batch.token_to_chars(index, token).start  # pyright: ignore[reportOptionalMemberAccess]  # it has some

    def first_token_at(char: int) -> int:
        return bisect_left(range(len(input_ids)), char, key=start_of)

    sections = Sections(
        prompt_end=first_token_at(text.prompt_end),
        think_end=first_token_at(text.think_end),
        cot_end=first_token_at(text.cot_end),
        num_tokens=len(input_ids),
        stop=first_token_at(text.stop),
        steps=tuple(dict.fromkeys(first_token_at(char) for char in text.steps)),
    )
    example_id = hashlib.sha256(input_ids.tobytes()).hexdigest()[:32]
    question = "\0".join(message["content"] for message in trace.messages)
    return Rendered(input_ids, sections, example_id, hashlib.sha256(question.encode()).hexdigest()[:16])
