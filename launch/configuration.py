"""A run's configuration by name: a file, or one that comes with the package."""

import inspect
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

import r2d2_jax
from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import one_message, refuse_unknown

BUILT_IN = Path(r2d2_jax.__file__).with_name("configs")


def built_in_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("[!_]*.py"))


def config_flag(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Defines --config, which `read_configuration` takes."""
    return flags.DEFINE_string(
        "config",
        None,
        f"The configuration: a file or one of {', '.join(built_in_names())}. NAME:ARGUMENT chooses a variant; "
        "--config.KEY=VALUE overrides a value.",
        flag_values=flag_values,
    )


def read_configuration(named: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of that name, with values overridden.

    Args:
        named: NAME or FILE, or NAME:ARGUMENT, whose argument goes to `get_config`.
        overrides: flags `--config.KEY=VALUE`.

    Raises:
        UserError: there is no such configuration, or an override names no key of it or has a wrong value.
    """
    name, colon, argument = named.partition(":")
    get_config = _get_config(name)
    given = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        raise UserError(f"--config={named}: {name} {'takes no argument' if given else 'needs an argument'}") from error
    return _overridden(get_config(*given), overrides)


def _get_config(name: str) -> Callable[..., ConfigDict]:
    path = BUILT_IN / f"{name}.py" if name in built_in_names() else Path(name)
    if not path.is_file():
        raise UserError(
            f"there is no configuration {name}; expected a file, or one of the built-in {', '.join(built_in_names())}"
        )
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:  # a NUL byte is a ValueError
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{path}{line}: {said}; expected Python that defines get_config()") from error
    defined = runpy.run_path(str(path))
    if "get_config" not in defined:
        raise UserError(f"{path} defines no get_config(); expected a function that returns a ConfigDict")
    return defined["get_config"]


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["", *overrides]
    try:
        with one_message():
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
            refuse_unknown(values(argv, known_only=True)[1:])
    except (AttributeError, KeyError) as error:
        unquoted = re.sub(r"^(['\"])(.*)\1$", r"\2", str(error.args[0]), flags=re.DOTALL)  # it may be a quoted text
        reason = " ".join(unquoted.replace("\\n", " ").replace("\\'", "'").split())
        raise UserError(f"a --config.KEY=VALUE names a key that the configuration does not have: {reason}") from error
    return values.config
