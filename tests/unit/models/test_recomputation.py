"""Blocks that are computed again in the backward give the same gradients, buffers and draws, in less memory."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel_restore.errors import UserError
from accel_restore.models import build_model, recomputation
from accel_restore.models.compile import repeated_blocks
from accel_restore.models.recomputation import checkpoint_blocks
from accel_restore.utils.memory import LiveBytes

NETWORKS = {
    "unet": {"width": 8, "multipliers": [1, 2]},
    "nafnet": {"width": 8, "encoder_blocks": [1, 2], "middle_blocks": 2, "decoder_blocks": [1, 1]},
    "swinir": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},  # its tail holds most of the parameters
    "restormer": {"width": 8, "blocks": [1, 1, 1, 2], "refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}
Pair = namedtuple("Pair", ["first", "second"])


class Stack(nn.Module):
    """A network of blocks, each called by `call` with the features and the number of the block."""

    def __init__(self, block: type[nn.Module], depth: int = 3):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block.call(x, number)
        return x


class Plain(nn.Module):
    """A block of one input; the classes below change what it takes and does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.GELU()

    def forward(self, x):
        return x + self.act(self.conv(x))

    def call(self, x, number):
        return self(x)


class Several(Plain):
    """Takes two tensors, a tuple, a mapping, numbers and a text; returns a tuple."""

    def forward(self, x, skip, size, /, *, parts, factor, mode="sum"):
        assert (size, mode) == ((5, 7), "product") and isinstance(parts["pair"], Pair)
        y = super().forward(x * parts["pair"].first) + skip * parts["pair"].second * factor
        return y, {"again": [y * 2, None]}

    def call(self, x, number):
        parts = {"pair": Pair(x.sigmoid(), x.square()), "unused": None}
        y, more = self(x, x.cos(), (5, 7), parts=parts, factor=number, mode="product")
        return y + more["again"][0]


class Collecting(Plain):
    """Appends to a list of the caller, which reads it."""

    def forward(self, x, seen):
        seen.append(super().forward(x))

    def call(self, x, number):
        seen = [x]
        self(x, seen)
        assert len(seen) == 2
        return seen[1]


class Dropping(Plain):
    def __init__(self):
        super().__init__()
        self.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))

    def forward(self, x):
        kept = torch.rand(len(x), 1, 1, 1) < 0.5  # stochastic depth
        return x + self.act(self.conv(x)) * kept


class Normed(Plain):
    def __init__(self):
        super().__init__()
        self.act = nn.Sequential(nn.BatchNorm2d(4), nn.GELU())


class SpectralNormed(Plain):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(self.conv)


class Averaging(Plain):
    """Assigns a new tensor to its buffer, on which its output depends."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(1))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean()
        return super().forward(x) * self.mean


BLOCKS = [Plain, Several, Collecting, Dropping, Normed, SpectralNormed, Averaging]


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def trained(net: nn.Module, image: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the losses, gradients and buffers of two micro-batches, and the next draw of torch's generator."""
    torch.manual_seed(1)
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = net(image)
        losses.append(output.float().square().mean())
        losses[-1].backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [*losses, *gradients, *net.buffers(), torch.rand(1)]


def identical(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def both(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the model, and a copy with checkpointed blocks."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    checkpointed = copy.deepcopy(net)
    checkpoint_blocks(checkpointed)
    return net, checkpointed


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks_are_bit_identical(name, dtype):
    net, checkpointed = both(build_model(name, NETWORKS[name], 3))
    image = images(2, 3, 19, 21).to(memory_format=torch.channels_last)
    assert identical(trained(net, image, dtype), trained(checkpointed, image, dtype))
    assert list(net.state_dict()) == list(checkpointed.state_dict())
    assert [type(part).__name__ for part in net.modules()] == [type(part).__name__ for part in checkpointed.modules()]
    assert len(repeated_blocks(checkpointed)) == len(repeated_blocks(net))  # which FSDP2 gathers


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_buffers_and_draws_of_any_block_are_bit_identical(block):
    net, checkpointed = both(Stack(block))
    assert identical(trained(net, images(2, 4, 5, 7)), trained(checkpointed, images(2, 4, 5, 7)))


@pytest.mark.parametrize("block", [Normed, SpectralNormed, Averaging])
def test_without_their_former_buffers_blocks_would_differ(block, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(
        recomputation, "checkpoint", lambda run, *leaves, **options: checkpoint(run, *leaves, use_reentrant=False)
    )
    net, checkpointed = both(Stack(block))
    assert not identical(trained(net, images(2, 4, 5, 7)), trained(checkpointed, images(2, 4, 5, 7)))


def test_without_its_first_draws_dropout_would_differ(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(
        recomputation,
        "checkpoint",
        lambda run, *leaves, **options: checkpoint(run, *leaves, **options, preserve_rng_state=False),
    )
    net, checkpointed = both(Stack(Dropping))
    assert not identical(trained(net, images(2, 4, 5, 7)), trained(checkpointed, images(2, 4, 5, 7)))


def test_compiled_blocks_give_the_gradients_that_they_give_without_checkpointing():
    torch._dynamo.reset()
    net, checkpointed = both(Stack(Normed))
    for model in (net, checkpointed):
        for block in repeated_blocks(model):
            block.compile(backend="aot_eager", dynamic=False)  # inductor takes 20 s
    expected = trained(net, images(2, 4, 5, 7))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert identical(trained(checkpointed, images(2, 4, 5, 7)), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled  # it does not run eagerly


def test_only_the_inputs_of_blocks_are_kept_for_the_backward():
    most = []
    for net in both(Stack(Plain, depth=16)):
        with LiveBytes() as live:
            trained(net, images(4, 4, 32, 32))
        most.append(live.most)
    assert most[1] < 0.6 * most[0]


def test_blocks_run_once_without_gradients():
    calls = []
    net = Stack(Plain)
    checkpoint_blocks(net)
    net.blocks[0].conv.register_forward_hook(lambda *_: calls.append(0))
    with torch.no_grad():
        net(images(1, 4, 5, 7))
    assert len(calls) == 1
    net(images(1, 4, 5, 7)).sum().backward()
    assert len(calls) == 3


class Recursive(nn.Module):
    """A network that is made of itself, so its outermost repeated module is the whole."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.inner = Recursive(depth - 1) if depth else nn.Identity()


@pytest.mark.parametrize("net", [build_model("dncnn", {"width": 8, "depth": 4}, 3), Recursive()])
def test_a_model_without_repeated_blocks_is_refused_in_one_sentence(net):
    with pytest.raises(
        UserError, match=r"^train\.checkpoint_blocks: (DnCNN|Recursive) has no repeated blocks, [^\n]*$"
    ):
        checkpoint_blocks(net)
