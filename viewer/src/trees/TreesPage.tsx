/** All trees of a run: filtered, sorted, each a link to its tree. Every filter stands in the address. */
import { useEffect } from "preact/hooks";
import type { Trees, TreeRow } from "../api";
import { Shown, useAnswer } from "../answer";
import { number } from "../format";
import type { PageProps } from "../pages";
import { go, link, type Query } from "../route";
import { source } from "../source";
import { Choice, Choices, Find, NumberField, Paging, ROWS, Table, type Column } from "../table";
import { brief } from "../text";
import { packed, wanted } from "./query";

const AGAIN_S = 3;

export function TreesPage({ run, query }: PageProps) {
  const asked = wanted(query, ROWS);
  const key = `${run.id} ${JSON.stringify(asked)}`;
  const answer = useAnswer(() => source.trees(run.id, asked), key, 0);
  const incomplete = answer.value !== null && answer.value.indexed.steps < answer.value.indexed.of;
  useAnswerAgain(answer.again, incomplete || run.live);
  const set = (changes: Query) => go(link(run.id, "trees", { ...query, offset: "", ...changes }), true);
  return (
    <Shown answer={answer}>
      {(trees) => (
        <>
          <Filters {...{ trees, query, set }} />
          <Paging total={trees.total} offset={asked.offset ?? 0} noun="tree" onOffset={(offset) => set({ offset: String(offset) })}>
            <Branched {...{ trees, query, set }} />
          </Paging>
          {incomplete && <p class="notice" role="status">Still reading the log: {trees.indexed.steps} of {trees.indexed.of} steps so far.</p>}
          {trees.total === 0 && !incomplete && <p class="notice">{given(query) ? "No tree fits these choices." : "No tree is recorded yet."}</p>}
          {trees.total > 0 && (
            <Table label="Trees" columns={columns(run.id, packed(query))} rows={trees.rows} id={(row) => `${row.step} ${row.task}`} sort={query["sort"] ?? "step"} onSort={(sort) => set({ sort })} />
          )}
        </>
      )}
    </Shown>
  );
}

const given = (query: Query) => Object.entries(query).filter(([name, value]) => !["sort", "offset"].includes(name) && value).length;

function Filters({ trees, query, set }: { trees: Trees; query: Query; set: (changes: Query) => void }) {
  const { steps, families, tools, endings, errors } = trees.facets;
  const errorKinds: [string, string][] = errors.length ? [["any", "any error"], ...errors.map((kind): [string, string] => [kind, brief(kind, 40)])] : [];
  const oneStep = (changes: Query) => set({ ...changes, min_step: "", max_step: "" });
  const someSteps = (changes: Query) => set({ ...changes, step: "" });
  const none = () => set(Object.fromEntries(Object.keys(query).map((name) => [name, name === "sort" ? query[name]! : ""])));
  return (
    <Choices label="Which trees" given={given(query)}>
      <Choice name="step" label="Step" values={steps.map(String)} query={query} set={oneStep} />
      <span class="pair">
        <NumberField name="min_step" label="Steps" step={1} placeholder={steps[0]} query={query} set={someSteps} />
        <NumberField name="max_step" label="to" step={1} placeholder={steps.at(-1)} query={query} set={someSteps} />
      </span>
      <Choice name="helped" label="Branching" values={HELPED_CHOICES} {...{ query, set }} />
      <Choice name="family" label="Family" values={families} {...{ query, set }} />
      <Choice name="tool" label="Tool" values={tools} {...{ query, set }} />
      <Choice name="error" label="Failed calls" values={errorKinds} {...{ query, set }} />
      <Choice name="ending" label="Ending" values={endings} {...{ query, set }} />
      <NumberField name="branches" label="Branches ≥" step={1} {...{ query, set }} />
      <span class="pair">
        <NumberField name="min_reward" label="Reward" step={0.1} {...{ query, set }} />
        <NumberField name="max_reward" label="to" step={0.1} {...{ query, set }} />
      </span>
      <Find placeholder="question or task" {...{ query, set }} />
      {given(query) > 0 && <button type="button" onClick={none}>All trees</button>}
    </Choices>
  );
}

const HELPED_CHOICES: [string, string][] = [["1", "helped"], ["-1", "hurt"], ["0", "made no difference"]];

