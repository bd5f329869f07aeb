/** The address of the table of trees as what is asked of the source; and as a text that a tree's address carries along. */
import type { TreeSort, TreesQuery } from "../api";
import type { Query } from "../route";
import { numeric } from "../table";

export function wanted(query: Query, limit: number): TreesQuery {
  const helped = numeric(query["helped"]);
  return {
    step: numeric(query["step"]),
    min_step: numeric(query["min_step"]),
    max_step: numeric(query["max_step"]),
    family: query["family"],
    ending: query["ending"],
    tool: query["tool"],
    error: query["error"],
    helped: helped === -1 || helped === 0 || helped === 1 ? helped : undefined,
    min_reward: numeric(query["min_reward"]),
    max_reward: numeric(query["max_reward"]),
    branches: numeric(query["branches"]),
    q: query["q"],
    sort: query["sort"] as TreeSort | undefined,
    offset: numeric(query["offset"]),
    limit,
  };
}

/** "": nothing was chosen. The page of the table does not count. */
export function packed(query: Query): string {
  const chosen = Object.entries(query).filter(([name, value]) => name !== "offset" && value);
  return new URLSearchParams(chosen).toString();
}

export const unpacked = (text: string): Query => Object.fromEntries(new URLSearchParams(text));
