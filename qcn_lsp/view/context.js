// Draws what the model sees, and goes on drawing it while the page is looked at.
//
// The page asks for data once a second, of the extension where it stands in one, else of
// `qcn context --open`. Every name and sentence it shows is data of strangers: it becomes text and
// never markup.

// @ts-check

/**
 * @typedef {{ hash: string, path: string, zone: "base" | "overlay", kind: string, start: number,
 *   tokens: number, reasons: string[], edited: number }} Segment
 * @typedef {{ reused: number, restored: number, computed: number, milliseconds: number }} Refresh
 * @typedef {{ used: number, budget: number, disk_used: number | null, disk_budget: number | null }} Kept
 * @typedef {{ tokens: number, budget: number, limit: number, context_length: number, segments: Segment[],
 *   checkpoints: number[], reading: boolean, bytes: Kept, refreshes: Refresh[],
 *   left_out: [string, string][] }} Context
 * @typedef {{ reason: string, count: number, examples: string[] }} Reason
 * @typedef {{ version: string, model: string,
 *   status: { busy: boolean, kind: string, message: string },
 *   roots: { uri: string, name: string }[],
 *   completions: { accepted: number, rejected: number, milliseconds: number[] } }} State
 * @typedef {{ state: State | null, root: string | null, context: Context | null, problem: string,
 *   skipped: Reason[] | null }} Data
 * @typedef {{ root: string | null, skipped: boolean }} Question
 */

const PAUSE_MS = 1000;
const HOUR = 3600;
const AGES = /** @type {const} */ ([
  [HOUR, "within the hour"],
  [24 * HOUR, "today"],
  [7 * 24 * HOUR, "this week"],
  [30 * 24 * HOUR, "this month"],
  [Infinity, "longer ago"],
]);
const KINDS = new Map([
  ["file", "the whole file"],
  ["skeleton", "its signatures"],
  ["change", "its changed blocks"],
  ["note", "a note"],
]);
const STRIP_HEIGHT = 100;
const TICK_HEIGHT = 18;
const SVG = "http://www.w3.org/2000/svg";
const numbers = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** @type {string | null} */
let root = null;
/** @type {string | undefined} */
let skippedOf;
/** @type {Segment[]} */
let segments = [];
let chosen = 0;
/** What each part of the page was drawn from: what has not changed is left as it is, focus and all. */
const drawn = new Map();

const ask = typeof acquireVsCodeApi === "function" ? throughExtension() : throughServer;
element("root").addEventListener("change", (event) => {
  root = /** @type {HTMLSelectElement} */ (event.target).value;
  void look();
});
element("strip").addEventListener("keydown", onKey);
element("strip").addEventListener("click", (event) => {
  const index = /** @type {Element} */ (event.target).getAttribute("data-index");
  if (index !== null) {
    choose(Number(index));
  }
});
if (typeof acquireVsCodeApi !== "function") {
  addEventListener("pagehide", () => navigator.sendBeacon("gone"));
}
void keepLooking();

