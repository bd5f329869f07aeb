/** Which metrics are drawn together, and what has to be said about them: the page's twin of arpo.report.figures. */

/**
 * A metric and its label; or every metric under a prefix (it ends with "/"), all that begin with a name (it ends with "*"), or a
 * distribution: name_p50, name_p99, name_min ... (it ends with "%").
 */
export type Wanted = [metric: string, label: string] | string;

export interface Figure {
  title: string;
  unit?: "share" | "nats" | "tokens" | "seconds" | "versions";
  stack?: boolean; // parts of a whole, one on the other
  counts?: boolean; // a metric that a step lacks is 0 there
  zero?: boolean; // the axis begins at 0
  quiet?: boolean; // not drawn while all of it is 0
  light?: number; // lines from this one on are context: drawn thin
  series: Wanted[];
}

export interface Group {
  title: string;
  note?: string;
  figures: Figure[];
}

/** The accuracy of evaluations during training, by their step: no metric of a step, so it is put beside them. */
export const VALIDATION = "validation/accuracy";

const means = (name: string): Wanted[] => [[`${name}/probe_lines`, "probe lines"], [`${name}/leaves`, "all leaves"], [`${name}/fork_weighted`, "fork-weighted"]];

export const GROUPS: Group[] = [
  {
    title: "Reward",
    note: "Probe lines are plain samples of the policy: compare methods by them. All leaves over-weight paths on which the policy was unsure.",
    figures: [
      { title: "Reward", light: 1, series: means("reward") },
      { title: "Accuracy", unit: "share", light: 1, series: means("accuracy") },
      { title: "Held-out accuracy", unit: "share", series: [[VALIDATION, "validation"]] },
      { title: "Rates", unit: "share", series: [["rates/mixed_groups", "mixed groups"], ["rates/format", "right format"], ["rates/tool_use", "used a tool"]] },
      { title: "Parts of the reward", series: ["parts/"] },
    ],
  },
  {
    title: "Branching",
    note: "Rise: entropy of a turn's first tokens after a tool's result, less that of the branch's first turn. A wanted sibling is refused where the budget or its root's cap is used up.",
    figures: [
      { title: "Entropy of a turn's head", unit: "nats", series: [["entropy/rise", "rise"], ["entropy/after_tool", "after a result"], ["entropy/first", "first turn"]] },
      { title: "Siblings wanted", stack: true, series: [["decisions/granted", "granted"], ["decisions/refused", "refused"]] },
      { title: "Share of tips", unit: "share", zero: true, series: [["entropy/rise_positive", "rise above 0"], ["decisions/waited", "decision waited"], ["decisions/flips", "flips within bounds"]] },
    ],
  },
  {
    title: "Tools",
    note: "Inherited: calls on shared trunks, counted again for each leaf beyond the first. Sharing saved these.",
    figures: [
      { title: "Calls that the leaves rest on", stack: true, series: [["calls/executed", "executed"], ["calls/inherited", "inherited"], ["calls/cached", "from the cache"], ["calls/shared", "shared in flight"]] },
      { title: "Calls that the model wrote", zero: true, series: [["calls/asked", "all"], ["calls/mended", "read despite a slip"], ["calls/answered", "with a result"]] },
      { title: "Outcomes of calls", stack: true, counts: true, series: ["outcomes/"] },
      { title: "Failed calls by kind", stack: true, counts: true, series: ["faults/"] },
      { title: "Endings of branches", stack: true, counts: true, series: ["endings/"] },
      { title: "Seconds a call", unit: "seconds", zero: true, series: ["tools/seconds/"] },
    ],
  },
  {
    title: "Tokens",
    note: "Shared tokens did not have to be sampled again for further leaves. Flat: what training every leaf alone would cost.",
    figures: [
      { title: "Tokens that the leaves rest on", unit: "tokens", stack: true, series: [["tokens/generated", "generated"], ["tokens/shared", "shared"]] },
      { title: "Trained tokens", unit: "tokens", zero: true, series: [["tokens/trained_unique", "once each"], ["tokens/trained_flat", "flat"]] },
      { title: "Tokens through the learner", unit: "tokens", zero: true, series: [["tokens/forward_unique", "once each"], ["tokens/forward_flat", "flat"]] },
      { title: "Prompt tokens that the engine read", unit: "tokens", stack: true, series: [["engine/prefill_tokens", "computed"], ["engine/reused_tokens", "known"]] },
      { title: "Lengths", unit: "tokens", zero: true, series: [["lengths/branch", "branch"], ["lengths/branch_max", "longest branch"], ["lengths/turn", "turn"]] },
    ],
  },
  {
    title: "Learner",
    note: "Ratio: the policy being trained against that at the start of the step. Mismatch: engine against learner on the same tokens; a weight of 1 and a difference of 0 where they agree.",
    figures: [
      { title: "Importance ratio", series: ["train/ratio_%"] },
      { title: "Mismatch: weight", series: ["train/mismatch_weight_%"] },
      { title: "Mismatch: difference", unit: "nats", zero: true, series: [["train/mismatch_abs_mean", "mean"]] },
      { title: "Mismatch: KL estimate", unit: "nats", zero: true, series: [["train/mismatch_kl", "engine to learner"]] },
      { title: "Mismatch: truncated", unit: "share", zero: true, series: [["train/mismatch_truncated", "above the cap"]] },
      { title: "Staleness in versions", zero: true, series: [["staleness/mean", "mean"], ["staleness/max", "largest"]] },
      { title: "Mismatch: truncated weights", unit: "share", zero: true, series: ["train/mismatch_truncated*"] },
      { title: "Staleness", unit: "versions", zero: true, quiet: true, series: [["staleness/mean", "mean"], ["staleness/max", "largest"]] },
      { title: "Turns of several versions", unit: "share", zero: true, quiet: true, series: [["staleness/mixed", "share of turns"]] },
      { title: "Clipped", unit: "share", zero: true, series: ["train/clipped*"] },
      { title: "Entropy of trained tokens", unit: "nats", zero: true, series: [["train/entropy", "entropy"]] },
      { title: "Divergence", unit: "nats", series: [["train/kl_old", "from the step's start"], ["train/kl_reference", "from the reference"], ["train/mismatch_kl", "learner from engine"]] },
      { title: "Loss", series: [["train/loss", "loss"]] },
      { title: "Gradient norm", zero: true, series: [["train/grad_norm", "norm"]] },
      { title: "Learning rate", zero: true, series: [["train/lr", "rate"]] },
    ],
  },
  {
    title: "Time",
    figures: [
      { title: "Seconds a step, by phase", unit: "seconds", stack: true, counts: true, series: ["seconds/"] },
    ],
  },
];

