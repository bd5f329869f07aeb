/** One step in figures: the most important ones first, all of them on demand, and the way to its trees. */
import type { RunSummary } from "../api";
import { number, percent } from "../format";
import { link } from "../route";
import { runColour } from "./Charts";
import { KEY_METRICS } from "./figures";
import type { History } from "./metrics";

export function StepCard({ runs, history, step }: { runs: RunSummary[]; history: History; step: number }) {
  const value = (run: RunSummary, name: string) => {
    const metrics = history.get(run.id);
    return metrics?.series[name]?.[metrics.steps.indexOf(step)] ?? null;
  };
  const shown = KEY_METRICS.filter(([name]) => runs.some((run) => value(run, name) !== null));
  const names = [...new Set(runs.flatMap((run) => Object.keys(history.get(run.id)?.series ?? {})))].filter((name) => runs.some((run) => value(run, name) !== null));
  const several = runs.length > 1;
  return (
    <section class="card">
      <h2>Step {step}</h2>
      <div class="wide" tabIndex={0} role="region" aria-label={`Figures of step ${step}`}>
        <table class="figures cards" role="table">
          <thead role="rowgroup">
            <tr role="row">
              {several && <td role="cell" />}
              {shown.map(([name, label]) => <th scope="col" role="columnheader" key={name}>{label}</th>)}
              <td role="cell" />
            </tr>
          </thead>
          <tbody role="rowgroup">
            {runs.map((run, i) => (
              <tr key={run.id} role="row">
                {several && <th scope="row" role="rowheader"><i class="dot" style={{ background: `var(${runColour(i)})` }} /> {run.id}</th>}
                {shown.map(([name, label, unit]) => <td key={name} role="cell" data-label={label}>{unit === "share" ? percent(value(run, name)) : number(value(run, name))}</td>)}
                <td role="cell">{run.trees && <a href={link(run.id, "trees", { step })}>its trees</a>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <details>
        <summary>All {names.length} figures of this step</summary>
        <div class="wide" tabIndex={0} role="region" aria-label="All figures of the step">
          <table class="keys">
            {several && <thead><tr><th scope="col">metric</th>{runs.map((run) => <th scope="col" key={run.id}>{run.id}</th>)}</tr></thead>}
            <tbody>
              {names.map((name) => <tr key={name}><th scope="row">{name}</th>{runs.map((run) => <td key={run.id} class="num">{number(value(run, name), 4)}</td>)}</tr>)}
            </tbody>
          </table>
        </div>
      </details>
    </section>
  );
}
