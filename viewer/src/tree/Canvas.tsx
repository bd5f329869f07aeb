/**
 * The drawing in its window: scrolls, zooms, draws what is in sight, says what is under the pointer, and is walked with the arrows.
 */
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Tree } from "../api";
import { count } from "../format";
import { colour, useTheme } from "../theme";
import { About } from "./About";
import type { Grown } from "./branches";
import { Drawing, PALETTE, type Colouring, type Marks, type Palette } from "./Drawing";
import { laid, middle, round, walked, type Box, type Layout } from "./layout";
import { longest } from "./said";

const MARGIN = 300; // pixels drawn beyond the window, so that scrolling finds them there
const MOST_ZOOM = 64;

interface CanvasProps {
  tree: Tree;
  root: Grown;
  marks: Marks;
  colouring: Colouring;
  selected: string;
  onSelect: (id: string, compare: boolean) => void;
  onRead: () => void;
  zoom: number;
  onZoom: (zoom: number) => void;
}

export const palette = () => Object.fromEntries(PALETTE.map((name) => [name, colour(`--${name}`)])) as Palette;

export function Canvas({ tree, root, marks, colouring, selected, onSelect, onRead, zoom, onZoom }: CanvasProps) {
  const box = useRef<HTMLDivElement>(null);
  const [size, setSize] = useState<{ width: number; height: number } | null>(null);
  const [seen, setSeen] = useState({ x: 0, y: 0 });
  const [hover, setHover] = useState<{ id: string; x: number; y: number } | null>(null);
  const theme = useTheme();
  const colours = useMemo(palette, [theme]);
  const narrow = (size?.width ?? 1000) < 600;
  const labels = useMemo(() => longest(tree.leaves, narrow ? 12 : 26), [tree, narrow]);
  const layout = useMemo(() => (size ? laid(root, size.width, labels * 6.6 + 14, zoom) : null), [root, size?.width, zoom]);

  useLayoutEffect(() => {
    const measure = () => setSize({ width: box.current!.clientWidth, height: box.current!.clientHeight || innerHeight });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useDrawnMark(layout !== null, root);
  useEffect(() => {
    if (layout && box.current) reveal(box.current, layout, selected);
  }, [selected, layout]);
  useEffect(() => {
    const wheel = (event: WheelEvent) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      onZoom(clamped(zoom * (event.deltaY < 0 ? 1.25 : 0.8)));
    };
    box.current!.addEventListener("wheel", wheel, { passive: false });
    return () => box.current?.removeEventListener("wheel", wheel);
  }, [zoom, onZoom]);

  const keys = (event: KeyboardEvent) => {
    const from = layout?.byId.get(selected);
    if (!layout || !from || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") return onRead();
    if (event.key === "+" || event.key === "-") return onZoom(clamped(zoom * (event.key === "+" ? 1.5 : 1 / 1.5)));
    const to = walked(layout, from, event.key);
    if (to || event.key.startsWith("Arrow")) event.preventDefault();
    if (to) onSelect(to.at.id!, event.shiftKey);
  };
  const under = (event: MouseEvent) => (event.target as Element).closest("[data-node]")?.getAttribute("data-node") ?? null;
  const shown = layout && size ? inSight(layout, seen.x, seen.y, size.width, size.height, selected) : [];
  const hovered = hover && layout?.byId.get(hover.id);
  return (
    <>
      <div
        ref={box} class="treebox" tabIndex={0} role="tree" aria-label="Rollout tree: arrow keys walk it, slash searches, Enter reads"
        aria-activedescendant={`tree-${selected}`} onKeyDown={keys}
        onScroll={(event) => setSeen({ x: event.currentTarget.scrollLeft, y: event.currentTarget.scrollTop })}
        onClick={(event) => {
          const id = under(event);
          if (id) onSelect(id, event.shiftKey);
        }}
        onPointerMove={(event) => {
          const id = event.pointerType === "touch" ? null : under(event);
          setHover(id ? { id, x: event.clientX, y: event.clientY } : null);
        }}
        onPointerLeave={() => setHover(null)}
      >
        {layout && (
          <svg width={layout.width} height={layout.height} role="none">
            <Drawing {...{ layout, boxes: shown, palette: colours, colouring, head: tree.growth.head, marks, selected, labels }} />
          </svg>
        )}
      </div>
      {hovered && hover && (
        <div class="hover" aria-hidden="true" style={beside(hover.x, hover.y)}>
          <About at={hovered.at} tree={tree} />
        </div>
      )}
      {layout && <Scale layout={layout} />}
    </>
  );
}

export const clamped = (zoom: number) => Math.min(MOST_ZOOM, Math.max(1, zoom));

/** Boxes whose bar, edge or label may be in the window; what several leaves share reaches over all of their rows. */
function inSight(layout: Layout, x: number, y: number, width: number, height: number, selected: string): Box[] {
  const [left, right, top, bottom] = [x - MARGIN, x + width + MARGIN, y - MARGIN, y + height + MARGIN];
  return layout.boxes.filter((box) => {
    if (box.at.id === selected) return true;
    if (box.x > right || box.x + box.width < left - 200) return false;
    const from = box.at.parent ? Math.min(box.row, layout.byId.get(box.at.parent.id!)!.row) : box.row;
    return middle(layout, from) < bottom && middle(layout, box.last) > top;
  });
}

function reveal(window: HTMLElement, layout: Layout, id: string): void {
  const box = layout.byId.get(id);
  if (!box) return;
  const y = middle(layout, box.row);
  if (y - 30 < window.scrollTop) window.scrollTop = y - 40;
  else if (y + 20 > window.scrollTop + window.clientHeight) window.scrollTop = y + 40 - window.clientHeight;
  if (box.x < window.scrollLeft) window.scrollLeft = box.x - 30;
  else if (Math.min(box.x + box.width, box.x + 60) > window.scrollLeft + window.clientWidth) window.scrollLeft = box.x - window.clientWidth / 2;
}

/** Beside the pointer, on the side where there is room. */
function beside(x: number, y: number) {
  const across = x > innerWidth / 2 ? { right: `${innerWidth - x + 14}px` } : { left: `${x + 14}px` };
  return y > innerHeight / 2 ? { ...across, bottom: `${innerHeight - y + 14}px` } : { ...across, top: `${y + 14}px` };
}

/** Marks the moment at which a tree is on the screen: a reading of `performance` tells how long they took. */
function useDrawnMark(ready: boolean, root: Grown): void {
  useLayoutEffect(() => {
    if (!ready) return;
    let frame = requestAnimationFrame(() => {
      frame = requestAnimationFrame(() => performance.mark("tree-drawn"));
    });
    return () => cancelAnimationFrame(frame);
  }, [ready, root]);
}

/** How long so many tokens are drawn. */
function Scale({ layout }: { layout: Layout }) {
  const tokens = round(layout);
  return (
    <p class="scale soft">
      <i style={{ width: `${tokens * layout.scale}px` }} /> {count(tokens, "token")}
    </p>
  );
}
