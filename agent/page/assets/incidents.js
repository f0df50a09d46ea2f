// Incidents: what fails, for whom, where, since when, how sure that is, and what to do.

import { byId, el, renew, svg } from "./dom.js";
import { ago, clockSeconds, count, plural } from "./words.js";

const SURE = { high: "sure", medium: "likely", low: "unsure" };
const HEIGHT = 44, PART = 6;

export function showIncidents(state, choose) {
  const facts = [state.Going, state.Ended, state.LeftOut];
  renew(byId("incidents"), facts, () => [
    ...(state.Going.length ? [] : [el("p", { class: "none" }, "No incident is open.")]),
    ...state.Going.map((shown) => card(shown, state.Time, choose)),
    ...(state.LeftOut ? [el("p", {}, `${plural(state.LeftOut, "more incident")} with fewer lookups are open and not shown.`)] : []),
    ...(state.Ended.length ? [past(state, choose)] : []),
  ]);
}

function past(state, choose) {
  const before = byId("past");
  return el("details", { id: "past", open: before?.open ?? !state.Going.length },
    el("summary", { id: "past-summary" }, `${plural(state.Ended.length, "incident")} that ended lately`),
    ...state.Ended.map((shown) => card(shown, state.Time, choose)));
}

function card(shown, now, choose) {
  const line = shown.Line, over = line.State === "Ended";
  return el("article", { class: over ? "incident ended" : "incident", "data-code": line.Code },
    el("div", {},
      el("h3", {}, line.Code,
        el("span", { class: over ? "tag over" : "tag open" }, over ? "ended" : `open for ${ago(line.First, now)}`),
        el("span", { class: "tag sure", title: "the lowest confidence of its verdicts" }, `${SURE[line.Confidence] ?? ""} (${line.Confidence} confidence)`)),
      el("p", {}, line.Message),
      el("p", {}, `${whose(line)} asking ${asked(line)}`),
      el("p", { class: "do" }, el("b", {}, "What to do: "), line.Remedy),
      el("p", {}, el("button", { type: "button", id: `show-${line.Id}`, onclick: () => choose(shown.Tag, line.Code) }, "Show its lookups"))),
    el("div", { class: "side" },
      course(shown),
      el("p", {}, `steps of ${step(shown.StepSeconds)}${shown.Early > 1 ? "; pale: an average" : ""}`),
      el("p", {}, `${plural(line.Lookups, "lookup")}, ${line.Clients >= 128 ? "128 clients or more" : plural(line.Clients, "client")}`),
      el("p", {}, line.SharePercent === null ? "share: not known, not all lookups were counted" : `${line.SharePercent} % of the lookups concerned`),
      el("p", {}, `first ${clockSeconds(line.First)}, last ${clockSeconds(line.Last)} UTC`)));
}

const step = (seconds) => (seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`);

function whose(line) {
  const client = line.Client;
  if (!client) return "Several clients";
  if (client.Workload || client.Pod) return `${client.Namespace}/${client.Workload ?? client.Pod}`;
  return client.Address ?? "Nobody known";
}

function asked(line) {
  const server = line.Server;
  if (!server) return "several addresses";
  const name = server.Service ?? (server.Pod ? `${server.Namespace}/${server.Pod}` : null);
  const backend = server.Backend ? `, translated to ${server.Backend}` : "";
  return `${server.Address}${name ? ` (${name})` : ""}${backend}`;
}

/** Bars over time; the highest one fills the height. */
function course(shown) {
  const parts = shown.Course, most = Math.max(1, ...parts), width = Math.max(parts.length, 20) * PART;
  return svg("svg", { class: "course", viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${count(most)} lookups at most in a step` },
    svg("line", { x1: 0, x2: width, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    parts.map((lookups, place) => {
      const height = (lookups / most) * (HEIGHT - 2);
      return svg("rect", { class: place < shown.Early ? "early" : null, x: width - (parts.length - place) * PART + 1, y: HEIGHT - height, width: PART - 1.5, height });
    }));
}
