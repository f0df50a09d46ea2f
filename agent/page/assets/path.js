// One lookup, hop by hop: lanes for places, time from top to bottom, and where it ended.

import { byId, el, svg } from "./dom.js";
import { cut, duration } from "./words.js";

const LEFT = 96, LANE = 270, ROW = 50, HEAD = 20, LINE = 15, TIP = 9;
const KINDS = { client: "client", netns: "network namespace", server: "server", upstream: "upstream" };
const UNCLEAR = ["lost-sight"];
const SURE = { medium: "warn", low: "warn" };

export async function openLookup(serial) {
  const dialog = byId("lookup"), content = byId("lookup-content");
  content.replaceChildren(el("p", {}, "Reading…"));
  if (!dialog.open) dialog.showModal();
  try {
    const answer = await fetch(`page/lookup?serial=${serial}`);
    const parts = answer.ok ? story(await answer.json()) : [el("p", { id: "lookup-title" }, await answer.text()), close()];
    content.replaceChildren(...parts);
  } catch {
    content.replaceChildren(el("p", { id: "lookup-title" }, "The agent did not answer."), close());
  }
  content.querySelector("button")?.focus();
}

const close = () => el("button", { type: "button", onclick: () => byId("lookup").close() }, "Close");

function story(found) {
  return [
    el("div", { class: "title" },
      el("h2", { id: "lookup-title" }, el("span", { class: found.Status === "Failed" ? "bad" : "warn" }, found.Code ?? "No cause"),
        ": ", el("bdi", { class: "name" }, found.Title), ` ${found.Outcome}`),
      close()),
    el("p", {}, found.Beginning.join(" ")),
    el("div", { class: "path scroll", tabindex: "0", role: "img", "aria-label": words(found) }, draw(found)),
    ...found.LeftOut.map((text) => el("p", { class: "hint" }, text)),
    el("dl", {}, found.Explanation.flatMap(([label, text]) => [
      el("dt", {}, label),
      el("dd", { class: label === "How sure" ? SURE[found.Confidence] ?? "" : "" }, text)])),
  ];
}

/** The picture for who cannot see it. */
function words(found) {
  return found.Moves.map((move) => {
    const from = found.Lanes[move.From].Title, to = found.Lanes[move.To].Title;
    const when = move.Seconds === null ? "" : ` at ${duration(move.Seconds)}`;
    return move.End ? `${move.Label} ended at ${to}${when}: ${move.EndWords}` : `${move.Label} from ${from} to ${to}${when}${move.Seen ? "" : ", not seen there"}`;
  }).join(". ");
}

function draw(found) {
  const lanes = found.Lanes, most = Math.max(...lanes.map((lane) => lane.Details.length + (lane.Seen ? 0 : 1)), 0);
  const top = 18 + HEAD + LINE * Math.min(Math.max(most, 1), 3) + 14;
  const ends = found.Moves.filter((move) => move.End).map((move) => LEFT + (move.To + 0.5) * LANE + 40 + move.EndWords.length * 8.4);
  const width = Math.max(LEFT + lanes.length * LANE + 30, ...ends), bottom = top + ROW * (found.Moves.length + 0.6);
  const x = (lane) => LEFT + LANE / 2 + lane * LANE;
  return svg("svg", { viewBox: `0 0 ${width} ${bottom}`, width, height: bottom },
    lanes.map((lane, number) => svg("line", { class: lane.Seen ? "lane" : "lane unseen", x1: x(number), x2: x(number), y1: top, y2: bottom - 8 })),
    lanes.map((lane, number) => laneHead(lane, x(number), top)),
    svg("text", { class: "head", x: 12, y: 25 }, "Time"),
    found.Moves.map((move, number) => row(move, x, top + ROW * (number + 0.85))));
}

function laneHead(lane, x, top) {
  const left = x - LANE / 2 + 8;
  const details = lane.Details.length > 3 ? [...lane.Details.slice(0, 2), `and ${lane.Details.length - 2} more`] : lane.Details;
  const more = lane.Seen ? details : [...details.slice(0, 2), "no packet was seen here"];
  return svg("g", { "data-lane": lane.Kind },
    svg("title", {}, [lane.Title, ...lane.Details].join("\n")),
    svg("rect", { class: lane.Seen ? "box" : "box unseen", x: left, y: 6, width: LANE - 16, height: top - 10, rx: 7 }),
    svg("text", { class: "head", x, y: 22, "text-anchor": "middle" }, KINDS[lane.Kind]),
    svg("text", { class: "strong", x, y: 39, "text-anchor": "middle" }, cut(lane.Title.replace(`${lane.Kind} `, ""), 30)),
    more.slice(0, 3).map((text, line) => svg("text", { class: "small", x, y: 39 + LINE * (line + 1), "text-anchor": "middle" }, cut(text, 38))));
}

function row(move, x, y) {
  const time = move.Seconds === null ? "" : `+${duration(move.Seconds)}`;
  return svg("g", { "data-leg": move.Leg, "data-end": move.End },
    svg("text", { class: "small tick", x: 12, y: y + 4 }, time),
    move.End ? death(move, x(move.To), y) : move.From === move.To ? first(move, x(move.To), y) : arrow(move, x(move.From), x(move.To), y));
}

/** Where a message was seen first, if its origin was not. */
function first(move, x, y) {
  return [svg("circle", { class: "tip", cx: x, cy: y, r: 4.5 }),
    svg("text", { x: x + 12, y: y - 6 }, move.Label),
    svg("text", { class: "small", x: x + 12, y: y + 14 }, cut(move.Note, 42))];
}

function arrow(move, from, to, y) {
  const right = to > from, tip = right ? to - 3 : to + 3, back = right ? -TIP : TIP, middle = (from + to) / 2;
  const room = Math.floor(Math.abs(to - from) / 6.2);
  return [
    svg("path", { class: move.Seen ? "move" : "move unseen", d: `M${from} ${y}H${tip}` }),
    svg("path", { class: "tip", d: `M${tip} ${y}l${back} -5v10z` }),
    svg("text", { x: middle, y: y - 7, "text-anchor": "middle" }, move.Label),
    svg("title", {}, move.Note),
    svg("text", { class: "small", x: middle, y: y + 15, "text-anchor": "middle" },
      cut(move.Seen ? move.Note : move.Note || "sent there, not seen there", room)),
  ];
}

function death(move, x, y) {
  const unclear = UNCLEAR.includes(move.End), text = `${move.EndWords}`;
  return [
    svg("circle", { class: unclear ? "death unclear" : "death", cx: x, cy: y, r: 11 }),
    unclear ? svg("text", { class: "warn", x, y: y + 5, "text-anchor": "middle" }, "?")
      : svg("path", { class: "cross", d: `M${x - 4.5} ${y - 4.5}l9 9m0 -9l-9 9` }),
    svg("text", { class: unclear ? "warn" : "bad", x: x + 18, y: y + 5 }, text),
  ];
}
