/** One answer to one question: what was asked, expected and said, the whole transcript, and the tree where it was recorded. */
import { useEffect, useRef } from "preact/hooks";
import { Shown, useAnswer } from "../answer";
import { count, number } from "../format";
import { source } from "../source";
import { brief, Text } from "../text";
import { seconds } from "../tree/said";
import { SampleTree } from "../tree/SampleTree";

interface SampleCardProps {
  run: string;
  name: string;
  id: string;
  sample: number;
  close: () => void;
}

export function SampleCard({ run, name, id, sample, close }: SampleCardProps) {
  const answer = useAnswer(() => source.sample(run, name, id, sample), `${run} ${name} ${id} ${sample}`);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), [id, sample]);
  return (
    <section class="card sample" aria-label="The chosen answer">
      <div class="head">
        <h2 tabIndex={-1} ref={heading}>{brief(id, 200)}{sample > 0 && `, sample ${sample + 1}`}</h2>
        <button type="button" onClick={close}>Close</button>
      </div>
      <Shown answer={answer}>
        {(shown) => (
          <>
            <p class="question"><Text text={shown.question} /></p>
            <dl>
              <dt>Answer</dt>
              <dd class={shown.correct ? "good" : "bad"}>{shown.correct ? "✓" : "✗"} {shown.answer === null ? "none" : <Text text={shown.answer} limit={600} />}</dd>
              <dt>Expected</dt><dd><Text text={shown.gold.join(" or ")} limit={600} /></dd>
              <dt>Reward</dt><dd>{number(shown.reward)}{Object.entries(shown.measures).map(([name, value]) => `, ${brief(name, 40)} ${number(value)}`)}</dd>
              <dt>Branch</dt>
              <dd>
                {shown.ending.replace(/_/g, " ")}, {count(shown.calls, "call")}, {count(shown.tokens, "token")}
                {shown.seconds !== null && `, ${seconds(shown.seconds)}`}{shown.cost ? `, cost ${number(shown.cost)}` : ""}
              </dd>
              {shown.failure && <><dt>Failed</dt><dd class="bad"><Text text={shown.failure} limit={1000} /></dd></>}
            </dl>
            {shown.tree && <SampleTree key={`${id} ${sample}`} tree={shown.tree} />}
            {shown.transcript ? <Transcript text={shown.transcript} /> : <p class="soft">Its transcript was not recorded.</p>}
          </>
        )}
      </Shown>
    </section>
  );
}

/** The protocol's tags divide it: who wrote what shows by colour. Only known tags do; everything stays text. */
const BLOCKS = /(<(think|search|python|result|answer)>[\s\S]*?(?:<\/\2>|$))/;

function Transcript({ text }: { text: string }) {
  const parts = text.split(BLOCKS); // text, block, tag, text, block, tag, ...
  return (
    <div class="transcript">
      {parts.map((part, i) => {
        if (i % 3 === 2 || !part?.trim()) return null;
        const tag = i % 3 === 1 ? parts[i + 1] : "";
        return <pre key={i} class={tag || "plain"}><Text text={part.trim()} /></pre>;
      })}
    </div>
  );
}
