// Elements whose texts are only ever text nodes: names of lookups come from the network.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, and children that are elements or texts; null and undefined are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Replaces what an element contains, unless that was made of the same facts, or somebody is about to copy a part of it.
 * What has the focus keeps it. */
export function renew(parent, facts, make) {
  const now = JSON.stringify(facts);
  const selection = document.getSelection();
  if (parent.dataset.facts === hash(now) || (!selection.isCollapsed && parent.contains(selection.anchorNode))) return;
  const focused = parent.contains(document.activeElement) ? document.activeElement.id : "";
  parent.replaceChildren(...[make()].flat());
  parent.dataset.facts = hash(now);
  if (focused) byId(focused)?.focus({ preventScroll: true });
}

/** Tells texts apart (FNV-1a, 53 bits of two runs). */
function hash(text) {
  let one = 0x811c9dc5, other = 0x1000193;
  for (let i = 0; i < text.length; i++) {
    one = Math.imul(one ^ text.charCodeAt(i), 0x01000193);
    other = Math.imul(other ^ text.charCodeAt(i), 0x85ebca6b);
  }
  return `${one >>> 0}-${other >>> 0}-${text.length}`;
}
