// The live page of p2pft: server-sent events in, tables and drawings out. Names, classes and reasons come from other
// sites, so every text goes into the page as text (textContent, attributes), never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NEEDS_A_LOOK = ["lost", "ended", "silent", "slow"];
const WAITS_LONG = 4; // seconds; a shorter wait is part of every iteration
const DENSE = 16; // more peers than this are drawn without words
const TITLES = {
  accuracy: "Accuracy, all classes",
  accuracy_unseen: "Accuracy, classes the peer never saw",
  loss: "Loss",
  consensus_error: "Consensus error",
  bytes_sent: "Payload bytes sent by all peers",
};

let state = null;
let chosen = null;
let charts = {};
let reads = {}; // chart -> index of the iteration that is read, by pointer or keys
let known = null; // texts of the events that were announced
let lastPhase = "";
let heard = 0; // when the last event of the stream came

// --- small helpers -------------------------------------------------------------------------------------------------

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(kind, attributes = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(kind, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0995) return `${(1000 * seconds).toPrecision(2)} ms`;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const whole = (seconds) => (seconds !== null && seconds < 99.5 ? `${Math.round(seconds)} s` : span(seconds));

function bytes(count) {
  let size = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return unit === "B" ? `${Math.round(size)} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(1)} TB`;
}

const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
const small = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());
const clock = (seconds) => (seconds ? new Date(1000 * seconds).toLocaleTimeString([], { hour12: false }) : "");
const called = (peer) => {
  const known = state && state.peers.find((p) => p.peer === peer);
  return known && known.name ? `peer ${peer} (${known.name})` : `peer ${peer}`;
};

// A wait that is over within the time of some iterations is no state to look at.
function shownState(p) {
  if (state.phase === "ended" && NOW.includes(p.state)) return "computing";
  if (p.state !== "waiting" || (p.since !== null && p.since >= WAITS_LONG)) return p.state;
  return "computing";
}

const WORDS = { computing: "training", ended: "killed" };
const NOW = ["computing", "waiting", "evaluating", "changing", "preparing", "slow"];
const word = (name) => (state && state.phase === "ended" && NOW.includes(name) ? "was there to the end" : WORDS[name] || name);
const tone = (name) => (["lost", "ended"].includes(name) ? "bad-text" : ["silent", "slow"].includes(name) ? "warn-text" : "");

// --- the shape of a state: not by colour alone -----------------------------------------------------------------------

function shape(name, r) {
  const group = draw("g");
  const attributes = { class: `shape ${name}` };
  if (name === "slow") {
    const d = `M0 ${-1.15 * r} ${1.15 * r} ${0.85 * r} ${-1.15 * r} ${0.85 * r}z`;
    group.append(draw("path", { ...attributes, d }));
  } else if (name === "silent") {
    const d = `M0 ${-1.2 * r} ${1.2 * r} 0 0 ${1.2 * r} ${-1.2 * r} 0z`;
    group.append(draw("path", { ...attributes, d }));
  } else if (name === "lost" || name === "ended") {
    const s = 0.9 * r;
    group.append(draw("rect", { ...attributes, x: -s, y: -s, width: 2 * s, height: 2 * s, rx: 3 }));
    const c = 1.25 * s;
    if (name === "lost") group.append(draw("path", { class: "cross", d: `M${-c} ${-c} ${c} ${c}M${c} ${-c} ${-c} ${c}` }));
    else group.append(draw("path", { class: "cross", d: `M${-c} 0 ${c} 0` }));
  } else {
    group.append(draw("circle", { ...attributes, r }));
    if (name === "finished") group.append(draw("circle", { class: "shape finished", r: 0.72 * r }));
    if (name === "evaluating") group.append(draw("circle", { class: "shape evaluating", r: 0.5 * r }));
  }
  return group;
}

function icon(name) {
  const svg = draw("svg", { width: 16, height: 16, viewBox: "-9 -9 18 18", "aria-hidden": "true" });
  svg.append(shape(name, 6));
  return svg;
}

// --- head, tiles, sentences --------------------------------------------------------------------------------------------

