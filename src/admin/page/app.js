// The inspector: what came in, what was decided, what the policy is. No library, no build; all text goes in by textContent.
import { h, tree } from "/assets/json.js";

const $ = (id) => document.getElementById(id);
const KEEP = { received: 100, decisions: 200, kept: 200 };
const PATHS = { received: "/api/v1/inspector/events", decisions: "/api/v1/decisions", kept: "/api/v1/refused" };
const GOOD = new Set(["forwarded", "duplicate", "dropped", "unmatched", "responded"]);

const state = {
  view: "received",
  received: [],
  decisions: [],
  kept: [],
  keeps: false,
  last: { received: 0, decisions: 0, kept: 0 },
  selected: { received: null, decisions: null, kept: null },
  policy: null,
};

// -- asking --

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401) {
    location.reload(); // the login is over
    throw new Error("logged out");
  }
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error ?? answer.statusText), { problems: value.problems ?? [] });
  return value;
}

async function pull(view, newest) {
  // After a restart the gate counts from 1 again.
  if (newest < state.last[view]) Object.assign(state, { [view]: [] }).last[view] = 0;
  if (newest === state.last[view]) return false;
  const answer = await ask(`${PATHS[view]}?after=${state.last[view]}`);
  const fresh = view === "decisions"
    ? answer.decisions.map(({ seq, line }) => ({ seq, id: line.event_id, line }))
    : answer.events.map((event) => ({ seq: event.number, id: event.id, [view === "kept" ? "refusal" : "event"]: event }));
  fresh.reverse().forEach((item) => { item.fresh = state.last[view] > 0; });
  state[view] = [...fresh, ...state[view]].slice(0, KEEP[view]);
  state.last[view] = answer.last;
  if (view === "kept") state.keeps = answer.on;
  return fresh.length > 0;
}

// -- small things --

const pad = (n, digits = 2) => String(n).padStart(digits, "0");

function clock(text) {
  const at = new Date(text);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1024 * 1024 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}

function took(us) {
  return us < 1000 ? `${us} µs` : us < 1e6 ? `${(us / 1000).toFixed(1)} ms` : `${(us / 1e6).toFixed(2)} s`;
}

function chip(text, kind) {
  return h("span", { class: `chip ${kind}` }, text);
}

const KINDS = { forwarded: "good", responded: "good", duplicate: "info", dropped: "info", unmatched: "info", refused: "bad", aborted: "warn", lost: "warn" };
const VERIFIED = { content: ["content verified", "good"], sender: ["sender verified", "info"], none: ["not verified", "warn"] };
const verified = (word) => chip(...(VERIFIED[word] ?? [word, "warn"]));

// -- the list --

function row(item) {
  const selected = item.seq === state.selected[state.view];
  const attributes = { class: `row${item.fresh ? " fresh" : ""}`, role: "option", id: `row-${item.seq}`, "aria-selected": String(selected), "data-seq": item.seq };
  item.fresh = false;
  if (state.view === "received") {
    const { event } = item;
    return h("div", attributes,
      h("span", { class: "line" }, h("span", { class: "strong" }, event.route), event.event_type && h("span", { class: "type" }, event.event_type), h("span", { class: "grow" }), h("time", { datetime: event.received }, clock(event.received))),
      h("span", { class: "line" }, h("span", { class: "mono dim cut grow" }, `${event.method} ${event.path}`), event.duplicate && chip("copy", "warn"), h("span", { class: "dim" }, size(event.body_bytes)), verified(event.verified)));
  }
  if (state.view === "kept") {
    const { refusal } = item;
    return h("div", attributes,
      h("span", { class: "line" }, chip(refusal.reason, refusal.observed ? "warn" : "bad"), h("span", { class: "strong cut" }, refusal.route), h("span", { class: "grow" }), h("time", { datetime: refusal.received }, clock(refusal.received))),
      h("span", { class: "line" }, h("span", { class: "mono dim cut grow" }, `${refusal.method} ${refusal.path}`), h("span", { class: "dim" }, refusal.client), refusal.body_bytes !== null && h("span", { class: "dim" }, size(refusal.body_bytes))));
  }
  const { line } = item;
  const where = [line.method, line.path].filter(Boolean).join(" ");
  return h("div", attributes,
    h("span", { class: "line" }, chip(line.reason ?? line.outcome, KINDS[line.outcome] ?? "info"), h("span", { class: "strong cut" }, line.route ?? "no route"), h("span", { class: "grow" }), h("time", { datetime: line.time }, clock(line.time))),
    h("span", { class: "line" }, h("span", { class: "mono dim cut grow" }, where || "–"), h("span", { class: "dim" }, line.client_ip ?? line.peer ?? ""), line.status && h("span", { class: "mono" }, line.status)));
}

