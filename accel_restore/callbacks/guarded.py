"""The user's callbacks: built and checked before a run starts; an error in one ends the run and names it."""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from accel_restore.config.schema import OwnCallback
from accel_restore.distributed.heartbeat import is_communication
from accel_restore.errors import PART_ERRORS, CallbackError, UserError
from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.utils.imports import check_arguments, describe_error, resolve
from accel_restore.utils.redaction import redacted

_METHODS = [name for name in vars(Callback) if not name.startswith("__")]


@dataclass(frozen=True)
class NamedCallback:
    """A callback with the import path of its class."""

    name: str
    callback: Callback


def build_callbacks(sections: Sequence[OwnCallback]) -> list[NamedCallback]:
    """Return the configured callbacks.

    Raises: UserError for one that cannot be built, is no `Callback`, or has methods that could not be called.
    """
    built = []
    for number, section in enumerate(sections):
        key = f"callbacks.{number}"
        named = NamedCallback(section.name, _build(section, key))
        _check_methods(named, key)
        _check_state(named, key)
        built.append(named)
    return built


def _build(section: OwnCallback, key: str) -> Callback:
    if section.object is not None:
        return section.object
    target = resolve(section.name, {}, key)
    if not (inspect.isclass(target) and issubclass(target, Callback)):
        raise UserError(
            f"{key}: '{section.name}' is not a subclass of accel_restore.Callback; derive the class from it"
        )
    check_arguments(target, section.arguments, key)
    try:
        return target(**section.arguments)
    except PART_ERRORS as error:  # a user's own class may raise anything
        raise UserError(f"{key}: '{section.name}' cannot be built: {describe_error(error)}") from error


def _check_methods(named: NamedCallback, key: str) -> None:
    """Raise `UserError` for a method that would never be called, or cannot be called with what the loop gives."""
    kind = type(named.callback)
    for name in dir(kind):
        if name.startswith("on_") and name not in _METHODS and inspect.isfunction(getattr(kind, name)):
            raise UserError(
                f"{key}: '{named.name}' has a method {name}, which is never called; the methods are "
                f"{', '.join(_METHODS)}"
            )
    for name in _METHODS:
        wanted = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
        try:
            inspect.signature(getattr(named.callback, name)).bind(*wanted)
        except TypeError:
            arguments = ", ".join(["self", *wanted])
            raise UserError(f"{key}: '{named.name}' cannot be called; define {name}({arguments})") from None


def _check_state(named: NamedCallback, key: str) -> None:
    kind = type(named.callback)
    has_own = [getattr(kind, name) is not getattr(Callback, name) for name in ("state_dict", "load_state_dict")]
    if has_own[0] != has_own[1]:
        raise UserError(f"{key}: '{named.name}' has one of state_dict and load_state_dict; define both")
    try:
        _check_json(named.callback.state_dict(), "")
    except PART_ERRORS as error:
        raise UserError(f"{key}: '{named.name}' cannot be committed: state_dict: {describe_error(error)}") from error


