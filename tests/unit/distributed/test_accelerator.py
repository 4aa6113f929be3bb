"""The environment may configure Accelerate. What would change the flow of weights is rejected by its name."""

import pytest
import torch

from accel_restore.config.load import config_from
from accel_restore.distributed.accelerator import create_accelerator, precision
from accel_restore.errors import UserError
from accel_restore.utils.launch import set_joined

CONFIG = config_from({"data": {"train": {"gt": "a"}, "val": {"gt": "b"}}}, ())
REJECTED = [
    ("ACCELERATE_USE_DEEPSPEED", "true"),
    ("ACCELERATE_USE_MEGATRON_LM", "True"),
    ("ACCELERATE_USE_SAGEMAKER", "true"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
    ("ACCELERATE_USE_FSDP", "true"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ("ACCELERATE_DYNAMO_BACKEND", "nonsense"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "four"),
]


@pytest.fixture(autouse=True)
def on_its_own():
    yield
    set_joined(None)


@pytest.mark.parametrize(("name", "value"), REJECTED)
def test_a_setting_that_changes_the_flow_of_weights_is_rejected_by_its_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}.*unset it.*use one of launch"):
        create_accelerator(CONFIG, cpu=True)


@pytest.mark.parametrize(
    "policy", [{}, {"FSDP_AUTO_WRAP_POLICY": "nonsense"}, {"FSDP_STATE_DICT_TYPE": "nonsense"}], ids=str
)
def test_fsdp_on_a_cpu_is_rejected_by_its_name(monkeypatch, policy):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **policy}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"ACCELERATE_USE_FSDP=true.*unset"):
        create_accelerator(CONFIG, cpu=True)


@pytest.mark.parametrize("name", ["ACCELERATE_DEBUG_MODE", "FORK_LAUNCHED", "ACCELERATE_TORCH_DEVICE"])
def test_a_value_that_accelerate_cannot_read_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError, match=f"Accelerate cannot start: .*{name}=nonsense") as raised:
        create_accelerator(CONFIG, cpu=True)
    assert "OMP_NUM_THREADS" not in str(raised.value), "its value is valid"


def test_several_processes_without_a_gpu_are_rejected_with_both_remedies(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"add --cpu to train on the CPU.*unset RANK WORLD_SIZE MASTER_ADDR"):
        create_accelerator(CONFIG, cpu=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "", "ACCELERATE_DEBUG_MODE": "", "ACCELERATE_USE_FSDP": ""},
        {"RANK": "1", "LOCAL_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "WORLD_SIZE": ""},
    ],
    ids=str,
)
def test_settings_and_leftovers_without_effect_are_accepted(monkeypatch, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    accelerator = create_accelerator(CONFIG, cpu=True)
    assert (accelerator.num_processes, accelerator.process_index, accelerator.mixed_precision) == (1, 0, "no")


@pytest.mark.parametrize(("has_instructions", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_on_cpus_that_have_instructions_for_it(monkeypatch, has_instructions, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert precision("auto", cpu=True) == chosen
    assert precision("no", cpu=True) == "no"