/** How branching did in the trees that fit: each a button that keeps those alone. */
function Branched({ trees: { branching, reward_mean }, query, set }: { trees: Trees; query: Query; set: (changes: Query) => void }) {
  const parts: [keyof typeof HELPED, number][] = [["1", branching.helped], ["-1", branching.hurt], ["0", branching.same]];
  return (
    <span class="tally">
      {reward_mean !== null && <span>mean reward <b>{number(reward_mean, 2)}</b></span>}
      {parts.map(([value, n]) => {
        const [tone, said, title] = HELPED[value];
        const on = query["helped"] === value;
        return (
          <button key={value} type="button" aria-pressed={on} title={`${title}: keep these alone`} disabled={!n && !on} onClick={() => set({ helped: on ? "" : value })}>
            <span class={tone}>{said}</span> {n.toLocaleString("en")}
          </button>
        );
      })}
      <span class="soft">no branch: {branching.unbranched.toLocaleString("en")}</span>
    </span>
  );
}

const HELPED = {
  "1": ["good", "▲ helped", "some sibling ended better than its probe"],
  "-1": ["bad", "▼ hurt", "some sibling ended worse than its probe, none better"],
  "0": ["soft", "= same", "siblings ended like their probes"],
} as const;

/** `from`: what was chosen, for the way back and to the neighbours. */
function columns(run: string, from: string): Column<TreeRow>[] {
  const tree = (row: TreeRow) => link(run, "tree", { step: row.step, task: row.task, from });
  return [
    { key: "step", label: "step", number: true, cell: (row) => row.step },
    { key: "task", label: "task", cell: (row) => <><a href={tree(row)}>{brief(row.question) || brief(row.task)}</a><br /><span class="soft mono">{brief(row.task, 60)}</span></> },
    { key: "reward_mean", label: "reward", title: "mean over leaves, and from the worst to the best", number: true, cell: (row) => <Reward row={row} /> },
    { key: "branches", label: "branches", title: "siblings granted, of those wanted", number: true, cell: (row) => (row.refused ? `${row.branches} of ${row.branches + row.refused}` : row.branches) },
    { key: "helped", label: "branching", title: "each sibling's line against its probe's", cell: (row) => <Helped helped={row.helped} /> },
    { key: "family", label: "family", cell: (row) => brief(row.family, 40).replace(/_/g, " ") },
    { key: "leaves", label: "leaves", number: true, cell: (row) => row.leaves },
    { key: "calls", label: "calls", number: true, cell: (row) => row.calls },
    { key: "errors", label: "failed", title: "calls that did not succeed", number: true, cell: (row) => <span class={row.errors ? "bad" : "soft"}>{row.errors}</span> },
    { key: "tokens", label: "tokens", title: "written by the policy", number: true, cell: (row) => number(row.tokens) },
    { key: "", label: "endings", cell: (row) => <Endings endings={row.endings} /> },
  ];
}

function Reward({ row: { reward_mean, reward_min, reward_max } }: { row: TreeRow }) {
  const range = reward_min !== null && reward_max !== null && reward_min !== reward_max;
  return <><b>{number(reward_mean, 2)}</b>{range && <><br /><span class="soft">{number(reward_min, 2)} … {number(reward_max, 2)}</span></>}</>;
}

function Helped({ helped }: { helped: TreeRow["helped"] }) {
  if (helped === null) return <span class="soft">–</span>;
  const [tone, said, title] = HELPED[`${helped}`];
  return <span class={`helped ${tone}`} title={title}>{said}</span>;
}

/** Those that finished go without saying. */
function Endings({ endings }: { endings: TreeRow["endings"] }) {
  const others = Object.entries(endings).filter(([ending]) => ending !== "finished");
  return others.length === 0 ? <span class="soft nowrap">all finished</span> : <>{others.map(([ending, n]) => `${n} ${ending.replace(/_/g, " ")}`).join(", ")}</>;
}

function useAnswerAgain(again: () => void, on: boolean): void {
  useEffect(() => {
    if (!on) return;
    const timer = setInterval(() => document.hidden || again(), AGAIN_S * 1000);
    return () => clearInterval(timer);
  }, [on]);
}
