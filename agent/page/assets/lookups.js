// The list of lookups with a problem: kept here as far as the agent keeps them, searched here, opened by Enter.

import { byId, el } from "./dom.js";
import { openLookup } from "./path.js";
import { clock, count, duration, plural } from "./words.js";

const STEP = 200, BUSY_MS = 1000, PACE_MS = 120;
const STATUSES = { Failed: "failed", Succeeded: "succeeded late", SampleLoss: "end not seen" };
const NO_NAMESPACE = "(none known)";

let rows = [];
let known = 0, forgotten = 0;
let reading = false;
let shown = STEP;
let incident = null;

/** Reads what is new, and forgets what the agent forgot. */
export async function followLookups(state) {
  const problems = state.Problems;
  byId("lookups-hint").textContent = hint(state);
  if (problems.Next <= known) [rows, known, forgotten] = [[], 0, 0];
  if (problems.Forgotten > forgotten) {
    forgotten = problems.Forgotten;
    rows = rows.filter((row) => row.Serial > forgotten);
  }
  if (problems.Next - 1 > known && !reading) {
    reading = true;
    try { await read(); } finally { reading = false; }
  } else if (!rows.length) render();
}

function hint(state) {
  const problems = state.Problems;
  const gone = problems.Forgotten ? ` ${plural(problems.Forgotten, "older one")} made room for newer ones.` : "";
  const not = problems.NotKept ? ` ${count(problems.NotKept)} more were counted and not kept, because there were too many at once.` : "";
  const names = state.Names === "names" ? "" : " Names of lookups are replaced by words (--page redacted).";
  return `${count(problems.Kept)} are kept, the newest first.${gone}${not}${names}`;
}

/** Page by page, the newest first, until what was known before. */
async function read() {
  const before = known;
  let oldest = null, newest = known;
  for (;;) {
    const answer = await fetch(oldest === null ? "page/lookups" : `page/lookups?before=${oldest}`);
    if (answer.status === 503) {
      await pause(BUSY_MS);
      continue;
    }
    if (!answer.ok) return;
    const page = await answer.json(), fresh = page.filter((row) => row.Serial > before);
    for (const row of fresh) row.words = wordsOf(row);
    rows = merge(rows, fresh);
    newest = Math.max(newest, ...fresh.map((row) => row.Serial), 0);
    render();
    if (fresh.length < page.length || !page.length || page.at(-1).Serial <= Math.max(before + 1, forgotten + 1)) break;
    oldest = page.at(-1).Serial;
    await pause(PACE_MS);
  }
  known = newest;
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function merge(old, fresh) {
  const has = new Set(old.map((row) => row.Serial));
  return [...old, ...fresh.filter((row) => !has.has(row.Serial))].sort((one, other) => other.Serial - one.Serial);
}

const wordsOf = (row) => Object.values(row).filter((value) => value !== null).join(" ").toLowerCase();

/** Only the problems of one incident, or all of them. */
export function chooseIncident(tag, code) {
  incident = tag === null ? null : { tag, code };
  byId("filter-incident").replaceChildren(...(incident
    ? [el("button", { type: "button", id: "all-lookups", onclick: () => chooseIncident(null) }, `only this incident: ${code} ✕`)] : []));
  shown = STEP;
  render();
  if (incident) byId("lookups-heading").scrollIntoView({ block: "start" });
}

function wanted() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const cause = byId("filter-cause").value, status = byId("filter-status").value, namespace = byId("filter-namespace").value;
  return rows.filter((row) => (!incident || row.Incident === incident.tag) &&
    (!cause || (row.Code ?? "") === cause) && (!status || row.Status === status) &&
    (!namespace || (row.Namespace ?? NO_NAMESPACE) === namespace) && words.every((word) => row.words.includes(word)));
}

