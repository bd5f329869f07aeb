/**
 * Every answer of the viewer's server: the contract between `arpo.view` (Python) and the page. Tests hold real answers against this
 * file, so a field that is added or renamed here must be added or renamed there.
 *
 * All requests are GET, all answers JSON (UTF-8). Numbers that could not be measured are null, never 0 and never NaN.
 * Texts that a model, a tool or a web page wrote are plain text: show them as text nodes, never as HTML.
 * An error is answered with status 400, 401, 403, 404 or 500 and {"error": what is wrong, in words}.
 *
 *   /api/runs                                   Runs
 *   /api/runs/{run}?against={run}               Run
 *   /api/runs/{run}/metrics?after=STEP          Metrics
 *   /api/runs/{run}/trees?{TreesQuery}          Trees
 *   /api/runs/{run}/tree?step=&task=            Tree
 *   /api/runs/{run}/tokens?step=&task=&node=    Tokens            of one segment; node is a Node's id
 *   /api/runs/{run}/entropy?windows=4           Entropy
 *   /api/runs/{run}/evaluation?name=&{SamplesQuery}     Evaluation
 *   /api/runs/{run}/sample?name=&id=&sample=    Sample
 *
 * `run` is RunSummary.id (letters, digits, `-`, `_`, `.`). Every value in a query is URI-encoded: task ids hold slashes.
 */

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** The numbers of the children from the prompt on, "2.0.1"; the prompt is "-". */
export type Place = string;

// ---------------------------------------------------------------------------------------------------------------- runs

export interface Runs {
  version: string; // of arpo
  runs: RunSummary[]; // in the order of the command line
}

export interface RunSummary {
  id: string;
  name: string;
  path: string; // as given on the command line
  kind: "training" | "evaluation"; // evaluation: a folder that holds evaluations alone (no steps, no trees)
  state: string; // "finished", "still going", "cut off before its end", ...
  live: boolean; // a process writes it now: ask again every few seconds
  steps: number; // finished ones
  trees: boolean; // whether there are event logs
  rule: string | null; // "paper", "none" (GRPO), "fixed", ...
  leaves: number | null; // of the recipe, a tree
  seed: number | null;
  evaluations: string[];
}

export interface Run {
  id: string;
  name: string;
  recipe: { [key: string]: Json }; // resolved, nested
  differences: RecipeDifference[] | null; // to ?against=; null without it
  environment: Json[]; // one entry a start
  events: RunEvent[]; // in order of time
  evaluations: EvaluationSummary[];
  summary: { [key: string]: Json }; // summary.json
}

export interface RecipeDifference {
  key: string; // "rollout.rule.beta"
  here: Json; // null also where the key is missing
  there: Json;
}

export interface RunEvent {
  step: number | null;
  time: number | null; // seconds since 1970
  level: "info" | "warning";
  kind: "note" | "warning" | "checkpoint" | "skipped" | "resumed" | "started" | "evaluation";
  text: string;
}

// ------------------------------------------------------------------------------------------------------------- metrics

/** Without `after`, or where `generation` is another than that of the answer before, all steps: forget what you have. */
export interface Metrics {
  generation: string; // changes where what was sent earlier no longer holds (a resumed run did steps again)
  live: boolean;
  steps: number[]; // above `after`
  series: { [name: string]: (number | null)[] }; // by step; names as in metrics.jsonl ("reward/leaves", "seconds/update")
}

// --------------------------------------------------------------------------------------------------------------- trees

/** Every value is optional; several hold together. */
export interface TreesQuery {
  step?: number;
  min_step?: number;
  max_step?: number;
  family?: string;
  ending?: string; // some leaf ended so
  tool?: string; // some call of it
  error?: string; // some outcome of this status that is not "ok": "error", "timeout", "refused", "unavailable"; "any"
  helped?: -1 | 0 | 1;
  min_reward?: number; // of the mean over leaves
  max_reward?: number;
  branches?: number; // at least
  q?: string; // in question or task id, whatever the case
  sort?: TreeSort; // "-" in front: descending. Default: step, then the order of the log
  offset?: number;
  limit?: number; // default 100, at most 1000
}

type TreeColumn = "step" | "task" | "family" | "leaves" | "reward_mean" | "reward_max" | "reward_min" | "calls" | "errors" | "branches" | "tokens" | "helped";
export type TreeSort = TreeColumn | `-${TreeColumn}`;

export interface Trees {
  total: number; // that fit the query
  rows: TreeRow[];
  indexed: { steps: number; of: number }; // steps read so far: while fewer than all, the table is not complete yet; ask again
  reward_mean: number | null; // of the trees that fit, over those with a reward
  branching: Branching; // in how many trees that fit everything asked but `helped`
  facets: { steps: number[]; families: string[]; tools: string[]; endings: string[]; errors: string[] }; // of the whole run
}

export interface Branching {
  helped: number;
  hurt: number;
  same: number;
  unbranched: number; // or without a reward on one side
}