async function keepLooking() {
  for (;;) {
    if (document.visibilityState === "visible") {
      await look();
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

async function look() {
  /** @type {Data} */
  let data;
  try {
    data = await ask({ root, skipped: skippedOf === undefined || skippedOf !== root });
  } catch {
    data = { state: null, root, context: null, problem: "The language server does not answer.", skipped: null };
  }
  draw(data);
}

/** @param {Question} question @returns {Promise<Data>} */
async function throughServer(question) {
  const query = new URLSearchParams({ root: question.root ?? "", skipped: question.skipped ? "1" : "" });
  const answer = await fetch(`data?${query}`, { cache: "no-store" });
  if (!answer.ok) {
    throw new Error(answer.statusText);
  }
  return answer.json();
}

/** @returns {(question: Question) => Promise<Data>} */
function throughExtension() {
  const editor = acquireVsCodeApi();
  /** @type {(data: Data) => void} */
  let answered = () => {};
  addEventListener("message", (event) => answered(event.data));
  return (question) =>
    new Promise((resolve) => {
      answered = resolve;
      editor.postMessage(question);
    });
}

/** @param {Data} data */
function draw(data) {
  const { state, context } = data;
  root = data.root;
  if (data.skipped !== null) {
    skippedOf = root ?? "";
  }
  part("status", [state?.status, state?.model], drawStatus);
  part("root", [state?.roots, root], drawRoots);
  part("problem", [data.problem], drawProblem);
  show("context", context !== null);
  show("refreshes-section", context !== null && context.refreshes.length > 0);
  show("memory-section", context !== null);
  if (context !== null) {
    part("fill", [context.tokens, context.budget, context.checkpoints.length, context.reading], drawFill);
    part("strip", [context.segments, context.checkpoints, context.limit, context.context_length], drawStrip);
    part("refreshes", [context.refreshes], drawRefreshes);
    part("memory", [context.bytes], drawMemory);
  }
  if (state !== null) {
    part("latency", [state.completions.milliseconds], drawLatency);
    part("outcomes", [state.completions.accepted, state.completions.rejected], drawOutcomes);
  }
  const skipped = data.skipped ?? drawn.get("skipped")?.values[0];
  part("skipped", [skipped, context?.left_out ?? []], drawSkipped);
}

/**
 * Draw a part of the page, unless it would look as it does.
 * @template {unknown[]} T
 * @param {string} name @param {T} values @param {(...values: T) => void} draw
 */
function part(name, values, draw) {
  const text = JSON.stringify(values);
  if (drawn.get(name)?.text !== text) {
    drawn.set(name, { text, values });
    draw(...values);
  }
}

/** @param {State["status"] | undefined} status @param {string | undefined} model */
function drawStatus(status, model) {
  const line = element("status");
  line.className = status === undefined ? "warning" : status.kind.toLowerCase();
  const doing = status?.message || (status?.busy ? "working" : "ready");
  line.textContent = status === undefined ? "not connected" : `${model}: ${doing}`;
}

/** @param {State["roots"] | undefined} roots @param {string | null} chosenRoot */
function drawRoots(roots, chosenRoot) {
  show("roots", (roots?.length ?? 0) > 0);
  element("root").replaceChildren(
    ...(roots ?? []).map(({ uri, name }) => {
      const option = /** @type {HTMLOptionElement} */ (h("option", {}, name));
      option.value = uri;
      option.selected = uri === chosenRoot;
      return option;
    }),
  );
}

/** @param {string} problem */
function drawProblem(problem) {
  show("problem", problem !== "");
  element("problem").textContent = problem;
}

/** @param {number} tokens @param {number} budget @param {number} places @param {boolean} reading */
function drawFill(tokens, budget, places, reading) {
  const share = Math.round((100 * tokens) / budget);
  element("fill").textContent =
    `${count(tokens)} of ${count(budget)} tokens, ${share} %. Reading can be resumed from ` +
    `${count(places)} ${places === 1 ? "place" : "places"}.${reading ? " It is being read now." : ""}`;
}

/** @param {Segment[]} parts @param {number[]} checkpoints @param {number} limit @param {number} length */
function drawStrip(parts, checkpoints, limit, length) {
  const before = segments[chosen];
  segments = parts;
  const strip = element("strip");
  strip.setAttribute("viewBox", `0 0 ${length} ${STRIP_HEIGHT}`);
  const end = parts.reduce((most, one) => Math.max(most, one.start + one.tokens), 0);
  const bar = { y: TICK_HEIGHT, height: STRIP_HEIGHT - TICK_HEIGHT };
  strip.replaceChildren(
    s("rect", { class: "free", x: end, width: Math.max(0, limit - end), ...bar }),
    s("rect", { class: "tail", x: limit, width: length - limit, ...bar }),
    ...parts.map((one, index) =>
      s("rect", {
        ...bar,
        id: `segment-${index}`,
        role: "option",
        class: `segment age-${ageOf(one)}`,
        x: one.start,
        width: one.tokens,
        "data-index": index,
        "aria-selected": "false",
        "aria-label": `${one.path}, ${one.zone}, ${count(one.tokens)} tokens, ${when(one.edited)}`,
      }),
    ),
    ...checkpoints.map((at) => s("line", { class: "checkpoint", x1: at, x2: at, y1: 0, y2: TICK_HEIGHT })),
  );
  drawZones(parts, end, limit, length);
  drawAges();
  element("parts").replaceChildren(...parts.map(row));
  const same = parts.findIndex((one) => one.path === before?.path && one.zone === before.zone);
  choose(same < 0 ? Math.min(chosen, parts.length - 1) : same, false);
}

/** @param {Segment[]} parts @param {number} end @param {number} limit @param {number} length */
function drawZones(parts, end, limit, length) {
  const overlayFrom = parts.find((one) => one.zone === "overlay")?.start ?? end;
  const zones = /** @type {const} */ ([
    ["base", overlayFrom],
    ["overlay: changes since", end - overlayFrom],
    ["free", limit - end],
    ["tail: around the cursor", length - limit],
  ]);
  element("zones").replaceChildren(
    ...zones
      .filter(([, width]) => width > 0)
      .map(([name, width]) => {
        const label = h("span", { title: `${name}: ${count(width)} tokens` }, h("span", {}, name));
        label.style.width = `${(100 * width) / length}%`;
        return label;
      }),
  );
}

function drawAges() {
  element("ages").replaceChildren(
    ...AGES.map(([, name], index) => h("li", {}, h("span", { class: `swatch age-${index}` }), name)),
  );
}

/** @param {Segment} one */
function row(one) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, one.path),
    h("td", {}, one.zone),
    h("td", {}, KINDS.get(one.kind) ?? one.kind),
    h("td", { class: "number" }, count(one.tokens)),
    h("td", {}, when(one.edited)),
    h("td", {}, one.reasons.join(", ")),
  );
}