function showHead() {
  setText($("run"), state.run);
  const done = state.iterations ? state.iteration / state.iterations : 0;
  const words = { training: "training", quiet: "no news", ending: "ending" };
  const ended = state.phase === "ended";
  const badge = $("phase");
  setText(badge, ended ? state.outcome || "ended" : words[state.phase]);
  const good = state.outcome === "completed";
  const kind = ended ? (good ? "completed" : state.outcome === "failed" ? "bad" : "warn") : state.phase === "training" ? "" : "warn";
  badge.className = `badge ${kind}`;
  setText($("source"), `as known by ${state.source}${state.time ? `, at ${clock(state.time)}` : ""}`);
  notice(state.told, kind);
  document.title = `${ended ? state.outcome || "ended" : `${Math.floor(100 * done)} %`} · run ${state.run} · p2pft`;
  if (state.told && lastPhase && state.phase !== lastPhase) say(state.told);
  lastPhase = state.phase;

  const select = $("runs");
  const wanted = new URLSearchParams(location.search).get("run");
  const options = state.runs.map((r) => r.run);
  if (wanted && !options.includes(wanted)) options.push(wanted);
  if (select.dataset.runs !== options.join("\n")) {
    select.replaceChildren(...options.map((run) => make("option", { value: run }, run)));
    select.dataset.runs = options.join("\n");
  }
  select.value = state.run;
  $("other").hidden = options.length < 2;
}

function notice(text, kind) {
  const element = $("notice");
  element.hidden = !text;
  element.className = `notice ${kind}`;
  setText(element, text);
}

function showTiles() {
  const ended = state.phase === "ended";
  setText($("iteration"), String(state.iteration));
  setText($("iterations"), String(state.iterations));
  $("bar").max = Math.max(1, state.iterations);
  $("bar").value = state.iteration;
  const percent = state.iterations ? `${Math.floor((100 * state.iteration) / state.iterations)} %` : "";
  let left = "";
  if (ended || state.phase === "ending") left = `${percent} done`;
  else if (state.left === null) left = `${percent}; when it is done is not known yet`;
  else if (state.left <= 0) left = "all iterations are done";
  else left = `${percent}; about ${span(state.left)} left, done at ${clock(state.time + state.left)} if it goes on like this`;
  setText($("left"), left);

  const count = {};
  for (const p of state.peers) count[shownState(p)] = (count[shownState(p)] || 0) + 1;
  const out = ["lost", "ended", "unknown", ...(ended ? [] : ["silent", "waiting", "changing"])];
  setText($("training"), String(state.peers.length - out.reduce((sum, s) => sum + (count[s] || 0), 0)));
  setText($("of"), String(state.peers.length));
  setText($("training-title"), ended ? (state.outcome === "stopped" ? "Peers at the stop" : "Peers to the end") : "Peers at work");
  const order = ["lost", "ended", "silent", "slow", "waiting", "computing", "evaluating", "preparing", "changing", "finished", "stopped", "unknown"];
  setText($("counts"), order.filter((s) => count[s]).map((s) => `${count[s]} ${word(s)}`).join(", "));

  const there = (key) => state.peers.map((p) => p[key]).filter((v) => v !== null);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const all = there("accuracy");
  const unseen = there("accuracy_unseen");
  setText($("accuracy"), all.length ? share(mean(all)) : "–");
  const spread = all.length ? `${share(Math.min(...all))} to ${share(Math.max(...all))}` : "not evaluated yet";
  setText($("spread"), unseen.length ? `${spread}; unseen classes ${share(mean(unseen))}` : spread);

  setText($("sent"), bytes(state.bytes_sent));
  const rates = state.edges.map((e) => e.rate).filter((r) => r !== null);
  const rate = rates.reduce((a, b) => a + b, 0);
  setText($("rate"), ended ? "payloads, in the whole run" : rates.length ? `${bytes(rate)} a second now` : "payloads");
  setText($("consensus"), small(state.consensus_error));
  setText($("consensus-note"), state.consensus_error === null ? "known at the office only" : "distance of the peers from their mean");

  $("risk").hidden = !state.risk;
  $("risk").className = state.at_risk ? "risk bad" : "risk";
  setText($("risk-mark"), state.at_risk ? "!" : "✓");
  setText($("risk-text"), state.risk);
}

// --- the graph -----------------------------------------------------------------------------------------------------------

const CENTRE = [340, 280];