function shown() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const refused = state.view === "decisions" && $("refused").checked;
  return state[state.view].filter((item) => {
    if (refused && GOOD.has(item.line.outcome)) return false;
    if (words.length === 0) return true;
    item.text ??= JSON.stringify(item.event ?? item.line ?? item.refusal).toLowerCase();
    return words.every((word) => item.text.includes(word));
  });
}

function empty() {
  const filtered = state[state.view]?.length > 0;
  if (filtered) return [h("p", {}, "Nothing here matches the filter.")];
  if (state.view === "kept") {
    return [
      h("h2", {}, state.keeps ? "Nothing refused yet" : "Refused events are not kept"),
      h("p", {}, state.keeps ? "Events whose signature, token or time is refused are listed here, with what is wrong with them." : "The gate keeps the last of them, in memory only, where the policy says so:"),
      state.keeps ? "" : h("pre", {}, '[admin]\ncapture = { refused = 20, max_body = "64KiB" }'),
    ];
  }
  if (state.view === "decisions") return [h("h2", {}, "No request yet"), h("p", {}, "Every request that comes to the gate is listed here, taken or refused, with its reason.")];
  return [
    h("h2", {}, "Nothing received yet"),
    h("p", {}, "Events that a route delivers to ", h("code", {}, "builtin:inspector"), " are shown here, byte for byte as a receiver gets them."),
    h("p", {}, "Send one:"),
    h("pre", {}, "hooklatch send github --url https://localhost:8443/github --secret file:config/github.secret --insecure"),
    h("p", { class: "dim" }, "Refused requests are under ", h("button", { class: "link", onclick: () => show("decisions") }, "Decisions"), "."),
  ];
}

function draw() {
  for (const view of Object.keys(PATHS)) document.querySelector(`[data-count=${view}]`).textContent = state[view].length;
  const listed = state.view !== "policy";
  $("list").hidden = !listed;
  document.body.dataset.view = state.view;
  if (!listed) return;
  const items = shown();
  const top = $("rows").scrollTop;
  $("rows").replaceChildren(...items.map(row));
  $("rows").scrollTop = top;
  $("rows").setAttribute("aria-label", { received: "Received events", decisions: "Decisions", kept: "Refused events" }[state.view]);
  const chosen = state.selected[state.view];
  if (items.some((item) => item.seq === chosen)) $("rows").setAttribute("aria-activedescendant", `row-${chosen}`);
  else $("rows").removeAttribute("aria-activedescendant");
  $("rows").hidden = items.length === 0;
  $("empty").hidden = items.length > 0;
  if (items.length === 0) $("empty").replaceChildren(...empty());
  $("refused").parentElement.hidden = state.view !== "decisions";
}

function select(seq, { scroll = true } = {}) {
  state.selected[state.view] = seq;
  draw();
  if (scroll) $(`row-${seq}`)?.scrollIntoView({ block: "nearest" });
  detail();
}

function move(step) {
  const items = shown();
  if (items.length === 0) return;
  const at = items.findIndex((item) => item.seq === state.selected[state.view]);
  const next = at < 0 ? 0 : Math.min(items.length - 1, Math.max(0, at + step));
  select(items[next].seq);
}

// -- the detail --