/** @param {number} index @param {boolean} [aloud] */
function choose(index, aloud = true) {
  const one = segments[index];
  const strip = element("strip");
  strip.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  if (one === undefined) {
    strip.removeAttribute("aria-activedescendant");
    element("part").replaceChildren();
    return;
  }
  chosen = index;
  const mark = /** @type {Element} */ (strip.querySelector(`#segment-${index}`));
  mark.setAttribute("aria-selected", "true");
  strip.setAttribute("aria-activedescendant", mark.id);
  const details = element("part");
  details.setAttribute("aria-live", aloud ? "polite" : "off");
  const rows = [
    ["File", one.path],
    ["Zone", `${one.zone}, ${KINDS.get(one.kind) ?? one.kind}`],
    ["Tokens", `${count(one.tokens)}, from ${count(one.start)}`],
    ["Written", when(one.edited)],
    ["Why", one.reasons.join(", ") || "no reason given"],
  ];
  details.replaceChildren(...rows.flatMap(([name = "", text = ""]) => [h("dt", {}, name), h("dd", {}, text)]));
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const last = segments.length - 1;
  /** @type {Record<string, number>} */
  const to = { ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1, Home: 0, End: last };
  const index = to[event.key];
  if (index !== undefined && last >= 0) {
    event.preventDefault();
    choose(Math.max(0, Math.min(last, index)));
  }
}

/** @param {Refresh[]} refreshes The oldest first. */
function drawRefreshes(refreshes) {
  element("refreshes").replaceChildren(
    ...[...refreshes].reverse().map(({ reused, restored, computed, milliseconds }) => {
      const all = reused + computed || 1;
      const share = h("div", { class: "share" });
      for (const [name, tokens] of /** @type {const} */ ([
        ["known", reused - restored],
        ["restored", restored],
        ["computed", computed],
      ])) {
        const bar = h("span", { class: name });
        bar.style.width = `${(100 * tokens) / all}%`;
        share.append(bar);
      }
      const counts = [count(reused - restored), count(restored), count(computed), duration(milliseconds)];
      return h("tr", {}, h("td", {}, share), ...counts.map((text) => h("td", { class: "number" }, text)));
    }),
  );
}

/** @param {Kept} kept */
function drawMemory(kept) {
  const tiers = /** @type {[string, number | null, number | null][]} */ ([
    ["In memory", kept.used, kept.budget],
    ["On disk", kept.disk_used, kept.disk_budget],
  ]);
  element("memory").replaceChildren(
    ...tiers.flatMap(([name, used, budget]) => {
      if (used === null) {
        return [h("p", {}, `${name}: nothing`)];
      }
      const text = `${name}: ${mebibytes(used)}${budget ? ` of ${mebibytes(budget)}` : ""}`;
      const meter = /** @type {HTMLMeterElement} */ (h("meter", { "aria-label": text, max: budget || used || 1 }));
      meter.value = used;
      return [h("p", {}, text), meter];
    }),
  );
}

