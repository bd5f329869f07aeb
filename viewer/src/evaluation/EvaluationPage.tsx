/** Held-out questions: how many were right, by family and level, and every question with its answer and transcript. */
import type { Estimate, Evaluation, Json, RunSummary, SampleRow, SamplesQuery } from "../api";
import { Shown, useAnswer } from "../answer";
import { count, NONE, number } from "../format";
import { Interval } from "../interval";
import type { PageProps } from "../pages";
import { go, link, type Query } from "../route";
import { source } from "../source";
import { Choice, Choices, Find, numeric, Paging, ROWS, Table, type Column } from "../table";
import { brief, Text } from "../text";
import { SampleCard } from "./SampleCard";
import "./evaluation.css";

const LIVE_S = 3;

export function EvaluationPage({ run, query }: PageProps) {
  const name = run.evaluations.includes(query["name"] ?? "") ? query["name"]! : run.evaluations.at(-1)!;
  const asked = wanted(query);
  const answer = useAnswer(() => source.evaluation(run.id, name, asked), `${run.id} ${name} ${JSON.stringify(asked)}`, run.live ? LIVE_S : 0);
  const set = (changes: Query) => go(link(run.id, "evaluation", { ...query, name, offset: "", ...changes }), true);
  const open = (row: SampleRow) => link(run.id, "evaluation", { ...query, name, id: row.id, sample: row.sample });
  const chosen = query["id"] === undefined ? null : { id: query["id"], sample: numeric(query["sample"]) ?? 0 };
  return (
    <>
      {run.evaluations.length > 1 && <All run={run} name={name} />}
      <Shown answer={answer}>
        {(evaluation) => (
          <>
            {evaluation.damage.map((one) => <p class="notice error" role="alert" key={one}><Text text={one} limit={400} /></p>)}
            <Totals evaluation={evaluation} run={run} />
            {chosen && <SampleCard run={run.id} name={name} {...chosen} close={() => set({ id: "", sample: "" })} />}
            <Filters {...{ evaluation, query, set }} />
            <Paging total={evaluation.total} offset={asked.offset ?? 0} noun="answer" onOffset={(offset) => set({ offset: String(offset) })} />
            {evaluation.total === 0 && <p class="notice">No answer fits these choices.</p>}
            {evaluation.total > 0 && (
              <Table label="Answers" columns={columns(open)} rows={evaluation.rows} id={(row) => `${row.id} ${row.sample}`} sort={query["sort"] ?? "id"}
                onSort={(sort) => set({ sort })} chosen={chosen ? `${chosen.id} ${chosen.sample}` : undefined} />
            )}
          </>
        )}
      </Shown>
    </>
  );
}

function wanted(query: Query): SamplesQuery {
  const [correct, failed] = [numeric(query["correct"]), numeric(query["failed"])];
  return {
    family: query["family"],
    level: query["level"],
    ending: query["ending"],
    correct: correct === 0 || correct === 1 ? correct : undefined,
    failed: failed === 0 || failed === 1 ? failed : undefined,
    q: query["q"],
    sort: query["sort"],
    offset: numeric(query["offset"]),
    limit: ROWS,
  };
}

