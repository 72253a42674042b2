// A JSON value as a tree that folds, and plain elements. Everything from outside becomes text, never markup.

/** Makes an element: `h("p", { class: "x", onclick: f }, "text", child)`. */
export function h(name, props = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

const DEEPEST = 64;
const WIDEST = 500;

/** The tree of a parsed value, with `tail` behind its end; very deep or wide parts are cut and say so. */
export function tree(value, tail = "", depth = 0) {
  if (value === null) return leaf("null", "null", tail);
  if (typeof value === "string") return leaf("string", JSON.stringify(value), tail);
  if (typeof value === "number") return leaf("number", String(value), tail);
  if (typeof value === "boolean") return leaf("bool", String(value), tail);
  const list = Array.isArray(value);
  const [open, close] = list ? ["[", "]"] : ["{", "}"];
  const entries = list ? value.map((item) => [null, item]) : Object.entries(value);
  if (entries.length === 0) return h("span", {}, open + close + tail);
  if (depth >= DEEPEST) return leaf("cut", `${open} … ${close} deeper than ${DEEPEST}: see raw`, tail);
  const rows = entries.slice(0, WIDEST).map(([key, item], index) => {
    const name = key === null ? null : h("span", { class: "j-key" }, JSON.stringify(key));
    return h("div", { class: "j-row" }, name, name && ": ", tree(item, index + 1 < entries.length ? "," : "", depth + 1));
  });
  if (entries.length > WIDEST) rows.push(h("div", { class: "j-row j-cut" }, `… ${entries.length - WIDEST} more: see raw`));
  const what = `${entries.length} ${list ? "item" : "key"}${entries.length === 1 ? "" : "s"}`;
  return h("details", { class: "j-node", open: depth < 4 && entries.length <= 60 },
    h("summary", {}, open, h("span", { class: "j-fold" }, ` ${what} ${close}${tail}`)),
    h("div", { class: "j-body" }, ...rows),
    h("span", {}, close + tail));
}

function leaf(kind, text, tail) {
  return h("span", {}, h("span", { class: `j-${kind}` }, text), tail);
}