function facts(pairs) {
  const rows = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function block(title, ...children) {
  return h("section", { class: "block" }, h("h3", {}, title), ...children);
}

function copier(text) {
  const button = h("button", { class: "quiet", type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser refused";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function verdict(line) {
  const why = line.would_refuse?.length ? `observed only: ${line.would_refuse.join(", ")}` : undefined;
  const destinations = (line.destinations ?? []).map((to) => `${to.to}: ${to.result}${to.status ? ` (${to.status})` : ""}`).join(", ");
  const notes = (line.annotations ?? []).map(([name, text]) => `${name}: ${text}`).join(", ");
  return facts([
    ["Outcome", h("span", {}, chip(line.outcome, KINDS[line.outcome] ?? "info"), line.status ? ` answered ${line.status}` : "")],
    ["Reason", line.reason && h("code", {}, line.reason)],
    ["Detail", line.detail],
    ["Would refuse", why],
    ["Verified", line.verified && verified(line.verified)],
    ["Secret", line.secret],
    ["Replay", line.replay],
    ["Delivered to", destinations],
    ["Took", line.duration_us !== undefined ? took(line.duration_us) : undefined],
    ["Client", line.client_ip && line.peer && !line.peer.startsWith(line.client_ip) ? `${line.client_ip} through ${line.peer}` : line.client_ip ?? line.peer],
    ["Request", h("span", { class: "mono" }, [line.method, (line.host ?? "") + (line.path ?? "") + (line.query ? `?${line.query}` : "")].filter(Boolean).join(" "))],
    ["Body", line.body_bytes ? size(line.body_bytes) : undefined],
    ["Event type", line.event_type],
    ["Delivery id", line.delivery_id && h("span", { class: "mono" }, line.delivery_id)],
    ["Provider", line.provider],
    ["Notes", notes],
    ["Policy", line.policy ? `number ${line.policy}` : undefined],
    ["Event id", line.event_id && h("span", { class: "mono" }, line.event_id)],
    ["Time", line.time],
  ]);
}

function body(event) {
  if (event.body === "") return block("Body", h("p", { class: "dim" }, "empty"));
  let parsed;
  if (event.body.length <= 512 * 1024) {
    try { parsed = JSON.parse(event.body); } catch { /* not JSON: shown as it is */ }
  }
  const raw = h("pre", { class: "raw", tabindex: "0" }, event.body);
  const cut = event.truncated ? h("p", { class: "wrong" }, "The body is longer; only its beginning is kept.") : null;
  if (parsed === undefined) return block("Body", cut, h("div", { class: "buttons" }, copier(event.body)), raw);
  const pretty = h("div", { class: "json", tabindex: "0" }, tree(parsed));
  raw.hidden = true;
  const toggle = h("button", { class: "quiet", type: "button", "aria-pressed": "false" }, "Raw");
  toggle.addEventListener("click", () => {
    raw.hidden = !raw.hidden;
    pretty.hidden = !raw.hidden;
    toggle.setAttribute("aria-pressed", String(!raw.hidden));
  });
  return block("Body", cut, h("div", { class: "buttons" }, toggle, copier(event.body)), pretty, raw);
}

function headers(event) {
  return block(`Headers (${event.headers.length})`, h("table", { class: "headers" },
    h("tbody", {}, ...event.headers.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))))));
}

/** What was read where, what was signed, and what is wrong. */
function explained(told) {
  const found = (told.findings ?? []).map((finding) => h("li", {}, finding.text, " ", h("code", { class: "dim" }, finding.cause)));
  const certain = (told.findings ?? []).some((finding) => finding.certain);
  const signed = (told.signed ?? []).flatMap((text) => [h("pre", { class: "raw", tabindex: "0" }, text.text), h("p", { class: "dim" }, `${text.bytes} bytes${text.sha256 ? `, SHA-256 ${text.sha256}` : "; the secret is part of it"}`)]);
  const notes = [...(told.request?.notes ?? []), ...(told.notes ?? [])].map((note) => h("li", {}, note));
  const parts = [];
  if (found.length) parts.push(block(told.verdict === "accept" ? "Notes" : certain ? "What is wrong" : "What may be wrong", h("ul", { class: "findings" }, ...found)));
  if (notes.length) parts.push(block("Of this event", h("ul", {}, ...notes)));
  const read = (told.read ?? []).map(({ what, where }) => [what, where]);
  if (read.length) parts.push(block("What was read", facts([["scheme", told.scheme], ...read])));
  if (signed.length) parts.push(block("What is signed", ...signed));
  return parts;
}

