/** A table whose columns sort, and the lines to page through it. Knows nothing of what its rows are. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { count } from "./format";
import type { Query } from "./route";
import { brief } from "./text";
import "./table.css";

export interface Column<Row> {
  key: string; // what the source sorts by; "" where it cannot
  label: string;
  title?: string; // what it means
  number?: boolean;
  cell: (row: Row) => ComponentChildren;
}

interface TableProps<Row> {
  label: string;
  columns: Column<Row>[];
  rows: Row[];
  id: (row: Row) => string;
  sort: string; // "-" in front: descending
  onSort: (sort: string) => void;
  chosen?: string;
}

export function Table<Row>({ label, columns, rows, id, sort, onSort, chosen }: TableProps<Row>) {
  const by = sort.replace(/^-/, "");
  const next = ({ key, number }: Column<Row>) => (by === key ? (sort === key ? `-${key}` : key) : number ? `-${key}` : key);
  const order = (key: string) => (by !== key ? undefined : sort.startsWith("-") ? "descending" : "ascending");
  return (
    <div class="wide" tabIndex={0} role="region" aria-label={label}>
      <table class="rows cards" role="table">
        <thead role="rowgroup">
          <tr role="row">
            {columns.map((column) => (
              <th key={column.label} scope="col" role="columnheader" class={column.number ? "num" : undefined} aria-sort={column.key ? order(column.key) : undefined} title={column.title}>
                {column.key ? <button type="button" onClick={() => onSort(next(column))}>{column.label}{by === column.key ? (sort.startsWith("-") ? " ↓" : " ↑") : ""}</button> : column.label}
              </th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {rows.map((row) => (
            <tr key={id(row)} role="row" class={chosen === id(row) ? "chosen" : undefined}>
              {columns.map((column) => <td key={column.label} role="cell" data-label={column.label} class={column.number ? "num" : undefined}>{column.cell(row)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export const ROWS = 100; // on a page

interface PagingProps {
  total: number;
  offset: number;
  noun: string;
  many?: string;
  onOffset: (offset: number) => void;
  children?: ComponentChildren; // what else is to be said of them
}

export function Paging({ total, offset, noun, many, onOffset, children }: PagingProps) {
  return (
    <p class="paging" role="status">
      {count(total, noun, many)}
      {total > ROWS && (
        <>
          : {(offset + 1).toLocaleString("en")} to {Math.min(total, offset + ROWS).toLocaleString("en")}{" "}
          <button type="button" disabled={offset === 0} onClick={() => onOffset(Math.max(0, offset - ROWS))}>Earlier</button>{" "}
          <button type="button" disabled={offset + ROWS >= total} onClick={() => onOffset(offset + ROWS)}>Later</button>
        </>
      )}
      {total > 0 && children}
    </p>
  );
}

/** The row of choices above a table; on a small screen it opens when asked to. `given`: how many are made. */
export function Choices({ label, given, children }: { label: string; given: number; children: ComponentChildren }) {
  const [open, setOpen] = useState(() => given > 0 || !matchMedia("(max-width: 40rem)").matches);
  return (
    <section class="card choices" aria-label={label}>
      <button type="button" class="small-screens" aria-expanded={open} onClick={() => setOpen(!open)}>{label}{given > 0 && `: ${given} chosen`} {open ? "▴" : "▾"}</button>
      <div class={open ? "controls" : "controls closed"}>{children}</div>
    </section>
  );
}

interface FilterProps {
  query: Query;
  set: (changes: Query) => void;
}

/** A choice among values; nothing where there is nothing to choose. */
export function Choice({ name, label, values, query, set }: FilterProps & { name: string; label: string; values: (string | [value: string, label: string])[] }) {
  if (values.length === 0) return null;
  return (
    <label>
      {label}{" "}
      <select value={query[name] ?? ""} onChange={(event) => set({ [name]: event.currentTarget.value })}>
        <option value="">any</option>
        {values.map((one) => {
          const [value, said] = typeof one === "string" ? [one, brief(one.replace(/_/g, " "), 40)] : one;
          return <option key={value} value={value}>{said}</option>;
        })}
      </select>
    </label>
  );
}

export function NumberField({ name, label, query, set, step, placeholder }: FilterProps & { name: string; label: string; step: number; placeholder?: number }) {
  return (
    <label>
      {label} <input type="number" step={step} placeholder={placeholder === undefined ? undefined : String(placeholder)} value={query[name] ?? ""} onInput={(event) => set({ [name]: event.currentTarget.value })} />
    </label>
  );
}

export function Find({ query, set, placeholder }: FilterProps & { placeholder: string }) {
  return (
    <label>
      Find <input type="search" value={query["q"] ?? ""} placeholder={placeholder} onInput={(event) => set({ q: event.currentTarget.value })} />
    </label>
  );
}

/** A query's number; undefined where it is none. */
export function numeric(text: string | undefined): number | undefined {
  const value = Number(text);
  return text === undefined || text.trim() === "" || !Number.isFinite(value) ? undefined : value;
}
