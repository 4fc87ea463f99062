import numpy as np
import pytest
import torch

from leadspan.errors import TargetsError
from leadspan.teacher.codecs import decode, encode, entropies, normalise, pack_entries
from leadspan.teacher.settings import Sampled, TopK, TopP

QWEN3 = 151_936


def peaked_logits(positions: int, tokens: int, scale: float = 4.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(positions, tokens, generator=torch.Generator().manual_seed(seed)) * scale


def log_p(logits: torch.Tensor) -> np.ndarray:
    """Oracle: log-softmax in float64."""
    z = logits.double().numpy()
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def zeros(logits: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(logits), dtype=torch.int64)


def unpacked(ids: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of one position, as packed entries keep them."""
    arrays = pack_entries(ids, log_probs, "packed") | {
        "num_entries": np.array([len(ids)]),
        "label_log_prob": np.zeros(1),
    }
    found = decode(arrays | {"counts": np.ones(len(ids))}, Sampled())  # a drawn support, whose mass is not restored
    return found["token_ids"][0], found["log_probs"][0]


def test_ids_of_18_bits_survive() -> None:
    ids = np.array([0, 1, 131_072, 151_935, 2**18 - 1])
    log_probs = np.array([0.0, -1e-6, -0.7, -30.0, -127.0], dtype=np.float32)
    found_ids, found = unpacked(ids, log_probs)
    assert found_ids.tolist() == ids.tolist()
    np.testing.assert_allclose(found, log_probs, atol=0.015)
    assert abs(found[2] + 0.7) < 7e-4


def test_an_id_of_19_bits_is_refused_when_packed_and_kept_in_float32() -> None:
    ids, log_probs = np.array([2**18]), np.array([-1.0], dtype=np.float32)
    with pytest.raises(TargetsError, match=r"262144 does not fit the 18 bits .* capture\.codec\.precision: float32"):
        pack_entries(ids, log_probs, "packed")
    assert pack_entries(ids, log_probs, "float32")["token_ids"].tolist() == [2**18]


def test_packed_log_probabilities_round_by_the_documented_steps() -> None:
    for value, step in ((-0.01, 1.4e-4), (-0.5, 1e-3), (-10.0, 4.4e-3)):
        values = np.linspace(value, value * 1.01, 1000, dtype=np.float32)
        _, found = unpacked(np.zeros(1000, np.int64), values)
        assert np.abs(found - values).max() < 0.52 * step


@pytest.mark.parametrize("precision", ["packed", "float32"])
@pytest.mark.parametrize("tokens", [300, QWEN3], ids=["small", "qwen3"])
def test_top_k_keeps_the_likeliest_and_the_mass_outside(tokens: int, precision: str) -> None:
    logits = peaked_logits(6, tokens)
    logits[0, -1] = 60.0  # the very last id, nearly all of the mass
    codec = TopK.model_validate({"k": 50, "precision": precision})
    arrays = encode(logits, zeros(logits), codec, [1.0])
    found = decode(arrays, codec)
    expected = log_p(logits)
    order = np.argsort(-expected, axis=1)[:, :50]
    assert found["token_ids"][0, 0] == tokens - 1
    for row in range(6):
        assert set(found["token_ids"][row]) == set(order[row])
    kept = np.take_along_axis(expected, found["token_ids"], 1)
    np.testing.assert_allclose(found["log_probs"], kept, rtol=3e-3 if precision == "packed" else 1e-5, atol=1e-3)
    mass_outside = np.array([np.exp(np.delete(e, o)).sum() for e, o in zip(expected, order, strict=True)])
    np.testing.assert_allclose(arrays["outside"], mass_outside, rtol=1e-4, atol=1e-12)
    inside = np.exp(found["log_probs"].astype(np.float64)).sum(1)
    np.testing.assert_allclose(inside, 1 - mass_outside, atol=3e-6)


def test_the_extras_are_those_of_float64() -> None:
    logits = peaked_logits(5, 400)
    labels = torch.tensor([3, 399, 0, 7, 200])
    arrays = encode(logits, labels, TopK(k=3), [0.7, 1.0, 2.0])
    expected = log_p(logits)
    np.testing.assert_allclose(arrays["label_log_prob"], expected[np.arange(5), labels], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays["entropy"], -(np.exp(expected) * expected).sum(1), rtol=2e-3)  # kept in float16
    for t in (0.7, 1.0, 2.0):
        z = logits.double().numpy() / t
        peak = z.max(1)
        normaliser = peak + np.log(np.exp(z - peak[:, None]).sum(1))
        np.testing.assert_allclose(arrays[f"logsumexp_{t:g}"], normaliser, rtol=1e-5)


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass() -> None:
    logits = peaked_logits(20, 300, scale=2.0)
    codec = TopP(p=0.9, max_tokens=40, precision="float32")
    arrays = encode(logits, zeros(logits), codec, [1.0])
    found = decode(arrays, codec)
    p = np.exp(log_p(logits))
    for row in range(20):
        falling = np.sort(p[row])[::-1].cumsum()
        wanted = min(40, int(np.searchsorted(falling, 0.9)) + 1)
        assert arrays["num_entries"][row] == wanted
        assert np.isfinite(found["log_probs"][row]).sum() == wanted
        assert arrays["outside"][row] == pytest.approx(1 - falling[wanted - 1], rel=1e-4)
    assert len(set(arrays["num_entries"].tolist())) > 1


def test_drawn_supports_are_unbiased_where_top_k_is_not() -> None:
    """Mean over draws of `sum_i w_i f(i)` against `sum_j p_j f(j)`, and the same from a renormalised top-k."""
    logits = peaked_logits(1, 200, scale=1.0)
    p = np.exp(log_p(logits))[0]
    f = -np.log(np.roll(p, 7))  # a student's surprise
    exact = float(p @ f)
    draws = 4000
    codec = Sampled(num_samples=8)
    offsets = torch.rand(draws, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    many = logits.expand(draws, -1).contiguous()
    found = decode(encode(many, zeros(many), codec, [1.0], offsets), codec)
    estimates = (found["sample_weights"] * f[found["token_ids"]]).sum(1)
    standard_error = estimates.std() / draws**0.5
    assert abs(estimates.mean() - exact) < 4 * standard_error
    likeliest = np.argsort(-p)[:8]
    biased = float(p[likeliest] @ f[likeliest] / p[likeliest].sum())
    assert abs(biased - exact) > 20 * standard_error
    weights = np.zeros((draws, 200))
    for row in range(draws):
        np.add.at(weights[row], found["token_ids"][row], found["sample_weights"][row])
    frequency = weights.mean(0)
    assert np.abs(frequency - p).max() < 5 * np.sqrt(p.max() / 8 / draws)


@pytest.mark.slow
def test_counts_are_n_p_rounded_and_sum_to_n() -> None:
    logits = peaked_logits(30, QWEN3, scale=3.0)
    codec = Sampled(num_samples=50)
    offsets = torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = decode(encode(logits, zeros(logits), codec, [1.0], offsets), codec)
    np.testing.assert_allclose(found["sample_weights"].sum(1), 1.0, rtol=1e-6)
    p = np.exp(log_p(logits))
    for row in range(30):
        used = np.isfinite(found["log_probs"][row])
        ids, counts = found["token_ids"][row][used], np.rint(50 * found["sample_weights"][row][used])
        assert len(set(ids)) == len(ids)
        assert (np.abs(counts - 50 * p[row][ids]) < 1 + 1e-4).all()
        np.testing.assert_allclose(found["log_probs"][row][used], np.log(p[row][ids]), rtol=3e-3, atol=1e-3)


def test_logits_that_are_not_finite_are_refused() -> None:
    logits = peaked_logits(2, 30)
    logits[1, 4] = float("nan")
    with pytest.raises(TargetsError, match="logits are not finite"):
        encode(logits, zeros(logits), TopK(k=3), [1.0])


def test_the_entropy_of_a_large_vocabulary_keeps_four_digits() -> None:
    logits = torch.randn(20, 151_936, generator=torch.Generator().manual_seed(0)) * 3
    log_probs = logits.double().log_softmax(-1)
    expected = -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(entropies(logits, *normalise(logits)).double(), expected, rtol=0, atol=4e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 40.0])
def test_normalisers_and_masses_of_a_large_vocabulary_are_those_of_float64(scale: float) -> None:
    logits = torch.randn(20, 151_936, generator=torch.Generator().manual_seed(0)) * scale
    masses, total, logsumexp = normalise(logits)
    expected = logits.double().softmax(-1)
    torch.testing.assert_close(logsumexp.double(), logits.double().logsumexp(-1), rtol=2e-7, atol=1e-6)
    shares = masses.double() / total[:, None]
    torch.testing.assert_close(shares[expected > 1e-12], expected[expected > 1e-12], rtol=4e-6, atol=0)
