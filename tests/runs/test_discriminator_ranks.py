"""The parts of adversarial training on two ranks: the same training as on one, with DDP, accumulation and FSDP2."""

import copy
from contextlib import nullcontext

import forked
import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from accel_restore.losses.adversarial import Objective, r1
from accel_restore.models.discriminators import UNetSN
from accel_restore.models.spectral_norm import power_iteration

BATCH = 8


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1).double(), UNetSN(width=2).double()


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def train(accumulation: int, iterate_per_forward: bool = False) -> tuple[nn.Module, nn.Module]:
    """Train both networks for three steps with a relativistic objective and R1, with this rank's share of the batch."""
    generator, plain = networks()
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    discriminator = DistributedDataParallel(plain) if ranks > 1 else plain
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in (generator, plain)]
    objective, random = Objective("relativistic"), torch.Generator().manual_seed(1)
    if iterate_per_forward:
        plain.register_forward_pre_hook(lambda *_: power_iteration(plain))
    for _ in range(3):
        inputs, gt = torch.rand(2, BATCH, 3, 16, 16, dtype=torch.float64, generator=random)
        parts = [list(images.chunk(ranks)[rank].chunk(accumulation)) for images in (inputs, gt)]
        power_iteration(plain)
        with torch.no_grad():
            pairs = [(plain(gt), plain(generator(input))) for input, gt in zip(*parts, strict=True)]
        statistics = objective.statistics(pairs, lambda values: summed(values.sum(0)) / BATCH)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for place, (input, gt) in enumerate(zip(*parts, strict=True)):
            output = generator(input)
            plain.requires_grad_(False)
            adversarial = objective.generator(plain(output), plain(gt), statistics)
            plain.requires_grad_(True)
            ((output - gt).abs().flatten(1).mean(1) + 0.1 * adversarial).sum().div(BATCH).backward()
            last = place == len(parts[0]) - 1
            with nullcontext() if last or ranks == 1 else discriminator.no_sync():
                loss = objective.discriminator(discriminator(gt), discriminator(output.detach()), statistics)
                ((loss + 0.5 * r1(plain, gt)).sum() * ranks / BATCH).backward()
        for parameter in generator.parameters():
            summed(parameter.grad)
        for optimizer in optimizers:
            optimizer.step()
    return generator, plain


def _train_rank(folder: str, accumulation: int) -> int:
    distributed.init_process_group("gloo")
    torch.save([network.state_dict() for network in train(accumulation)], f"{folder}/{distributed.get_rank()}.pth")
    distributed.destroy_process_group()
    return 0


@pytest.fixture(scope="module")
def alone():
    return [network.state_dict() for network in train(1)]


def furthest(ours: list[dict], theirs: list[dict]) -> float:
    return max(
        (one[name] - other[name]).abs().max().item() for one, other in zip(ours, theirs, strict=True) for name in one
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_both_networks_as_one_does(alone, accumulation, tmp_path):
    log = tmp_path / "log"
    codes = forked.codes(forked.start_ranks(_train_rank, 2, log, str(tmp_path), accumulation))
    assert codes == [0, 0], log.read_text()
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    assert furthest(ranks[0], alone) < 1e-9
    assert furthest(*ranks) == 0  # vectors too, without communication


def test_accumulation_does_not_change_the_training(alone):
    assert furthest([network.state_dict() for network in train(4)], alone) < 1e-9
    per_forward = [[network.state_dict() for network in train(parts, iterate_per_forward=True)] for parts in (1, 4)]
    assert furthest(*per_forward) > 1e-6, "control: an iteration in every forward"


def _shard(folder: str) -> int:
    distributed.init_process_group("gloo")
    plain = networks()[1]
    sharded = copy.deepcopy(plain)
    fully_shard(sharded, mesh=distributed.init_device_mesh("cpu", (2,)))
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        power_iteration(plain)
        power_iteration(sharded)
        torch.testing.assert_close(sharded(images), plain(images), rtol=0, atol=1e-12)
    for name, buffer in plain.named_buffers():
        assert sharded.get_buffer(name).equal(buffer), name
    distributed.destroy_process_group()
    return 0


def test_vectors_of_a_sharded_discriminator_equal_those_of_a_whole_one(tmp_path):
    log = tmp_path / "log"
    assert forked.codes(forked.start_ranks(_shard, 2, log, str(tmp_path))) == [0, 0], log.read_text()