function places() {
  const n = state.peers.length;
  const dense = n > DENSE;
  const rx = dense ? 250 : 190;
  const ry = dense ? 250 : 185;
  const r = n <= 8 ? 27 : n <= 16 ? 21 : n <= 40 ? 14 : Math.max(4, 620 / n);
  const at = new Map();
  state.peers.forEach((p, k) => {
    const angle = (2 * Math.PI * k) / n - Math.PI / 2;
    at.set(p.peer, [CENTRE[0] + (n === 1 ? 0 : rx * Math.cos(angle)), CENTRE[1] + (n === 1 ? 0 : ry * Math.sin(angle)), angle]);
  });
  return { at, r, dense };
}

// A curve from rim to rim, bent to one side, so that the two directions of a pair stay apart.
function curve(from, to, r, dense, gap = 5, more = 1) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy) || 1;
  const [ux, uy] = [dx / length, dy / length];
  const bend = more * (dense ? 6 : Math.min(34, 0.12 * length));
  let c = [(from[0] + to[0]) / 2 - uy * bend, (from[1] + to[1]) / 2 + ux * bend];
  if (dense) c = [0.7 * c[0] + 0.3 * CENTRE[0], 0.7 * c[1] + 0.3 * CENTRE[1]];
  const rim = (p) => {
    const [x, y] = [c[0] - p[0], c[1] - p[1]];
    const d = Math.hypot(x, y) || 1;
    return [p[0] + (x / d) * (r + gap), p[1] + (y / d) * (r + gap)];
  };
  const [a, b] = [rim(from), rim(to)];
  const middle = [0.25 * a[0] + 0.5 * c[0] + 0.25 * b[0], 0.25 * a[1] + 0.5 * c[1] + 0.25 * b[1]];
  const f = (p) => `${p[0].toFixed(1)} ${p[1].toFixed(1)}`;
  return { d: `M${f(a)}Q${f(c)} ${f(b)}`, middle };
}

function marker(id, kind) {
  return draw("marker", { id, viewBox: "0 0 8 8", refX: 6.5, refY: 4, markerWidth: 10, markerHeight: 10, orient: "auto", markerUnits: "userSpaceOnUse" },
    draw("path", { d: "M0 0 8 4 0 8z", class: `arrow ${kind}` }));
}

function showGraph() {
  const { at, r, dense } = places();
  const svg = $("graph");
  const fades = (...ends) => chosen !== null && !ends.includes(chosen);
  const content = [draw("defs", {}, marker("arrow", ""), marker("arrow-lit", "lit"), marker("arrow-waiting", "waiting"))];
  const most = Math.max(1, ...state.edges.map((e) => e.rate || 0));
  const labels = [];
  const moving = !dense && !matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const e of state.edges) {
    if (!at.has(e.sender) || !at.has(e.receiver)) continue;
    const { d, middle } = curve(at.get(e.sender), at.get(e.receiver), r, dense);
    const lit = Boolean(e.rate);
    const fade = fades(e.sender, e.receiver);
    const style = `edge${lit ? " lit" : ""}${e.seconds === null ? " inside" : ""}${fade ? " faded" : ""}`;
    const path = draw("path", { d, class: style, "data-edge": `${e.sender}-${e.receiver}` });
    if (lit && !dense) path.setAttribute("stroke-width", (1.6 + 2.4 * Math.sqrt(e.rate / most)).toFixed(2));
    if (!dense || chosen !== null) path.setAttribute("marker-end", `url(#arrow${lit ? "-lit" : ""})`);
    path.append(draw("title", {}, `${called(e.sender)} to ${called(e.receiver)}: ${edgeText(e)}`));
    content.push(path);
    if (lit && moving && !fade) content.push(draw("path", { d, class: "flow" }));
    if (e.seconds !== null && !fade && (state.edges.length <= 24 || chosen !== null)) {
      labels.push(draw("text", { x: middle[0].toFixed(1), y: middle[1].toFixed(1), class: "latency" }, span(e.seconds)));
    }
  }
  for (const p of state.peers) {
    if (p.awaited === null || !["waiting", "slow"].includes(shownState(p)) || (p.since || 0) < WAITS_LONG) continue;
    if (!at.has(p.awaited) || fades(p.peer, p.awaited)) continue;
    const { d, middle } = curve(at.get(p.peer), at.get(p.awaited), r, dense, 8, 2.4);
    content.push(draw("path", { d, class: "waits", "marker-end": "url(#arrow-waiting)" }));
    if (!dense) labels.push(draw("text", { x: middle[0].toFixed(1), y: middle[1].toFixed(1), class: "waits-text" }, `waits ${whole(p.since)}`));
  }
  content.push(...labels);
  for (const p of state.peers) content.push(node(p, at.get(p.peer), r, dense, fades(p.peer) && !isNeighbour(p.peer)));
  svg.setAttribute("class", dense ? "dense" : "");
  svg.replaceChildren(...content);
  const need = state.peers.filter((p) => NEEDS_A_LOOK.includes(p.state)).map((p) => `${called(p.peer)} is ${word(p.state)}`);
  const label = `Graph of ${state.peers.length} peers and ${state.edges.length} edges. ${need.length ? `${need.join("; ")}.` : "All peers are well."} The tables of peers and edges have the same content.`;
  svg.setAttribute("aria-label", label);
  setText($("view"), state.view ? `view ${state.view}: changed ${state.view === 1 ? "once" : `${state.view} times`}` : "view 0, as at the start");
  showLegend();
  showChosen();
}