let drawn = 0;

async function detail() {
  const now = ++drawn;
  const pane = $("detail");
  if (state.view === "policy") return;
  const item = state[state.view].find((found) => found.seq === state.selected[state.view]);
  if (!item) {
    pane.replaceChildren(h("p", { class: "hint" }, state[state.view].length ? "Choose one on the left." : ""));
    return;
  }
  if (item.refusal) {
    const { refusal } = item;
    const parts = [h("h2", {}, refusal.reason, " ", h("small", { class: "mono dim" }, item.id)), block("Verdict", facts([
      ["Detail", refusal.detail], ["Route", refusal.route], ["Client", refusal.client], ["Observed only", refusal.observed ? "the event went on" : undefined], ["Time", refusal.received],
    ]))];
    for (const [path, shown] of [["explanations", explained], ["refused", (event) => [event.body === null ? "" : body(event), headers(event)]]]) {
      try {
        parts.push(...shown(await ask(`/api/v1/${path}/${encodeURIComponent(item.id)}`)));
      } catch (error) {
        parts.push(h("p", { class: "hint" }, error.message));
      }
    }
    if (now !== drawn) return;
    pane.replaceChildren(...parts);
    pane.scrollTop = 0;
    return;
  }
  const line = item.line ?? state.decisions.find((found) => found.id === item.id)?.line;
  const kept = state.received.some((found) => found.id === item.id);
  const title = item.event ? item.event.event_type ?? item.event.route : line.reason ?? line.outcome;
  const parts = [h("h2", {}, title, " ", h("small", { class: "mono dim" }, item.id ?? ""))];
  if (line) parts.push(block("Verdict", verdict(line)));
  else if (item.event) parts.push(block("Verdict", facts([["Verified", verified(item.event.verified)], ["Provider", item.event.provider]])));
  if (item.line && line.outcome === "refused") {
    const known = state.kept.find((found) => found.id === item.id);
    parts.push(known
      ? h("p", {}, h("button", { class: "link", onclick: () => { show("kept"); select(known.seq); } }, "Why? This event is kept"))
      : h("p", { class: "hint" }, "A refused request is kept only where the policy says so: see Refused."));
  }
  if (kept || item.event) {
    try {
      const event = await ask(`/api/v1/inspector/events/${encodeURIComponent(item.id)}`);
      parts.push(body(event), headers(event));
    } catch (error) {
      parts.push(h("p", { class: "hint" }, error.message));
    }
  }
  if (now !== drawn) return; // another one was chosen meanwhile
  pane.replaceChildren(...parts);
  pane.scrollTop = 0;
}

async function policy() {
  const said = h("div", { class: "said", role: "status" });
  const button = h("button", { class: "primary", type: "button" }, "Reload the policy");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await ask("/api/v1/reload", { method: "POST" });
      said.replaceChildren(h("p", { class: "right-answer" }, "The policy was loaded and serves."));
      fill();
    } catch (error) {
      const problems = (error.problems ?? []).map((problem) => h("li", {}, problem));
      said.replaceChildren(h("p", { class: "wrong" }, `${error.message}; the one before goes on serving.`), h("ul", {}, ...problems));
    }
    button.disabled = false;
    status();
  });
  const shownPolicy = h("div", { class: "json" });
  const fill = async () => {
    try {
      shownPolicy.replaceChildren(tree(await ask("/api/v1/policy")));
    } catch (error) {
      shownPolicy.replaceChildren(error.message);
    }
  };
  $("detail").replaceChildren(h("h2", {}, "The policy in force"), h("p", { class: "hint" }, "As it was read; secrets are never shown."), h("div", { class: "buttons" }, button), said, shownPolicy);
  await fill();
}

function show(view) {
  state.view = view;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.view === view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("list").setAttribute("aria-labelledby", `tab-${view}`);
  history.replaceState(null, "", `#${view}`);
  draw();
  if (view === "policy") policy();
  else detail();
}

