"""How this process was started: by a launcher, as one of several ranks, or alone. The environment decides, here only.

A launch is complete: rank, world size, and the address and port of rank 0. Variables of a launcher that are left over
in a shell neither make a process wait for others nor silence it. Nothing heavy is imported.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from accel_restore.errors import UserError

# Rank, world size, local rank and local world size, as each launcher calls them; torchrun's also decide for torch.
_FAMILIES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
_OURS = _FAMILIES[0]
_STORE = ("MASTER_ADDR", "MASTER_PORT")
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
_ALL = (*(name for family in _FAMILIES for name in family), *_STORE, _AGENT)

_joined_rank: int | None = None


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together; by default alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None  # None: the launcher does not set it
    local_world_size: int = 1
    address: str = ""  # of rank 0; empty for a process that joins no group
    port: int = 0
    variables: tuple[str, ...] = ()  # of the environment, that describe the launch, such as WORLD_SIZE=2
    has_agent: bool = False  # torchrun runs it, restarts it, and serves the store through which ranks meet
    attempt: int = 0  # how many times torchrun has restarted the ranks

    @property
    def hint(self) -> str:
        """What to do if this process was meant to run alone."""
        return f"to run one process, {_unset(self.variables)}"

    @contextmanager
    def environment(self, settings: bool = False) -> Iterator[None]:
        """Set the environment that torch and Accelerate read to this launch; restore it at the end of the block.

        They have other rules for what a launch is. Accelerate's own settings are hidden too, unless `settings`.
        """
        former = dict(os.environ)
        hidden = [name for name, value in former.items() if name.startswith("ACCELERATE_") and not (settings and value)]
        for name in (*_ALL, *hidden):
            os.environ.pop(name, None)
        os.environ.update(self._variables())
        try:
            yield
        finally:
            for name in (*_ALL, *hidden):
                os.environ.pop(name, None)
                if name in former:
                    os.environ[name] = former[name]

    def _variables(self) -> dict[str, str]:
        if not self.address:
            return {}
        local = self.rank if self.local_rank is None else self.local_rank
        values = (self.rank, self.world_size, local, self.local_world_size)
        agent = {_AGENT: "True"} if self.has_agent and self.world_size > 1 else {}
        store = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}
        return {**{name: str(value) for name, value in zip(_OURS, values, strict=True)}, **store, **agent}


def find_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return how this process was started; alone, if no launcher names more than one process.

    Raises: UserError, with the variables, if a launcher's world size is above 1 and the rest is missing or wrong.
    """
    env = {name: value for name, value in (os.environ if environment is None else environment).items() if value}
    family = next((names for names in _FAMILIES if names[1] in env), _OURS)
    rank, size, local_rank, local_size = family
    given = tuple(f"{name}={env[name]}" for name in (rank, size, *_STORE) if name in env)
    num_ranks = _integer(env, size, 1, given) if size in env else 1
    attempt = _integer(env, "TORCHELASTIC_RESTART_COUNT", 0, given) if "TORCHELASTIC_RUN_ID" in env else 0
    missing = [name for name in (rank, *_STORE) if name not in env]
    if num_ranks == 1:
        # Some features of torch need a group even of one rank, which needs no address of another host.
        is_group = not missing and env[rank] == "0" and local_rank in env
        return Launch(local_rank=0, address="127.0.0.1", variables=given, attempt=attempt) if is_group else Launch()
    if missing:
        raise UserError(
            f"the environment sets {size}={num_ranks}, as a launcher of {num_ranks} processes does, but not "
            f"{', '.join(missing)}; start with torchrun or accelerate launch, or, to run one process, {_unset(given)}"
        )
    return Launch(
        _integer(env, rank, 0, given, num_ranks - 1),
        num_ranks,
        _integer(env, local_rank, 0, given) if local_rank in env else None,
        _integer(env, local_size, 1, given) if local_size in env else 1,
        env["MASTER_ADDR"],
        _integer(env, "MASTER_PORT", 1, given, 2**16 - 1),
        given,
        env.get(_AGENT) == "True",
        attempt,
    )


def _integer(env: Mapping[str, str], name: str, least: int, given: tuple[str, ...], most: int | None = None) -> int:
    text = env.get(name, "0").strip()
    if text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    span = f"{least} or more" if most is None else f"from {least} to {most}"
    raise UserError(
        f"{name}={text}: a launcher sets it to a whole number {span}; start with torchrun or accelerate launch, or, to "
        f"run one process, {_unset(given)}"
    )


def _unset(given: tuple[str, ...]) -> str:
    return f"remove the variables: unset {' '.join(variable.partition('=')[0] for variable in given)}"


def hide_warnings_of_torch() -> None:
    """Have torch's C++ code log errors only; call it before torch is imported. `TORCH_CPP_LOG_LEVEL` overrides it.

    Its warnings about an address that does not answer hold stack traces, and each try repeats them.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launch_or_alone() -> Launch:
    """Return how this process was started; alone, if the variables contradict each other."""
    try:
        return find_launch()
    except UserError:
        return Launch()


def is_main() -> bool:
    """Return whether this is rank 0, or a process of its own."""
    return launch_or_alone().rank == 0


def is_reporter() -> bool:
    """Return whether this process reports an error that may concern all ranks.

    Rank 0 does, and so does every process that has not met its peers, unless torchrun runs it: others may not exist.
    """
    if _joined_rank is not None:
        return _joined_rank == 0
    return is_main() or "TORCHELASTIC_RUN_ID" not in os.environ


def set_joined(rank: int | None) -> None:
    """Record that this process has met its peers as `rank`; None: it is on its own again."""
    global _joined_rank
    _joined_rank = rank


def is_restarted() -> bool:
    """Return whether torchrun or Slurm has started this command again, so that it continues."""
    slurm = os.environ.get("SLURM_RESTART_COUNT", "0") if "SLURM_JOB_ID" in os.environ else "0"
    return launch_or_alone().attempt > 0 or slurm not in ("", "0")
