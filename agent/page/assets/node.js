// The node as it is: clients, what they ask, servers, upstreams. Only what packets showed is in it.

import { byId, el, renew, svg } from "./dom.js";
import { count, cut, duration, percent, plural, rate } from "./words.js";

const COLUMNS = [["client", "Clients"], ["asked", "Address asked"], ["server", "DNS servers"], ["upstream", "Upstreams"]];
const WIDTH = 1290, BOX = 200, GAP = (WIDTH - 40 - 4 * BOX) / 3, LEFT = 20, TOP = 46;
const LINE = 16, BETWEEN = 26, MIN_BOX = 44;
const LEGS = [["lookup", "whole lookup"], ["query", "query, client to server"], ["server", "server"], ["upstream", "of that, upstreams"],
  ["reply", "reply, server to client"]];

export function showNode(state) {
  const picture = state.Picture, seconds = picture.Seconds;
  byId("picture-hint").textContent = hint(picture);
  renew(byId("picture"), picture, () => draw(picture));
  renew(byId("troubles"), [picture.Columns, picture.Edges], () => troubles(picture));
  renew(byId("legs"), [state.Legs, Math.round(seconds)], () => legs(state.Legs));
}

function hint(picture) {
  const rest = picture.NotApart ? ` ${plural(picture.NotApart, "lookup")} more are of clients and servers that are not told apart.` : "";
  const unclear = picture.Unclear ? ` How ${plural(picture.Unclear, "lookup")} ended was not seen.` : "";
  return `The last ${Math.round(picture.Seconds)} s, drawn from packets: ${plural(picture.Lookups, "lookup")}, ` +
    `${count(picture.Failed)} failed (${percent(picture.Failed, picture.Lookups)}). Times are means of whole lookups, or of an upstream's answers.` +
    unclear + rest;
}