function render() {
  options("filter-cause", rows.map((row) => row.Code).filter(Boolean));
  options("filter-status", rows.map((row) => row.Status), STATUSES);
  options("filter-namespace", rows.map((row) => row.Namespace ?? NO_NAMESPACE));
  const found = wanted(), body = byId("lookups").tBodies[0];
  const focused = document.activeElement?.closest?.("#lookups tbody") ? document.activeElement.dataset.serial : null;
  const old = new Map([...body.rows].map((line) => [line.dataset.serial, line]));
  body.replaceChildren(...found.slice(0, shown).map((row) => old.get(String(row.Serial)) ?? lineOf(row)));
  if (focused) body.querySelector(`[data-serial="${focused}"] .open`)?.focus({ preventScroll: true });
  byId("found").textContent = rows.length
    ? `${count(found.length)} of ${count(rows.length)} match${found.length > shown ? `; the first ${count(shown)} are listed` : ""}` : "No lookup with a problem was seen.";
  byId("more").hidden = found.length <= shown;
}

function options(id, values, words = {}) {
  const select = byId(id), sums = new Map();
  for (const value of values) sums.set(value, (sums.get(value) ?? 0) + 1);
  if (select.value && !sums.has(select.value)) sums.set(select.value, 0);
  const made = [...sums].sort().map(([value, number]) => `${value}\n${words[value] ?? value} (${count(number)})`);
  if (select.dataset.made === made.join("\n\n")) return;
  const chosen = select.value;
  select.dataset.made = made.join("\n\n");
  select.replaceChildren(el("option", { value: "" }, "all"),
    ...made.map((one) => el("option", { value: one.slice(0, one.indexOf("\n")) }, one.slice(one.indexOf("\n") + 1))));
  select.value = chosen;
}

function lineOf(row) {
  const open = () => openLookup(row.Serial);
  const line = el("tr", { "data-serial": String(row.Serial), onclick: open },
    el("td", {}, el("button", { type: "button", class: "open", "data-serial": String(row.Serial) }, clock(row.Time))),
    el("td", {}, el("span", { class: row.Status === "Failed" ? "bad" : "warn" }, row.Code ?? "no cause"), sub(row.Place ?? (row.Confidence ? `${row.Confidence} confidence` : ""))),
    el("td", {}, el("bdi", { class: "name", title: row.Name ?? "" }, row.Name ?? "a TCP connection"), sub([row.Type, row.Protocol].filter(Boolean).join(", "))),
    el("td", {}, el("bdi", { title: row.Client }, row.Client), sub([row.Client === row.Address ? null : row.Address, row.Process].filter(Boolean).join(", "))),
    el("td", {}, row.Service ?? row.Server, sub([row.Service ? row.Server : null, row.Backend ? `to ${row.Backend}` : null].filter(Boolean).join(" "))),
    el("td", {}, row.Rcode ?? "no reply seen", sub([STATUSES[row.Status] ?? row.Status, row.Attempts > 1 ? `${row.Attempts} attempts` : null, duration(row.DurationSeconds)].filter(Boolean).join(", "))));
  return line;
}

const sub = (text) => el("span", { class: "sub", title: text }, text);

/** Puts the keyboard and the filters to work. */
export function listen() {
  for (const id of ["search", "filter-cause", "filter-status", "filter-namespace"]) {
    byId(id).addEventListener("input", () => {
      shown = STEP;
      render();
    });
  }
  byId("more").addEventListener("click", () => {
    shown += STEP;
    render();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("lookup").open) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "Escape" && event.target === byId("search")) {
      event.target.blur();
    } else if ((event.key === "ArrowDown" && !event.target.matches("select")) || (event.key === "j" && !typing)) move(1, event);
    else if ((event.key === "ArrowUp" && !event.target.matches("select")) || (event.key === "k" && !typing)) move(-1, event);
  });
}

/** To the next or the one before in the list; arrows scroll the page unless the list or the search has the focus. */
function move(step, event) {
  const at = document.activeElement?.closest?.("#lookups tbody tr");
  if (!at && event.key.startsWith("Arrow") && document.activeElement !== byId("search")) return;
  const every = [...byId("lookups").tBodies[0].rows];
  const next = at ? every[every.indexOf(at) + step] : every[0];
  if (next) {
    event.preventDefault();
    next.querySelector(".open").focus();
  }
}