def _check_json(value: Any, place: str) -> None:
    """Raise TypeError unless JSON returns the value as it was, tuples as lists."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str) or name == "float":  # the key under which `encode_floats` writes NaN
                raise TypeError(f"the key {name!r}{place} cannot be stored as JSON; use another string")
            _check_json(item, f" in {name!r}{place}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, place)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise TypeError(f"a {type(value).__name__}{place} cannot be stored as JSON; use numbers, strings, lists, dicts")


class GuardedCallbacks(Callback):
    """Calls the user's callbacks, and early stopping.

    A callback that raises is no longer called, except for `on_exit`. Its error ends the run once the step or the epoch
    is committed, if a commit is due: the second part of this callback, `AfterCommit`, raises it. A request to stop
    takes effect at the end of an epoch, on all ranks.
    """

    def __init__(self, callbacks: list[NamedCallback], accelerator: Accelerator, log: Callable[[str], None]):
        self.callbacks, self.accelerator, self.log = callbacks, accelerator, log
        self.errors: dict[int, CallbackError] = {}  # by the position of the callback

    def on_step(self, state: TrainState) -> None:
        self.call("on_step", state)

    def on_validation_start(self, state: TrainState) -> None:
        self.call("on_validation_start", state)

    def on_validation_image(self, state: TrainState, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        self.call("on_validation_image", state, index, input, output, gt)

    def on_validation(self, state: TrainState) -> None:
        self.call("on_validation", state)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self.call("on_epoch", state, record)
        reason = self.stop_reason(state)
        state.stop_reason = reason if state.epoch < state.epochs else None  # the last epoch has been trained anyway
        if state.stop_reason is not None:
            state.epochs = state.epoch
            self.log(f"{state.stop_reason}; the run ends after epoch {state.epoch}")

    def stop_reason(self, state: TrainState) -> str | None:
        """Return the reason of the first rank that asks to stop, or None. Every rank calls it."""
        if not self.callbacks:
            return None
        return next(filter(None, gather_object([state.stop_reason])), None)

    def call(self, method: str, state: TrainState, *given: Any) -> None:
        """Call a method of all callbacks that have not failed."""
        for number, named in enumerate(self.callbacks):
            if number not in self.errors:
                try:
                    getattr(named.callback, method)(state, *given)
                except PART_ERRORS as error:
                    if is_communication(error) and method != "on_exit":  # another rank's fault
                        raise
                    self.errors[number] = self._describe(named, method, state, error)

    def _describe(self, named: NamedCallback, method: str, state: TrainState, error: BaseException) -> CallbackError:
        text = describe_error(error)
        kind = "" if text.startswith(type(error).__name__) else f"{type(error).__name__}: "
        failure = CallbackError(
            f"rank {self.accelerator.process_index}: the callback '{named.name}' failed in {method}, after step "
            f"{state.step}: {kind}{text}"
        )
        failure.__cause__ = error
        return failure

    def raise_error(self) -> None:
        """Raise the error of the first callback that has failed on this rank, if any."""
        for error in self.errors.values():
            raise error

    def state_dicts(self, state: TrainState) -> dict[str, list[dict[str, Any]]]:
        """Return the callbacks' states for a commit, in order, by the import paths of their classes.

        Raises: CallbackError.
        """
        kept: dict[str, list[dict[str, Any]]] = {}
        for named in self.callbacks:
            try:
                own = named.callback.state_dict()
                _check_json(own, "")
            except PART_ERRORS as error:
                raise self._describe(named, "state_dict", state, error) from error
            kept.setdefault(named.name, []).append(own)
        return kept

    def load_state_dicts(self, kept: dict[str, list[dict[str, Any]]]) -> None:
        """Load each callback's state from a commit; a callback without a state there is left as it is.

        Raises: UserError.
        """
        left = {name: list(states) for name, states in kept.items()}
        for named in self.callbacks:
            if left.get(named.name):
                try:
                    named.callback.load_state_dict(left[named.name].pop(0))
                except PART_ERRORS as error:
                    raise UserError(
                        f"callbacks: '{named.name}' cannot load its state from the commit: {describe_error(error)}; "
                        "correct its load_state_dict, or remove the callback"
                    ) from error

    def close(self, state: TrainState, ended: BaseException | None) -> None:
        """Call `on_exit` of all callbacks, also of failed ones, and print the errors that do not end the run.

        Raises: CallbackError, on all ranks, if nothing else has ended the run.
        """
        reported = [error for error in self.errors.values() if error is not ended]
        self.errors.clear()
        self.call("on_exit", state, ended)
        if ended is None:
            failed = [str(error) for error in self.errors.values()]
            if found := [text for rank in gather_object([failed]) for text in rank]:
                raise CallbackError(found[0])
        for error in (*reported, *self.errors.values()):
            print(f"accel-restore: {redacted(str(error))}", file=sys.stderr, flush=True)


class AfterCommit(Callback):
    """The second part of `GuardedCallbacks`; runs after the Checkpointer."""

    def __init__(self, own: GuardedCallbacks, ends_epoch: Callable[[TrainState], bool], wait: Callable[[], None]):
        """`ends_epoch` says whether the last step ended its epoch, which is committed in `on_epoch`.

        `wait` waits until best.safetensors is written.
        """
        self.own, self.ends_epoch, self.wait = own, ends_epoch, wait

    def on_step(self, state: TrainState) -> None:
        if not self.ends_epoch(state):
            self.own.raise_error()

    def on_best(self, state: TrainState) -> None:
        methods = [named.callback.on_best for named in self.own.callbacks]
        if any(getattr(method, "__func__", None) is not Callback.on_best for method in methods):
            self.wait()
            self.own.call("on_best", state)

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        self.own.raise_error()
