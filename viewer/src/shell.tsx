/** What stands around every page: which run, which page, light or dark. */
import type { RunSummary, Runs } from "./api";
import { useAnswer, Shown } from "./answer";
import { count } from "./format";
import { pages } from "./pages";
import { go, link, useRoute, type Route } from "./route";
import { source } from "./source";
import { toggleTheme, useTheme } from "./theme";

const LIVE_S = 5;

export function Shell() {
  const answer = useAnswer(() => source.runs(), "runs", source.exported ? 0 : LIVE_S);
  const route = useRoute();
  return (
    <>
      <a class="skip" href="#main" onClick={toMain}>Skip to the page</a>
      <Shown answer={answer}>{(runs) => <Framed runs={runs} route={route} />}</Shown>
    </>
  );
}

function toMain(event: Event): void {
  event.preventDefault(); // the fragment is the route
  document.getElementById("main")?.focus();
}

function Framed({ runs: { runs, version }, route }: { runs: Runs; route: Route }) {
  const start = source.exported?.start;
  const run = runs.find((r) => r.id === route.run) ?? runs.find((r) => r.id === start?.run) ?? runs[0];
  if (!run) return <main id="main"><p class="notice">There is no run to show.</p></main>;
  const opened = route.run === "" && start ? { page: "tree", query: { step: String(start.step), task: start.task } } : route;
  const shown = pages.filter((page) => page.shown(run));
  const page = shown.find((p) => p.name === opened.page) ?? shown[0];
  const View = page?.view;
  const unknown = route.run !== "" && run.id !== route.run;
  document.title = `${run.name}${page?.title ? ` · ${page.title}` : ""} · arpo view`;
  return (
    <>
      <header class="top">
        <h1><a class="brand" href={link(run.id)}>arpo view</a></h1>
        <RunChoice runs={runs} run={run} page={page?.name ?? ""} />
        <nav aria-label="Pages">
          {shown.filter((p) => p.title).map((p) => (
            <a key={p.name} href={link(run.id, p.name)} aria-current={p === page || (p.name === "trees" && page?.name === "tree") ? "page" : undefined}>
              {p.title}
            </a>
          ))}
        </nav>
        <ThemeButton />
      </header>
      <main id="main" tabIndex={-1}>
        {unknown && <p class="notice error" role="alert">There is no run “{route.run}” here; this is {run.name}.</p>}
        {View ? <View key={`${run.id}/${page.name}`} run={run} runs={runs} query={opened.query} /> : <p class="notice">Nothing is recorded in {run.path} yet.</p>}
      </main>
      <footer>arpo {version} · {provenance()}</footer>
    </>
  );
}

function provenance(): string {
  if (!source.exported) return "reads recorded runs, writes nothing";
  const { time, note } = source.exported;
  return `exported ${time.slice(0, 16).replace("T", " ")} UTC${note && ` · ${note}`}`;
}

function RunChoice({ runs, run, page }: { runs: RunSummary[]; run: RunSummary; page: string }) {
  return (
    <div class="which">
      {runs.length > 1 ? (
        <select aria-label="Run" value={run.id} onChange={(event) => go(link(event.currentTarget.value, page === "tree" ? "trees" : page))}>
          {runs.map((r) => <option key={r.id} value={r.id}>{r.name}</option>)}
        </select>
      ) : (
        <strong>{run.name}</strong>
      )}
      <span class={run.live ? "state live" : "state"} title={run.path}>
        {run.kind === "training" ? count(run.steps, "step") : "evaluation"}, {run.state}
      </span>
    </div>
  );
}

export function ThemeButton() {
  const other = useTheme() === "dark" ? "light" : "dark";
  return <button type="button" class="theme" onClick={toggleTheme} aria-label={`Switch to ${other} colours`} title={`Switch to ${other} colours`}>◐</button>;
}
