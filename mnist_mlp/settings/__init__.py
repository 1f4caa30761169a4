"""What a setting may be, and the one sentence a user gets when it is not.

- values.py: how a value is spelled, and `SettingError`, which names one that cannot be used
- rules.py: what each setting may be, by the class that takes it
- composed.py: what this package's configuration files hold, composed
- checks.py: a run's settings against their rules and against what the classes take
- flags.py: the flags of a command line, apart from the settings
- sentences.py: how a command ends where something cannot be used

Imports nothing heavy: `mnist-train --help` and a refused command answer at once. The other rooms import from here.
"""

from mnist_mlp.settings.checks import (
    built,
    check,
    check_accelerator,
    check_rules,
    cuts,
    make_directory,
    no_such_setting,
    other_loss,
    refuse_arguments,
    settle,
    single_steps,
)
from mnist_mlp.settings.composed import (
    DERIVED,
    compose_config,
    defaults,
    groups,
    load_yaml,
    name_network,
    name_sweep_jobs,
    options,
    refuse_derived,
    without_hydra,
)
from mnist_mlp.settings.flags import divided
from mnist_mlp.settings.rules import (
    BACKPROP_RULES,
    CLASS_RULES,
    DATA_FILES,
    GIVEN,
    HASHES,
    NUMBER,
    OF_SCHEDULER,
    OUR_BACKBONE,
    OUR_DATA,
    OUR_LOSS,
    RULES,
    SEARCH_RULES,
    SWEEP_RULES,
    TRUTH,
    Rule,
    is_number,
    rules_of,
)
from mnist_mlp.settings.sentences import FULL_ERROR, end, ended_itself, in_callback, one_sentence, sentence
from mnist_mlp.settings.values import NonFiniteLossError, SettingError, as_override, counted, flatten, spelled
