import pytest

from leadspan.costs.settings import DEVICES, Device, PlanSettings, recognise
from leadspan.errors import SettingsError
from leadspan.settings import validate


def test_a_preset_by_name_or_own_figures() -> None:
    assert PlanSettings(device="H100-SXM").found_device is DEVICES["h100-sxm"]
    own = Device(peak_tflops=1.5, memory_gb=8)
    assert (
        PlanSettings(device=own).found_device is own and own.memory_bytes == 8_000_000_000 and own.peak_flops == 1.5e12
    )
    with pytest.raises(SettingsError, match="'h1000': no preset of this name; take one of a100-40gb"):
        validate(PlanSettings, {"device": "h1000"}, "plan")


@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("rtx4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        (4090, "rtx-4090"),
        ("h100", "h100-sxm or h100-pcie or h100-nvl"),
        ("a100", "a100-40gb or a100-80gb"),
    ],
)
def test_a_preset_of_nearly_this_name_is_suggested(device: object, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"no preset of this name; did you mean {meant}\? Else take one of"):
        validate(PlanSettings, {"device": device}, "plan")


@pytest.mark.parametrize(
    ("name", "gib", "preset"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100-sxm"),
        ("NVIDIA H100 PCIe", 79.2, "h100-pcie"),
        ("NVIDIA H100 NVL", 93.1, "h100-nvl"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA H200 NVL", 139.8, "h200-nvl"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA A10G", 22.1, "a10g"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA GeForce RTX 4090 D", 23.5, None),
        ("NVIDIA GeForce RTX 3090", 23.7, "rtx-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, None),
        ("Tesla V100-SXM2-16GB", 15.8, None),
    ],
)
def test_names_of_cuda_devices(name: str, gib: float, preset: str | None) -> None:
    assert recognise(name, round(gib * 2**30)) is (None if preset is None else DEVICES[preset])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "h1000"}, "no preset of this name"),
        ({"utilisation": 0.4}, "give a device too"),
        ({"device": "h200", "utilisation": 1.2}, "less than or equal to 1"),
        ({"price_per_hour": -1}, "greater than or equal to 0"),
        ({"device": {"peak_tflops": 0, "memory_gb": 1}}, "greater than 0"),
        ({"num_ranks": 8, "sharding": "none"}, "set sharding: ddp or fsdp2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(PlanSettings, values, "plan")


def test_ranks_share_unless_told_otherwise() -> None:
    assert PlanSettings().shared == "none"
    assert PlanSettings(sharding="fsdp2").shared == PlanSettings(sharding="ddp").shared == "none"
    assert PlanSettings(sharding="none").model_copy(update={"num_ranks": 2}).shared == "ddp"
    assert PlanSettings(sharding="fsdp2", num_ranks=2).shared == "fsdp2"
    assert PlanSettings(num_ranks=2).shared == "ddp"
    assert PlanSettings(num_ranks=2, sharding="fsdp2").shared == "fsdp2"