/** Every evaluation of the run, or every benchmark: how many were right, and which is the one below. */
function All({ run, name }: { run: RunSummary; name: string }) {
  const answer = useAnswer(() => source.run(run.id), `${run.id} ${run.evaluations.join()}`, run.live ? LIVE_S : 0);
  return (
    <section class="card">
      <Shown answer={answer}>
        {({ evaluations }) => (
          <div class="wide" tabIndex={0} role="region" aria-label="All evaluations">
            <table class="all cards" role="table">
              <thead role="rowgroup">
                <tr role="row">
                  <th scope="col" role="columnheader">Evaluation</th><th scope="col" role="columnheader" class="num">questions</th>
                  <th scope="col" role="columnheader" class="num">answers</th><th scope="col" role="columnheader">accuracy, 95 % interval</th>
                  <th scope="col" role="columnheader" class="num">failed</th>
                </tr>
              </thead>
              <tbody role="rowgroup">
                {evaluations.map((one) => (
                  <tr key={one.name} role="row" class={one.name === name ? "chosen" : undefined}>
                    <th scope="row" role="rowheader"><a href={link(run.id, "evaluation", { name: one.name })} aria-current={one.name === name ? "true" : undefined}>{brief(one.name, 60)}</a></th>
                    <td role="cell" data-label="questions" class="num">{one.questions.toLocaleString("en")}</td>
                    <td role="cell" data-label="answers" class="num">{one.answers.toLocaleString("en")}</td>
                    <td role="cell"><Interval estimate={one.accuracy} /></td>
                    <td role="cell" data-label="failed" class="num"><span class={one.failed ? "bad" : "soft"}>{one.failed}</span></td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      </Shown>
    </section>
  );
}

function Totals({ evaluation, run }: { evaluation: Evaluation; run: RunSummary }) {
  const { accuracy, reward, pass_at, by_family, by_level, questions, answers, failed, missing, model, settings, metric, measures, by_budget, failures } = evaluation;
  const several = Object.keys(pass_at).filter((k) => k !== "1");
  const first: [string, Estimate | null][] = [["accuracy", accuracy], ...several.map((k): [string, Estimate] => [`one of ${k} right`, pass_at[k]!]), ...Object.entries(measures)];
  const budgets = Object.entries(by_budget).map(([calls, estimate]): [string, Estimate] => [`at most ${calls}`, estimate]);
  return (
    <section class="card totals">
      <div>
        <h2>{brief(evaluation.name, 80)}</h2>
        <p class="soft">
          {count(questions, "question")}{answers !== questions && `, ${count(answers, "answer")}`} to {brief(model, 80)}{metric && `, scored by ${brief(metric, 60)}`}{Object.entries(settings).map(said)}
        </p>
        <Estimates label="In all" rows={first} />
        {reward && <p>Mean reward <b>{number(reward.mean)}</b> <span class="soft">[{number(reward.low)}, {number(reward.high)}]</span></p>}
        {run.live && <p class="state live" role="status">still asking: {count(answers, "answer")} of {(answers + missing).toLocaleString("en")}</p>}
        {((missing > 0 && !run.live) || failed > 0) && <p class="bad">{[missing > 0 && !run.live && `${count(missing, "answer")} not there yet`, failed && `${failed} ended by the world: they count as wrong`].filter(Boolean).join("; ")}.</p>}
        {Object.keys(failures).length > 0 && <ul class="failures">{Object.entries(failures).map(([why, n]) => <li key={why}>{n} × <Text text={why} limit={240} /></li>)}</ul>}
      </div>
      {Object.keys(by_family).length > 0 && <Estimates label="By family" rows={Object.entries(by_family)} />}
      {Object.keys(by_level).length > 0 && <Estimates label="By level" rows={Object.entries(by_level)} />}
      {budgets.length > 1 && <Estimates label="Right within calls" rows={budgets} />}
      <Costs costs={evaluation.costs} />
    </section>
  );
}

function Costs({ costs }: { costs: Evaluation["costs"] }) {
  const rows = Object.entries(costs).filter(([, { mean }]) => mean > 0);
  if (!rows.length) return null;
  return (
    <div class="wide" tabIndex={0} role="region" aria-label="What an answer costs">
      <table>
        <thead><tr><th scope="col">An answer</th><th scope="col" class="num">mean</th><th scope="col" class="num">95 % interval</th></tr></thead>
        <tbody>
          {rows.map(([name, { mean, low, high }]) => (
            <tr key={name}><th scope="row">{brief(name, 40)}</th><td class="num">{number(mean)}</td><td class="num soft">{number(low)} to {number(high)}</td></tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** ", top p 1" */
function said([name, value]: [string, Json]): string {
  if (name === "questions") return "";
  const shown = value === null ? NONE : typeof value === "object" ? JSON.stringify(value) : String(value);
  return `, ${name.replace(/_/g, " ")} ${brief(shown, 80)}`;
}

function Estimates({ label, rows }: { label: string; rows: [string, Estimate | null][] }) {
  return (
    <div class="wide" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead><tr><th scope="col">{label}</th><th scope="col">95 % interval</th><th scope="col" class="num">n</th></tr></thead>
        <tbody>
          {rows.map(([name, estimate]) => (
            <tr key={name}>
              <th scope="row">{brief(name, 40).replace(/_/g, " ")}</th>
              <td><Interval estimate={estimate} /></td>
              <td class="num soft">{estimate?.n}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Filters({ evaluation, query, set }: { evaluation: Evaluation; query: Query; set: (changes: Query) => void }) {
  const { families, levels, endings } = evaluation.facets;
  return (
    <Choices label="Which answers" given={["correct", "failed", "family", "level", "ending", "q"].filter((name) => query[name]).length}>
      <Choice name="correct" label="Answer" values={[["1", "right"], ["0", "wrong"]]} {...{ query, set }} />
      <Choice name="family" label="Family" values={families} {...{ query, set }} />
      <Choice name="level" label="Level" values={levels} {...{ query, set }} />
      {evaluation.failed > 0 && <Choice name="failed" label="Failed" values={[["1", "ended by the world"], ["0", "answered"]]} {...{ query, set }} />}
      {endings.length > 1 && <Choice name="ending" label="Ending" values={endings} {...{ query, set }} />}
      <Find placeholder="question, answer or id" {...{ query, set }} />
    </Choices>
  );
}

function Asked({ row, to }: { row: SampleRow; to: string }) {
  const which = row.sample > 0 ? `, sample ${row.sample + 1}` : "";
  return <><a href={to}>{brief(row.question) || brief(row.id)}</a><br /><span class="soft mono">{brief(row.id, 60)}{which}</span></>;
}

function Right({ row: { correct, failed, accuracy } }: { row: SampleRow }) {
  if (failed) return <span class="nowrap warn" title="ended by the world; counts as wrong">! failed</span>;
  const partly = accuracy > 0 && accuracy < 1 ? ` ${number(accuracy, 2)}` : "";
  return <span class={`nowrap ${correct ? "good" : "bad"}`}>{correct ? "✓ right" : "✗ wrong"}{partly}</span>;
}

function columns(open: (row: SampleRow) => string): Column<SampleRow>[] {
  return [
    { key: "id", label: "question", cell: (row) => <Asked row={row} to={open(row)} /> },
    { key: "family", label: "family", cell: (row) => brief([row.family, row.level].filter(Boolean).join(", "), 40).replace(/_/g, " ") },
    { key: "accuracy", label: "right", cell: (row) => <Right row={row} /> },
    { key: "", label: "answer", cell: (row) => (row.answer === null ? <span class="soft">none</span> : brief(row.answer, 60)) },
    { key: "", label: "expected", cell: (row) => brief(row.gold.join(" or "), 60) },
    { key: "reward", label: "reward", number: true, cell: (row) => number(row.reward, 2) },
    { key: "calls", label: "calls", number: true, cell: (row) => row.calls },
    { key: "tokens", label: "tokens", number: true, cell: (row) => number(row.tokens) },
    { key: "ending", label: "ending", cell: (row) => row.ending.replace(/_/g, " ") },
  ];
}
