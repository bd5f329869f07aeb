/**
 * Answers from the data inside an exported page. Does what the server does with a query: filter, sort, cut.
 * What was left out of the export is an error that says so.
 */
import type { Embedded, Evaluation, SampleRow, SamplesQuery, TreeRow, Trees, TreesQuery } from "./api";
import { SourceError, type Source } from "./source";

export function embeddedSource(held: Embedded): Source {
  const from = <T>(answers: { [key: string]: T }, what: string, ...key: (string | number)[]): Promise<T> => {
    const name = key.length === 1 ? String(key[0]) : JSON.stringify(key);
    const found = Object.hasOwn(answers, name) ? answers[name] : undefined;
    return found === undefined ? Promise.reject(new SourceError(`This exported page does not hold ${what}. ${held.note}`)) : Promise.resolve(found);
  };
  return {
    exported: { time: held.exported, note: held.note, start: held.start },
    runs: () => Promise.resolve(held.runs),
    run: async (run, against) => {
      const found = await from(held.run, "this run", run);
      return { ...found, differences: against ? differences(found.recipe, (await from(held.run, "that run", against)).recipe) : null };
    },
    metrics: async (run, after) => {
      const found = await from(held.metrics, "the run's metrics", run);
      return after === undefined ? found : { ...found, steps: [], series: {} };
    },
    trees: async (run, query) => chosenTrees(await from(held.trees, "the run's trees", run), query),
    tree: (run, step, task) => from(held.tree, "this tree", run, step, task),
    tokens: (run, step, task, node) => from(held.tokens, "the tokens of this segment", run, step, task, node),
    entropy: (run) => from(held.entropy, "the run's entropies", run),
    evaluation: async (run, name, query) => chosenSamples(await from(held.evaluation, "this evaluation", run, name), query),
    sample: (run, name, id, sample) => from(held.sample, "this sample", run, name, id, sample),
  };
}

function chosenTrees(all: Trees, query: TreesQuery): Trees {
  const { step, min_step, max_step, family, ending, tool, error, helped, min_reward, max_reward, branches } = query;
  const fits = (row: TreeRow) =>
    (step === undefined || row.step === step) &&
    (min_step === undefined || row.step >= min_step) &&
    (max_step === undefined || row.step <= max_step) &&
    (!family || row.family === family) &&
    (!ending || (row.endings[ending] ?? 0) > 0) &&
    (!tool || row.tools.includes(tool)) &&
    (!error || (error === "any" ? row.errors > 0 : row.statuses.includes(error))) &&
    (min_reward === undefined || (row.reward_mean !== null && row.reward_mean >= min_reward)) &&
    (max_reward === undefined || (row.reward_mean !== null && row.reward_mean <= max_reward)) &&
    (branches === undefined || row.branches >= branches) &&
    holds(query.q, row.question, row.task);
  const others = all.rows.filter(fits);
  const rows = sorted(others.filter((row) => helped === undefined || row.helped === helped), query.sort);
  const rewards = rows.flatMap((row) => (row.reward_mean === null ? [] : [row.reward_mean]));
  const judged = (as: TreeRow["helped"]) => others.filter((row) => row.helped === as).length;
  return {
    ...all,
    total: rows.length,
    rows: cut(rows, query),
    reward_mean: rewards.length ? rewards.reduce((a, b) => a + b) / rewards.length : null,
    branching: { helped: judged(1), hurt: judged(-1), same: judged(0), unbranched: judged(null) },
  };
}

function chosenSamples(all: Evaluation, query: SamplesQuery): Evaluation {
  const fits = (row: SampleRow) =>
    (!query.family || row.family === query.family) &&
    (!query.level || row.level === query.level) &&
    (!query.ending || row.ending === query.ending) &&
    (query.correct === undefined || row.correct === (query.correct === 1)) &&
    (query.failed === undefined || row.failed === (query.failed === 1)) &&
    holds(query.q, row.question, row.id, row.answer ?? "");
  const rows = sorted(all.rows.filter(fits), query.sort);
  return { ...all, total: rows.length, rows: cut(rows, query) };
}

const holds = (words: string | undefined, ...texts: string[]) => !words || texts.some((text) => text.toLowerCase().includes(words.toLowerCase()));

const cut = <T>(rows: T[], { offset = 0, limit = 100 }: { offset?: number; limit?: number }) => rows.slice(offset, offset + limit);

/** By a column, "-" in front: descending; what was not measured stands last both ways. */
function sorted<T extends object>(rows: T[], sort = ""): T[] {
  if (!sort) return rows;
  const down = sort.startsWith("-");
  const value = (row: T) => (row as Record<string, unknown>)[sort.replace(/^-/, "")] as number | string | null;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === y) return 0;
    if (x === null || y === null) return x === null ? 1 : -1;
    return (x < y ? -1 : 1) * (down ? -1 : 1);
  });
}

type Recipe = { [key: string]: unknown };

/** Keys, dotted, whose values differ. */
function differences(here: Recipe, there: Recipe) {
  const [a, b] = [flat(here), flat(there)];
  return [...new Set([...a.keys(), ...b.keys()])]
    .filter((key) => JSON.stringify(a.get(key) ?? null) !== JSON.stringify(b.get(key) ?? null))
    .sort()
    .map((key) => ({ key, here: (a.get(key) ?? null) as never, there: (b.get(key) ?? null) as never }));
}

function flat(recipe: Recipe, prefix = ""): Map<string, unknown> {
  const found = new Map<string, unknown>();
  for (const [key, value] of Object.entries(recipe)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) flat(value as Recipe, `${prefix}${key}.`).forEach((v, k) => found.set(k, v));
    else found.set(prefix + key, value);
  }
  return found;
}
