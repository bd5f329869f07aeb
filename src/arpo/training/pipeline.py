"""A whole run: model, cold start, evaluation, training, evaluation again, report.

Knows the order of the stages and the run's minutes. Refuses to know how a stage works.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from arpo.assembly.components import Components, build_components, hold_model
from arpo.assembly.resolve import resolve_run
from arpo.assembly.served import refuse_training
from arpo.cluster.ranks import RayRanks, learner_ranks
from arpo.display.progress import Progress
from arpo.display.terminal import Console
from arpo.errors import ArpoError, CheckpointError
from arpo.evaluation.questions import EvalSpec, eval_specs
from arpo.evaluation.results import EvalResults, read_evaluations
from arpo.evaluation.run_eval import evaluate_tasks
from arpo.import_path import refuse_while_imported
from arpo.learner.losses import check_surrogate
from arpo.learner.policy import choose_packing
from arpo.learner.rank import torch_rank
from arpo.learner.ranks import Ranks, TorchRanks, follow
from arpo.models.loading import learner_model
from arpo.recipe.run import RunConfig, plain
from arpo.report.run_report import write_report
from arpo.report.summary import accuracies, print_closing
from arpo.rollout.agent import check_prompts
from arpo.runs import checkpoint
from arpo.runs.checkpoint import Checkpoint, TrainState
from arpo.runs.copies import RunCopy
from arpo.runs.disk_space import check_space, space_for
from arpo.runs.environment import describe_environment
from arpo.runs.fingerprint import check_resumption, keep_fingerprint
from arpo.runs.folder import RunFolder, move_aside
from arpo.runs.shutdown import run_to_end, written_down
from arpo.sft.cache import SFTCache
from arpo.sft.stage import run_cold_start
from arpo.sft.traces import read_traces
from arpo.tasks import Task
from arpo.tools.usage import in_words
from arpo.training.callbacks import Callback, Callbacks, StepFunction
from arpo.training.loop import Trainer
from arpo.training.plan import CLOSING_S, MIN_STEPS
from arpo.training.planning import more_cold_start, note_shortened, plan_run, unfit, unplanned
from arpo.training.preflight import Prepared, at_its_end, prepare, with_kept_tasks
from arpo.training.recovery import Recovery, finished_after
from arpo.training.trackers import Trackers, check_trackers
from arpo.yaml_positions import dump


def train(
    run: RunConfig | str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    again: bool = False,
    accept: Sequence[str] = (),
    override: bool = False,
    callbacks: Sequence[Callback | StepFunction] = (),
    console: Console | None = None,
) -> Path:
    """Carry out `run` in the folder `out` (default: the one that the run names) and return the folder's path.

    `run` is a `Run`, or names one as the command line does: a recipe's path, a bundled recipe, a run's folder.
    `callbacks` are called after steps, evaluations and checkpoints; a function with (step, metrics) after each step.

    With `resume` the run in that folder goes on from its newest whole checkpoint (a finished one is left as it is);
    `accept` names what may have changed since: parts (`data`, `reward`, ...) or keys of the recipe. With `again` an
    earlier run there is moved aside first. A run that by arithmetic cannot fit into this machine's memory is refused,
    unless `override`. Ctrl-C and SIGTERM save and raise KeyboardInterrupt. Raises ConfigError and other ArpoErrors. The
    results so far stay; the summary says how the run ended: finished, stopped (by its gates), interrupted or failed.

    Under torchrun the first process carries it out, and the others hold shards of the model that it trains; they end
    with this function, so that a script goes on in the first alone.
    """
    refuse_while_imported("arpo.train")
    if follow(torch_rank):
        raise SystemExit  # what a script does after the training is for rank 0 to do
    run, out = resolve_run(run, None if out is None else Path(out), resume=resume)
    folder_path = out or run.folder
    original, run = run, with_kept_tasks(run, folder_path)
    console = console or Console(soft_wrap=True)
    if resume and at_its_end(run, folder_path):
        console.print(f"this run is finished: {folder_path}")
        return folder_path
    refuse_training(run)
    check_trackers(run.train.trackers)
    copy = RunCopy(folder_path, run.train.copy_to) if run.train.copy_to else None
    prepared = prepare(original, resume=resume, override=override)
    parts = prepared.fingerprint(run)
    changed = check_resumption(folder_path, parts, accept) if resume else []
    if again and (aside := move_aside(folder_path)):
        console.print(f"the earlier run is kept in {aside}")
    recipe = dump(plain(run.model_copy(update={"out": str(folder_path)})))
    environment = {**describe_environment(seed=run.seed), "isolation": prepared.setting.isolation}
    with (
        learner_ranks(run.cluster, run.model, folder=folder_path, tell=console.print, vllm=run.engine.vllm) as ranks,
        RunFolder.create(folder_path, recipe, environment, resume=resume) as folder,
        written_down(folder, console),
    ):
        prepared.keep_given_tasks(original, folder.path)
        keep_fingerprint(folder, parts, accept, changed)
        try:
            pipeline = _Pipeline(run, prepared, folder, console, callbacks, ranks, copy, does_again=not changed)
            run_to_end(pipeline.carry_out(recipe))
        except KeyboardInterrupt:
            if isinstance(ranks, TorchRanks):
                ranks.check()  # torchrun ends this process by a signal where another one is gone
            raise
    return folder_path


class _Pipeline:
    def __init__(
        self,
        run: RunConfig,
        prepared: Prepared,
        folder: RunFolder,
        console: Console,
        callbacks: Sequence[Callback | StepFunction],
        ranks: Ranks | None,
        copy: RunCopy | None,
        *,
        does_again: bool,
    ) -> None:
        """`does_again`: finished steps that came after the last checkpoint are not sampled anew."""
        self.run, self.prepared, self.folder, self.console = run, prepared, folder, console
        self.callbacks: Callback = Callbacks(callbacks)
        self.run_copy = copy
        self.ranks = ranks  # several learner ranks, of which this process drives; None: it learns alone
        self.does_again, self.finished = does_again, list[TrainState]()  # after the checkpoint, to be done again
        earlier = folder.summary()
        self.unplanned = unplanned(run, folder)  # as the recipe says; `plan` cuts `run` down
        self.seconds: dict[str, float] = dict(earlier.get("seconds", {}))
        self.cache = SFTCache(run)
        self.tool_gateway = prepared.setting.tool_gateway
        self.tool_gateway.tell = self.say
        self.tool_gateway.keep(folder.path)
        self.saved = self._checkpoint()
        known = [*([self.saved.state] if self.saved else ()), *self.finished]
        if known:  # a process that was killed wrote no seconds of its training
            self.seconds["training"] = max(self.seconds.get("training", 0.0), known[-1].seconds)
        self.spent_before = sum(self.seconds.values())  # in earlier starts of a resumed run
        self.seconds["model"] = self.seconds.get("model", 0.0) + time.monotonic() - prepared.began

    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from; moves away what was written after it."""
        saved, passed = checkpoint.newest(self.folder.path / "checkpoints")
        for wrong in passed:
            self.say(f"checkpoint passed over: {wrong}", level="warning")
        step = saved.state.step if saved else 0
        if self.does_again:
            self.finished = finished_after(self.folder, step)
            step += len(self.finished)
        if cut := self.folder.cut_back(step):
            self.say(f"resuming after step {step}; what was written after it is kept in {cut}")
        return saved

    async def carry_out(self, recipe: str) -> None:
        """Run all stages. `recipe`: the text from which a later start resumes."""
        tasks = self.prepared.tasks
        held_out = tasks[self.run.evaluation.split]
        for text, level in self.prepared.notes:
            self.say(text, level)
        with self.phase("model"):
            check_surrogate(self.run.loss)
            weights = self.saved.model if self.saved else self.cache.model
            components = build_components(
                self.run, self.prepared.source, weights, setting=self.prepared.setting, ranks=self.ranks
            )
            if components.note:
                self.say(components.note, level="warning")
            self.folder.keep_tokenizer(components.tokenizer)
            check_prompts(
                components.agent,
                chain(tasks["train"], tasks["validation"][: self.run.train.eval_limit]),
                self.run.rollout,
            )
            self.look_at_space(components, len(tasks["train"]))
            choose_packing(components.model, self.run.train.packing)  # refuses a model that cannot be trained
            if self.run.plan == "auto" and self.run.train.minutes is not None and not self.saved:
                components = await self.plan(components, held_out)
            else:
                self.folder.goes_on_with(recipe)
        try:
            if self.saved:
                before = self._earlier("before")
                await components.agent.engine.update_weights(components.weights(self.saved.state.step))
            else:
                if self.run.cold_start and self.cache.model is None:
                    components = await self.cold_start(components)
                else:
                    await components.agent.engine.update_weights(components.weights(0))
                if self.cache.bundled and self.cache.model == self.cache.bundled:
                    self.say("cold start: the one that comes with arpo (cold_start.bundled=false trains it here)")
                before = await self.measure(components, held_out, "before", cached=True)
            self.folder.write_summary(**accuracies(before, {}))
            facts = await self.learn(components, tasks, before)
            trained = facts["model_step"]  # 0: it is still the model from before
            after = await self.measure(components, held_out, "after", step=trained) if trained else {}
        finally:
            await components.agent.engine.close()
        self.close(before, after, facts)
        await self.copy()
        if not facts["model_step"]:
            raise ArpoError(
                f"not one of {facts['steps_planned']} steps was trained: what comes before them took the time "
                f"(train.minutes: {self.run.train.minutes}). Raise it, or ask fewer questions (evaluation.limit, "
                "evaluation.greedy_limit). A cold start is kept: the next run starts from it"
            )

    def look_at_space(self, components: Components, num_tasks: int) -> None:
        done = self.saved.state.step if self.saved else 0
        space = space_for(self.run, components.model, self.folder.path, self.run.train.num_steps(num_tasks) - done)
        if warning := check_space(space, self.folder.path):
            self.say(warning, level="warning")

    async def plan(self, components: Components, held_out: Sequence[Task]) -> Components:
        """Cut the run down to what this machine can do within its minutes."""
        cold_start = self.run.cold_start is not None and self.cache.model is None
        planned = await plan_run(
            components, self.prepared.tasks["train"], held_out, cold_start=cold_start, spent_s=self.spent_s
        )
        self.say(planned.text)
        return self.adopt(planned.run, components)

    def adopt(self, run: RunConfig, components: Components) -> Components:
        """Go on with `run`, and write it as the run's recipe."""
        self.run = run.model_copy(update={"out": str(self.folder.path)})
        self.cache = SFTCache(self.run)
        note_shortened(self.folder, self.run, self.unplanned)
        self.folder.write_recipe(dump(plain(self.run)))
        keep_fingerprint(self.folder, self.prepared.fingerprint(self.run))
        return replace(components, run=self.run)

    async def cold_start(self, components: Components) -> Components:
        """Fine-tune on traces and keep the result in the cache. A cold start that the plan shortened goes on while the
        policy does not keep to the format."""
        self.cache.check_writable()
        assert self.unplanned.cold_start
        with self.phase("cold_start"):
            done, shortened = 0, self.run.cold_start != self.unplanned.cold_start
            num_traces = len(read_traces(self.unplanned.cold_start, self.unplanned.data.train)) if shortened else 0
            while True:
                self.say(
                    f"cold start: {await run_cold_start(components, console=self.console, tell=self.say, done=done)}"
                )
                more = more_cold_start(self.run, self.unplanned.cold_start, num_traces) if shortened else None
                if more is None or not (failing := await unfit(components, self.prepared.tasks["train"])):
                    break
                self.say(f"the cold start was too short and goes on ({'; '.join(map(str, failing))})")
                longer, done = more
                components = self.adopt(longer, components)
            self.cache.keep(components.save_model, components.tokenizer)
        return components

    async def measure(
        self, components: Components, tasks: Sequence[Task], when: str, *, step: int = 0, cached: bool = False
    ) -> dict[str, EvalResults]:
        """Sampled and greedy accuracy on held-out tasks, under the names `when` and `when-greedy`."""
        measured: dict[str, EvalResults] = {}
        split, model = self.run.evaluation.split, f"{self.run.name}, step {step}" if step else self.run.name
        with self.phase(f"evaluation_{when}"):
            for spec in eval_specs(self.run.evaluation, when) if tasks else ():
                folder = self.folder.path / "evaluation" / spec.name
                results = self.cache.evaluation(spec, folder) if cached else None
                if results is None:
                    check_prompts(components.agent, tasks[: spec.questions], self.run.rollout)
                    results = await evaluate_tasks(
                        components, tasks, spec, folder, model=model, split=split, console=self.console
                    )
                    if cached:
                        self.keep_evaluation(spec, folder)
                questions = f"{len(results.by_question)} held-out questions"
                self.say(f"{spec.name}: accuracy {results.accuracy.percent} on {questions}")
                for warning in results.warnings:
                    self.say(f"{spec.name}: {warning}", level="warning")
                if results.tool_calls:
                    self.say(f"{spec.name}: {in_words(results.tool_calls)}")
                measured[spec.name] = results
                self.callbacks.on_evaluation(step, results)
        return measured

    async def copy(self) -> None:
        """Copy the run to where `train.copy_to` says. That it fails ends no run: the next time copies what is
        missing."""
        if self.run_copy and (problem := await asyncio.to_thread(self.run_copy.try_push)):
            self.say(problem, level="warning")

    def keep_evaluation(self, spec: EvalSpec, folder: Path) -> None:
        """For other runs: that it fails harms none of this one's."""
        try:
            self.cache.keep_evaluation(spec, folder)
        except OSError as error:
            self.say(f"not kept in the cache ({error.strerror}: {self.cache.path}): what was measured", level="warning")

    def _earlier(self, when: str) -> dict[str, EvalResults]:
        """What an earlier start of this run measured."""
        names = {spec.name for spec in eval_specs(self.run.evaluation, when)}
        return {name: results for name, results in read_evaluations(self.folder.path).items() if name in names}

    async def learn(
        self, components: Components, tasks: dict[str, list[Task]], before: dict[str, EvalResults]
    ) -> dict[str, Any]:
        """The loop, with what it needs set up, and the weights that came out best handed to the engine. Returns facts
        for the summary."""
        config, saved = self.run.train, self.saved.state if self.saved else TrainState()
        num_steps = config.num_steps(len(tasks["train"]))
        recovery = Recovery(
            components,
            self.prepared.source,
            self.cache.model,
            self.folder,
            num_updates=num_steps * config.updates_per_step,
            say=self.say,
        )
        learner = recovery.learner(self.saved)
        state = await recovery.do_again(learner, saved, self.finished) if self.finished else saved
        minutes = None if config.minutes is None else config.minutes - self.spent_s / 60
        # Earlier starts may have logged steps that are done again.
        earlier = saved.step if (self.folder.path / "tensorboard").exists() else None
        with (
            self.phase("training"),
            Progress(
                num_steps, minutes=minutes, done=state.step, title=self.run.name, console=self.console
            ) as progress,
            Trackers(
                self.folder.path,
                config.trackers,
                settings=plain(self.run),
                resumed_after=earlier,
                tell=partial(self.say, level="warning"),
            ) as trackers,
        ):
            for line in self.folder.metrics() if self.finished else ():
                if line["step"] > saved.step:
                    known = {name: value for name, value in line.items() if name != "step" and value is not None}
                    trackers.log(known, line["step"])
            trainer = Trainer(
                components,
                learner,
                self.folder,
                tasks["train"],
                tasks["validation"],
                state=state,
                num_steps=num_steps,
                progress=progress,
                trackers=trackers,
                min_steps=MIN_STEPS if self.unplanned.plan else 0,
                reserve_s=CLOSING_S,  # the evaluation's seconds may be those of a slower day: its tokens are not
                last_tokens=sum(results.tokens_written for results in before.values()),
                callbacks=self.callbacks,
                copy=self.copy,
                recover=recovery.recover if isinstance(self.ranks, RayRanks) else None,
                saved=saved,
            )
            state = await trainer.train()
        step = await self.take_best(components, state)
        return {"steps_planned": num_steps, "reason": trainer.ended_early, "model_step": step}

    async def take_best(self, components: Components, state: TrainState) -> int:
        """Hand the checkpoint with the best validation to the engine, where that is not the last step. Returns the step
        of the engine's weights."""
        if state.best_step in (0, state.step):
            return state.step
        path = checkpoint.path_of(self.folder.path / "checkpoints", state.best_step)
        try:
            best = checkpoint.open_checkpoint(path)
        except CheckpointError as error:
            self.say(f"the best checkpoint cannot be used ({error}): going on with the last", level="warning")
            return state.step
        if self.ranks is not None:
            hold_model(self.ranks, self.run, self.prepared.source, best.model, components.dtype)
            of_best = components
        else:
            of_best = replace(components, model=learner_model(self.prepared.source, self.run.model, best.model))
        await components.agent.engine.update_weights(of_best.weights(state.best_step))
        self.say(f"going on with step {state.best_step}, the best in validation")
        return state.best_step

    def close(self, before: dict[str, EvalResults], after: dict[str, EvalResults], facts: dict[str, Any]) -> None:
        """Summary, report and the closing table. A run that trained nothing has failed, whatever it measured. It is
        finished when all is there: killed before, it is resumed to here."""
        status = "finished" if facts["model_step"] else "failed"
        history = self.folder.metrics()
        totals = {
            "tool_calls": "calls/answered",
            "tokens_generated": "tokens/generated",
            "tokens_trained": "train/tokens_trained",
        }
        self.folder.write_summary(
            steps=len(history),
            steps_without_update=sum(line.get("train/updates") == 0 for line in history),
            cold_start_key=self.cache.key,
            planned=self.run.plan == "made",
            seconds=self.seconds,
            **{name: sum(line.get(key) or 0 for line in history) for name, key in totals.items()},
            **accuracies(before, after),
            **facts,
        )
        with self.phase("report"):
            report = write_report(self.folder.path, state=status)
        self.folder.write_summary(status=status)
        print_closing(self.console, self.folder.summary(), report)

    @property
    def spent_s(self) -> float:
        """Seconds of the run so far, earlier starts included."""
        return self.spent_before + time.monotonic() - self.prepared.began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a stage; its seconds are written even when it fails."""
        begun, earlier = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(earlier + time.monotonic() - begun, 1)
            self.folder.write_summary(seconds=self.seconds)
            self.tool_gateway.write_down()

    def say(self, text: str, level: str = "info") -> None:
        self.folder.note(text, level=level)
        self.console.print(text if level == "info" else f"warning: {text}")
