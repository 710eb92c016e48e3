"""The two kinds of errors for users, and texts of their messages."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, get_args

Count = Annotated[int, "[1, inf)"]
Part = Annotated[float, "[0, 1]"]
NotNegative = Annotated[float, "[0, inf)"]

FOREIGN = {
    "rounds": "epochs epoch num_epochs n_epochs nb_epochs max_epochs num_train_epochs",
    "eps": "epsilon radius eps_max attack_eps",
    "lr": "learning_rate lr_max base_lr initial_lr",
    "batch_size": "batch bs batchsize train_batch_size batch_size_train",
    "weight_decay": "wd decay l2",
    "data": "dataset data_set dataset_name",
    "model": "arch architecture network net backbone model_name",
    "seed": "random_seed manual_seed random_state",
    "method": "loss_name trainer algorithm",
    "steps": "iters iterations num_steps num_iter n_iter nb_iter max_iter attack_iters",
    "step_size": "stepsize eps_iter eps_step step alpha_attack",
    "restarts": "n_restarts num_restarts nb_restarts",
    "queries": "n_queries num_queries max_queries",
    "beta": "lam lambda trades_beta",
    "label_smoothing": "smoothing ls",
    "snapshots": "save_every save_freq checkpoint_every snapshot_every",
    "patience": "early_stopping early_stop",
    "validation": "val val_size validation_size num_val",
    "precision": "amp dtype fp16 bf16",
    "--out": "out output output_dir save_dir run_dir",
    "--resume": "resume",
    "--published": "published",
}
"""The names that other projects use for our settings, separated by spaces."""

_OF_YOUR_OWN = "; one of your own: --import FILE.py that adds it"
_ADDED = {
    "method": _OF_YOUR_OWN,
    "objective": _OF_YOUR_OWN,
    "attack": _OF_YOUR_OWN,
    "dataset": _OF_YOUR_OWN,
    "model": f"; or package.module:function, timm:NAME, hf:NAME, torchvision:NAME{_OF_YOUR_OWN}",
}


class UserError(ValueError):
    """The request cannot be fulfilled: one line with the remedy, exit code 2."""


class RunError(RuntimeError):
    """A job failed after its start: one line, exit code 1; finished work is kept.

    ``result`` is the partial result of a failed evaluation.
    """

    result: Any = None


def short(value: object, most: int = 80) -> str:
    """Return a value as Python code, cut to ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes out
        text = f"a number of {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def one_line(error: BaseException, most: int = 300) -> str:
    """Return the type and the message of an error, in a line of at most ``most`` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def nearest(name: str, names: Iterable[str], what: str) -> str:
    """Return the message for an unknown name, with the nearest name that exists.

    Arguments:
        name: The name that the user gave.
        names: The names that exist.
        what: The kind of the name, e.g. ``"method"``.
    """
    names = sorted(names)
    close = [ours for ours in names if name in FOREIGN.get(ours, "").split()]
    close = close or get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {short(name)}{hint} (known: {', '.join(names)}){_ADDED.get(what, '')}"


def out_of_range(settings: Any, prefix: str = "") -> list[str]:
    """Return a sentence for each number of a dataclass outside the interval of its type.

    The interval is the text of an annotation, like ``weight: Annotated[float, "[0, 1)"]``. None is
    accepted if the type allows it; each number of a tuple is checked.

    Arguments:
        settings: The dataclass.
        prefix: The path of the dataclass in the settings, with a dot at its end.
    """
    problems = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        annotated = [part for part in (f.type, *get_args(f.type)) if hasattr(part, "__metadata__")]
        if not annotated or (value is None and type(None) in get_args(f.type)):
            continue
        interval = annotated[0].__metadata__[0]
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(_inside(number, interval) for number in numbers):
            expected = _expected(interval) if numbers else "have at least one number"
            given = list(value) if isinstance(value, tuple) else value
            problems.append(f"{prefix}{f.name} must {expected}, got {short(given)}")
    return problems


def _expected(interval: str) -> str:
    """Return the text for an interval in a message."""
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"lie in {interval}"
    if interval == "[1, inf)":
        return "be at least 1"
    return f"be a finite number {'>' if interval[0] == '(' else '>='} {low}"


def _inside(value: object, interval: str) -> bool:
    """Return whether a value is a finite number, not a bool, in an interval like ``(0, 1]``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = map(float, interval[1:-1].split(", "))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return -math.inf < value < math.inf and above and below
