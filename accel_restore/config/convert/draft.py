"""An option file on its way to a configuration: the options that were read, the keys that were set, and the comments.

Options are named by dotted keys, such as `datasets.train.gt_size`; a mapping in a list has its number as its key. An
option that no rule reads is still in `unread` at the end, so none is lost without a comment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHANGED, UNNEEDED, LOST = "changed", "not needed", "not carried"


@dataclass
class Note:
    """A comment on some options."""

    kind: str  # CHANGED, UNNEEDED or LOST
    section: str  # the section of the configuration at which it is written; '' for the end of the file
    options: dict[str, Any]
    reason: str


class Draft:
    """The configuration so far, and the comments on the options."""

    def __init__(self, tree: dict):
        self.options = _with_text_keys(tree)
        self.values: dict[str, Any] = dict(leaves(self.options))
        self.unread: dict[str, Any] = dict(self.values)
        self.config: dict[str, Any] = {}
        self.origins: dict[str, tuple[str, ...]] = {}  # key of the configuration: the options that it comes from
        self.notes: list[Note] = []
        self.changes: list[str] = []  # what behaves differently, for the header
        self.todo: list[str] = []  # what the user has to fill in

    def peek(self, option: str) -> Any:
        """Return the value of an option, None if it is missing or null."""
        value: Any = self.options
        for part in option.split("."):
            if isinstance(value, list):
                value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
            else:
                value = value.get(part) if isinstance(value, dict) else None
        return value

    def section(self, option: str) -> dict[str, Any]:
        """Return the options below an option; none if it is not a section."""
        value = self.peek(option)
        return value if isinstance(value, dict) else {}

    def take(self, option: str) -> Any:
        """Return the value of an option, and count it as read with all below it. What is null stays unread."""
        for name in self._below(option, self.unread):
            if self.unread[name] is not None:
                del self.unread[name]
        return self.peek(option)

    def number(self, option: str) -> float | int | None:
        """Read a number; None if there is none. Any other value becomes a comment."""
        value = self.take(option)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        self.refuse(option, "is not a number")
        return None

    def whole(self, option: str) -> int | None:
        """Read a whole number, which may be written as `5e3`."""
        value = self.number(option)
        if value is None or (abs(value) < 2**53 and value == int(value)):
            return None if value is None else int(value)
        self.refuse(option, "is not a whole number")
        return None

    def is_positive(self, option: str) -> bool:
        """Return whether an option is a number above 0, without reading it."""
        value = self.peek(option)
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

    def flag(self, option: str) -> bool:
        """Read whether an option is on."""
        return self.take(option) is True

    def first(self, *options: str) -> str:
        """Return the first of several names of one option that has a value; the first name if none has."""
        return next((option for option in options if self.peek(option) is not None), options[0])

    def put(self, target: str, value: Any, *options: str) -> None:
        """Set a key of the configuration, whose value comes from these options."""
        *sections, name = target.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
        self.origins[target] = options

    def drop(self, target: str, reason: str) -> None:
        """Remove a key from the configuration, and write its options as a comment."""
        *sections, name = target.split(".")
        place = self.config
        for section in sections:
            place = place[section]
        del place[name]
        if not self.config[target.partition(".")[0]]:
            del self.config[target.partition(".")[0]]
        for option in self.origins.pop(target):
            self.refuse(option, reason)

    def change(self, option: str, reason: str) -> None:
        """Comment on an option that is carried over, but not exactly."""
        self.take(option)
        options = {name: self.values[name] for name in self._below(option, self.values)}
        if options:
            self.notes.append(Note(CHANGED, section_of(option), options, reason))

    def skip(self, option: str, reason: str) -> None:
        """Comment on an option that is not needed; of a section, on those that are unread."""
        self._comment(UNNEEDED, option, reason)

    def lose(self, option: str, reason: str) -> None:
        """Comment on an option that cannot be carried over; of a section, on those that are unread."""
        self._comment(LOST, option, reason)

    def refuse(self, option: str, reason: str) -> None:
        """Comment on an option that was read and cannot be carried over."""
        self.unread |= {name: self.values[name] for name in self._below(option, self.values)}
        self._comment(LOST, option, reason)

    def _comment(self, kind: str, option: str, reason: str) -> None:
        options = {name: self.unread.pop(name) for name in self._below(option, self.unread)}
        if not options:
            return
        for note in self.notes:
            if (note.kind, note.section, note.reason) == (kind, section_of(option), reason):
                note.options |= options
                return
        self.notes.append(Note(kind, section_of(option), options, reason))

    def _below(self, option: str, names: dict[str, Any]) -> list[str]:
        """Return those of the names that are the option or below it, without a search through all names."""
        if option in names:
            return [option]
        return [name for name, _ in leaves(self.peek(option), option) if name in names]


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all values with them; a list is one value unless it holds mappings."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from leaves({str(place): item for place, item in enumerate(value)}, key)
    else:
        yield key, value


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


# How options of adversarial training start.
_OF_ADVERSARY = (
    "network_d", "path.pretrain_network_d", "path.pretrain_model_d", "path.strict_load_d", "path.param_key_d",
    "train.gan_opt", "train.optim_d", "train.net_d", "train.adaptive_d", "train.r1_reg", "train.gp_",
    "train.net_g_reg", "train.path_",
)  # fmt: skip
# How an option starts: the section of the configuration at which comments on it are written; the first that fits.
_SECTIONS = {
    "datasets": "data",
    **dict.fromkeys(_OF_ADVERSARY, "adversarial"),
    "network_g": "model",
    "path": "model",
    "train.optim_g": "optimizer",
    "train.scheduler": "scheduler",
    "train.warmup_iter": "scheduler",
    "train.losses": "loss",
    "train.mixing_augs": "data",
    "train.use_moa": "data",
    "train.moa": "data",
    "train": "train",
    "val": "validation",
    "logger": "tracking",
    "scale": "data",
    "num_gpu": "train",
    "use_": "train",
    "amp": "train",
    "name": "run",
    "manual_seed": "run",
}


def section_of(option: str) -> str:
    """Return the section at which a comment on an option is written; '' for the end of the file."""
    if is_loss(option) and not option.startswith("train.gan_opt"):
        return "loss"
    return next((section for start, section in _SECTIONS.items() if option.startswith(start)), "")


def is_loss(option: str) -> bool:
    """Return whether an option is a loss or belongs to one."""
    parts = option.split(".")
    return parts[0] == "train" and len(parts) > 1 and (parts[1] == "losses" or parts[1].endswith("_opt"))
