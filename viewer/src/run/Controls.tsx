/** What the charts show: which runs, which steps, smoothed or not; and the step that is looked at. */
import type { RunSummary } from "../api";
import type { Query } from "../route";
import { runColour } from "./Charts";

interface ControlsProps {
  run: RunSummary;
  runs: RunSummary[];
  drawn: RunSummary[];
  steps: number[];
  step: number | null;
  range: [number, number] | null;
  query: Query;
  set: (changes: Query) => void;
  onRange: (range: [number, number] | null) => void;
  marks: number; // events that the charts mark
}

export function Controls({ run, runs, drawn, steps, step, range, query, set, onRange, marks }: ControlsProps) {
  const others = runs.filter((other) => other.id !== run.id && other.kind === "training");
  const ids = drawn.slice(1).map((other) => other.id);
  const first = steps[0] ?? 1;
  const last = steps.at(-1) ?? 1;
  const at = step === null ? steps.length - 1 : steps.indexOf(step);
  const bound = (which: 0 | 1, value: number) => {
    const next: [number, number] = [range?.[0] ?? first, range?.[1] ?? last];
    next[which] = Math.min(last, Math.max(first, value || first));
    if (next[0] < next[1]) onRange(next[0] === first && next[1] === last ? null : next);
  };
  return (
    <section class="card controls" aria-label="What the charts show">
      <label class="slider">
        Step <output>{steps[at] ?? "–"}</output>
        <input type="range" min={0} max={Math.max(0, steps.length - 1)} value={Math.max(0, at)} disabled={steps.length < 2} aria-valuetext={`step ${steps[at]}`}
          onInput={(event) => set({ step: String(steps[Number(event.currentTarget.value)]) })} />
      </label>
      <span class="pair">
        <label>Steps <input type="number" min={first} max={last} value={range?.[0] ?? first} onChange={(event) => bound(0, event.currentTarget.valueAsNumber)} /></label>
        <label>to <input type="number" min={first} max={last} value={range?.[1] ?? last} onChange={(event) => bound(1, event.currentTarget.valueAsNumber)} /></label>
        {range && <button type="button" onClick={() => onRange(null)}>All steps</button>}
      </span>
      <label>Mean over <select value={query["mean"] ?? "1"} onChange={(event) => set({ mean: event.currentTarget.value === "1" ? "" : event.currentTarget.value })}>
        {["1", "3", "5", "10", "25", "50"].map((n) => <option key={n} value={n}>{n === "1" ? "each step" : `${n} steps`}</option>)}
      </select></label>
      {others.length > 0 && (
        <fieldset>
          <legend>Overlay</legend>
          {others.map((other) => {
            const i = ids.indexOf(other.id);
            return (
              <label key={other.id}>
                <input type="checkbox" checked={i >= 0} onChange={() => set({ with: (i >= 0 ? ids.filter((id) => id !== other.id) : [...ids, other.id]).join() })} />
                <i class="dot" style={{ background: i >= 0 ? `var(${runColour(drawn.indexOf(other))})` : "var(--line)" }} /> {other.name}
              </label>
            );
          })}
        </fieldset>
      )}
      <p class="soft hint">
        Every chart goes over steps: drag to zoom, double-click to see all, click to choose one; a name below it hides its line.
        {marks > 0 && " Dotted lines: where the run was resumed or an update was skipped."}
      </p>
    </section>
  );
}