function draw(picture) {
  const places = layout(picture.Columns);
  const bottom = Math.max(...[...places.values()].map((place) => place.y + place.height), TOP + 60) + 22;
  if (!places.size) return el("p", { class: "hint" }, "No lookup was seen in this time.");
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${bottom}`, role: "img", "aria-label": "The node: clients, addresses asked, DNS servers, upstreams" },
    COLUMNS.map(([, title], column) => svg("text", { class: "head", x: xOf(column), y: 26 }, title)),
    picture.Edges.map((edge) => line(edge, places)),
    [...places.values()].map(({ name, box, x, y, height }) => boxOf(name, box, x, y, height, picture.Seconds)),
    labels(picture, places));
}

const xOf = (column) => LEFT + column * (BOX + GAP);

/** Where each box is: columns are centred on the tallest one. */
function layout(columns) {
  const heights = COLUMNS.map(([name]) => columns[name].map(heightOf));
  const whole = heights.map((all) => all.reduce((sum, height) => sum + height + BETWEEN, -BETWEEN));
  const most = Math.max(...whole), places = new Map();
  COLUMNS.forEach(([name], column) => {
    let y = TOP + (most - whole[column]) / 2;
    columns[name].forEach((box, number) => {
      places.set(`${name} ${box.Id}`, { name, box, x: xOf(column), y, height: heights[column][number] });
      y += heights[column][number] + BETWEEN;
    });
  });
  return places;
}

const heightOf = (box) => Math.max(MIN_BOX, 30 + LINE * (box.Details.length + (box.Marks.length ? 1 : 0) + 1));

function boxOf(name, box, x, y, height, seconds) {
  const classes = ["box", box.Marks.length || (box.Failed && name === "client") ? "failing" : "", box.Id === "rest" ? "rest" : ""].join(" ");
  const failed = box.Failed && name === "client" ? ` · ${count(box.Failed)} failed` : "";
  const lines = [`${rate(box.Lookups, seconds)}${failed}`, ...box.Details];
  return svg("g", { "data-box": box.Id },
    svg("title", {}, [box.Title, ...box.Details].join("\n")),
    svg("rect", { class: classes, x, y, width: BOX, height, rx: 7 }),
    svg("text", { class: "strong", x: x + 11, y: y + 21 }, cut(box.Title, 23)),
    lines.map((text, number) => svg("text", { class: number === 0 && failed ? "small bad" : "small", x: x + 11, y: y + 21 + LINE * (number + 1) }, cut(text, 29))),
    box.Marks.length ? chip(box.Marks, x + 11, y + height - 24, "start") : null);
}

function ends(edge, places) {
  const here = places.get(edge.From), there = places.get(edge.To);
  if (!here || !there) return null;
  return { x1: here.x + BOX, y1: here.y + here.height / 2, x2: there.x, y2: there.y + there.height / 2 };
}

function line(edge, places) {
  const at = ends(edge, places);
  if (!at) return null;
  const bend = (at.x2 - at.x1) / 2, width = 1.2 + Math.min(5, Math.log10(1 + edge.Lookups));
  return svg("path", { class: edge.Marks.length ? "edge failing" : "edge", "stroke-width": width.toFixed(1),
    d: `M${at.x1} ${at.y1}C${at.x1 + bend} ${at.y1} ${at.x2 - bend} ${at.y2} ${at.x2} ${at.y2}` });
}

/** Numbers beside the end that no other line shares, so that they do not cover each other. */
function labels(picture, places) {
  const leaving = tally(picture.Edges, "From"), coming = tally(picture.Edges, "To"), placed = [];
  return picture.Edges.map((edge) => {
    const at = ends(edge, places);
    if (!at) return null;
    const share = leaving[edge.From] === 1 ? 0.28 : coming[edge.To] === 1 ? 0.72 : 0.5;
    const x = share === 0.5 ? (at.x1 + at.x2) / 2 : share < 0.5 ? at.x1 + 75 : at.x2 - 75;
    let y = curve(at, (x - at.x1) / (at.x2 - at.x1));
    while (placed.some((one) => Math.abs(one.x - x) < 130 && Math.abs(one.y - y) < 36)) y += 12;
    placed.push({ x, y });
    return label(edge, x, y, picture.Seconds);
  });
}

function tally(edges, end) {
  const sums = {};
  for (const edge of edges) sums[edge[end]] = (sums[edge[end]] ?? 0) + 1;
  return sums;
}

/** The height of the line at a part of its way. */
function curve(at, part) {
  let low = 0, high = 1;
  for (let i = 0; i < 20; i++) {
    const t = (low + high) / 2, x = 1.5 * t * (1 - t) ** 2 + 1.5 * t ** 2 * (1 - t) + t ** 3;
    if (x < part) low = t; else high = t;
  }
  return at.y1 + (at.y2 - at.y1) * (3 * low ** 2 * (1 - low) + low ** 3);
}

function label(edge, x, y, seconds) {
  const mean = edge.MeanSeconds === null ? "none answered" : duration(edge.MeanSeconds);
  const lost = edge.Failed && edge.From.startsWith("server ") ? `${count(edge.Failed)} unanswered` : null;
  const rows = edge.Marks.length || lost ? 1 : 0, text = `${rate(edge.Lookups, seconds)} · ${mean}`;
  return svg("g", {},
    svg("rect", { class: "plate", x: x - text.length * 3.3, y: y - 9 - rows * 11, width: text.length * 6.6, height: 17, rx: 4 }),
    svg("text", { class: "small", x, y: y + 4 - rows * 11, "text-anchor": "middle" }, text),
    edge.Marks.length ? chip(edge.Marks, x, y + 1, "middle")
      : lost ? svg("text", { class: "chip-text", x, y: y + 14, "text-anchor": "middle" }, lost) : null);
}

function chip(marks, x, y, anchor) {
  const first = marks[0], more = marks.length > 1 ? ` +${marks.length - 1}` : "";
  const text = `✗ ${count(first.Lookups)} ${cut(first.Code, 20)}${more}`;
  const width = 18 + text.length * 7, left = anchor === "middle" ? x - width / 2 : x;
  return svg("g", { "data-mark": first.Code },
    svg("title", {}, marks.map(sentence).join("\n")),
    svg("rect", { class: first.Confidence === "high" ? "chip" : "chip unsure", x: left, y, width, height: 19, rx: 9.5 }),
    svg("text", { class: "chip-text", x: left + width / 2, y: y + 14, "text-anchor": "middle" }, text));
}

function sentence(mark) {
  const lost = mark.Leg ? `, ${mark.Leg} lost` : "", place = mark.Place ? `${lost ? " at" : ","} ${mark.Place}` : "";
  const sure = mark.Confidence ? ` (${mark.Confidence} confidence)` : "";
  return `${mark.Code}: ${plural(mark.Lookups, "lookup")}${lost}${place}${sure}`;
}

/** The marks of the picture in words. */
function troubles(picture) {
  const every = [...Object.values(picture.Columns).flat(), ...picture.Edges].flatMap((one) => one.Marks);
  if (!every.length) return [];
  const sums = new Map();
  for (const mark of every) {
    const key = JSON.stringify([mark.Code, mark.Leg, mark.Place, mark.Confidence]);
    sums.set(key, { ...mark, Lookups: mark.Lookups + (sums.get(key)?.Lookups ?? 0) });
  }
  const sorted = [...sums.values()].sort((one, other) => other.Lookups - one.Lookups);
  return el("ul", {}, sorted.slice(0, 8).map((mark) => el("li", {}, sentence(mark))),
    sorted.length > 8 ? el("li", {}, `and ${sorted.length - 8} further kinds`) : null);
}

function legs(found) {
  return el("table", {},
    el("thead", {}, el("tr", {}, ["Leg, all lookups of which both ends were seen", "lookups", "mean", "99 % within"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, LEGS.map(([key, title]) => {
      const leg = found[key], none = leg.Lookups === 0;
      const most = leg.MostSeconds === null ? "over 8.192 s" : duration(leg.MostSeconds).replace(/\.000 s$/, " s");
      return el("tr", {}, el("th", { scope: "row" }, title), el("td", {}, count(leg.Lookups)),
        el("td", {}, none ? "–" : duration(leg.MeanSeconds)), el("td", {}, none ? "–" : most));
    })));
}
