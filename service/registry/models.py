"""The models that are served. In: bundle folders. Out: `Model`s by name, replaced whole when a bundle is reloaded.

A request takes its `Model` once and keeps it, so a reload never mixes two versions in one answer. A new version is
checked and warmed before it takes the old one's place; a bad one leaves the old one serving.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from service.bundle import Bundle, BundleError, load_bundle, load_bundles
from service.errors import UnknownModel
from service.inference.engine import batch_of
from service.inference.sessions import DeviceError, session_maker
from service.process.ending import end_for_dead_engine
from service.process.memory import Replaced
from service.registry.loads import LoadHangs, Loads
from service.registry.model import Model, OpenCompanion, open_model
from service.registry.served_stamps import ServedStamps, Stamp, stamp_of
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.threads import NoThread

log = logging.getLogger(__name__)

T = TypeVar("T")

_RESTART_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # the last one again and again while the device is missing
_MODEL_OF_QUERY = re.compile(rb"(?:^|&)model=([^&]*)")
_FOLLOW_OTHER_WORKERS_S = 0.5
_AGAIN_S = 10.0  # after a look that hung or failed, or a reload that did not lead to what another worker serves


@dataclass(frozen=True)
class Reload:
    """One that is under way, and what the folder's manifest was when it began."""

    stamp: Stamp | None
    task: asyncio.Task[Model]


