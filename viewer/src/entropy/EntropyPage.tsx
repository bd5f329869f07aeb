/** Entropy around tool results, by tool and over training, and whether rises tell where branching pays. */
import { useMemo } from "preact/hooks";
import type { Entropy, EntropyCurve } from "../api";
import { Shown, useAnswer } from "../answer";
import type { PageProps } from "../pages";
import { go, link } from "../route";
import { source } from "../source";
import { brief } from "../text";
import { Calibration, Rises } from "./Calibration";
import { Curves, type Drawn } from "./Curves";
import "./entropy.css";

const AGAIN_S = 10;

export function EntropyPage({ run, query }: PageProps) {
  const answer = useAnswer(() => source.entropy(run.id), run.id, source.exported ? 0 : AGAIN_S);
  return (
    <Shown answer={answer}>
      {(entropy) => (
        <>
          {entropy.indexed.steps < entropy.indexed.of && <p class="notice" role="status">Still reading the log: {entropy.indexed.steps} of {entropy.indexed.of} steps so far.</p>}
          {entropy.curves.length === 0 ? (
            <p class="notice">No entropies are here{source.exported ? `. ${source.exported.note}` : " yet"}.</p>
          ) : (
            <Figures entropy={entropy} tool={entropy.tools.find((tool) => tool === query["tool"]) ?? null} onTool={(tool) => go(link(run.id, "entropy", { tool }), true)} />
          )}
        </>
      )}
    </Shown>
  );
}

function Figures({ entropy, tool, onTool }: { entropy: Entropy; tool: string | null; onTool: (tool: string) => void }) {
  const byTool = useMemo(() => toolLines(entropy), [entropy]);
  const byWindow = useMemo(() => windowLines(entropy, tool), [entropy, tool]);
  return (
    <div class="pairs">
      <figure class="card">
        <figcaption>
          <h2>Around tool results</h2>
          <p class="soft">Mean entropy of the policy, in nats, token by token. If a result unsettles the policy, the curve jumps behind the line.</p>
        </figcaption>
        <Curves label="Mean entropy by position and tool" lines={byTool} />
      </figure>
      <figure class="card">
        <figcaption>
          <h2>Over training</h2>
          <p class="soft">
            The same by quarter of the run.{" "}
            {entropy.tools.length > 1 && (
              <label>Tool <select value={tool ?? ""} onChange={(event) => onTool(event.currentTarget.value)}>
                <option value="">all</option>
                {entropy.tools.map((name) => <option key={name} value={name}>{brief(name, 40)}</option>)}
              </select></label>
            )}
          </p>
        </figcaption>
        <Curves label="Mean entropy by position and part of the run" lines={byWindow} />
      </figure>
      <figure class="card">
        <figcaption>
          <h2>Did it pay to branch there?</h2>
          <p class="soft">Each sibling's reward against its probe's, at forks of low rise (left) to high rise (right). If the rise is a good signal, the share that ended better grows.</p>
        </figcaption>
        <Calibration buckets={entropy.calibration} payoffs={entropy.payoffs} />
      </figure>
      <figure class="card">
        <figcaption>
          <h2>Which rises came up</h2>
          <p class="soft">Head entropy after a result, less that of the branch's first turn: at every tip.</p>
        </figcaption>
        <Rises rises={entropy.rises} />
      </figure>
    </div>
  );
}

const is = (around: EntropyCurve["around"], tool: string | null, window: number | null) => (c: EntropyCurve) => c.around === around && c.tool === tool && c.window === window;

function toolLines({ curves, tools }: Entropy): Drawn[] {
  const all = curves.find(is("result", null, null));
  const first = curves.find(is("first", null, null));
  const single = tools.length < 2 ? [] : tools.flatMap((tool, i): Drawn[] => {
    const curve = curves.find(is("result", tool, null));
    return curve ? [{ label: brief(tool, 40), curve, colour: `--s${(i + 1) % 8}` }] : [];
  });
  return [
    ...(all ? [{ label: tools.length < 2 ? (tools[0] ?? "results") : "all tools", curve: all, colour: "--s0" }] : []),
    ...single,
    ...(first ? [{ label: "first turns, for comparison", curve: first, colour: "--s6", dashed: true }] : []),
  ];
}

function windowLines({ curves, windows }: Entropy, tool: string | null): Drawn[] {
  return windows.flatMap(({ first, last }, window): Drawn[] => {
    const curve = curves.find(is("result", tool, window));
    return curve ? [{ label: first === last ? `step ${first}` : `steps ${first} to ${last}`, curve, colour: `--t${Math.min(3, window)}` }] : [];
  });
}