/** @param {number[]} milliseconds */
function drawLatency(milliseconds) {
  const plot = element("latency");
  const sorted = [...milliseconds].sort((a, b) => a - b);
  const top = Math.max(...sorted, 1);
  const middle = quantile(sorted, 0.5);
  plot.setAttribute("viewBox", `0 0 ${60 * 10} 100`);
  plot.replaceChildren(
    ...milliseconds.map((one, index) => {
      const height = Math.max(1, (95 * one) / top);
      return s("rect", { x: 10 * index + 1, y: 100 - height, width: 8, height });
    }),
    ...(sorted.length ? [s("line", { x1: 0, x2: 600, y1: 100 - (95 * middle) / top, y2: 100 - (95 * middle) / top })] : []),
  );
  show("latency", sorted.length > 0);
  const last = sorted.length === 1 ? `The engine's last answer took ${duration(top)}.` : "The engine has answered nothing yet.";
  element("latency-text").textContent =
    sorted.length > 1
      ? `The engine's last ${count(sorted.length)} answers: half of them within ${duration(middle)} (the line), ` +
        `95 % within ${duration(quantile(sorted, 0.95))}, the slowest ${duration(top)}.`
      : last;
}

/** @param {number} accepted @param {number} rejected */
function drawOutcomes(accepted, rejected) {
  element("outcomes").textContent =
    accepted + rejected
      ? `Accepted ${count(accepted)}, passed over ${count(rejected)} suggestions. Counted on this machine only.`
      : "";
}

/** @param {Reason[] | undefined} skipped @param {[string, string][]} leftOut */
function drawSkipped(skipped, leftOut) {
  /** @type {Map<string, Reason>} */
  const noRoom = new Map();
  for (const [path, reason] of leftOut) {
    const group = noRoom.get(reason) ?? { reason: `no room: ${reason}`, count: 0, examples: [] };
    group.count += 1;
    group.examples.length < 50 && group.examples.push(path);
    noRoom.set(reason, group);
  }
  const reasons = [...noRoom.values(), ...(skipped ?? [])];
  show("skipped-section", reasons.length > 0);
  element("skipped").replaceChildren(
    ...reasons.map(({ reason, count: files, examples }) => {
      const more = files - examples.length;
      return h(
        "details",
        {},
        h("summary", {}, reason, " ", h("span", { class: "count" }, `(${count(files)})`)),
        h("ul", {}, ...examples.map((path) => h("li", {}, path)), ...(more > 0 ? [h("li", {}, `and ${count(more)} more`)] : [])),
      );
    }),
  );
}

/** @param {Segment} one */
function ageOf(one) {
  const age = Date.now() / 1000 - one.edited;
  return AGES.findIndex(([below]) => age < below);
}

/** @param {number} edited Seconds since the epoch; 0: not known. */
function when(edited) {
  if (!edited) {
    return "gone";
  }
  const seconds = Date.now() / 1000 - edited;
  const units = /** @type {const} */ ([["year", 365 * 24 * HOUR], ["month", 30 * 24 * HOUR], ["day", 24 * HOUR], ["hour", HOUR]]);
  const unit = units.find(([, length]) => seconds >= length);
  return unit ? relative.format(-Math.floor(seconds / unit[1]), unit[0]) : "within the hour";
}

/** @param {number[]} sorted @param {number} share */
function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

/** @param {number} value */
function count(value) {
  return numbers.format(value);
}

/** @param {number} milliseconds */
function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** @param {number} bytes */
function mebibytes(bytes) {
  return `${count(Math.round(bytes / 2 ** 20))} MiB`;
}

/** @param {string} id */
function element(id) {
  const found = document.getElementById(id);
  if (found === null) {
    throw new Error(`the page has no #${id}`);
  }
  return found;
}

/** @param {string} id @param {boolean} visible */
function show(id, visible) {
  element(id).toggleAttribute("hidden", !visible);
}

/**
 * An element with attributes and children; strings become text, never markup.
 * @param {string} tag @param {Record<string, string | number>} attributes @param {...(Node | string)} children
 */
function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, String(value));
  }
  made.append(...children);
  return made;
}

/** @param {string} tag @param {Record<string, string | number>} attributes */
function s(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, String(value));
  }
  return made;
}
