/** The page of `arpo serve`: a conversation with the agent, and the tree of each answer, which grows while the agent works. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Tree } from "../api";
import { count } from "../format";
import { ThemeButton } from "../shell";
import { Text } from "../text";
import { ENDINGS } from "../tree/said";
import { SampleTree } from "../tree/SampleTree";
import { agentFacts, askAgent, AskError, type AgentFacts, type Message, type Told } from "./ask";
import { LiveTree } from "./live";
import "./talk.css";

interface Exchange {
  question: string;
  samples: number;
  state: "working" | "answered" | "stopped" | "failed";
  answer: string; // or why there is none
  told: Told | null;
  live: LiveTree;
  steps: number;
  doing: string; // the newest step, in a few words
}

const SAMPLES = [1, 2, 4, 8, 16];
const FRAME_MS = 120; // between drawings of a growing tree

export function TalkPage() {
  const [key, setKey] = useState("");
  const [facts, setFacts] = useState<AgentFacts | null>(null);
  const [refused, setRefused] = useState<AskError | null>(null);
  useEffect(() => {
    let current = true;
    agentFacts(key).then(
      (found) => current && (setFacts(found), setRefused(null)),
      (error: AskError) => current && setRefused(error),
    );
    return () => void (current = false);
  }, [key]);
  document.title = `${facts?.id ?? "agent"} · arpo serve`;
  return (
    <>
      <header class="top">
        <h1><span class="brand">arpo serve</span></h1>
        {facts && <div class="which"><strong>{facts.id}</strong><span class="state">{facts.arpo.label} · {facts.arpo.tools.length ? count(facts.arpo.tools.length, "tool") + `: ${facts.arpo.tools.join(", ")}` : "no tools"}</span></div>}
        <nav />
        <ThemeButton />
      </header>
      <main id="main" tabIndex={-1}>
        {facts ? <Conversation facts={facts} apiKey={key} /> : refused ? <Refused error={refused} onKey={setKey} /> : <p class="notice" role="status">Reading …</p>}
      </main>
    </>
  );
}

function Refused({ error, onKey }: { error: AskError; onKey: (key: string) => void }) {
  const [typed, setTyped] = useState("");
  if (error.status !== 401) return <p class="notice error" role="alert">{error.message}</p>;
  return (
    <form class="card ask-key" onSubmit={(event) => (event.preventDefault(), onKey(typed))}>
      <label for="key">This server asks for a key</label>
      <input id="key" type="password" autocomplete="off" value={typed} onInput={(event) => setTyped(event.currentTarget.value)} />
      <button type="submit">Use it</button>
    </form>
  );
}

function Conversation({ facts, apiKey }: { facts: AgentFacts; apiKey: string }) {
  const [exchanges, setExchanges] = useState<Exchange[]>([]);
  const [chosen, setChosen] = useState<number | null>(null); // null: the newest
  const stop = useRef<AbortController | null>(null);
  const working = exchanges.at(-1)?.state === "working";
  const at = chosen ?? exchanges.length - 1;
  const shown = exchanges[at];

  const put = (number: number, changes: Partial<Exchange>) =>
    setExchanges((all) => all.map((one, i) => (i === number ? { ...one, ...changes } : one)));

  const ask = async (question: string, samples: number) => {
    const number = exchanges.length;
    const messages = [...remembered(exchanges), { role: "user", content: question } as Message];
    const live = new LiveTree(question, samples);
    const control = (stop.current = new AbortController());
    setExchanges((all) => [...all, { question, samples, state: "working", answer: "", told: null, live, steps: 0, doing: "" }]);
    setChosen(null);
    let steps = 0;
    let doing = "";
    let soon = 0; // the next drawing
    const draw = () => {
      soon = 0;
      put(number, { steps, doing });
    };
    try {
      const { text, told } = await askAgent({ model: facts.id, key: apiKey, messages, samples, signal: control.signal }, (step) => {
        live.add(step);
        steps += 1;
        if (step.type === "text") doing = `writes turn ${step.place}`;
        else if (step.type === "turn") doing = step.calls.length ? `calls ${step.calls.map((call) => call.name).join(", ")}` : `ended turn ${step.place}`;
        else if (step.type === "branch") doing = `branches after ${step.place}`;
        soon ||= window.setTimeout(draw, FRAME_MS);
      });
      clearTimeout(soon);
      put(number, { state: "answered", answer: text, told, steps });
    } catch (error) {
      clearTimeout(soon);
      const stopped = control.signal.aborted;
      put(number, { state: stopped ? "stopped" : "failed", answer: stopped ? "stopped" : (error as Error).message, steps });
    }
  };
  const again = () => {
    stop.current?.abort();
    setExchanges([]);
    setChosen(null);
  };
  return (
    <div class="talk">
      <section class="card talking" aria-label="Conversation">
        <div class="exchanges" role="log" aria-live="polite" aria-label="Questions and answers" tabIndex={0}>
          {exchanges.map((one, i) => <Answered key={i} {...{ one, chosen: i === at }} onChoose={() => setChosen(i)} />)}
          {!exchanges.length && <p class="soft">Ask the agent something. What it does on the way is drawn as a tree.</p>}
        </div>
        <AskForm working={working} onAsk={ask} onStop={() => stop.current?.abort()} onNew={exchanges.length ? again : null} />
      </section>
      <section class="growing" aria-label="Tree of the answer">
        {shown && <Growing key={at} one={shown} />}
      </section>
    </div>
  );
}

/** Questions with their answers; what was stopped or failed is no part of the conversation. */
const remembered = (exchanges: Exchange[]): Message[] =>
  exchanges.flatMap((one): Message[] => (one.state === "answered" ? [{ role: "user", content: one.question }, { role: "assistant", content: one.answer }] : []));

