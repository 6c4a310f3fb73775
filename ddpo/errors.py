"""Every error that a user can cause or meet; each message says what, why it matters and what to do."""


class DdpoError(Exception):
    """Root of the tree; the command line prints it without a traceback and exits with 1."""


class InputError(DdpoError):
    """Something that the user wrote is wrong: the run did not start. Exit code 2."""


def original(text: str) -> DdpoError | None:
    """The error whose traceback ends `text`, if it is one of ours: an actor's failed start comes from Ray as text."""
    kind, colon, message = text.rpartition("\nddpo.errors.")[2].partition(": ")
    found = globals().get(kind) if colon else None
    if isinstance(found, type) and issubclass(found, DdpoError) and found is not ConfigError:
        return found(message.strip())
    return None


class ConfigError(InputError):
    """The run file is wrong; carries every problem found, not only the first.

    problems: (key, message) pairs, key as written in TOML ("learner.minibatch").
    """

    def __init__(self, source: str, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        width = max(len(key) for key, _ in problems)
        lines = [f"  {key:<{width}}  {message}" for key, message in problems]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *lines]))


class BaseModelError(InputError):
    """The base model is missing, broken or of a kind that this program cannot train."""


class NotHereError(BaseModelError):
    """The base model is on no disk of this machine, and the hub did not give it."""


class DeviceError(InputError):
    """A GPU was reserved or asked for, and torch cannot compute on it."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another run."""


class RewardError(DdpoError):
    """A reward broke its contract, or failed on every image of a step."""


class ContractError(RewardError):
    """Something that is no failure of one call: a reward's server does not keep to the protocol. Stops the run."""


class ServerError(DdpoError):
    """The server of a reward does not answer, or refuses; its images have no score."""


class DeliveryError(DdpoError):
    """A trajectory or a message of weights is not what was published."""


class LedgerError(DdpoError):
    """The ledger does not add up, or an image of it cannot be drawn again as it was."""


class DeadlineError(DdpoError):
    """Something waited for did not come in its time."""


class WorkerError(DdpoError):
    """A process of the run died and could not be replaced."""


class Interrupted(DdpoError):
    """The user, or a preemption notice, asked the run to stop. Exit code 130."""


class Stopped(Interrupted):
    """`ddpo stop` asked the run to end, and it did: nothing to try again for whoever started it. Exit code 0."""