export interface TreeRow {
  step: number;
  task: string;
  family: string;
  question: string; // at most 300 characters
  leaves: number;
  reward_mean: number | null; // over scored leaves
  reward_max: number | null;
  reward_min: number | null;
  tools: string[];
  calls: number;
  errors: number; // outcomes that are not "ok"
  statuses: string[]; // of those, their kinds
  endings: { [ending: string]: number };
  branches: number; // siblings granted
  refused: number; // siblings that the rule wanted and the budget did not give
  /** Over the tree's forks, the line of each best sibling against the line of its probe: 1 some sibling won, -1 some lost and none won, 0 all equal; null: no fork, or no reward. */
  helped: -1 | 0 | 1 | null;
  tokens: number; // written by the policy
  trained: boolean; // has credit
}

// ---------------------------------------------------------------------------------------------------------- one tree

export interface Tree {
  step: number;
  task: { id: string; question: string; answers: string[]; family: string };
  rule: { [key: string]: Json }; // {"rule": "paper", "alpha": 0.5, ...}
  growth: { leaves: number; roots: number | null; head: number; seed: number }; // budget M, planned roots N (null: by pilot), k
  nodes: Node[]; // preorder: a parent stands before its children
  leaves: Leaf[]; // preorder
  tokenizer: boolean; // whether `tokens` can give pieces
  failures: string[]; // of the world
}

interface NodeBase {
  id: string; // "-" the prompt, "t0.1" the turn at 0.1, "o0.1" the observation after it
  place: Place;
  parent: string | null; // a Node's id
  depth: number; // results before it
  tokens: number;
  text: string;
  leaves: number; // at or below it
}

export type Node = PromptNode | TurnNode | ObservationNode;

export interface PromptNode extends NodeBase {
  kind: "prompt";
}

export interface TurnNode extends NodeBase {
  kind: "turn";
  role: "root" | "probe" | "sibling" | "fill";
  finish: "stop" | "length";
  head: number | null; // mean entropy of its first k tokens, nats
  entropy: number | null; // mean over all its tokens
  calls: { tool: string; arguments: { [name: string]: Json }; error: string; mended: string }[]; // as written; error: why it is malformed; mended: the slip that was read all the same
  credit: { low: number; high: number; mean: number } | null; // over the leaves below; null: not trained
  reward: number | null; // of this turn alone, by the environment or by the reward; null: none
  discarded: Outcome[]; // of its calls, never shown to the model
}

export interface ObservationNode extends NodeBase {
  kind: "observation";
  outcomes: Outcome[]; // in call order
  before: { tokens: number; text: string } | null; // the context that was rewritten here, `text` being what the model reads instead; null: it goes on
  decision: Decision | null; // at the tip after it; null: none was made
}

export interface Outcome {
  tool: string;
  arguments: { [name: string]: Json };
  status: "ok" | "error" | "timeout" | "refused" | "unavailable";
  text: string; // all of it, also what was cut
  seconds: number;
  cut: boolean; // the model saw only the beginning
  cached: boolean;
  shared: boolean; // of an equal call under way
  fault: string;
  attempts: number;
  cost: number;
}

export interface Decision {
  rise: number | null; // nats; null where the world failed before the head was known
  rise_low: number | null; // bounds; equal to rise where the engine is exact
  rise_high: number | null;
  head: number | null;
  baseline: number | null;
  terms: { [name: string]: number | null }; // the rule's own numbers: "probability", "tau", "draw", ...
  score: number | null;
  wanted: number;
  granted: number;
  refused: number;
  flips: boolean; // would differ between the bounds
  waited: boolean;
  budget: number | null; // leaves still to give when it was made; null: not known
  said: string; // "rise +0.34 (0.58 after 0.24), probability 0.5063 > tau 0.5, 5 leaves left: 1 branch"
  /** Reward of the probe's line and of each granted sibling's (null: no reward). A line goes on through probes. */
  probe: number | null;
  siblings: (number | null)[];
}

export interface Leaf {
  place: Place;
  node: string; // id of its turn; of the node where it would have begun if the engine failed before it wrote anything
  ending: "finished" | "turn_length" | "branch_length" | "call_limit" | "engine_failed" | "tool_failed" | "replay_miss" | "environment_failed" | "context_changed";
  reward: number | null;
  accuracy: number | null;
  parts: { [name: string]: number };
  reasons: { [name: string]: string }; // what explains the score, such as a judge's words
  answer: string | null;
  advantage: number | null;
  tokens: number; // of the whole branch, prompt included
  calls: number; // outcomes on its path
  probe_line: boolean; // as the policy would have written it without branching
  unscored?: boolean; // nobody asked for a reward: an agent in use
}