/** The wanted metrics that `present` has, with labels. seconds/step is the sum of the other seconds. */
export function found(wanted: Wanted[], present: ReadonlySet<string>): [metric: string, label: string][] {
  return wanted.flatMap((one) => {
    if (typeof one !== "string") return present.has(one[0]) ? [one] : [];
    const start = one.replace(/[*%]$/, "");
    const names = [...present].filter((name) => name.startsWith(start) && name !== "seconds/step");
    if (one.endsWith("%")) return spread(names, start);
    const usual = (name: string) => Number(!/\/(ok|finished)$/.test(name)); // these first: the rest lies on top of them
    return names.sort((a, b) => usual(a) - usual(b)).map((name): [string, string] => [name, words(name.slice(start.length)) || "all"]);
  });
}

const words = (name: string) => name.replace(/[_/]/g, " ").trim();
const ENDS: { [end in string]: [order: number, label: string] } = { p50: [-2, "median"], mean: [-1, "mean"], min: [0, "smallest"], max: [100, "largest"] };

/** Of a distribution, the middle first, then from the smallest to the largest. */
function spread(names: string[], start: string): [string, string][] {
  const known = names.flatMap((name): [string, number, string][] => {
    const end = name.slice(start.length);
    if (ENDS[end]) return [[name, ...ENDS[end]]];
    const at = /^p(\d\d)(\d*)$/.exec(end);
    return at ? [[name, Number(`${at[1]}.${at[2]}`), `${Number(at[1])}${at[2] && `.${at[2]}`} %`]] : [];
  });
  return known.sort((a, b) => a[1] - b[1]).map(([name, , label]) => [name, label]);
}

/** Metrics of today that are worth a look only when something is odd. */
const DETAILS =
  /^(reward\/std$|advantage\/|calls\/|groups\/|leaves\/|tasks\/|lengths\/|decisions\/|rates\/|tools\/seconds$|tokens\/|train\/(tokens|updates|skipped_updates|advantage_abs|mismatch_abs_max))/;
const ELSEWHERE = /^entropy_at\/|^seconds\/step$/; // the entropy page draws these

/**
 * Figures for the metrics that no group names, so that none is lost: by their names, those that belong together in one. `details`:
 * the known ones among them; `unknown`: what a newer arpo, or somebody's own code, has measured.
 */
export function others(present: ReadonlySet<string>): { details: Figure[]; unknown: Figure[] } {
  const drawn = new Set(GROUPS.flatMap((group) => group.figures.flatMap((figure) => found(figure.series, present).map(([name]) => name))));
  const families = new Map<string, string[]>();
  for (const name of [...present].sort()) {
    if (drawn.has(name) || ELSEWHERE.test(name)) continue;
    const family = name.replace(/[_/](p\d+|\d+|min|max|mean|median|std)$/, "");
    families.set(family, [...(families.get(family) ?? []), name]);
  }
  const figures = [...families].map(([family, names]): Figure => {
    const label = (name: string) => words(name.slice(family.length)) || words(name.split("/").at(-1)!);
    return { title: words(family.replace(/\//g, ", ")), series: names.map((name): Wanted => [name, label(name)]) };
  });
  const isDetail = (figure: Figure) => figure.series.every((one) => DETAILS.test(one[0]!));
  return { details: figures.filter(isDetail), unknown: figures.filter((figure) => !isDetail(figure)) };
}

/** What the line of figures of a step says first. */
export const KEY_METRICS: [metric: string, label: string, unit: "share" | "number" | "seconds"][] = [
  ["reward/probe_lines", "reward", "number"],
  ["accuracy/probe_lines", "accuracy", "share"],
  ["calls/a_leaf", "calls a leaf", "number"],
  ["decisions/granted", "branches", "number"],
  ["decisions/refused", "refused", "number"],
  ["entropy/rise", "rise", "number"],
  ["tokens/generated", "tokens generated", "number"],
  ["tokens/shared", "shared", "number"],
  ["tokens/trained_unique", "trained", "number"],
  ["seconds/step", "seconds", "seconds"],
];