const isNeighbour = (peer) =>
  state.edges.some((e) => (e.sender === chosen && e.receiver === peer) || (e.receiver === chosen && e.sender === peer));

function node(p, [x, y, angle], r, dense, faded) {
  const name = shownState(p);
  const group = draw("g", { class: `node${faded ? " faded" : ""}`, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "data-peer": p.peer, "data-state": name });
  group.append(draw("title", {}, `${called(p.peer)}: ${word(name)}${p.why ? ` – ${p.why}` : ""}`));
  if (p.peer === chosen) group.append(draw("circle", { class: "ring", r: 1.35 * r }));
  group.append(shape(name, r));
  const light = ["waiting", "preparing", "unknown", "changing", "lost", "ended"].includes(name) ? " plain" : ["slow", "silent"].includes(name) ? " dark" : "";
  const size = dense ? Math.max(7, 0.95 * r) : Math.max(13, 0.62 * r);
  group.append(draw("text", { class: `number${light} ${name}`, "font-size": size.toFixed(1) }, String(p.peer)));
  if (!dense) {
    const side = Math.cos(angle);
    const anchor = side > 0.3 ? "start" : side < -0.3 ? "end" : "middle";
    const dx = anchor === "middle" ? 0 : Math.sign(side) * (r + 11);
    const dy = anchor === "middle" ? (Math.sin(angle) < 0 ? -(r + 28) : r + 20) : p.name ? -4 : 5;
    const below = anchor === "middle" && Math.sin(angle) >= 0 ? 18 : 17;
    if (p.name) group.append(draw("text", { class: "name", x: dx.toFixed(1), y: dy.toFixed(1), "text-anchor": anchor }, clipped(p.name, 18)));
    const says = name === "computing" && p.rate && state.phase !== "ended" ? `${small(p.rate)} it/s` : NEEDS_A_LOOK.includes(name) && p.since !== null ? `${word(name)} ${whole(p.since)}` : word(name);
    group.append(draw("text", { class: `word ${tone(name)}`, x: dx.toFixed(1), y: (dy + (p.name ? below : 0)).toFixed(1), "text-anchor": anchor }, says));
  }
  return group;
}

const clipped = (text, most) => ([...text].length > most ? `${[...text].slice(0, most - 1).join("")}…` : text);

function showLegend() {
  const there = [...new Set(state.peers.map(shownState))];
  const items = there.map((name) => make("li", {}, icon(name), word(name)));
  const line = (kind, text) => {
    const svg = draw("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true" });
    svg.append(draw("path", { d: "M1 5 25 5", class: kind }));
    items.push(make("li", {}, svg, text));
  };
  if (state.edges.some((e) => e.rate)) line("edge lit", "payloads travel now; the time that one takes");
  if (state.edges.some((e) => !e.rate && e.seconds !== null)) line("edge", state.phase === "ended" ? "the time that a payload took" : "nothing travels");
  if (state.edges.some((e) => e.seconds === null)) line("edge inside", state.phase === "ended" ? "within a process, or not known" : "within a process, or nothing yet");
  if (state.peers.some((p) => p.awaited !== null && (p.since || 0) >= WAITS_LONG)) line("waits", "waits for");
  const key = items.map((i) => i.textContent).join("\n");
  if ($("legend").dataset.key !== key) {
    $("legend").dataset.key = key;
    $("legend").replaceChildren(...items);
  }
}

