"""TensorBoard, changed where no flag of it would do: names of runs, repeated pictures, order of curves and columns."""

import os
from typing import Any

from tensorboard import default, program
from tensorboard.data.provider import Run, RunTagFilter
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

EVENTS = "tensorboard"  # in a run directory, the directory of the event files
TRAINING_IMAGES = "run/training_images"


def shown(run: str) -> str:
    """TensorBoard names a run for the directory of its event files; this names it for the run directory. The directory
    that is served is `.`."""
    return "." if run == EVENTS else run.removesuffix(f"/{EVENTS}")


class Provider:
    """TensorBoard's data, with the names that `shown` gives. Training images that several runs share are listed for the
    first of these runs only."""

    def __init__(self, provider: Any) -> None:
        self.provider = provider
        self.images: dict[str, bytes] = {}  # run -> its training images

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.provider, name)

        def renamed(ctx: Any = None, **keywords: Any) -> Any:
            asked = keywords.get("run_tag_filter")
            if asked is not None and asked.runs is not None:
                runs = {*asked.runs, *(EVENTS if run == "." else f"{run}/{EVENTS}" for run in asked.runs)}
                keywords["run_tag_filter"] = RunTagFilter(runs, asked.tags)
            found = method(ctx, **keywords)
            if name == "list_runs":
                names = {shown(run.run_name): run for run in found}
                return [Run(run.run_id, name, run.start_time) for name, run in names.items()]
            if not isinstance(found, dict):
                return found
            answer: dict[str, dict[str, Any]] = {}
            for run, tags in found.items():
                answer.setdefault(shown(run), {}).update(tags)
            return answer

        return renamed

    def list_blob_sequences(self, ctx: Any = None, **keywords: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.__getattr__("list_blob_sequences")(ctx, **keywords)
        runs = sorted(run for run, tags in found.items() if TRAINING_IMAGES in tags)
        if new := [run for run in runs if run not in self.images]:
            keywords["run_tag_filter"] = RunTagFilter(new, [TRAINING_IMAGES])
            for run, tags in self.read_blob_sequences(ctx, downsample=1, **keywords).items():
                picture = tags[TRAINING_IMAGES][0].values[-1]  # after its width and height
                self.images[run] = self.provider.read_blob(ctx, blob_key=picture.blob_key)
        seen: set[bytes | None] = set()
        for run in runs:
            if (picture := self.images.get(run)) in seen:
                del found[run][TRAINING_IMAGES]
            elif picture is not None:
                seen.add(picture)
        return found


class TensorBoard(program.TensorBoard):  # type: ignore[misc]  # which has no types
    def _make_data_provider(self) -> tuple[Any, Any]:
        provider, multiplexer = super()._make_data_provider()
        return Provider(provider), multiplexer


class TagsInOrder(CustomScalarsPlugin):  # type: ignore[misc]
    """Gives each run's tags in order: TensorBoard marks a chart's first curve ◼ and its second ◆. The data server's
    order differs between runs, and ◼ would be training in one run and validation in another."""

    def scalars_impl(self, *arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().scalars_impl(*arguments)
        return found | {"tag_to_events": dict(sorted(found["tag_to_events"].items()))}


class VariedFirst(Context):  # type: ignore[misc]
    """Begins the HPARAMS table with the settings that differ between the runs, then in the order in which a run wrote
    them. TensorBoard shows five columns at first, and by itself sorts them by name."""

    def experiment_from_metadata(self, ctx: Any, experiment: str, metrics: bool, runs: Any, *rest: Any) -> Any:
        found = super().experiment_from_metadata(ctx, experiment, metrics, runs, *rest)
        if (written := self._find_experiment_tag(runs, metrics)) is not None:
            order = [info.name for info in written.hparam_infos]
            infos = [info for info in self._compute_hparam_infos(runs) if info.name in order]
            found.ClearField("hparam_infos")
            found.hparam_infos.extend(sorted(infos, key=lambda info: (not info.differs, order.index(info.name))))
        return found


class Hyperparameters(HParamsPlugin):  # type: ignore[misc]
    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._context = VariedFirst(context)


class Projector(ProjectorPlugin):  # type: ignore[misc]
    """Looks for a run's embeddings where its event files are, not in the directory that it is named for."""

    def _read_latest_config_files(self, run_path_pairs: list[tuple[str, str]]) -> Any:
        inner = [(run, os.path.join(path, EVENTS)) for run, path in run_path_pairs]
        found = [(run, place) for run, place in inner if os.path.isdir(place)]
        return super()._read_latest_config_files([*run_path_pairs, *found])


_CHANGED = {CustomScalarsPlugin: TagsInOrder, HParamsPlugin: Hyperparameters, ProjectorPlugin: Projector}
PLUGINS = [_CHANGED.get(plugin, plugin) for plugin in default.get_plugins()]
