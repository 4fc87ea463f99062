"""From a trace to token ids with section borders, on the rendered conversation, before any cut.

The whole conversation is rendered once with the chat template and tokenised once; section borders are character offsets
mapped to tokens. Nothing is ever tokenised again after a cut: byte-pair encoding does not split at section borders.
Templates are checked on a probe: some drop the chain of thought from assistant turns, some write it empty.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unicodedata import normalize

import numpy as np
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerBase

from leadspan.data import assistant_turn
from leadspan.data.assistant_turn import ANSWER, COT, QUESTION
from leadspan.data.prompts import LostText, PromptRenderer
from leadspan.data.questions import folded_sentences
from leadspan.data.settings import Rendering
from leadspan.data.templates import TemplateRefusal
from leadspan.data.truncation import Sections
from leadspan.errors import ModelError
from leadspan.traces.records import Refusal, Trace

# A conversation of two steps with known texts: what a template does to it, it does to every trace.
_PROBE = Trace(({"role": "user", "content": QUESTION},), COT, ANSWER)
_APPEND = "set data.rendering.assistant_turn: append (the template renders the prompt only)"
_PROMPT_LOST = "chat template drops part of the prompt"
_LINE_END = r"(?>\r\n|[\n\r\x85\u2028\u2029])"  # atomic: \r\n is never two line ends
_NO_SPACE = re.compile(r"\S")
# How models of other families end a turn; a tokenizer without the token reads it as text.
_FOREIGN_END = re.compile(r"(?:<[|\uff5c][^|\uff5c<>\s]{1,40}[|\uff5c]>|</s>|<eos>|<end_of_turn>)\s*$")
_ANOTHER_TEMPLATE = "or give a template that keeps the chain of thought with data.rendering.chat_template: FILE"


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A conversation as text, ending where the template ends it, with the borders of `Sections` in characters."""

    text: str
    prompt_end: int
    think_end: int
    cot_end: int
    stop: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as token ids with its sections."""

    input_ids: np.ndarray  # int32, [T]
    sections: Sections
    example_id: str  # hash of the token ids
    question_id: str  # hash of what the user asks
    question: str  # what the user asks, as `folded_sentences` writes it, for splits by question
    marked: tuple[int, ...] = ()  # the tokens that hold the marked characters


class Renderer(PromptRenderer):
    """Renders and tokenises traces for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering):
        """Check the tokenizer and its template on a probe conversation.

        Raises:
            ModelError: The tokenizer has no template or no offsets, or the template drops or changes the chain of
                thought, writes it in another form than the settings say or leaves the turn without an end; names the
                remedy.
        """
        super().__init__(tokenizer, rendering)
        if not tokenizer.is_fast:
            raise ModelError(f"tokenizer {self.name}: it is not a fast tokenizer, so it has no character offsets")
        if unknown := self.unknown_variables():
            raise ModelError(f"{self._chat.name}: {unknown}")
        self._backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]  # of fast ones
        # The special token that ends the assistant turn: the template's, or where it writes none, the setting's.
        written = assistant_turn.special_at_start(self.turn.ending or "", self._special_texts)
        self._end = rendering.end_of_turn or written
        fault = ""
        if written is not None and written != self._end:
            fault = f"the template ends an assistant turn with {written!r} itself; leave the setting out"
        elif self._end is not None and self._end not in self._special_texts:
            fault = f"it is no special token of {self.name}; take one that is, such as {tokenizer.eos_token!r}"
        if fault:
            raise ModelError(f"data.rendering.end_of_turn = {self._end!r}: {fault}")
        self._stop_texts = tuple({str(text) for text in (tokenizer.eos_token, self._end) if text})
        # The opening tag at the end of a generation header, with the white space that a model goes on after.
        self._opened = re.compile(rf"{re.escape(rendering.think_open)}\s*\Z")
        eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else None
        # What is wrong with the form in which turns would be written, with the setting that corrects it.
        fault, reason = self.header_fault(), ""
        fault = fault or assistant_turn.turn_fault(self.turn, rendering, self._end, self._special_texts, eos)
        if fault:
            raise ModelError(f"{self._chat.name}: {fault}; {_ANOTHER_TEMPLATE}")
        # The form in which the template writes a chain of thought is the first in which the probe is rendered.
        for form in assistant_turn.FORMS:
            self._form = form
            probe = self.render(_PROBE)
            if isinstance(probe, RenderedText):
                break
            # The fault of the usual form, text in tags, says most; the last form is tried for a few templates only.
            detail = probe.detail.removeprefix(f"{self._chat.name}: ")
            fault, reason = (detail if form != assistant_turn.FORMS[-1] else fault), probe.reason
        else:
            remedy = _ANOTHER_TEMPLATE
            if rendering.assistant_turn != "append" and reason != _PROMPT_LOST:
                remedy = f"{assistant_turn.append_fault(self.turn, rendering) or _APPEND}, {remedy}"
            raise ModelError(f"{self._chat.name}: {fault}; {remedy}")
        asked = self.prompt_text(_PROBE.messages)
        if not probe.text.startswith(asked):
            fault = f"its generation header ends with {asked[-20:]!r}, and a turn does not go on from there; {_APPEND}"
            raise ModelError(f"{self._chat.name}: {fault}, {_ANOTHER_TEMPLATE}")
        self._probe = probe

    def render(self, trace: Trace) -> RenderedText | Refusal:
        """Render one trace and find its sections by character.

        Returns:
            The text with its borders, or a refusal when something that the trace says did not survive the template.

        Raises:
            ModelError: The template takes too long or too much memory.
        """
        # Where the tokenizer composes characters, so that decoding gives the rendered text.
        if isinstance(self._backend.normalizer, NFC):
            trace = replace(trace, **{name: _composed(getattr(trace, name)) for name in ("messages", "cot", "answer")})
        learnt = f"{trace.cot}\n{trace.answer}"
        opening, closing = self.rendering.think_open, self.rendering.think_close
        in_learnt = (token for token in (opening, closing, *self._stop_texts, *self.control_texts) if token in learnt)
        # A think tag may stand in a prompt.
        if (token := next(in_learnt, None) or self.control_token_in(trace.messages)) is not None:
            return Refusal("control token in the text", f"the text contains {token!r}", trace.place)
        if foreign := _FOREIGN_END.search(trace.answer):
            detail = f"the answer ends in {foreign[0].strip()!r}, which the student would learn to write as text"
            return Refusal("control token of another model", detail, trace.place)
        try:
            header, text = self._texts(trace)
        except LostText as error:
            return Refusal(_PROMPT_LOST, str(error), trace.place)
        except TemplateRefusal as error:
            return Refusal("chat template refuses the conversation", str(error), trace.place)
        # Sections are offsets into the text, so the prompt that a model is asked with must be its beginning.
        if not text.startswith(header):
            detail = "the rendered prompt with its generation header is not a prefix of the whole conversation"
            return Refusal("chat template changes the prompt", detail, trace.place)
        # The four texts must follow each other, with nothing but white space between them: anything else means that
        # the template changed the trace.
        at, marks = len(header), list[int]()
        for part in (opening, trace.cot.strip(), closing, trace.answer.strip()):
            at = len(text) - len(text[at:].lstrip())
            if not text.startswith(part, at):
                detail = f"after the assistant header it should say {part[:40]!r} but says {text[at : at + 40]!r}"
                return Refusal("chat template changes the chain of thought", detail, trace.place)
            marks.append(at)
            at += len(part)
        stop = len(text) - len(text[at:].lstrip())
        if not text.startswith(self._special_texts, stop):
            return Refusal("no end-of-turn token", "no special token follows the answer", trace.place)
        steps = step_starts(text, marks[1], marks[2], self.rendering.step_delimiter)
        return RenderedText(text, len(header), marks[2], marks[2] + len(closing), stop, steps)

    def render_all(self, items: Sequence[Trace | Refusal]) -> tuple[list[Trace], list[RenderedText], list[Refusal]]:
        """The traces that can be rendered, their texts, and the refusals, those among the items included.

        Raises:
            ModelError: The template takes too long or too much memory.
        """
        rendered = [(item, item if isinstance(item, Refusal) else self.render(item)) for item in items]
        usable = [(t, text) for t, text in rendered if isinstance(t, Trace) and isinstance(text, RenderedText)]
        refused = [refusal for _, refusal in rendered if isinstance(refusal, Refusal)]
        return [trace for trace, _ in usable], [text for _, text in usable], refused

    def tokenise(
        self, rendered: Sequence[RenderedText], traces: Sequence[Trace], marks: Sequence[Sequence[int]] = ()
    ) -> list[Rendered]:
        """Token ids and token sections of a batch of rendered traces.

        `marks` are, of each text, positions of characters, none of them white space, whose tokens are looked for.
        """
        if not rendered:
            return []
        batch = self.tokenizer(
            [r.text for r in rendered], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        results: list[Rendered] = []
        for i, (text, trace, chars) in enumerate(zip(rendered, traces, marks or [()] * len(rendered), strict=True)):
            input_ids = np.asarray(batch["input_ids"][i], dtype=np.int32)  # pyright: ignore[reportArgumentType, reportIndexIssue]
            # A token that begins before a border and ends after it belongs to the earlier section.
            prompt_end, think_end, cot_end, stop, *steps = (
                bisect_left(range(len(input_ids)), char, key=lambda token: batch.token_to_chars(i, token).start)  # pyright: ignore[reportOptionalMemberAccess]  # every token has characters
                for char in (text.prompt_end, text.think_end, text.cot_end, text.stop, *text.steps)
            )
            borders = (prompt_end, think_end, cot_end, len(input_ids), stop)
            # The token that holds a character, or the next one, where a tokenizer drops the character.
            holders = ((batch.char_to_token(i, at) for at in range(char, len(text.text))) for char in chars)
            results.append(
                Rendered(
                    input_ids,
                    Sections(*borders, steps=tuple(dict.fromkeys(steps))),
                    # Of the token ids, so that a store recognises a sequence whatever file it came from.
                    example_id=hashlib.sha256(input_ids.tobytes()).hexdigest()[:32],
                    question_id=hashlib.sha256(trace.question.encode()).hexdigest()[:16],
                    question=folded_sentences(trace.question),
                    marked=tuple(next(token for token in tokens if token is not None) for tokens in holders),
                )
            )
        return results

    @cached_property
    def num_ids(self) -> int:
        """Token ids up to the largest; more than the tokenizer has tokens where ids have gaps."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def opening(self) -> str:
        """What the generation header writes of a chain of thought: its opening tag and the space after it; else ""."""
        return self.turn.header.removeprefix(self._opened.sub("", self.turn.header))

    @cached_property
    def stop_token_id(self) -> int:
        """Id of the token that ends the assistant turn in the rendered conversation."""
        tokens = self.tokenise([self._probe], [_PROBE])[0]
        return int(tokens.input_ids[tokens.sections.stop])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides token ids and borders."""
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True)  # templates write them
        return _hash(self._backend.to_str(), *self._template_parts, special)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer without its template."""
        return _hash(self._backend.to_str())

    @cached_property
    def template_hash(self) -> str:
        """Hash of the chat template and the rendering settings."""
        return _hash(*self._template_parts)

    @property
    def _template_parts(self) -> tuple[str, ...]:
        """The template and the settings that bear on it."""
        # Less those at their defaults, so that stores stay in use that were captured before a setting existed.
        unused = {"chat_template"} | {
            name for name in ("template_variables", "end_of_turn") if not getattr(self.rendering, name)
        }
        unused |= set() if self.reads_clock else {"date"}
        return self.template, self.rendering.model_dump_json(exclude=unused)

    def _texts(self, trace: Trace) -> tuple[str, str]:
        """The prompt with its generation header, less the opening think tag if it has one, and the whole text."""
        opening, closing = self.rendering.think_open, self.rendering.think_close
        if self.rendering.assistant_turn == "append":
            header = self._opened.sub("", self.prompt_text(trace.messages))
            after_opening, before_closing, after_closing = assistant_turn.spaces(self.turn, self.rendering)
            thought = f"{opening}{after_opening}{trace.cot}{before_closing}{closing}"
            return header, f"{header}{thought}{after_closing}{trace.answer}{self._end}"
        turn = assistant_turn.message_of(self._form, trace.cot, trace.answer, self.rendering)
        prompt, body = self._chat.render([(trace.messages, True), ([*trace.messages, turn], False)])
        self.check_survival(trace.messages, prompt)
        if self.rendering.end_of_turn and not body.rstrip().endswith(self.rendering.end_of_turn):
            body += self.rendering.end_of_turn
        return self._opened.sub("", prompt), body


def _composed(value: Any) -> Any:
    if isinstance(value, str):
        return normalize("NFC", value)
    if isinstance(value, dict):
        return {_composed(key): _composed(inner) for key, inner in value.items()}
    return type(value)(_composed(inner) for inner in value) if isinstance(value, list | tuple) else value


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def step_starts(text: str, start: int, end: int, delimiter: str) -> tuple[int, ...]:
    r"""First character of every step after the first in a chain of thought, the part `[start, end)` of a text.

    A line end in the delimiter stands for one of any system, and for blanks before it.

    >>> step_starts("a\r\n \r\nb\n\n\nc\n", 0, 11, "\n\n")
    (6, 10)
    """
    starts: list[int] = []
    lines = [re.escape(line) for line in re.split(_LINE_END, delimiter)]
    # Blanks are allowed before a line end that follows another one: before the first they are not looked at, since a
    # search would begin anew at each of them.
    blanks = r"[^\S\n\r\x85\u2028\u2029]*"
    pattern = re.compile(_LINE_END.join(lines[:2]) + "".join(f"{blanks}{_LINE_END}{line}" for line in lines[2:]))
    while border := pattern.search(text, start, end):
        step = _NO_SPACE.search(text, border.end(), end)
        if step is None:
            break
        start = step.start()
        starts.append(start)
    return tuple(starts)