function edgeText(e) {
  if (e.seconds === null) return e.payloads ? "" : "nothing by the network";
  const now = e.rate === null ? "" : e.rate ? `${bytes(e.rate)} a second, ` : "nothing now, ";
  return `${now}${span(e.seconds)} a payload, ${e.payloads} payloads, ${bytes(e.bytes)}`;
}

function choose(peer) {
  chosen = chosen === peer ? null : peer;
  showGraph();
  showPeers();
  showEdges();
}

function showChosen() {
  const p = state.peers.find((q) => q.peer === chosen);
  $("chosen").hidden = !p;
  if (!p) return;
  setText($("chosen-name"), called(p.peer));
  setText($("chosen-state"), `${word(shownState(p))}${p.since !== null && p.since >= 1 ? ` since ${whole(p.since)}` : ""}${p.why ? `: ${p.why}` : ""}`);
  const facts = [];
  const fact = (name, value) => facts.push(make("dt", {}, name), make("dd", {}, value));
  fact("sends to", state.edges.filter((e) => e.sender === chosen).map((e) => called(e.receiver)).join(", ") || "nobody");
  fact("receives from", state.edges.filter((e) => e.receiver === chosen).map((e) => called(e.sender)).join(", ") || "nobody");
  const waiting = state.peers.filter((q) => q.awaited === chosen && (q.since || 0) >= WAITS_LONG).map((q) => called(q.peer));
  if (waiting.length) fact("awaited by", waiting.join(", "));
  $("chosen-facts").replaceChildren(...facts);
}

// --- tables: rows stay the same elements, so that focus and selection stay --------------------------------------------------

function rowsOf(body, items, key, cells, make_) {
  const there = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    let row = there.get(String(key(item)));
    if (!row) {
      row = make("tr", { "data-key": key(item) });
      make_(row, item);
    }
    cells(row, item);
    return row;
  });
  if (rows.length !== body.children.length || rows.some((row, k) => body.children[k] !== row)) body.replaceChildren(...rows);
}

function showPeers() {
  const text = $("filter").value.trim().toLowerCase();
  const only = $("look").checked;
  const fits = (p) => {
    const name = shownState(p);
    if (only && !NEEDS_A_LOOK.includes(p.state)) return false;
    return !text || `${p.peer} peer ${p.peer} ${p.name} ${word(name)} ${p.state} ${p.why}`.toLowerCase().includes(text);
  };
  const shown = state.peers.filter(fits);
  rowsOf($("rows"), shown, (p) => p.peer, peerCells, (row, p) => {
    const button = make("button", { type: "button" });
    button.addEventListener("click", () => choose(p.peer));
    const name = make("span", { class: "state" }, icon("unknown"), make("span"));
    row.append(make("td", { class: "peer" }, button), make("td", {}, name));
    for (let k = 0; k < 8; k += 1) row.append(make("td", { class: "n" }));
    row.append(make("td", { class: "why" }));
  });
  setText($("shown"), shown.length === state.peers.length ? "" : `${shown.length} of ${state.peers.length} shown`);
}

function peerCells(row, p) {
  const cells = row.children;
  const name = shownState(p);
  const button = cells[0].firstChild;
  setText(button, called(p.peer));
  button.setAttribute("aria-pressed", String(p.peer === chosen));
  row.className = p.peer === chosen ? "chosen" : "";
  if (row.dataset.state !== name) {
    row.dataset.state = name;
    cells[1].firstChild.replaceChildren(icon(name), make("span", { class: tone(name) }, word(name)));
  }
  const long = p.since !== null && (NEEDS_A_LOOK.includes(name) || p.since >= WAITS_LONG) && !(name === "computing" && p.since < 10);
  setText(cells[2], long ? whole(p.since) : "–");
  setText(cells[3], String(p.iteration));
  setText(cells[4], p.rate && state.phase !== "ended" && !["lost", "ended"].includes(name) ? small(p.rate) : "–");
  setText(cells[5], p.contact === null || state.phase === "ended" ? "–" : p.contact < 2 ? "now" : `${whole(p.contact)} ago`);
  setText(cells[6], share(p.accuracy));
  setText(cells[7], share(p.accuracy_unseen));
  setText(cells[8], small(p.loss));
  setText(cells[9], bytes(p.bytes_sent));
  setText(cells[10], name === "computing" && p.state === "waiting" ? "" : name === "waiting" ? `waits ${p.why}` : p.why);
}

