"""How a chat template begins, fills and ends an assistant turn, read from small conversations that it renders.

A trace is learnt in the form in which the template writes it, or not at all. A generation header that closes, empties
or otherwise opens thinking, think tags that differ from the settings, and an end of turn other than the tokenizer's
are detected here, before any trace is rendered.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from leadspan.data.settings import Rendering
from leadspan.data.templates import ChatTemplate, Message, TemplateRefusal

QUESTION = "What is two plus two?"
COT = "Two and two.\n\nThat makes four."
ANSWER = "The answer is four."
_USER = {"role": "user", "content": QUESTION}
_SYSTEM = {"role": "system", "content": "Add the numbers."}
_NEXT = {"role": "user", "content": "What is three plus three?"}
# The forms in which templates take a chain of thought: under a key next to the answer, as a part of the content
# (Ministral), as a block of it (Apertus), as text in tags, and as text after an opening tag that the template writes
# itself (Nemotron Nano 2).
FORMS = ("keys", "parts", "blocks", "text", "text after the opening tag")
# Forms that give the chain of thought apart from the answer, so that the template itself writes the think tags.
_APART = FORMS[:3]
_NAMED_TAG = re.compile(
    r"<\|?/?(?:[a-z]+:)?[a-z_]*(?:think|thought|reason|channel|inner)[a-z_]*\|?>|\[/?THINK\]|◁/?think▷"
    r"|\[BEGIN FINAL RESPONSE\]",
    re.IGNORECASE,
)
"""Think tags as families write them: Gemma 4's channels, Apertus' inner text, Kimi's, Apriel's final response."""
_NOT_THE_TAGS = "not the think tags of data.rendering"
# Characters of a header that an error message quotes.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What a template writes around the text of an assistant; None where it writes no such turn."""

    user_end: str  # behind the user's text, where nothing follows
    header: str  # behind the user's text, where the assistant is to go on: `user_end` and the generation header
    history: str | None  # between the user's text and that of an earlier assistant turn
    next_turn: (
        str  # between the text of an earlier assistant turn and that of the user who goes on; "" if there is none
    )
    ending: str | None  # behind the text of a last assistant turn
    # Before and after a chain of thought that is given apart from the answer; None where it drops that, in turns with a
    # tool call too.
    thought: tuple[str, str] | None
    switched: str  # what a variable that switches thinking adds to the header; "" if there is none
    named: tuple[str, ...] = ()  # think tags that stand in the template's source, written or not


def message_of(form: str, cot: str, answer: str, rendering: Rendering) -> dict[str, Any]:
    """An assistant turn in one of `FORMS`."""
    if form == "keys":
        return {"role": "assistant", "content": answer, "reasoning_content": cot, "reasoning": cot}
    if form == "parts":
        content = [{"type": "thinking", "thinking": cot}, {"type": "text", "text": answer}]
        return {"role": "assistant", "content": content}
    if form == "blocks":
        blocks = [{"type": "thoughts", "text": cot}, {"type": "response", "text": answer}]
        return {"role": "assistant", "content": {"blocks": blocks}}
    opening = f"{rendering.think_open}\n" if form == "text" else ""
    return {"role": "assistant", "content": f"{opening}{cot}\n{rendering.think_close}\n\n{answer}"}


def probe(template: ChatTemplate, rendering: Rendering, variants: Iterable[ChatTemplate] = ()) -> AssistantTurn:
    """Let a template render small conversations, and `variants` of it, whose variables that switch thinking differ.

    Raises:
        ModelError: It cannot be run, or renders no prompt at all.
    """
    try:
        before, [prompt] = [_USER], template.render([([_USER], True)])
    except TemplateRefusal:
        # Some templates refuse a conversation without a system turn.
        before, [prompt] = [_SYSTEM, _USER], template.render([([_SYSTEM, _USER], True)])
    answered = {"role": "assistant", "content": ANSWER}
    header = prompt.rpartition(QUESTION)[2]
    conversation = _rendered(template, [*before, answered, _NEXT])
    _, is_written, ending = _rendered(template, [*before, answered]).rpartition(ANSWER)
    # Generators: the second form is rendered only where the first one shows no thought.
    thoughts = (_rendered(template, [*before, message_of(form, COT, ANSWER, rendering)]) for form in _APART)
    around = ((_between(text, QUESTION, COT), _between(text, COT, ANSWER)) for text in thoughts)
    thought = next(((start, end) for start, end in around if start is not None and end is not None), None)
    if thought is None:
        # Some templates write a thought only in turns with a tool call (Gemma 4, Kimi K2), with the call behind it.
        call = {"type": "function", "id": "call_0", "function": {"name": "addition", "arguments": {"first": 2}}}
        turn = {**answered, "tool_calls": [call]}
        without = _rendered(template, [*before, turn])
        text = _rendered(template, [*before, {**turn, "reasoning_content": COT, "reasoning": COT}])
        start, end = _between(text, QUESTION, COT), _between(text, COT, ANSWER)
        if end is not None and "addition" in end:
            rest, same = text.rpartition(COT)[2], len(_common_begin([text, without]))
            shared_end = os.path.commonprefix([rest[::-1], without[same:][::-1]])  # noqa: RUF071  # of any text
            end = rest[: len(rest) - len(shared_end)]
        thought = (start, end) if start is not None and end else None
    headers = [_rendered(variant, before, is_prompt=True).rpartition(QUESTION)[2] for variant in variants]
    longest = max([header, *headers], key=len)
    # What a switch adds is what the longest header has beyond the shortest one that it begins with.
    begins = [text for text in (header, *filter(None, headers)) if text != longest and longest.startswith(text)]
    return AssistantTurn(
        user_end=_rendered(template, before).rpartition(QUESTION)[2],
        header=header,
        history=_between(conversation, QUESTION, ANSWER),
        next_turn=_between(conversation, ANSWER, _NEXT["content"]) or "",
        ending=ending if is_written else None,
        thought=thought,
        switched=longest.removeprefix(min(begins, key=len)).strip() if begins else "",
        named=tuple(dict.fromkeys(_NAMED_TAG.findall(template.text))),
    )


