/** Held-out questions: how many were right, by family and level, and every question with its answer and transcript. */
import type { Estimate, Evaluation, Json, SampleRow, SamplesQuery } from "../api";
import { Shown, useAnswer } from "../answer";
import { NONE, number } from "../format";
import { Interval } from "../interval";
import type { PageProps } from "../pages";
import { go, link, type Query } from "../route";
import { source } from "../source";
import { Choice, Choices, Find, numeric, Paging, ROWS, Table, type Column } from "../table";
import { brief } from "../text";
import { SampleCard } from "./SampleCard";
import "./evaluation.css";

export function EvaluationPage({ run, query }: PageProps) {
  const name = run.evaluations.includes(query["name"] ?? "") ? query["name"]! : run.evaluations.at(-1)!;
  const asked = wanted(query);
  const answer = useAnswer(() => source.evaluation(run.id, name, asked), `${run.id} ${name} ${JSON.stringify(asked)}`);
  const set = (changes: Query) => go(link(run.id, "evaluation", { ...query, name, offset: "", ...changes }), true);
  const open = (row: SampleRow) => link(run.id, "evaluation", { ...query, name, id: row.id, sample: row.sample });
  const chosen = query["id"] === undefined ? null : { id: query["id"], sample: numeric(query["sample"]) ?? 0 };
  return (
    <>
      <div class="tabs" role="group" aria-label="Evaluations of this run">
        {run.evaluations.map((other) => (
          <button key={other} type="button" aria-pressed={other === name} onClick={() => go(link(run.id, "evaluation", { name: other }))}>{other}</button>
        ))}
      </div>
      <Shown answer={answer}>
        {(evaluation) => (
          <>
            <Totals evaluation={evaluation} />
            {chosen && <SampleCard run={run.id} name={name} {...chosen} close={() => set({ id: "", sample: "" })} />}
            <Filters {...{ evaluation, query, set }} />
            <Paging total={evaluation.total} offset={asked.offset ?? 0} noun="answer" onOffset={(offset) => set({ offset: String(offset) })} />
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
  const correct = numeric(query["correct"]);
  return {
    family: query["family"],
    level: query["level"],
    ending: query["ending"],
    correct: correct === 0 || correct === 1 ? correct : undefined,
    q: query["q"],
    sort: query["sort"],
    offset: numeric(query["offset"]),
    limit: ROWS,
  };
}

function Totals({ evaluation }: { evaluation: Evaluation }) {
  const { accuracy, reward, pass_at, by_family, by_level, questions, model, settings } = evaluation;
  const several = Object.keys(pass_at).filter((k) => k !== "1");
  return (
    <section class="card totals">
      <div>
        <h2>{evaluation.name}</h2>
        <p class="soft">{questions} questions to {brief(model, 80)}{Object.entries(settings).map(said)}</p>
        <Estimates label="In all" rows={[["accuracy", accuracy], ...several.map((k): [string, Estimate] => [`one of ${k} right`, pass_at[k]!])]} />
        {reward && <p>Mean reward <b>{number(reward.mean)}</b> <span class="soft">[{number(reward.low)}, {number(reward.high)}]</span></p>}
      </div>
      {Object.keys(by_family).length > 0 && <Estimates label="By family" rows={Object.entries(by_family)} />}
      {Object.keys(by_level).length > 0 && <Estimates label="By level" rows={Object.entries(by_level)} />}
    </section>
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
    <Choices label="Which answers" given={["correct", "family", "level", "ending", "q"].filter((name) => query[name]).length}>
      <Choice name="correct" label="Answer" values={[["1", "right"], ["0", "wrong"]]} {...{ query, set }} />
      <Choice name="family" label="Family" values={families} {...{ query, set }} />
      <Choice name="level" label="Level" values={levels} {...{ query, set }} />
      {endings.length > 1 && <Choice name="ending" label="Ending" values={endings} {...{ query, set }} />}
      <Find placeholder="question, answer or id" {...{ query, set }} />
    </Choices>
  );
}

function Asked({ row, to }: { row: SampleRow; to: string }) {
  const which = row.sample > 0 ? `, sample ${row.sample + 1}` : "";
  return <><a href={to}>{brief(row.question) || brief(row.id)}</a><br /><span class="soft mono">{brief(row.id, 60)}{which}</span></>;
}

function columns(open: (row: SampleRow) => string): Column<SampleRow>[] {
  return [
    { key: "id", label: "question", cell: (row) => <Asked row={row} to={open(row)} /> },
    { key: "family", label: "family", cell: (row) => brief([row.family, row.level].filter(Boolean).join(", "), 40).replace(/_/g, " ") },
    { key: "accuracy", label: "right", cell: (row) => <span class={`nowrap ${row.correct ? "good" : "bad"}`}>{row.correct ? "✓ right" : "✗ wrong"}</span> },
    { key: "", label: "answer", cell: (row) => (row.answer === null ? <span class="soft">none</span> : brief(row.answer, 60)) },
    { key: "", label: "expected", cell: (row) => brief(row.gold.join(" or "), 60) },
    { key: "reward", label: "reward", number: true, cell: (row) => number(row.reward, 2) },
    { key: "calls", label: "calls", number: true, cell: (row) => row.calls },
    { key: "tokens", label: "tokens", number: true, cell: (row) => number(row.tokens) },
    { key: "ending", label: "ending", cell: (row) => row.ending.replace(/_/g, " ") },
  ];
}