function showEdges() {
  const edges = chosen === null ? state.edges : state.edges.filter((e) => e.sender === chosen || e.receiver === chosen);
  rowsOf($("edge-rows"), edges, (e) => `${e.sender}-${e.receiver}`, (row, e) => {
    const cells = row.children;
    setText(cells[0], called(e.sender));
    setText(cells[1], called(e.receiver));
    setText(cells[2], e.rate === null || e.seconds === null || state.phase === "ended" ? "–" : e.rate ? `${bytes(e.rate)}/s` : "nothing");
    setText(cells[3], span(e.seconds));
    setText(cells[4], e.seconds === null ? "–" : String(e.payloads));
    setText(cells[5], e.seconds === null ? "–" : bytes(e.bytes));
  }, (row) => {
    for (let k = 0; k < 6; k += 1) row.append(make("td", { class: k < 2 ? "peer" : "n" }));
  });
  setText($("edges-note"), chosen === null ? `${edges.length} edges` : `${edges.length} edges of ${called(chosen)}`);
}

// --- events ------------------------------------------------------------------------------------------------------------

function showEvents() {
  const kinds = { good: "Recovered:", bad: "Trouble:", plain: "Note:" };
  const key = (e) => `${e.time} ${e.text}`;
  const list = $("events");
  const whole_ = state.events.map(key).join("\n");
  if (list.dataset.key !== whole_) {
    list.dataset.key = whole_;
    list.replaceChildren(...state.events.map((e) => {
      const item = make("li", { class: e.kind });
      if (e.time) item.append(make("time", { datetime: new Date(1000 * e.time).toISOString() }, clock(e.time)));
      item.append(make("span", { class: "kind" }, kinds[e.kind] || ""), e.text);
      return item;
    }));
  }
  $("no-events").hidden = state.events.length > 0;
  if (known) for (const e of [...state.events].reverse()) if (!known.has(key(e))) say(e.text);
  known = new Set(state.events.map(key));
}

function say(text) {
  const live = $("live");
  live.append(make("p", {}, text));
  while (live.children.length > 5) live.firstChild.remove();
}

// --- curves ------------------------------------------------------------------------------------------------------------

const W = 360;
const H = 190;
const BOX = { left: 46, right: 30, top: 8, bottom: 24 };

function ticks(low, high, most) {
  const step0 = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(step0));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= step0 * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function scaleOf(name, values) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (name === "consensus_error" && high > 0) {
    const positive = values.filter((v) => v > 0);
    const least = Math.min(...positive);
    if (high / least > 30) {
      const [a, b] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(high))];
      const every = Math.max(1, Math.ceil((b - a) / 4));
      const marks = [];
      for (let k = a; k <= b; k += every) marks.push(10 ** k);
      return { of: (v) => (v > 0 ? (Math.log10(v) - a) / (b - a || 1) : 0), marks };
    }
  }
  if (name === "bytes_sent" || name === "consensus_error") low = 0;
  if (high === low) { high += Math.abs(high) || 1; low -= name.startsWith("accuracy") ? 0 : low ? Math.abs(low) / 2 : 0; }
  const margin = 0.05 * (high - low);
  if (low !== 0) low -= margin;
  high += margin;
  if (name.startsWith("accuracy")) { low = Math.max(0, low); high = Math.min(1.0001, Math.max(high, low + 0.02)); }
  return { of: (v) => (v - low) / (high - low), marks: ticks(low, high, 4) };
}

