/** The metrics of several runs, kept up to date while a run is live, and as columns over all steps. */
import { useEffect, useState } from "preact/hooks";
import type { Metrics, Run, RunSummary } from "../api";
import { source } from "../source";

export type History = ReadonlyMap<string, Metrics>; // by run

const EVERY_S = 3;

export function useMetrics(runs: RunSummary[]): { history: History; error: string } {
  const [history, setHistory] = useState<History>(new Map());
  const [error, setError] = useState("");
  const key = runs.map((run) => `${run.id}${run.live}`).join();
  useEffect(() => {
    let current = true;
    const held = new Map(runs.flatMap((run) => (history.has(run.id) ? [[run.id, history.get(run.id)!] as const] : [])));
    const read = async (some: RunSummary[]) => {
      try {
        const changes = await Promise.all(some.map((run) => newer(run.id, held.get(run.id))));
        changes.forEach((metrics, i) => metrics && held.set(some[i]!.id, metrics));
        if (current && (some === runs || changes.some(Boolean))) setHistory(new Map(held));
        if (current) setError("");
      } catch (failed) {
        if (current) setError((failed as Error).message);
      }
    };
    void read(runs);
    const live = runs.filter((run) => run.live);
    const timer = live.length ? setInterval(() => document.hidden || void read(live), EVERY_S * 1000) : 0;
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [key]);
  return { history, error };
}

/** What is known with what came since; null where nothing did. */
async function newer(run: string, known: Metrics | undefined): Promise<Metrics | null> {
  const after = known?.steps.at(-1);
  const answer = await source.metrics(run, after);
  if (!known || after === undefined || answer.generation !== known.generation) return answer;
  if (!answer.steps.length) return null;
  return joined(known, answer);
}

export function joined(known: Metrics, more: Metrics): Metrics {
  const series: Metrics["series"] = {};
  for (const name of new Set([...Object.keys(known.series), ...Object.keys(more.series)])) {
    series[name] = [...(known.series[name] ?? known.steps.map(() => null)), ...(more.series[name] ?? more.steps.map(() => null))];
  }
  return { ...more, steps: [...known.steps, ...more.steps], series };
}

const DURING = /^validation-(\d+)$/; // names of evaluations that were made during training, and their step

export const isValidation = (name: string) => DURING.test(name);

/** The histories with `metric`: the accuracy of the evaluations that were made during training. */
export function withValidations(history: History, abouts: Run[], metric: string): History {
  const added = new Map(history);
  for (const { id, evaluations } of abouts) {
    const metrics = history.get(id);
    const at = new Map(evaluations.flatMap(({ name, accuracy }) => (isValidation(name) && accuracy ? [[Number(DURING.exec(name)![1]), accuracy.mean]] : [])));
    if (metrics && at.size) added.set(id, { ...metrics, series: { ...metrics.series, [metric]: metrics.steps.map((step) => at.get(step) ?? null) } });
  }
  return added;
}

/** All steps that some run has, ascending. */
export function allSteps(history: History): number[] {
  return [...new Set([...history.values()].flatMap((metrics) => metrics.steps))].sort((a, b) => a - b);
}

/**
 * One metric of one run over `steps`; each value the mean over the last `window` measured steps. `missing`: what a step of the run
 * without the metric has.
 */
export function column(metrics: Metrics | undefined, name: string, steps: number[], window: number, missing: number | null = null): (number | null)[] {
  const values = metrics?.series[name];
  if (!metrics || (!values && missing === null)) return steps.map(() => null);
  const at = new Map(metrics.steps.map((step, i) => [step, values?.[i] ?? missing]));
  const last: number[] = [];
  return steps.map((step) => {
    const value = at.get(step) ?? null;
    if (value === null) return null;
    last.push(value);
    if (last.length > window) last.shift();
    return last.reduce((a, b) => a + b, 0) / last.length;
  });
}
