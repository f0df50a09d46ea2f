// Numbers and times in words.

export const count = (number) => number.toLocaleString("en");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** `12.3/s`, of so many in so many seconds. */
export function rate(number, seconds) {
  const each = number / seconds;
  if (number === 0) return "0/s";
  if (each < 0.1) return "<0.1/s";
  return `${each < 10 ? each.toFixed(1) : count(Math.round(each))}/s`;
}

/** `23 µs`, `0.4 ms`, `5.001 s`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.0001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(2)} ms`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 3 : 1)} s`;
}

/** `3.1 %`; a share that is not zero never looks like it. */
export function percent(part, whole) {
  if (!whole) return "0 %";
  const share = (100 * part) / whole;
  return share > 0 && share < 0.1 ? "<0.1 %" : `${share.toFixed(share < 10 ? 1 : 0)} %`;
}

/** The time of an RFC 3339 stamp, with milliseconds. */
export const clock = (stamp) => (stamp ?? "").slice(11, 23);
export const clockSeconds = (stamp) => (stamp ?? "").slice(11, 19);

/** How long ago, on the node's own clock. */
export function ago(stamp, now) {
  const seconds = Math.max(0, Math.round((Date.parse(now.slice(0, 23) + "Z") - Date.parse(stamp.slice(0, 23) + "Z")) / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