const valueText = (name, v) => (v === null ? "–" : name === "bytes_sent" ? bytes(v) : name.startsWith("accuracy") ? share(v) : small(v));
const tickText = (name, v) => (name === "bytes_sent" ? bytes(v).replace(".0 ", " ") : name === "consensus_error" && v > 0 && (v < 0.001 || v >= 10000) ? v.toExponential(0).replace("e+", "e") : small(v));
const lineName = (key) => (/^\d+$/.test(key) ? called(Number(key)) : key);
const shortName = (key) => {
  const peer = state.peers.find((p) => String(p.peer) === key);
  return peer ? (peer.name ? clipped(peer.name, 12) : `${key}:`) : key;
};

function showCharts() {
  const box = $("charts");
  const names = Object.keys(TITLES).filter((name) => charts[name]);
  $("no-charts").hidden = names.length > 0;
  $("charts-note").hidden = names.length === 0;
  for (const figure of [...box.children]) if (!names.includes(figure.dataset.name)) figure.remove();
  names.forEach((name, k) => {
    let figure = [...box.children].find((f) => f.dataset.name === name);
    if (!figure) {
      figure = newChart(name);
      box.insertBefore(figure, box.children[k] || null);
    }
    drawChart(figure, name);
  });
}

function newChart(name) {
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "slider", tabindex: 0, "aria-label": `${TITLES[name]}: value after so many iterations`, "aria-orientation": "horizontal" });
  const figure = make("figure", { class: "chart", "data-name": name }, make("figcaption", {}, TITLES[name]), svg, make("p", { class: "readout" }));
  const read = (index) => {
    const last = charts[name].iterations.length - 1;
    reads[name] = index === null || index >= last ? undefined : Math.max(0, index);
    drawChart(figure, name);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * W;
    const at = charts[name].iterations;
    const k0 = at[0] + ((x - BOX.left) / (W - BOX.left - BOX.right)) * (at[at.length - 1] - at[0]);
    let best = 0;
    at.forEach((k, i) => { if (Math.abs(k - k0) < Math.abs(at[best] - k0)) best = i; });
    read(best);
  });
  svg.addEventListener("pointerleave", () => read(null));
  svg.addEventListener("blur", () => read(null));
  svg.addEventListener("keydown", (event) => {
    const last = charts[name].iterations.length - 1;
    const now = reads[name] === undefined ? last : reads[name];
    const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: last, PageUp: now + 10, PageDown: now - 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(to);
  });
  return figure;
}

