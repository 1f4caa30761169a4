"""The command line of a Hydra application: its flags apart from its overrides, and one sentence for a flag that is not
there, or that does something else than is meant."""

import argparse
import contextlib
import os
import re
from pathlib import Path
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser  # what Hydra's own flags are, it says nowhere else

from mnist_mlp.settings.composed import compose_config, groups
from mnist_mlp.settings.rules import ELSEWHERE
from mnist_mlp.settings.values import flatten


def divided(arguments: list[str], application: str) -> tuple[list[str], list[str]]:
    """The flags and the overrides of `mnist-APPLICATION`: Hydra's own parser takes flags only where they stand first.
    What --shell-completion takes is no override, and counts as a flag.

    Raises:
        SystemExit: there is no such flag, or flags that exclude each other; status 2.
    """
    parser = get_args_parser()
    parser.prog = f"mnist-{application}"
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        _refuse_flag(parser, unknown[0], arguments, application)
    if refused := _not_together(given, application):
        parser.exit(2, f"{refused}\n")
    if given.shell_completion:
        return arguments, []
    flags = list(arguments)
    for override in given.overrides:
        flags.remove(override)
    return flags, given.overrides


def _not_together(given: argparse.Namespace, application: str) -> str | None:
    """What is wrong with the flags, where Hydra passes one over or fails; None where nothing is."""
    if given.experimental_rerun is not None:
        repeats = ": mnist-rerun RUN_DIR repeats a run" if application == "train" else ""
        return f"--experimental-rerun: takes a pickled job, and none is kept{repeats}"
    if given.config_path is not None:
        return "--config-path: would take the place of the package's own files: --config-dir DIR adds yours to them"
    if given.help or given.hydra_help:
        return None
    if given.multirun and (given.cfg or given.info):
        return "-m: leave it out with --cfg and --info, which show one job's configuration"
    modes = {"--run": given.run, "-m": given.multirun, "--cfg": given.cfg, "--info": given.info}
    modes["--shell-completion"] = given.shell_completion
    several = [flag for flag, there in modes.items() if there]
    if len(several) > 1:
        return f"{several[0]}: does something else than {several[1]}: give one of them"
    for flag, there in (("--package", given.package is not None), ("--resolve", given.resolve)):
        if there and not given.cfg:
            return f"{flag}: is of what --cfg shows: add --cfg job"
    if given.shell_completion:
        return _no_completion(given.overrides)
    return _no_application(given.config_name, given.config_dir, application)


def _no_completion(given: list[str]) -> str | None:
    """What is wrong with what --shell-completion is given; None where nothing is."""
    named = [re.fullmatch("(install|uninstall|query)=(bash|fish|zsh)", word) for word in given]
    if len(named) != 1 or named[0] is None:
        return "--shell-completion: takes install or uninstall, and a shell: -sc install=bash, fish or zsh"
    if named[0][1] == "query" and "COMP_LINE" not in os.environ:
        return "--shell-completion: query is for the shell, which says in COMP_LINE what was typed"
    return None


def _no_application(name: str | None, directory: str | None, application: str) -> str | None:
    """Why a configuration file is not one of `mnist-APPLICATION`, as far as it says so; None where it may be."""
    name = (name or application).removesuffix(".yaml")
    if name == application or (directory is not None and not os.path.isdir(directory)):
        return None
    file = Path(directory) / f"{name}.yaml" if directory is not None else None
    if file is None or not file.is_file():
        return f"--config-name {name}: is not for mnist-{application}: give a file in --config-dir, or leave it out"
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # Hydra will say so
        stated = yaml.safe_load(file.read_text("utf-8"))
        if isinstance(stated, dict) and application not in (stated.get("defaults") or []):
            begin = f"begin it with `defaults: [{application}, _self_]`"
            return f"--config-name {name}: lacks the settings of mnist-{application}: {begin}"
    return None


def _refuse_flag(parser: argparse.ArgumentParser, flag: str, arguments: list[str], application: str) -> NoReturn:
    """Ends the process: a setting was written as a flag, or the flag is mistyped."""
    name, _, value = flag.lstrip("-").partition("=")
    after = [*arguments, ""][arguments.index(flag) + 1]
    value = value or (after if re.fullmatch(r"[^-=][^=]*", after) else "VALUE")
    known = [*flatten(compose_config([], application)), *groups(application)]
    setting = next((setting for setting in known if setting.rpartition(".")[2] == name.replace("-", "_")), None)
    hint = f"a setting is written {setting}={value}" if setting else ELSEWHERE.get(name, "--hydra-help lists them")
    parser.exit(2, f"{flag}: there is no such flag; {hint}\n")