class Models:
    """Every model of the process. Opening is synchronous (at start); the rest belongs to the event loop."""

    def __init__(
        self, settings: Settings, metrics: Metrics, companions: Mapping[str, OpenCompanion] | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._open_companion = companions or {}
        self._by_name: dict[str, Model] = {}
        self._folders: dict[str, Path] = {}
        self._reloads: dict[str, Reload] = {}
        self._looks: dict[str, Loads[Stamp | None]] = {}  # one each, so that no folder waits for another's disk
        self._looking: dict[str, asyncio.Lock] = {}  # a thread at a time, however many ask for a reload
        self._dead: dict[str, Bundle] = {}  # of each name the last that has died
        self._stamps: dict[str, Stamp | None] = {}  # of each folder's manifest when it was last read
        self._served: dict[str, Stamp | None] = {}  # of the manifest that is served
        self._told = ServedStamps(metrics.shared_folder)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replaced = Replaced(settings.request_deadline_ms / 1e3 + 1)
        self._loads = Loads[Model](
            settings.reload_deadline_s, lambda model: model.close("It was loaded too late."), self._replaced.add
        )
        stamps = [stamp_of(folder) for folder in settings.bundles]  # before they are read: a later change is seen
        bundles = load_bundles(settings.bundles)
        self._maker = session_maker(settings, bundles[0].graph_path("decoder"))
        for bundle, stamp in zip(bundles, stamps, strict=True):
            self._folders[bundle.manifest.name] = bundle.folder
            self._looks[bundle.manifest.name] = Loads(settings.reload_deadline_s)
            self._looking[bundle.manifest.name] = asyncio.Lock()
            self._stamps[bundle.manifest.name] = stamp
            self._put(self._open(bundle), stamp)
        self.default = bundles[0].manifest.name

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    def get(self, name: str | None) -> Model:
        """The model of this name, None: the default one. Raises UnknownModel."""
        model = self._by_name.get(self.default if name is None else name)
        if model is None:
            raise UnknownModel(f"No model {(name or '')[:80]!r}; there are {', '.join(self._by_name)}.")
        return model

    def of_prefix(self, prefix: bytes) -> Model | None:
        """The model whose version begins with these bytes, if it is served: the one that a container needs."""
        return next((model for model in self if model.codec.prefix == prefix), None)

    @property
    def enough(self) -> int:
        """`Queues.enough`: half a run, while the other half is made ready; a run where an engine waits for one."""
        batch = batch_of(self._settings, self._maker)
        return batch if self._settings.max_wait_ms else max(1, batch // 2)

    def in_hand(self, query: bytes) -> int:
        """As `Queues.in_hand`; of a model that is not served, whose request is refused for that, nothing is."""
        named = _MODEL_OF_QUERY.search(query) if query else None
        model = self._by_name.get(unquote_plus(named[1].decode("latin-1")) if named else self.default)
        return model.engine.in_hand if model is not None else 0

    def give_up_waiting(self) -> None:
        """Refuse what waits."""
        for model in self:
            model.engine.give_up_waiting()

    def why_not_ready(self) -> str | None:
        """The first model that takes no work, and why; None if all do."""
        for name, model in self._by_name.items():
            if reason := model.why_not_ready():
                return f"{name}: {reason}"
        return None

    async def reload(self, name: str) -> Model:
        """Load the folder of `name` again and swap it in when it is checked and warm.

        There is one reload of a model at a time: whoever asks meanwhile waits for the same one, unless the manifest has
        changed since it began. It goes on when nobody waits any more.

        Raises:
            UnknownModel: no such model. BundleError: the folder is not a good bundle. DeviceError: the device is not
            what the settings ask for. LoadHangs: it takes too long. NoThread: there is none for it. CountsError: its
            traffic's counts have no file. In each case the old one goes on serving.
        """
        self.get(name)
        stamp = await self._look(name)
        running = self._reloads.get(name)
        if running is not None and running.stamp != stamp:  # it may have read what was there before
            await asyncio.wait([running.task])
            stamp = await self._look(name)
            running = self._reloads.get(name)  # if there is one, it has begun since
        if running is None:
            self._stamps[name] = stamp
            running = self._reloads[name] = Reload(stamp, self._spawn(self._load_and_swap(name, stamp)))
            running.task.add_done_callback(_heard)
        return await asyncio.shield(running.task)

    def start(self) -> None:
        """Watch the folders, where that is asked for, and what other workers serve, where there are some."""
        if self._settings.watch_bundles_s:
            for name in self._folders:  # one that does not answer keeps no other from its reload
                self._spawn(self._watch(name, self._settings.watch_bundles_s))
        if self._told.shared:
            for name in self._folders:
                self._spawn(self._follow(name))

    def close(self, reason: str) -> None:
        """End what runs for the models, and the models; `reason` is for those whose requests are not answered."""
        for task in self._tasks:
            task.cancel()
        self._loads.close()
        for model in self._by_name.values():
            model.close(reason)

    async def _load_and_swap(self, name: str, stamp: Stamp | None) -> Model:
        self._replaced.free_early()  # else each reload would keep one more of them
        try:
            model = await self._loads.run(partial(self._load, name))
        except Exception as error:
            self._metrics.reloads.labels(name, "failed").inc()
            log.error("reload of %s failed: %s", name, error)
            self._replaced.add()  # what was opened of the new one
            raise
        finally:
            del self._reloads[name]
        self._put(model, stamp)
        self._metrics.reloads.labels(name, "swapped").inc()
        log.info("model %s is now version %s", name, model.manifest.version[:12])
        self._replaced.add()
        return model

    def _load(self, name: str) -> Model:
        if self._opens_at_start_only:
            raise BundleError(f"{name} is opened at start only, because of VQSERVE_CUDA_GRAPHS: restart to serve it")
        bundle = load_bundle(self._folders[name])
        if bundle.manifest.name != name:
            raise BundleError(f"{bundle.folder} is now named {bundle.manifest.name}, not {name}: restart to serve it")
        return self._open(bundle)

    @property
    def _opens_at_start_only(self) -> bool:
        """While one thread captures a CUDA graph as onnxruntime does, CUDA fails what other threads ask of it."""
        return self._settings.cuda_graphs and self._maker.resident

    def _open(self, bundle: Bundle) -> Model:
        on_death = partial(self._on_death, bundle)
        return open_model(bundle, self._settings, self._maker, self._metrics, self._open_companion, on_death)

    def _put(self, model: Model, stamp: Stamp | None) -> None:
        name = model.manifest.name
        self._by_name[name], self._served[name] = model, stamp
        if stamp is not None:
            self._told.tell(name, stamp)
        self._metrics.models[name] = model.metrics
        slots = sum(companion.slots for companion in model.companions.values())
        self._metrics.generation.of(name).slots.set(slots)  # also 0: without the series no autoscaler scales down
        model.metrics.traffic.forget_other_versions()

    def _on_death(self, bundle: Bundle) -> None:
        """The engine or a companion of this bundle has failed on known input. Where one fault ends both, as that of
        their device does, it is one death."""
        name = bundle.manifest.name
        if self._dead.get(name) is bundle:
            return
        self._dead[name] = bundle
        self._metrics.engine_deaths.labels(name).inc()
        served = self._by_name.get(name)
        if served is None or served.bundle is not bundle:
            return  # another version, or this one is still being opened, whose caller hears of it
        if self._settings.on_engine_death == "exit" or self._opens_at_start_only:
            end_for_dead_engine()
        else:
            self._spawn(self._restart(bundle))

    async def _restart(self, bundle: Bundle) -> None:
        """Reload until it works, or until somebody else has. Not ready meanwhile, and /readyz says why.

        A device that is missing would be missing to a new process too, so there is no end to waiting for it. Any other
        fault may lie in this process, as a CUDA context that a kernel has broken does: at last the process ends. It
        ends at once where a load hangs, which nothing else would end.
        """
        name, faults = bundle.manifest.name, 0
        for pause_s in chain(_RESTART_PAUSES_S, repeat(_RESTART_PAUSES_S[-1])):
            await asyncio.sleep(pause_s)
            if self._by_name[name].bundle is not bundle:
                return
            try:
                await self.reload(name)
            except DeviceError as error:
                self._by_name[name].engine.close(f"The engine has failed and cannot be restarted: {error}.")
            except LoadHangs:
                break
            except Exception:  # noqa: BLE001 - whatever keeps the engine down, the next attempt may succeed
                faults += 1
                if faults == len(_RESTART_PAUSES_S):
                    break
            else:
                return
        log.critical("%s could not be restarted; the process ends", name)
        end_for_dead_engine()

    async def _look(self, name: str) -> Stamp | None:
        """The stamp of the model's folder. Raises LoadHangs where its disk does not answer, or NoThread. Both count
        as a failed reload: who reloads by a watch would hear of neither."""
        try:
            async with self._looking[name]:
                return await self._looks[name].run(partial(stamp_of, self._folders[name]))
        except (LoadHangs, NoThread) as error:
            self._metrics.reloads.labels(name, "failed").inc()
            what = "does not answer" if isinstance(error, LoadHangs) else "cannot be looked at"
            log.error("the folder of %s %s: %s", name, what, error)
            raise

    async def _watch(self, name: str, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            with suppress(Exception):  # a bad bundle must not end the watch; it is logged, the old one serves on
                try:
                    if await self._look(name) not in (self._stamps[name], None):
                        await self.reload(name)
                except LoadHangs:  # the log has a line for each
                    await asyncio.sleep(min(_AGAIN_S, self._settings.reload_deadline_s))

    async def _follow(self, name: str) -> None:
        """Serve what another worker has begun to serve: it was asked to, or has seen the folder first."""
        while True:
            await asyncio.sleep(_FOLLOW_OTHER_WORKERS_S)
            told = self._told.told(name)
            if told in (self._served[name], None):
                if name in self._told.unread:
                    await asyncio.sleep(_AGAIN_S)
                continue
            with suppress(Exception):  # as above
                await self.reload(name)
            if told != self._served[name]:
                await asyncio.sleep(_AGAIN_S)

    def _spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _heard(task: asyncio.Task[Model]) -> None:
    """A failure is logged and counted in any case; asyncio need not complain where nobody has waited for it."""
    if not task.cancelled():
        task.exception()