function drawChart(figure, name) {
  const { iterations, lines } = charts[name];
  const keys = Object.keys(lines);
  const values = keys.flatMap((key) => lines[key]).filter((v) => v !== null);
  const svg = figure.querySelector("svg");
  if (!values.length) return;
  const scale = scaleOf(name, values);
  const [first, last] = [iterations[0], iterations[iterations.length - 1]];
  const x = (k) => BOX.left + (last === first ? 0.5 : (k - first) / (last - first)) * (W - BOX.left - BOX.right);
  const y = (v) => H - BOX.bottom - scale.of(v) * (H - BOX.top - BOX.bottom);
  const content = [];
  for (const mark of scale.marks) {
    if (scale.of(mark) < -0.001 || scale.of(mark) > 1.001) continue;
    content.push(draw("path", { class: "grid", d: `M${BOX.left} ${y(mark).toFixed(1)}H${W - BOX.right}` }));
    content.push(draw("text", { class: "tick", x: BOX.left - 6, y: (y(mark) + 4).toFixed(1), "text-anchor": "end" }, tickText(name, mark)));
  }
  for (const mark of last === first ? [first] : ticks(first, last, 4).filter(Number.isInteger)) {
    content.push(draw("text", { class: "tick", x: x(mark).toFixed(1), y: H - 6, "text-anchor": "middle" }, String(mark)));
  }
  const points = (line) => line.map((v, k) => (v === null ? null : [x(iterations[k]), y(v)])).filter(Boolean);
  const path = (of) => `M${of.map((p) => `${p[0].toFixed(1)} ${p[1].toFixed(1)}`).join("L")}`;
  if (lines.mean) {
    content.push(draw("path", { class: "band", d: `${path([...points(lines.min), ...points(lines.max).reverse()])}z` }));
    content.push(draw("path", { class: "curve s0", d: path(points(lines.mean)) }));
  } else {
    const ends = [];
    keys.forEach((key, k) => {
      const of = points(lines[key]);
      if (!of.length) return;
      const style = key === "all" ? 0 : Number(key) % 8;
      content.push(draw("path", { class: `curve s${style}`, d: path(of.length > 1 ? of : [of[0], [of[0][0] + 0.1, of[0][1]]]) }));
      if (keys.length > 1) ends.push({ key, style, x: of[of.length - 1][0], y: of[of.length - 1][1] });
    });
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, k) => { if (k) end.y = Math.max(end.y, ends[k - 1].y + 11); });
    const over = ends.length ? ends[ends.length - 1].y - (H - BOX.bottom) : 0;
    for (const end of ends) content.push(draw("text", { class: `end f${end.style}`, x: (end.x + 5).toFixed(1), y: (end.y - Math.max(0, over) + 4).toFixed(1) }, end.key));
  }
  const at = reads[name] === undefined || reads[name] >= iterations.length ? iterations.length - 1 : reads[name];
  if (reads[name] !== undefined) {
    content.push(draw("path", { class: "here", d: `M${x(iterations[at]).toFixed(1)} ${BOX.top}V${H - BOX.bottom}` }));
  }
  svg.replaceChildren(...content);
  const there = keys.filter((key) => lines[key][at] !== null);
  const told = (naming) => there.map((key) => `${keys.length === 1 ? "" : `${naming(key)} `}${valueText(name, lines[key][at])}`).join(", ");
  const text = `after ${iterations[at]} iterations: ${told(lineName)}`;
  setText(figure.querySelector(".readout"), `after ${iterations[at]}: ${told(shortName)}`);
  for (const [key, value] of [["aria-valuemin", first], ["aria-valuemax", last], ["aria-valuenow", iterations[at]], ["aria-valuetext", text]]) svg.setAttribute(key, value);
}

// --- the stream --------------------------------------------------------------------------------------------------------

function showState(next) {
  if (!state || state.run !== next.run) { chosen = null; known = null; lastPhase = ""; reads = {}; charts = {}; }
  state = next;
  showHead();
  showTiles();
  showGraph();
  showPeers();
  showEdges();
  showEvents();
  setText($("age"), state.news ? `newest word of ${clock(state.news)}, in ${state.folder}` : state.folder);
}

function nothing() {
  state = null;
  setText($("phase"), "waiting for a run");
  $("phase").className = "badge warn";
  notice("No run trains here yet. This page shows it as soon as one does.", "");
}

function listen() {
  const wanted = new URLSearchParams(location.search).get("run");
  const stream = new EventSource(`events${wanted ? `?run=${encodeURIComponent(wanted)}` : ""}`);
  const on = (name, act) => stream.addEventListener(name, (event) => { heard = Date.now(); act(JSON.parse(event.data)); });
  on("state", showState);
  on("charts", (told) => { if (state && told.run === state.run) { charts = told.charts; showCharts(); } });
  on("nothing", nothing);
  stream.onerror = () => {
    const when = heard ? ` since ${clock(heard / 1000)}` : "";
    notice(`No connection to the dashboard${when}: it was ended, or the tunnel is down. ${state ? "Shown is the last state. " : ""}This page tries again by itself; if the dashboard was started anew with a token, open the address that it has printed.`, "warn");
    setText($("phase"), "no connection");
    $("phase").className = "badge warn";
    if (stream.readyState === EventSource.CLOSED) { stream.close(); setTimeout(listen, 3000); }
  };
}

// The token is in the cookie by now: it need not stay in the address and in the history.
const address = new URL(location.href);
if (address.searchParams.has("token")) {
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}
// The drawing is made anew each second, so that a click might end on another element than it began on.
$("graph").addEventListener("pointerdown", (event) => {
  const node_ = event.target.closest("[data-peer]");
  if (node_) choose(Number(node_.dataset.peer));
});
$("filter").addEventListener("input", () => state && showPeers());
$("look").addEventListener("change", () => state && showPeers());
$("unchoose").addEventListener("click", () => { choose(chosen); $("filter").focus(); });
$("runs").addEventListener("change", (event) => { location.search = `?run=${encodeURIComponent(event.target.value)}`; });
listen();