def header_fault(turn: AssistantTurn, rendering: Rendering) -> str:
    """Why a model cannot think after the generation header, or what the header opens the turn with; "" if neither."""
    header = turn.header.removeprefix(turn.user_end).rstrip()
    closing = turn.thought[1].strip() if turn.thought else ""
    is_closed = any(text in header for text in (rendering.think_close, closing) if text)
    if is_closed or (turn.switched and header.endswith(turn.switched) and turn.switched != rendering.think_open):
        return f"its generation header ends with {_shown(header)}, so that thinking is over before it begins"
    added, left_out = _beyond_the_begin(turn, rendering)
    if not added or left_out:  # with both, the two begin otherwise, and that is not a matter of thinking
        return ""
    return (
        f"its generation header opens the turn with {added!r}; if that opens thinking, set "
        f"data.rendering.think_open: {_quoted(added)}, and think_close to the tag that belongs to it"
    )


def append_fault(turn: AssistantTurn, rendering: Rendering) -> str:
    """What is wrong with writing chain of thought and answer after a generation header without a fault, or ""."""
    added, left_out = _beyond_the_begin(turn, rendering)
    if not left_out or rendering.think_close.endswith(left_out):
        return ""
    return (
        f"before the text of an earlier assistant turn it writes {left_out!r}, in its generation header "
        f"{repr(added) if added else 'nothing'}: a turn has parts of its own, and `append` would leave some out"
    )


def spaces(turn: AssistantTurn, rendering: Rendering) -> tuple[str, str, str]:
    """White space after the opening tag, before the closing tag and after it, as the template writes it.

    A template that writes no chain of thought shows none of this; then it is as the Qwen3 and DeepSeek-R1 models write.
    """
    # White space with which a generation header ends that opens thinking: a model goes on after it.
    bare = turn.header.rstrip()
    opened = turn.header[len(bare) :] if bare.endswith(rendering.think_open) else ""
    if turn.thought is None or not _fits(turn, rendering):
        return opened or "\n", "\n", "\n\n"
    before, behind = turn.thought
    start, end = behind.split(rendering.think_close)
    after_opening = before[len(before.rstrip()) :]
    return after_opening if after_opening.startswith(opened) else opened, start, end


def turn_fault(
    turn: AssistantTurn, rendering: Rendering, end: str | None, special_texts: Iterable[str], eos: str | None
) -> str:
    """What is wrong with the tags or the borders of a turn whose header shows no fault; "" if nothing is.

    `end` is the special token that ends a turn, `eos` the one that ends a text for the tokenizer, if there is one.
    """
    is_append, tags = rendering.assistant_turn == "append", rendering.think_open + rendering.think_close
    fault = _tags_fault(turn, rendering)
    if not fault and is_append:
        fault = append_fault(turn, rendering)
    if fault:
        return fault
    # No thought was shown, so the tags in the template's source are all that there is to compare.
    if not turn.thought and turn.named and not any(tag in tags for tag in turn.named):
        return (
            f"its source has {', '.join(map(repr, turn.named))}, {_NOT_THE_TAGS}; set "
            "data.rendering.think_open and think_close to what its model writes around a chain of thought"
        )
    begin = (turn.history or "").strip()
    names_a_role = any(role in begin.lower() for role in ("assistant", "model"))  # and is no end of turn alone
    if not is_append and names_a_role and turn.ending is not None and turn.ending.strip().endswith(begin):
        return f"it writes its generation header after finished conversations too, which end with {_shown(turn.ending)}"
    if end is not None or (turn.ending is None and not is_append):
        return ""
    # A turn without an end is over where the next one begins, so the token there is the best candidate.
    following = special_at_start(turn.next_turn, special_texts)
    examples = [f"{following!r}, with which its next turn begins"] if following else []
    examples += [f"{eos!r}, which ends a text for the tokenizer"] if eos and eos != following else []
    such_as = f", such as {' or '.join(examples)}" if examples else ""
    return f"it ends an assistant turn with no special token; set data.rendering.end_of_turn to one that does{such_as}"


