/** How training goes: charts over steps, other runs over them, the figures of one step, evaluations, recipe, events. */
import { useMemo, useState } from "preact/hooks";
import type { Run, RunSummary } from "../api";
import { Shown, useAnswer } from "../answer";
import { Interval } from "../interval";
import type { PageProps } from "../pages";
import { go, link, type Query } from "../route";
import { source } from "../source";
import { Charts, runColour } from "./Charts";
import { Controls } from "./Controls";
import { Events } from "./Events";
import { VALIDATION } from "./figures";
import { allSteps, isValidation, useMetrics, withValidations } from "./metrics";
import { Recipe } from "./Recipe";
import { StepCard } from "./StepCard";
import "./run.css";

const LIVE_S = 10;

export function RunPage({ run, runs, query }: PageProps) {
  const over = (query["with"] ?? "").split(",");
  const drawn = useMemo(() => [run, ...runs.filter((other) => other.id !== run.id && over.includes(other.id))], [run, runs, query["with"]]);
  const { history: measured, error } = useMetrics(drawn);
  const abouts = useAnswer(() => Promise.all(drawn.map((one) => source.run(one.id))), drawn.map((one) => one.id).join(), run.live ? LIVE_S : 0);
  const about = abouts.value?.[0] ?? null;
  const history = useMemo(() => withValidations(measured, abouts.value ?? [], VALIDATION), [measured, abouts.value]);
  const [range, setRange] = useState<[number, number] | null>(null);
  const steps = useMemo(() => allSteps(history), [history]);
  const step = steps.includes(Number(query["step"])) ? Number(query["step"]) : null;
  const set = (changes: Query) => go(link(run.id, "", { ...query, ...changes }), true);
  const onStep = (to: number) => set({ step: String(to) });
  const marks = useMemo(() => marked(about), [about]);
  return (
    <>
      {error && <p class="notice error" role="alert">{error}</p>}
      <Controls {...{ run, runs, drawn, steps, step, range, query, set, onRange: setRange }} marks={marks.length} />
      {steps.length === 0 && !error && <p class="notice" role="status">{history.size ? "No step is finished yet, or none is part of this file." : "Reading …"}</p>}
      {steps.length > 0 && <StepCard runs={drawn} history={history} step={step ?? steps.at(-1)!} />}
      {abouts.value && <Evaluations runs={drawn} abouts={abouts.value} />}
      {steps.length > 0 && <Charts runs={drawn} history={history} window={Number(query["mean"] ?? 1)} shared={{ step, range, marks, onStep, onRange: setRange }} />}
      <Shown answer={abouts}>
        {([value]) => (
          <>
            <Recipe run={run} runs={runs} recipe={value!.recipe} />
            <Events events={value!.events} onStep={onStep} />
          </>
        )}
      </Shown>
    </>
  );
}

/** Steps to mark in the charts: where the run was taken up again, and where a step was skipped. */
function marked(about: Run | null): number[] {
  return (about?.events ?? []).flatMap((event) => (event.step !== null && ["resumed", "skipped"].includes(event.kind) ? [event.step] : []));
}

/** Held-out accuracy, of every run that is drawn: whether training paid off, in one place. */
function Evaluations({ runs, abouts }: { runs: RunSummary[]; abouts: Run[] }) {
  const all = [...new Set(abouts.flatMap((about) => about.evaluations.map((evaluation) => evaluation.name)))];
  const during = all.filter(isValidation); // a chart shows them
  const names = all.filter((name) => !isValidation(name) || (during.length === all.length && name === during.at(-1)));
  if (!names.length) return null;
  const several = abouts.length > 1;
  const shown = runs.filter((run) => abouts.some((about) => about.id === run.id)); // an answer to fewer runs stays until the next is here
  const of = (run: RunSummary, name: string) => abouts.find((about) => about.id === run.id)?.evaluations.find((evaluation) => evaluation.name === name);
  return (
    <section class="card">
      <h2>Evaluations <span class="soft small-print">accuracy with its 95 % interval{during.length > 0 && `; ${during.length} during training are in the chart of held-out accuracy`}</span></h2>
      <div class="wide" tabIndex={0} role="region" aria-label="Evaluations">
        <table class="evaluations">
          <thead>
            <tr>
              <th scope="col">name</th><th scope="col" class="num">questions</th>
              {shown.map((run) => <th scope="col" key={run.id}>{several ? <><i class="dot" style={{ background: `var(${runColour(runs.indexOf(run))})` }} /> {run.id}</> : "accuracy"}</th>)}
            </tr>
          </thead>
          <tbody>
            {names.map((name) => (
              <tr key={name}>
                <th scope="row">{of(runs[0]!, name) ? <a href={link(runs[0]!.id, "evaluation", { name })}>{name}</a> : name}</th>
                <td class="num">{Math.max(...abouts.map((about) => about.evaluations.find((evaluation) => evaluation.name === name)?.questions ?? 0))}</td>
                {shown.map((run) => <td key={run.id}>{of(run, name) ? <Interval estimate={of(run, name)!.accuracy} /> : <span class="soft">–</span>}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
