"""Samples that are made to answer: thinking is closed for them after a budget of tokens, or where it loops.

This is what a server with a thinking budget does: after the tokens of the budget it inserts the text that separates
thought and answer in the model's own turns, and the model continues from there. Both kinds of figures rest on the same
thinking, so a model that has learnt to reason but not to stop differs from one that cannot reason.

**Source**: budgets of thinking as Qwen3 describes them (arXiv 2505.09388, section 4.7).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from leadspan.data.assistant_turn import spaces
from leadspan.data.prompts import PromptRenderer
from leadspan.errors import EvaluationError
from leadspan.evaluation.samples import Key, StoredSample
from leadspan.evaluation.sampling import Request, encode, loop_end

SUFFIX = ", made to answer"
"""Follows the name of a task in the results of such samples."""


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """Where thinking is closed, and by which tokens.

    Attributes:
        num_tokens: Most tokens of thinking.
        closing: Token ids from the end of a thought to the beginning of the answer.
        think_open: The opening tag.
        think_close: The closing tag.
        tokenizer: The model's tokenizer.
    """

    num_tokens: int
    closing: tuple[int, ...]
    think_open: str
    think_close: str
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, num_tokens: int, max_new_tokens: int, renderer: PromptRenderer) -> "ThinkingBudget":
        """The budget with the closing text of a template: what the template writes between thought and answer.

        Raises:
            EvaluationError: Budget and closing tag leave no token for an answer.
        """
        rendering = renderer.rendering
        # What stands around the tag in the model's own turns, so that the answer begins where it has learnt to begin.
        _, before, behind = spaces(renderer.turn, rendering)
        text = f"{before}{rendering.think_close}{behind}"
        closing = tuple(encode(renderer.tokenizer, text))
        if num_tokens + len(closing) >= max_new_tokens:
            raise EvaluationError(
                f"sampling.thinking_budget: {num_tokens} tokens of thinking and {len(closing)} that close it leave "
                f"no token of sampling.max_new_tokens {max_new_tokens} for the answer; raise the one or lower the other"
            )
        return cls(num_tokens, closing, rendering.think_open, rendering.think_close, renderer.tokenizer)

    def requests(self, samples: Iterable[StoredSample]) -> dict[Key, Request]:
        """Requests that continue every sample whose thinking has to be closed for it.

        Thinking that the model closed within the budget stays as it is, whatever follows.
        """
        requests: dict[Key, Request] = {}
        for stored in samples:
            text = stored.drawn.text
            if stored.thinking_closed:
                # The first closing tag behind the last opening one ends the thinking.
                thinking = text[: text.find(self.think_close, max(text.rfind(self.think_open), 0))]
                if self.think_close not in text or len(encode(self.tokenizer, thinking)) <= self.num_tokens:
                    continue
            ids = encode(self.tokenizer, text)
            # Whichever comes first: the budget, the end of the text, or the end of a loop's tenth run.
            length = min(self.num_tokens, len(ids), loop_end(ids) or self.num_tokens)
            key = f"{stored.problem_id}:{stored.sample}:answer"
            requests[stored.key] = Request(stored.prompt, key, (*ids[:length], *self.closing))
        return requests
