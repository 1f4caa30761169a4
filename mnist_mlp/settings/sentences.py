"""How a command ends where something cannot be used: with one sentence on standard error, and a status."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser  # what Hydra's own flags are, it says nowhere else
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.settings.checks import no_such_setting
from mnist_mlp.settings.composed import compose_config, groups, options
from mnist_mlp.settings.rules import GIVEN_TO_TRAINER, TRAINER
from mnist_mlp.settings.values import NonFiniteLossError, SettingError, as_override, flatten, printable
from mnist_mlp.signatures import parameters
from mnist_mlp.surroundings import CLOSED_PIPE, OUTPUT, PLACE_ERRORS, one_line, place_problem, settle_in

# Set by the user to see tracebacks; read once, because `one_sentence` sets it for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")

LONG_WORD = re.compile(r"(\S{300})\S{200,}(\S{100})")  # longer than paths are; a damaged file may hold any


@contextmanager
def one_sentence(application: str = "train") -> Iterator[None]:
    """Ends the process with one sentence on standard error and status 1 where a setting cannot be used.

    With HYDRA_FULL_ERROR=1 the traceback is printed as well. An unknown setting is looked for among `application`'s.
    Ctrl-C ends it quietly, with status 130.
    """
    settle_in()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands exceptions over, in place of printing them its own way
    try:
        yield
    except (
        SettingError,
        NonFiniteLossError,
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        UnicodeDecodeError,
    ) as error:
        end(error, application)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == OUTPUT:
            sys.exit(CLOSED_PIPE)
        if error.errno not in PLACE_ERRORS:
            raise
        end(error, application)
    except Exception as error:
        if not _failed_in_hydra(error):
            raise
        end(_unusable(error), application)
    except KeyboardInterrupt:  # where no run has taken over Ctrl-C
        sys.exit(128 + signal.SIGINT)
    finally:
        if not FULL_ERROR:
            del os.environ["HYDRA_FULL_ERROR"]


@contextmanager
def in_callback() -> Iterator[None]:
    """Ends the process where a Hydra callback refuses a setting, or fails: of any exception but SystemExit Hydra makes
    a warning, and goes on."""
    try:
        yield
    except (SettingError, HydraException, OmegaConfBaseException, OSError) as error:
        end(error)
    except Exception:  # a fault of ours
        traceback.print_exc()
        sys.exit(1)


def ended_itself(error: SystemExit) -> SettingError:
    """What to raise where a class of the user's own ends the process, which would say nothing, and perhaps status 0."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(last.filename)}, line {last.lineno}"
    return SettingError(
        "sys.exit", error.code, f"a class of the configuration ends the process ({where}): let it raise"
    )


def _failed_in_hydra(error: Exception) -> bool:
    """Whether Hydra's own code failed, which looks at few of its settings before it uses them, and no code of ours."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in modules if name.partition(".")[0] in ("hydra", __name__.partition(".")[0])]
    return ours[-1].startswith("hydra")


def _unusable(error: Exception) -> HydraException:
    """What Hydra's own code failed at, with what the command line says to Hydra."""
    given = [word for word in sys.argv[1:] if re.match(r"[+~]*hydra[./@=]", word)]
    what = f"{'one of ' * (len(given) > 1)}{', '.join(given)}" if given else "a setting of Hydra's, or a group's option"
    cause = error.__cause__ or error
    failed = HydraException(f"{what}: Hydra cannot use it ({type(cause).__name__}: {one_line(cause)})")
    return failed.with_traceback(error.__traceback__)


def end(error: Exception, application: str = "train") -> NoReturn:
    """Prints what is wrong and exits with status 1."""
    if FULL_ERROR:
        traceback.print_exception(error)
    print(sentence(error, application), file=sys.stderr)
    sys.exit(1)


