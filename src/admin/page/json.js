// A JSON value as a tree that folds, and plain elements. Everything from outside becomes text, never markup.

/** Makes an element: `h("p", { class: "x", onclick: f }, "text", child)`. */
export function h(name, props = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

const DEEPEST = 64;
const WIDEST = 500;

/** The tree of a parsed value; very deep or wide parts are cut and say so. */
export function tree(value, depth = 0) {
  if (value === null) return h("span", { class: "j-null" }, "null");
  if (typeof value === "string") return h("span", { class: "j-string" }, JSON.stringify(value));
  if (typeof value === "number") return h("span", { class: "j-number" }, String(value));
  if (typeof value === "boolean") return h("span", { class: "j-bool" }, String(value));
  const list = Array.isArray(value);
  const [open, close] = list ? ["[", "]"] : ["{", "}"];
  const entries = list ? value.map((item) => [null, item]) : Object.entries(value);
  if (entries.length === 0) return h("span", {}, open + close);
  if (depth >= DEEPEST) return h("span", { class: "j-cut" }, `${open} … ${close} deeper than ${DEEPEST}: see raw`);
  const rows = entries.slice(0, WIDEST).map(([key, item], index) => {
    const comma = index + 1 < entries.length ? "," : "";
    const name = key === null ? null : h("span", { class: "j-key" }, JSON.stringify(key));
    return h("div", { class: "j-row" }, name, name && ": ", tree(item, depth + 1), comma);
  });
  if (entries.length > WIDEST) rows.push(h("div", { class: "j-row j-cut" }, `… ${entries.length - WIDEST} more: see raw`));
  const what = list ? `${entries.length} ${entries.length === 1 ? "item" : "items"}` : `${entries.length} ${entries.length === 1 ? "key" : "keys"}`;
  return h("details", { class: "j-node", open: depth < 4 && entries.length <= 60 },
    h("summary", {}, open, h("span", { class: "j-fold" }, ` ${what} `, close)),
    h("div", { class: "j-body" }, ...rows),
    h("span", {}, close));
}
