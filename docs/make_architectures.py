"""Writes docs/architectures.md: what becomes of a tiny model of every causal architecture that Transformers has.

Usage: python docs/make_architectures.py. It takes a few minutes, and is run anew with every version of Transformers.
"""

import logging
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from architectures import tiny_config  # noqa: E402
from leadspan.errors import LeadspanError  # noqa: E402
from leadspan.models.forward import LAYOUT  # noqa: E402
from leadspan.models.heads import head_of  # noqa: E402
from leadspan.models.loading import load_model  # noqa: E402
from leadspan.models.settings import RandomInit  # noqa: E402
from leadspan.models.shapes import shape_of  # noqa: E402

_TOO_LARGE = {"blt", "git", "longcat_flash", "phi4_multimodal", "xlm"}  # sizes without a field to make them small
_LAYOUTS = {"packed": "packed", "padded": "padded batches", "alone": "one by one"}

_HEADER = f"""# Architectures

How leadspan trains each causal architecture of Transformers {transformers.__version__}, as found by
`python docs/make_architectures.py`, which builds a small model of each from its own default config and loads it as a
student. A row is about that config; for another one of the same architecture (a window, scaled positions, other kinds
of layers) the same is decided again whenever a model is loaded.

- **packed**: examples share a row without padding; attention goes example by example.
- **padded batches**: examples of nearly equal length go together through the model's own attention, with at most a
  tenth of padding. For layers that carry a state along a row (Mamba, linear attention, convolutions), and for attention
  that the model computes in its own way.
- **one by one**: a state depends on the longest example of a batch.
- **refused**: with the message that a user gets. A message about values that do not fit is about the small config made
  here; the architecture may well train with its real one.

Attention: the implementation that then runs (`leadspan_packed` is ours, `sdpa` and `eager` are Transformers').
State: elements that layers carry from one token to the next. Mixtures of experts are trained without their router loss.
With flash attention, rows are packed where they are packed here. `tests/models/test_architectures.py` compares loss and
gradient of seventeen of them with plain Transformers in float64, to 1e-5.

"""


def main() -> None:
    """Run all, and write the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows, refused = [], []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if kind in _TOO_LARGE:
            refused.append((kind, "not tried: its config has no fields to make it small"))
            continue
        try:
            config = tiny_config(kind)
        except Exception as error:
            refused.append((kind, f"not tried: its default config cannot be made small ({type(error).__name__})"))
            continue
        try:
            model = load_model(RandomInit(config=config), torch.float32)
        except LeadspanError as error:
            refused.append((kind, str(error).removeprefix(f"random_init.config ({kind}): ")))
            continue
        attention = model.config.get_text_config()._attn_implementation
        bias = "yes" if head_of(model).bias is not None else ""
        rows.append((kind, _LAYOUTS[getattr(model, LAYOUT)], attention, bias, shape_of(model).state_size or ""))
    page = _HEADER + _table(("architecture", "rows", "attention", "head with bias", "state"), rows)
    page += f"\n{len(rows)} are trained, {len(refused)} are not:\n\n" + _table(("architecture", "why not"), refused)
    (ROOT / "docs" / "architectures.md").write_text(page)


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