def sentence(error: BaseException, application: str = "train") -> str:
    """One sentence for an exception of ours, of Hydra's or of OmegaConf's; no word in it fills a screen."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, SettingError):
        error = error.__cause__
    # Ours is a line already, or an expression's, with a second line that points at the place.
    text = str(error) if isinstance(error, SettingError) else printable(_sentence(error, application))
    return LONG_WORD.sub(r"\1...\2", text)


def _sentence(error: BaseException, application: str) -> str:
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: is not YAML ({error.problem})"
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"a configuration file is not YAML ({one_line(error)})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        there = error.options if error.options is not None else options(group) if group in groups() else []
        group = "network" if application == "backprop" and group == "model" else group
        choose = f"choose one of {', '.join(sorted(there))}" if there else "give the name of a file, without .yaml"
        name = f"{group}={option}" if group else f"--config-name {option}"
        return f"{name}: there is no such {group.removesuffix('s') or 'configuration'}; {choose}"
    if isinstance(error, OSError):
        return place_problem(error)
    if isinstance(error, OverrideParseException):
        return _not_an_override(str(error.override))
    if (said := _of_words(text, application, error.__cause__)) is not None:
        return said
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}=???: has no value yet: give it one"
    if isinstance(error, OmegaConfBaseException) and error.full_key:  # its last lines say what kind of object has it
        return f"{error.full_key}: {text.splitlines()[0]}"
    return one_line(error)


def _not_an_override(override: str) -> str:
    name, equals, value = override.partition("=")
    again = equals and "'" not in value
    quoted = f"; a value with other characters is quoted twice: \"{name}='{value}'\"" if again else ""
    return f"{override}: is not of the form setting=value, such as seed=1 or model.hidden=[64,128,64]{quoted}"


def _of_words(text: str, application: str, cause: BaseException | None) -> str | None:
    """A sentence for what Hydra says in words of its own, without a class of exceptions for it."""
    if several := re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires --multirun|\n|$)", text
    ):
        given = several[1].lstrip("+")
        return f"{given}: several values are a sweep: add -m; a single value that is a list stands in brackets"
    if there := re.match(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{there[1]}: is in the configuration already: leave out the +"
    if merged := re.match(r"Error merging override (.+)", text, re.DOTALL):
        return f"{merged[1]}: {f'cannot be that ({one_line(cause)})' if cause else 'cannot be that'}"
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown_setting(unknown[1], text, application)
    if call := re.match(r"Error in call to target '(.+?)':\n(.+)\nfull_key: (.+)", text):
        return f"{call[3]}: {call[1]} could not be made ({call[2]})"
    return None


def _unknown_setting(setting: str, text: str, application: str) -> str:
    found = re.search(r"\+(\S+)$", text.strip())
    given = found[1] if found else setting
    if "No match in the defaults list" in text:
        return f"{given}: {setting} is a group without a default: choose an option of it with +{given}"
    group, _, name = setting.rpartition(".")
    if application != "train":
        known = [*flatten(compose_config([], application)), *groups(application)]
        return f"{given}: {no_such_setting(setting, known, application)}"
    if group == "trainer" and name in GIVEN_TO_TRAINER:
        return f"{given}: is not taken from the configuration: {GIVEN_TO_TRAINER[name]}"
    composed = _as_chosen()
    known = [*flatten(composed), *groups()]
    node = composed.get(group)
    target = TRAINER if group == "trainer" else node.get("_target_") if isinstance(node, DictConfig) else None
    taken = parameters(str(target)) or ()
    if name in taken:
        taker = str(target).rpartition(".")[2]
        return f"{given}: is not in the configuration yet, and {taker} takes it: add it with +{given}"
    if setting in known:  # was given a mapping
        return f"{given}: a setting in it is not there yet: set each by itself, as in +{setting}.NAME=VALUE"
    takes = f"{target} takes {', '.join(taken)}" if taken and group != "trainer" else None
    return f"{given}: {no_such_setting(setting, known, application, takes)}"


def _as_chosen() -> DictConfig:
    """The configuration with the options that the command line chooses, of a sweep the first of each, and with the
    user's own files; that of the package where it cannot be composed so."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    try:
        chosen = []
        for override in OverridesParser.create().parse_overrides(given.overrides):
            if override.key_or_group.lstrip("+") in groups() and not override.is_delete():
                value = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
                chosen.append(f"{override.key_or_group}={value}" if value is not None else str(override.input_line))
        own = [f"hydra.searchpath=[{as_override(os.path.abspath(given.config_dir))}]"] if given.config_dir else []
        return compose_config([*own, *chosen])
    except (HydraException, OmegaConfBaseException, SettingError, StopIteration):
        return compose_config([])