// -- what changes by itself --

async function status() {
  const said = await ask("/api/v1/status");
  const { readiness, counted } = said;
  $("ready").className = `pill ${readiness.ready ? "good" : "bad"}`;
  $("ready").textContent = readiness.ready ? "ready" : "not ready";
  const troubles = [...(readiness.not ?? []), ...(readiness.notes ?? [])];
  $("notes").hidden = troubles.length === 0;
  $("notes").textContent = troubles.map(({ check, why }) => `${check}: ${why}`).join("  ·  ");
  const sums = new Map();
  for (const { requests } of counted.routes) {
    for (const [outcome, n] of Object.entries(requests)) sums.set(outcome, (sums.get(outcome) ?? 0) + n);
  }
  const total = [...sums.values()].reduce((sum, n) => sum + n, 0);
  const cells = [["requests", total, ""], ["connections", counted.connections, ""]];
  for (const outcome of ["forwarded", "refused", "duplicate", "dropped", "unmatched", "responded", "aborted"]) {
    if (sums.has(outcome) || outcome === "forwarded" || outcome === "refused") cells.splice(-1, 0, [outcome, sums.get(outcome) ?? 0, KINDS[outcome]]);
  }
  $("totals").replaceChildren(...cells.map(([name, n, kind]) => h("div", { class: kind }, h("dt", {}, name), h("dd", {}, n.toLocaleString("en")))));
  state.keeps = said.keeps_refused;
  $("version").textContent = `hooklatch ${said.version}`;
}

let pulling = Promise.resolve();

function newest(numbers) {
  pulling = pulling.then(async () => {
    const changed = await Promise.all([pull("received", numbers.events), pull("decisions", numbers.decisions), pull("kept", numbers.refused)]);
    if (!changed.includes(true)) return;
    draw();
    const first = shown()[0];
    if (state.view !== "policy" && state.selected[state.view] === null && first) select(first.seq);
    else if (state.view === "received") verdictCame();
    await status();
  }).catch(() => {}); // the next message asks again
}

/** The decision of an event comes a moment after the event: the open detail is drawn again when it is there. */
function verdictCame() {
  const item = state.received.find((found) => found.seq === state.selected.received);
  if (item && !item.judged && state.decisions.some((found) => found.id === item.id)) {
    item.judged = true;
    detail();
  }
}

function listen() {
  const source = new EventSource("/api/v1/live");
  const say = (text, kind) => { $("live").textContent = text; $("live").className = `pill ${kind}`; };
  source.addEventListener("open", () => say("live", "good"));
  source.addEventListener("newest", (message) => newest(JSON.parse(message.data)));
  source.addEventListener("error", () => {
    say("not connected", "bad");
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(() => { status().catch(() => {}); listen(); }, 3000);
  });
}

// -- hands --

$("rows").addEventListener("click", (event) => {
  const found = event.target.closest("[data-seq]");
  if (found) select(Number(found.dataset.seq), { scroll: false });
});
$("filter").addEventListener("input", draw);
$("refused").addEventListener("change", draw);

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => show(tab.dataset.view));
  tab.addEventListener("keydown", (event) => {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    show(next.dataset.view);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), textarea")) {
    if (event.key === "Escape") $("rows").focus();
    return;
  }
  const views = { 1: "received", 2: "decisions", 3: "kept", 4: "policy" };
  const inList = event.target === document.body || event.target === $("rows") || event.target.closest("#list");
  if (views[event.key]) show(views[event.key]);
  else if (event.key === "/") { event.preventDefault(); $("filter").focus(); }
  else if (event.key === "j" || (event.key === "ArrowDown" && inList)) { event.preventDefault(); move(1); }
  else if (event.key === "k" || (event.key === "ArrowUp" && inList)) { event.preventDefault(); move(-1); }
  else if (event.key === "Enter" && event.target === $("rows")) $("detail").focus();
});

show(["received", "decisions", "kept", "policy"].includes(location.hash.slice(1)) ? location.hash.slice(1) : "received");
status().catch(() => {});
setInterval(() => { if (!document.hidden) status().catch(() => {}); }, 10_000);
listen();
