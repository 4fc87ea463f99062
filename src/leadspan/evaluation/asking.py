"""Questions to a model outside of any task: its own answers, and its answers after its thinking was closed for it."""

from collections.abc import Mapping, Sequence

from leadspan.data.templates import Message
from leadspan.evaluation.evaluate import to_stored
from leadspan.evaluation.samples import Key, StoredSample
from leadspan.evaluation.sampling import Request
from leadspan.evaluation.subject import Subject


def ask(subject: Subject, conversations: Sequence[Sequence[Message]]) -> list[tuple[StoredSample, StoredSample | None]]:
    """Answers to conversations that end with a user's turn.

    Returns:
        For each conversation the drawn answer; and, where a thinking budget closed its thinking, the same thought with
        an answer, else None.

    Raises:
        EvaluationError: A prompt leaves no room for a new token in the model's window.
        TemplateRefusal: The chat template refuses a conversation.
    """
    prompts = [subject.renderer.prompt_text(messages) for messages in conversations]
    # The key names the question, so that two models, or the same one twice, draw with the same noise.
    drawn = _drawn(subject, {(str(i), 0): Request(prompt, f"ask:{i}") for i, prompt in enumerate(prompts)})
    budget = subject.thinking_budget
    closed = {} if budget is None else _drawn(subject, budget.requests(drawn.values()))
    return [(sample, closed.get(key)) for key, sample in drawn.items()]


def _drawn(subject: Subject, requests: Mapping[Key, Request]) -> dict[Key, StoredSample]:
    keys, samples = list(requests), dict[Key, StoredSample]()
    for batch in subject.generate(list(requests.values())) if keys else ():
        samples |= {keys[i]: to_stored(keys[i], requests[keys[i]], sample, subject, 0.0) for i, sample in batch.items()}
    return {key: samples[key] for key in keys}
