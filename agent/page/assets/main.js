// Joins the parts of the page.

import { byId, el, renew } from "./dom.js";
import { showIncidents } from "./incidents.js";
import { follow } from "./live.js";
import { chooseIncident, followLookups, listen } from "./lookups.js";
import { showNode } from "./node.js";
import { count, percent, plural, rate } from "./words.js";

const LIVE = { waiting: "connecting", live: "live", lost: "no connection; trying again", hidden: "paused while hidden" };

function take(state) {
  const open = state.Going.length + state.LeftOut, picture = state.Picture;
  document.title = `${open ? `(${open}) ` : ""}dnstrail ${state.Node}`;
  byId("node-name").textContent = state.Node;
  renew(byId("summary"), [open, picture.Lookups, picture.Failed, Math.round(picture.Seconds)], () => [
    el("strong", { class: open ? "bad" : "good" }, open ? `${plural(open, "open incident")}` : "No open incident"),
    `. ${rate(picture.Lookups, picture.Seconds)} lookups, ${percent(picture.Failed, picture.Lookups)} failed in the last ${Math.round(picture.Seconds)} s.`,
  ]);
  notices(state);
  showIncidents(state, chooseIncident);
  showNode(state);
  followLookups(state);
}

/** What keeps the agent from seeing everything. */
function notices(state) {
  const texts = [
    ...state.Waiting.map((text) => `Not ready: ${text}.`),
    ...state.Limits.map((text) => `Limited: ${text}.`),
    ...(state.LostRecords ? [`${count(state.LostRecords)} records of packets were lost since the agent began: what they showed is not here.`] : []),
  ];
  renew(byId("notices"), texts, () => texts.map((text) => el("p", { class: "notice" }, text)));
}

function say(how) {
  const live = byId("live");
  if (live.dataset.state === how) return;
  live.dataset.state = how;
  live.textContent = LIVE[how];
}

listen();
follow(take, say);
