"""What each setting may be, by the class that takes it: tables of rules, and the groups that they are about."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig


class Rule(NamedTuple):
    accepts: Callable[[Any], bool]
    wanted: str


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int, below: int = 2**63) -> Rule:
    return Rule(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < below,
        f"a whole number of at least {least}",
    )


def _matching(pattern: str, wanted: str) -> Rule:
    return Rule(
        lambda value: isinstance(value, str | int | float) and re.fullmatch(pattern, str(value)) is not None, wanted
    )


def _choice(*options: str) -> Rule:
    return Rule(lambda value: value in options, f"one of {', '.join(options)}")


def _optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.wanted}, or null")


LARGEST = 3.4e38  # what PyTorch computes with: 32-bit floating point numbers
ABOVE_ZERO = Rule(lambda value: is_number(value) and 0 < value <= LARGEST, f"a number above 0 and at most {LARGEST:g}")
AT_LEAST_ZERO = Rule(lambda value: is_number(value) and 0 <= value <= LARGEST, f"a number from 0 to {LARGEST:g}")
FRACTION = Rule(lambda value: is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1")
TRUTH = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text")
UNICODE = "[^\ud800-\udfff]+"  # without the bytes that the locale could not read
PLACE = Rule(
    lambda value: isinstance(value, str) and re.fullmatch(UNICODE, value, re.DOTALL) is not None,
    "a name in UTF-8, which the locale can read (PYTHONUTF8=1 reads it in any)",
)
NUMBER = Rule(lambda value: is_number(value) and abs(value) <= LARGEST, "a number")
SEED = Rule(_whole(0, 2**64).accepts, "a whole number of at least 0 and below 2**64")
WIDTHS = Rule(
    lambda value: isinstance(value, list) and all(_whole(1).accepts(width) for width in value),
    "a list of whole numbers of at least 1, such as [64,128,64]",
)
# The four files of a family, unpacked, in the order of their names: what `data.sha256` may speak of.
DATA_FILES = (
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
)
HASHES = _optional(
    Rule(
        lambda value: (
            isinstance(value, Mapping)
            and sorted(map(str, value)) == list(DATA_FILES)
            and all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in value.values())
        ),
        f"the SHA-256 of each of {DATA_FILES[0]} and the three other files",
    )
)
LIMIT = Rule(
    lambda value: is_number(value) and (0 < value <= 1 if isinstance(value, float) else value >= 1),
    "a whole number of batches of at least 1, or a fraction above 0, at most 1.0",
)
ONE_DEVICE = "a run uses one device; a sweep puts its runs on several"

# Settings of a run, whatever classes it builds.
RULES: dict[str, Rule] = {
    "seed": SEED,
    "threads": _optional(
        Rule(lambda value: _whole(1).accepts(value) and value <= 1024, "a whole number from 1 to 1024")
    ),
    "portable": TRUTH,
    "average": _choice("weighted", "macro", "micro"),
    "run_dir": PLACE,
    "sweep": _matching(
        r"(?!\.\.?(/|$))[^/\\\ud800-\udfff]+(/(?!\.\.?(/|$))[^/\\\ud800-\udfff]+)*",
        "a name such as seeds or paper/long: it becomes logs/sweeps/NAME",
    ),
    "trainer.max_epochs": _whole(1),
    "trainer.max_steps": Rule(
        lambda value: value == -1 or _whole(1).accepts(value), "a whole number of at least 1, or -1"
    ),
    "trainer.accelerator": _choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": Rule(lambda value: value == 1 and is_number(value), f"1: {ONE_DEVICE}"),
    "trainer.num_nodes": Rule(lambda value: value == 1 and is_number(value), f"1: {ONE_DEVICE}"),
    "trainer.strategy": Rule(lambda value: value == "auto", f"auto: {ONE_DEVICE}"),
    "trainer.steps": _choice("auto", "native", "captured", "compiled", "eager"),
    "trainer.deterministic": Rule(lambda value: value == "warn" or isinstance(value, bool), "true, false or warn"),
    "trainer.limit_train_batches": _optional(LIMIT),
    "trainer.limit_val_batches": _optional(
        Rule(LIMIT.accepts, f"{LIMIT.wanted}: each epoch is validated, which its row in metrics.csv and best.ckpt need")
    ),
    "trainer.limit_test_batches": _optional(Rule(LIMIT.accepts, f"{LIMIT.wanted}: a run ends with its test results")),
    "trainer.val_check_interval": _optional(LIMIT),
    "trainer.overfit_batches": Rule(
        lambda value: is_number(value) and (value == 0 or LIMIT.accepts(value)), LIMIT.wanted
    ),
    "trainer.fast_dev_run": Rule(
        lambda value: isinstance(value, bool) or _whole(1).accepts(value), "true, false or a number of batches"
    ),
    "trainer.check_val_every_n_epoch": Rule(
        lambda value: value == 1 and is_number(value),
        "1: each epoch has its validation in metrics.csv; where that takes long, use trainer.limit_val_batches",
    ),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.max_time": _optional(
        Rule(
            lambda value: isinstance(value, dict) or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value)) is not None,
            "a time as DD:HH:MM:SS, such as 00:00:30:00, or as {minutes: 30}",
        )
    ),
    "trainer.profiler": _optional(
        Rule(lambda value: value in ("simple", "advanced", "pytorch"), "simple, advanced or pytorch")
    ),
    "trainer.enable_checkpointing": Rule(lambda value: value is True, "true: a run is recorded by its checkpoints"),
    "trainer.sync_batchnorm": Rule(lambda value: value is False, f"false: {ONE_DEVICE}"),
    "trainer.use_distributed_sampler": Rule(lambda value: value is True, f"true: {ONE_DEVICE}"),
    "trainer.enable_autolog_hparams": Rule(lambda value: value is True, "true: every logger gets the run's settings"),
    "trainer.barebones": Rule(lambda value: value is False, "false: a run is recorded, which this switches off"),
    "trainer.gradient_clip_val": _optional(ABOVE_ZERO),
    "trainer.gradient_clip_algorithm": _choice("norm", "value"),
    "tensorboard.enabled": TRUTH,
    "tensorboard.images_every": _optional(_whole(1)),
    "tensorboard.histograms_every": _optional(_whole(1)),
    "tensorboard.embeddings": TRUTH,
}

# Arguments of classes, by `_target_`; a name that ends in a dot stands for every class under it. A user's own class is
# not here: what its arguments mean is its own affair.
OUR_BACKBONE, OUR_DATA = "mnist_mlp.backbone.MLP", "mnist_mlp.datamodule.MNISTDataModule"
OUR_LOSS = "mnist_mlp.classifier.CrossEntropy"
CLASS_RULES: dict[str, dict[str, Rule]] = {
    OUR_BACKBONE: {
        "hidden": WIDTHS,
        "dropout": FRACTION,
        "init": _choice("default", "xavier_uniform"),
    },
    OUR_DATA: {
        "dataset": _choice("MNIST", "FashionMNIST", "KMNIST"),
        "root": _optional(PLACE),
        "download": TRUTH,
        "sha256": HASHES,
        "mirror": _optional(_matching("(https?|ftp|file)://.+", "a URL, such as https://example.org/mnist")),
        "mean": _optional(NUMBER),
        "std": _optional(ABOVE_ZERO),
        "test_size": _whole(1),
        "validation_size": _optional(_whole(1)),
        "train_size": _optional(_whole(1)),
        "split_seed": SEED,
        "seed": SEED,
        "batch_size": _whole(1),
        "eval_batch_size": _whole(1),
    },
    OUR_LOSS: {
        "label_smoothing": FRACTION,
        "weight": _optional(
            Rule(
                lambda value: isinstance(value, list) and len(value) == 10 and all(map(AT_LEAST_ZERO.accepts, value)),
                "a list of ten numbers of at least 0",
            )
        ),
    },
    "torch.optim.": {
        "lr": ABOVE_ZERO,
        "weight_decay": AT_LEAST_ZERO,
        "fused": _optional(TRUTH),
    },
    "torch.optim.lr_scheduler.": {
        "step_size": _whole(1),
        "T_max": _whole(1),
        "gamma": ABOVE_ZERO,
        "interval": _choice("epoch", "step"),
        "frequency": _whole(1),
        "monitor": TEXT,
    },
}
# Hydra's own, beside the arguments of whatever class a group names: how it is built.
HYDRAS: dict[str, Rule] = {
    "_partial_": TRUTH,
    "_recursive_": TRUTH,
    "_convert_": _choice("none", "partial", "object", "all"),
    "_args_": Rule(lambda value: isinstance(value, list), "a list of arguments"),
}
BUILT = ("data", "model", "loss", "optimizer", "scheduler")  # groups that name the class they build
NAMED = ("callbacks", "logger", "metrics")  # groups of any number of such, each with a name of its own
PARTIAL = {"optimizer": "the parameters", "scheduler": "the optimizer"}  # and what a run gives each of them
MAY_BE_NOTHING = ("scheduler", "search", *NAMED)  # null, or left out, is as an empty group

# Arguments of the Trainer that a run gives it itself, and what to use in their place.
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
GIVEN_TO_TRAINER = {
    "logger": "loggers have a group, such as logger=csv",
    "callbacks": "callbacks have a group, such as callbacks=early_stopping; another is +callbacks.NAME._target_=CLASS",
    "plugins": "its plugins write checkpoints that survive a power cut, and keep a run one process",
    "enable_progress_bar": "a run has its own line of progress; a bar is callbacks=progress_bar",
    "default_root_dir": "run_dir names the run's directory, which holds all that it writes",
    "model_registry": "checkpoints stay in the run's directory",
    "limit_predict_batches": "a run predicts nothing: mnist-predict does, of a checkpoint",
    "log_every_n_steps": "metrics are of whole epochs: metrics.csv and the loggers have a row for each",
}

# Arguments that Lightning's Trainer once took, and what there is today. Lightning itself keeps no such list.
_ACCELERATOR = "devices are chosen with trainer.accelerator=auto, cpu, gpu, cuda or mps"
_BAR = "a bar is callbacks=progress_bar, and how often it is drawn callbacks.progress_bar.refresh_rate"
_LIMIT = "batches are limited with +trainer.limit_train_batches, and limit_val_batches and limit_test_batches like it"
_ROWS = "each epoch is a row of metrics.csv and of every logger"
_WHERE = "run_dir names the run's directory, which holds all that it writes"
REMOVED_FROM_TRAINER = {
    **dict.fromkeys(("gpus", "tpu_cores", "ipus", "hpus", "num_tpu_cores"), _ACCELERATOR),
    **dict.fromkeys(("num_processes", "num_gpus", "nb_gpu_nodes", "distributed_backend"), ONE_DEVICE),
    **dict.fromkeys(("replace_sampler_ddp", "move_metrics_to_cpu", "multiple_trainloader_mode"), ONE_DEVICE),
    "prepare_data_per_node": ONE_DEVICE,
    **dict.fromkeys(("progress_bar_refresh_rate", "process_position", "show_progress_bar"), _BAR),
    **dict.fromkeys(("train_percent_check", "val_percent_check", "test_percent_check"), _LIMIT),
    **dict.fromkeys(("row_log_interval", "log_save_interval", "flush_logs_every_n_steps"), _ROWS),
    **dict.fromkeys(("weights_save_path", "default_save_path"), _WHERE),
    **dict.fromkeys(("amp_backend", "amp_level", "use_amp"), "mixed precision is +trainer.precision=bf16-mixed"),
    **dict.fromkeys(("max_nb_epochs", "num_epochs", "epochs"), "the number of epochs is trainer.max_epochs"),
    "auto_select_gpus": "CUDA_VISIBLE_DEVICES in the environment chooses one of several GPUs",
    "resume_from_checkpoint": "a run that was stopped goes on by the same command with its run_dir",
    "auto_lr_find": "the learning rate is optimizer.lr, and search=tpe looks for a good one",
    "auto_scale_batch_size": "the size of a minibatch is data.batch_size, a part of what is compared",
    "checkpoint_callback": "more checkpoints than last.ckpt and best.ckpt are callbacks=model_checkpoint",
    "early_stop_callback": "stopping early is callbacks=early_stopping",
    "stochastic_weight_avg": "weights are averaged with callbacks=ema",
    "weights_summary": "the network's layers are shown with +trainer.enable_model_summary=true",
    "track_grad_norm": "TensorBoard shows gradients with tensorboard.histograms_every=1",
    "terminate_on_nan": "a run whose loss is not finite always ends as failed",
    "reload_dataloaders_every_epoch": "the argument is +trainer.reload_dataloaders_every_n_epochs=1",
    "overfit_pct": "the argument is +trainer.overfit_batches",
    "log_gpu_memory": "memory is logged with +callbacks.NAME._target_=lightning.pytorch.callbacks.DeviceStatsMonitor",
    "truncated_bptt_steps": "nothing here is recurrent",
}

# Names from other projects' habits, whatever group they are looked for in, and what there is here.
_IN_MEMORY = "all images lie in memory, so there is nothing for workers to load"
ELSEWHERE = {
    "ckpt_path": REMOVED_FROM_TRAINER["resume_from_checkpoint"],
    "seed_everything": "the seed is seed=0",
    "learning_rate": "the learning rate is optimizer.lr",
    "epochs": "the number of epochs is trainer.max_epochs",
    **dict.fromkeys(("num_workers", "pin_memory", "persistent_workers"), _IN_MEMORY),
}

# Lightning's own, under `scheduler`: when it is stepped.
OF_SCHEDULER = ("interval", "frequency", "monitor")
TAKEN_OUT = [("scheduler", name) for name in OF_SCHEDULER]
GIVEN = ("params", "optimizer", "save_dir")  # arguments that a run gives

# Of a whole sweep, looked at before its first job.
SWEEP_RULES: dict[str, Rule] = {
    "sweep": RULES["sweep"],
    "hydra.launcher.jobs": _optional(_whole(1)),
    "hydra.launcher.retries": _whole(0),
    "hydra.launcher.fail_fast": TRUTH,
    "hydra.launcher.timeout_min": _whole(1),
    "hydra.launcher.max_num_timeout": _whole(0),
    "hydra.launcher.signal_delay_s": _whole(1),
    "hydra.launcher.array_parallelism": _whole(1),
    "hydra.launcher.cpus_per_task": _optional(_whole(1)),
    "hydra.launcher.gpus_per_node": _optional(_whole(1)),
    "hydra.launcher.mem_gb": _optional(ABOVE_ZERO),
}

# Of a search, which is a sweep too.
SEARCH_RULES: dict[str, Rule] = {
    "search.sampler": _choice("tpe", "random"),
    "search.trials": _whole(1),
    "search.objective": _choice("val/accuracy", "val/loss"),
    "search.random_trials": _whole(1),
    "search.prune": TRUTH,
    "search.prune_after_trials": _whole(1),
    "search.prune_after_epochs": _whole(1),
}

BACKPROP_RULES: dict[str, Rule] = {
    "expression": Rule(lambda value: isinstance(value, str), "a text"),
    "values": Rule(lambda value: isinstance(value, dict), "a group of settings, such as values.x=1"),
    "sample": _whole(0),
    "print": _choice("terminal", "markdown", "latex", "dot"),
    "draw": TRUTH,
    "tensorboard": TRUTH,
    **{setting: RULES[setting] for setting in ("seed", "threads", "run_dir")},
    "data.root": CLASS_RULES[OUR_DATA]["root"],
}


def rules_of(config: Mapping[str, Any] | DictConfig) -> dict[str, Rule]:
    """The rules of a run's settings: those of every run, and those of the classes that it builds."""
    rules = dict(RULES)
    for group in BUILT:
        node = config.get(group)
        target = str(node.get("_target_")) if isinstance(node, Mapping | DictConfig) else ""
        fitting = [name for name in CLASS_RULES if target == name or (name.endswith(".") and target.startswith(name))]
        arguments = CLASS_RULES[max(fitting, key=len)] if fitting else {}  # schedulers lie under torch.optim too
        rules |= {f"{group}.{argument}": rule for argument, rule in arguments.items()}
    return rules