def _tags_fault(turn: AssistantTurn, rendering: Rendering) -> str:
    """What is wrong with the think tags of the settings, where the template writes its own."""
    if turn.thought is not None:
        if _fits(turn, rendering):
            return ""
        before, behind = turn.thought
        begin = _common_begin([turn.header, before, *([] if turn.history is None else [turn.history])])
        opening, closing = before[len(begin) :].strip(), behind.strip()
        fault = f"it writes the chain of thought between {opening!r} and {closing!r}, {_NOT_THE_TAGS}"
        if not closing or COT in closing:
            return fault
        if not opening:
            return (
                f"{fault}; set data.rendering.think_open to the end of its generation header, {_shown(turn.header)}, "
                f"that opens thinking, and think_close: {_quoted(closing)}"
            )
    else:
        if not turn.switched or rendering.think_open in turn.switched or rendering.think_close in turn.switched:
            return ""
        # An empty thought is an opening and a closing tag; the last bracket is where the closing one begins.
        border = max(turn.switched.rfind("<"), turn.switched.rfind("["), 0)
        opening, closing = turn.switched[:border].strip(), turn.switched[border:].strip()
        fault = f"a variable of it writes {turn.switched!r} into the generation header, {_NOT_THE_TAGS}"
        if not opening:
            opening, closing = closing, "the tag that belongs to it"
    return f"{fault}; set data.rendering.think_open: {_quoted(opening)} and think_close: {_quoted(closing)}"


def _fits(turn: AssistantTurn, rendering: Rendering) -> bool:
    """Whether the template writes the chain of thought between the tags of the settings."""
    if turn.thought is None:
        return False
    before, behind = turn.thought
    begin = _without_opening(turn.header, rendering)
    opening, closing = rendering.think_open, rendering.think_close
    openings = {opening, "" if turn.header.rstrip().endswith(opening) else opening}  # Apriel leaves it to the header
    return before.startswith(begin) and before[len(begin) :].strip() in openings and behind.strip() == closing


def _beyond_the_begin(turn: AssistantTurn, rendering: Rendering) -> tuple[str, str]:
    """What the generation header and an earlier turn hold beyond their common begin, without think tags."""
    if turn.history is None:
        return "", ""
    header = _without_opening(turn.header, rendering)
    length = len(_common_begin([header, turn.history]))
    return _without_tags(header[length:], rendering), _without_tags(turn.history[length:], rendering)


def _without_opening(header: str, rendering: Rendering) -> str:
    return header.rstrip().removesuffix(rendering.think_open).rstrip()


def _without_tags(text: str, rendering: Rendering) -> str:
    """Less the think tags that some templates write in turns without a thought."""
    text = text.strip()
    for tag in (rendering.think_open, rendering.think_close):
        text = text.removeprefix(tag).strip()
    return text


def _rendered(template: ChatTemplate, messages: Sequence[Message], is_prompt: bool = False) -> str:
    """The conversation as text; nothing where the template refuses it."""
    try:
        return template.render([(messages, is_prompt)])[0]
    except TemplateRefusal:
        return ""


def _between(text: str, before: str, after: str) -> str | None:
    start = text.find(before)
    end = text.find(after, start + len(before))
    return None if start < 0 or end < 0 else text[start + len(before) : end]


def _common_begin(texts: list[str]) -> str:
    """What beginnings of a turn share, up to the end of a word or tag."""
    shared = os.path.commonprefix(texts)  # noqa: RUF071  # of any text
    # Cut back to a border: two tags that begin with the same letters do not share these letters.
    return shared if shared in texts else shared[: max(shared.rfind(end) for end in "\n >]") + 1]


def special_at_start(text: str, special_texts: Iterable[str]) -> str | None:
    """The special token with which a text begins, after white space."""
    # The longest: one special token may be a prefix of another.
    return max((special for special in special_texts if text.lstrip().startswith(special)), key=len, default=None)


def _shown(text: str) -> str:
    return repr(text.rstrip()[-_SHOWN:].lstrip())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