function Answered({ one, chosen, onChoose }: { one: Exchange; chosen: boolean; onChoose: () => void }) {
  const { state, told } = one;
  return (
    <div class="exchange">
      <p class="asked"><Text text={one.question} limit={2000} /></p>
      <div class={`answered ${state}`}>
        {state === "working" ? <p class="soft">{one.doing || "waits"} …</p> : <p><Text text={one.answer || "(no text)"} /></p>}
        <p class="soft small-print">
          {told && told.ending !== "finished" && `${ENDINGS[told.ending as keyof typeof ENDINGS] ?? told.ending} · `}
          {told && told.branches > 1 && `${votes(told)} · `}
          <button type="button" class="more" aria-pressed={chosen} onClick={onChoose}>{chosen ? "its tree is shown" : "show its tree"}</button>
        </p>
      </div>
    </div>
  );
}

/** "6 of 8 branches; 2 other answers" */
function votes(told: Told): string {
  const counts = Object.values(told.votes).sort((a, b) => b - a);
  const others = counts.length - 1;
  return `${counts[0] ?? 0} of ${told.branches} branches${others > 0 ? `; ${count(others, "other answer")}` : ""}`;
}

function AskForm({ working, onAsk, onStop, onNew }: { working: boolean; onAsk: (question: string, samples: number) => void; onStop: () => void; onNew: (() => void) | null }) {
  const [question, setQuestion] = useState("");
  const [samples, setSamples] = useState(1);
  const send = (event: Event) => {
    event.preventDefault();
    if (working || !question.trim()) return;
    onAsk(question.trim(), samples);
    setQuestion("");
  };
  return (
    <form class="ask" onSubmit={send}>
      <label for="question" class="soft">Your question</label>
      <textarea
        id="question" rows={2} value={question} onInput={(event) => setQuestion(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && send(event)}
      />
      <div class="ask-row">
        <label>branches <select value={samples} onChange={(event) => setSamples(Number(event.currentTarget.value))}>{SAMPLES.map((n) => <option key={n} value={n}>{n}</option>)}</select></label>
        {onNew && <button type="button" onClick={onNew} title="Begin a new conversation">New</button>}
        {working ? <button type="button" class="send" onClick={onStop}>Stop</button> : <button type="submit" class="send" disabled={!question.trim()}>Ask</button>}
      </div>
    </form>
  );
}

function Growing({ one }: { one: Exchange }) {
  const tree = useMemo<Tree>(() => one.told?.tree ?? one.live.tree(), [one.told, one.steps]);
  return <SampleTree tree={tree} />;
}