/** One segment token by token. Every array is as long as `ids`; those that only turns have are null elsewhere. */
export interface Tokens {
  node: string;
  ids: number[];
  pieces: string[] | null; // joined: the text. A character of several tokens stands at its last one, the others are "". null: no tokenizer
  logprobs: number[] | null; // by the engine, at the sampling temperature
  entropies: number[] | null; // nats
  low: number[] | null; // bounds of the entropies; null: exact
  high: number[] | null;
  learner_logprobs: number[] | null; // by the learner before the update; null: not trained. ratio = exp(learner - engine)
  advantages: number[] | null; // mean credit of the leaves below, for each token; null: not trained
  versions: [number, number][]; // (weight version, tokens) spans, in order
}

// ------------------------------------------------------------------------------------------------------------- entropy

export interface Entropy {
  indexed: { steps: number; of: number };
  tools: string[];
  windows: { first: number; last: number }[]; // steps
  curves: EntropyCurve[];
  calibration: Calibration[]; // by rise, ascending
  rises: { low: number; high: number; tips: number; wanted: number; granted: number }[]; // histogram over all tips
  payoffs: Payoff[]; // a window each
}

/** How many granted siblings' lines ended better than their probe's, equal, and worse. */
export interface Against {
  n: number; // pairs
  better: number;
  equal: number;
  worse: number;
  share: number | null; // better / n
  share_low: number | null; // 95 % (Wilson)
  share_high: number | null;
}

/** Of the steps from first to last. */
export interface Payoff extends Against {
  first: number;
  last: number;
}

/** Of the forks whose rise lies in [low, high). */
export interface Calibration extends Against {
  low: number;
  high: number;
}

/** Mean entropy by position: of probes after a tool's result (positions from 0), of the turn before (negative), of first turns. */
export interface EntropyCurve {
  around: "result" | "first"; // first: the first turns of roots and fills, positions from 0
  tool: string | null; // null: all tools together
  window: number | null; // index into windows; null: the whole run
  positions: number[];
  n: number[];
  mean: number[];
  low: number[]; // 95 % interval
  high: number[];
}

// --------------------------------------------------------------------------------------------------------- evaluations

export interface Estimate {
  mean: number;
  low: number | null; // 95 %; null where one value alone was measured
  high: number | null;
  n: number;
}

export interface EvaluationSummary {
  name: string;
  model: string;
  questions: number;
  answers: number; // so far, while it goes on
  failed: number; // of them ended by the world: they count as wrong
  accuracy: Estimate | null;
  reward: Estimate | null;
  settings: { [key: string]: Json };
}

export interface SamplesQuery {
  family?: string;
  level?: string;
  ending?: string;
  correct?: 0 | 1;
  failed?: 0 | 1;
  q?: string; // in question, id or answer
  sort?: string; // "id", "family", "reward", "accuracy", "calls", "tokens", "ending"; "-" in front: descending
  offset?: number;
  limit?: number;
}

export interface Evaluation extends EvaluationSummary {
  pass_at: { [k: string]: Estimate };
  by_family: { [family: string]: Estimate };
  by_level: { [level: string]: Estimate };
  metric: string; // that accuracy was taken by; "": the recipe's reward
  missing: number; // answers that were asked for and are not there
  measures: { [measure: string]: Estimate }; // further ones; empty where only accuracy is known
  costs: { [cost: string]: Estimate }; // of an answer
  by_budget: { [calls: string]: Estimate }; // accuracy where only answers with at most so many calls count
  failures: { [reason: string]: number }; // of answers that the world ended
  damage: string[]; // lines of the log that are no answers
  facets: { families: string[]; levels: string[]; endings: string[] };
  total: number;
  rows: SampleRow[];
}

export interface SampleRow {
  id: string;
  sample: number;
  family: string;
  level: string;
  question: string;
  answer: string | null;
  gold: string[];
  correct: boolean;
  accuracy: number;
  reward: number;
  calls: number;
  tokens: number;
  ending: string;
  failed: boolean; // ended by the world
}

export interface Sample extends SampleRow {
  transcript: string; // may be empty
  failure: string; // why, where it failed
  measures: { [measure: string]: number }; // beside accuracy
  seconds: number | null; // from the question to the score
  cost: number | null;
  tree: Tree | null; // where the evaluation was recorded in full
}

// -------------------------------------------------------------------------------------------------------------- export

/**
 * What an exported page holds in <script type="application/json" id="arpo-data">; without that element the page asks the server.
 * The embedded source answers queries on `trees` and `evaluation` from all rows by itself.
 */
export interface Embedded {
  exported: string; // ISO time
  note: string; // what was left out, in words; "" where nothing was
  runs: Runs;
  run: { [run: string]: Run };
  metrics: { [run: string]: Metrics };
  trees: { [run: string]: Trees }; // all rows
  tree: { [run_step_task: string]: Tree }; // key: JSON.stringify([run, step, task])
  tokens: { [run_step_task_node: string]: Tokens }; // key: JSON.stringify([run, step, task, node])
  entropy: { [run: string]: Entropy };
  evaluation: { [run_name: string]: Evaluation }; // all rows; key: JSON.stringify([run, name])
  sample: { [run_name_id_sample: string]: Sample }; // key: JSON.stringify([run, name, id, sample])
  start: { run: string; step: number; task: string } | null; // the tree to open first
}
