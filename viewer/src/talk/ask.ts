/**
 * Asks the agent over OpenAI's chat completions, and hands out its steps as they come. Knows the protocol; refuses to know the page.
 */
import type { Json, Outcome, Tree } from "../api";

export interface Message {
  role: "user" | "assistant";
  content: string;
}

/** A step of the agent: see docs/serve.md. */
export type Step = { place: string } & (
  | { type: "text"; text: string; attempt: number }
  | { type: "turn"; text: string; calls: { name: string; arguments: { [name: string]: Json }; error: string }[]; answer: string | null }
  | { type: "results"; text: string; results: Pick<Outcome, "tool" | "status" | "text" | "seconds" | "cut">[] }
  | { type: "branch"; siblings: number }
  | { type: "end"; ending: string; why: string }
);

export interface Told {
  ending: string;
  votes: { [answer: string]: number };
  branches: number;
  leaf: string;
  tree: Tree | null;
}

export interface AgentFacts {
  id: string;
  arpo: { label: string; tools: string[] };
}

export class AskError extends Error {
  constructor(message: string, readonly status: number) {
    super(message);
  }
}

const headers = (key: string) => ({ "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) });

async function checked(response: Response): Promise<Response> {
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new AskError(answer?.error?.message ?? `The server answered with status ${response.status}.`, response.status);
}

async function reached(url: string, options: RequestInit): Promise<Response> {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new AskError("The server does not answer: is `arpo serve` still running?", 0);
  }
}

export async function agentFacts(key: string): Promise<AgentFacts> {
  const response = await checked(await reached("v1/models", { headers: headers(key) }));
  return ((await response.json()) as { data: AgentFacts[] }).data[0]!;
}

/** The answer's text and what else is told of it; `onStep` is called with each step before. */
export async function askAgent(
  { model, key, messages, samples, signal }: { model: string; key: string; messages: Message[]; samples: number; signal: AbortSignal },
  onStep: (step: Step) => void,
): Promise<{ text: string; told: Told }> {
  const body = JSON.stringify({ model, messages, samples, stream: true, tree: true });
  const response = await checked(await reached("v1/chat/completions", { method: "POST", headers: headers(key), body, signal }));
  let text = "";
  let told: Told | null = null;
  for await (const data of events(response.body!)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new AskError(chunk.error.message, 0);
    if (chunk.event) onStep(chunk.event as Step);
    text += chunk.choices?.[0]?.delta?.content ?? "";
    told = (chunk.arpo as Told | undefined) ?? told;
  }
  if (!told) throw new AskError("The answer broke off: the server ended.", 0);
  return { text, told };
}

/** The data of each server-sent event. */
async function* events(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error: Error) => {
        if (error.name === "AbortError") throw error;
        throw new AskError("The answer broke off: the connection is gone.", 0);
      });
      if (done) return;
      const parts = (held + decoder.decode(value, { stream: true })).split("\n\n");
      held = parts.pop()!;
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}
