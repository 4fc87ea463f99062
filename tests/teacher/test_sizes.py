"""What a store is predicted to take, before it is captured, against what is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.pipeline.run import prepare_capture
from leadspan.planning.plan import plan_recipe
from leadspan.teacher.capture import estimate_capture, load_teacher
from leadspan.teacher.settings import Sampled
from leadspan.teacher.shards import bytes_of
from servers import serving
from stores import bytes_in_shards, captured
from toys import character_tokenizer, tiny


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "more"),
    [
        ({"kind": "top_k", "k": 5}, {}),
        ({"kind": "top_k", "k": 99, "precision": "float32"}, {"temperatures": [2.0, 1.0, 0.5]}),
        ({"kind": "top_p", "p": 0.9}, {}),
        ({"kind": "sampled", "num_samples": 8}, {"temperatures": [1.0, 2.0]}),
        ({"kind": "hidden"}, {}),
        ({"kind": "hidden", "dtype": "bfloat16"}, {"precision": "float32"}),
    ],
    ids=str,
)
def test_the_predicted_size_of_a_store_is_that_of_a_real_one(
    tmp_path: Path, codec: dict[str, object], more: dict[str, object]
) -> None:
    recipe, store = captured(tmp_path, codec=codec, cut={"kind": "lead", "p": 0.7}, **more)
    job, data = prepare_capture(recipe), prepare_data(recipe)
    planned_size = plan_recipe(recipe, data, ()).rows[0].store
    head = (store.directory / "head.safetensors") if codec["kind"] == "hidden" else None
    head_size = 0 if head is None else sum(tensor.nbytes for tensor in load_file(head).values())
    size = bytes_in_shards(store.directory) + head_size
    measured = estimate_capture(job, load_teacher(job), 10**9, (recipe.capture.codec,)).codecs[0]
    assert measured.num_bytes == pytest.approx(size, rel=1e-9) and planned_size is not None
    assert planned_size.num_bytes >= size and (planned_size.num_bytes == size) == (codec["kind"] in ("top_k", "hidden"))


@pytest.mark.slow
def test_an_engine_that_returns_log_probabilities_alone_takes_6_bytes_less_a_position(tmp_path: Path) -> None:
    codec = {"kind": "top_k", "k": 12}
    with serving(load_model(tiny(hidden=48, seed=2), torch.float32, for_training=False), character_tokenizer()) as own:
        teacher = {"kind": "server", "url": own.url, "model": "big", "k": 12}
        recipe, store = captured(tmp_path, codec=codec, teacher=teacher, engine="server")
    lengths, kept = prepare_capture(recipe).sequences.lengths, recipe.capture.kept_targets
    per_position, size = bytes_of(kept, 12, lengths)
    assert (per_position, size) == (13 + 4 * 12, bytes_in_shards(store.directory))
    vllm = recipe.model_copy(
        update={"teacher": tiny(hidden=48), "capture": recipe.capture.model_copy(update={"engine": "vllm"})}
    )
    planned = plan_recipe(vllm, prepare_data(vllm), ()).rows[0].store
    assert planned is not None and planned.num_bytes == size
    job = prepare_capture(vllm)
    own, other = estimate_capture(job, load_teacher(job), 100, (vllm.capture.codec, Sampled())).codecs
    assert own.num_bytes == size and other.bytes_per_position == 21 + 5 * other.support
