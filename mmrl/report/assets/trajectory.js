// One rollout in full: prompt, the model's turns and what came back, tokens coloured by a number.
const MAX_SURPRISE = 5; // nats at which the colour is full
const MAX_ADVANTAGE = 2;
const OPEN_TOKENS = 1500; // of the segments that are open at first; the others' tokens wait for a click

// What the colour of a token says, and the ends of its scale.
const colours = {
  "log-probability": ["log-probability 0", `−${MAX_SURPRISE} and below`],
  advantage: [`advantage −${MAX_ADVANTAGE}`, `+${MAX_ADVANTAGE}`],
  "advantage × (1 − p)": ["push on the token −", "+"],
};
let colour = "log-probability";

const signed = (value) => (value == null ? "–" : (value > 0 ? "+" : "") + format(value));
const oneLine = (text) => text.replace(/\s+/g, " ").trim();
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const drawnSegments = (row) => row.segments.filter((segment) => segment.drawn);
const drawnLogprobs = (row) => drawnSegments(row).flatMap((segment) => segment.logprobs);

function mean(values) {
  const present = values.filter((value) => value != null);
  return present.length ? sum(present) / present.length : null;
}

// Nodes that show the row; the tokens of a closed card are made when it is opened.
function trajectory(row, prompt) {
  let room = OPEN_TOKENS;
  let turn = 0;
  const cards = row.segments.map((segment, k) => {
    turn += segment.drawn ? 1 : 0;
    const open = segment.tokens.length <= room || k === 0 || k === row.segments.length - 1;
    room -= segment.tokens.length;
    return segmentCard(row, k, turn, open);
  });
  const openAll = (open) => cards.forEach((card) => { card.open = open; });
  const strength = Math.min(1, Math.abs(row.advantage ?? 0) / MAX_ADVANTAGE);
  return [
    facts(row), row.error ? element("div", { class: "error" }, row.error) : null,
    element("div", { class: "row bar" }, element("h3", {}, "Trajectory"),
      cards.length > 1 ? element("button", { class: "quiet", onclick: () => openAll(true) }, "open all") : null,
      cards.length > 1 ? element("button", { class: "quiet", onclick: () => openAll(false) }, "close all") : null,
      element("span", { class: "spacer" }), colourSwitch()),
    element("div", { class: `cards ${row.advantage < 0 ? "down" : "up"}`, style: `--strength:${row.in_loss ? strength.toFixed(3) : 0}` },
      promptCard(prompt), ...cards,
      row.segments.length ? null : element("div", { class: "empty" }, "The response is empty.")),
    ...labelCard(row)];
}

function facts(row) {
  const label = shortLabel(row);
  const drawn = sum(drawnSegments(row).map((segment) => segment.length));
  const values = {
    reward: format(row.reward), advantage: signed(row.advantage), status: row.status,
    turns: format(drawnSegments(row).length),
    tokens: row.length.toLocaleString("en") + (drawn < row.length ? ` · ${drawn.toLocaleString("en")} drawn` : ""),
    "mean log-prob": format(mean(drawnLogprobs(row))),
    "in the loss": row.in_loss ? null : "no", mode: row.mode, label,
  };
  const shown = Object.entries(values).filter(([, value]) => value != null).map(([name, value]) =>
    element("div", {}, element("div", { class: "caption" }, name), element("div", { class: "value" }, value)));
  const numbers = Object.entries({ ...row.components, ...row.metrics }).filter(([, value]) => typeof value === "number").map(([name, value]) =>
    element("span", { class: "chip" }, element("span", { class: "soft" }, `${name} `), element("b", {}, format(value))));
  return element("div", { class: "facts" }, ...shown, numbers.length ? element("div", { class: "chips" }, ...numbers) : null);
}

const labelText = (row) => (row.label == null || typeof row.label === "string" ? row.label : JSON.stringify(row.label));
function shortLabel(row) {
  const label = labelText(row);
  return label == null || label.length > 60 ? null : label;
}
const labelCard = (row) => (labelText(row)?.length > 60 ? [element("h3", {}, "Label"), element("pre", {}, labelText(row))] : []);

function colourSwitch() {
  const [low, high] = colours[colour];
  const choose = (event) => { colour = event.target.value; showColour(); };
  return element("label", { class: "scale" },
    element("select", { "aria-label": "colour tokens by", oninput: choose },
      ...Object.keys(colours).map((name) => element("option", { value: name, selected: name === colour }, name))),
    element("span", { class: "low" }, low), element("i"), element("span", { class: "high" }, high));
}

function showColour() {
  parts.detail.dataset.colour = colour;
  const [low, high] = colours[colour];
  parts.detail.querySelector(".scale .low").textContent = low;
  parts.detail.querySelector(".scale .high").textContent = high;
}

// A card is a <details>; `body` makes its content the first time that it is open.
function card(attributes, title, notes, open, body) {
  const node = element("details", attributes,
    element("summary", {}, element("b", {}, title), ...notes));
  const grow = () => { if (node.open && node.children.length === 1) node.append(...body()); };
  node.addEventListener("toggle", grow);
  node.open = open;
  grow();
  return node;
}
const note = (text) => element("span", { class: "caption" }, text);

function promptCard(prompt) {
  if (typeof prompt === "string") {
    return card({ class: "segment prompt" }, "Prompt", [], true, () => [element("pre", {}, prompt)]);
  }
  const tools = prompt.tools.length
    ? element("details", { class: "tools" }, element("summary", {}, `${count(prompt.tools.length, "tool")}: ${prompt.tools.map((tool) => tool.name).join(", ")}`),
      ...prompt.tools.map((tool) => element("div", { class: "tool" }, element("b", { class: "mono" }, tool.name),
        element("div", { class: "soft" }, tool.description), element("pre", {}, tool.parameters))))
    : null;
  return card({ class: "segment prompt" }, "Prompt", [], true, () => [...prompt.messages.map(({ role, text }) =>
    element("div", { class: "message" }, role ? element("div", { class: "caption role" }, role) : null, element("pre", {}, text))), tools].filter(Boolean));
}

function segmentCard(row, k, turn, open) {
  const segment = row.segments[k];
  const attributes = { class: `segment ${segment.drawn ? "drawn" : "returned"}`, "data-k": k, "data-turn": turn };
  const snippet = element("span", { class: "snippet" }, oneLine(segment.tokens.slice(0, 60).join("")));
  if (!segment.drawn) {
    const asked = row.segments[k - 1]?.calls;
    return card(attributes, asked ? "Tool result" : "Reply", [note(`${count(segment.length, "token")} · not in the loss`), snippet],
      open, () => [element("pre", {}, ...tokenSpans(segment, 0, segment.tokens.length))]);
  }
  const calls = segment.calls ?? [];
  const names = calls.map((call) => element("span", { class: call.error ? "call-name bad mono" : "call-name mono" }, call.error ? "unreadable call" : call.name));
  const numbers = `${count(segment.length, "token")} · log-prob ${format(mean(segment.logprobs))}${row.in_loss ? "" : " · not in the loss"}`;
  return card(attributes, `Turn ${turn}`, [note(numbers), ...names, snippet], open, () => [
    ...segment.parts.map(([kind, end], i) => partBlock(segment, kind, segment.parts[i - 1]?.[1] ?? 0, end)),
    ...calls.map(callBox)]);
}

function partBlock(segment, kind, start, end) {
  const title = { thinking: "thinking", call: "tool call" }[kind];
  return element("div", { class: `part ${kind}` }, title ? element("div", { class: "caption" }, title) : null,
    element("pre", {}, ...tokenSpans(segment, start, end)));
}

function callBox(call) {
  if (call.error) return element("div", { class: "request bad" }, element("b", {}, "unreadable call"), element("div", {}, call.error));
  return element("div", { class: "request" }, element("b", { class: "mono" }, call.name),
    element("dl", {}, ...Object.entries(call.arguments).flatMap(([name, text]) =>
      [element("dt", { class: "mono" }, name), element("dd", { class: "mono" }, text)])));
}

const positionOf = (segment, i) =>
  segment.start + i + (segment.cut_at != null && i >= segment.cut_at ? segment.length - segment.tokens.length : 0);

function tokenSpans(segment, start, end) {
  return segment.tokens.slice(start, end).flatMap((token, offset) => {
    const i = start + offset;
    const logprob = segment.drawn ? segment.logprobs[i] ?? 0 : 0;
    const surprise = Math.sqrt(Math.min(1, Math.max(0, -logprob / MAX_SURPRISE)));
    const unlikely = Math.min(1, Math.max(0, 1 - Math.exp(logprob)));
    const pieces = token.split("\n").flatMap((piece, line) =>
      line ? [element("span", { class: "mark" }, "↵"), "\n", piece] : [piece]);
    const style = segment.drawn ? `--surprise:${surprise.toFixed(3)};--unlikely:${unlikely.toFixed(3)}` : null;
    const span = element("span", { class: segment.drawn ? "token" : "token masked", style, "data-i": i }, ...pieces);
    if (i !== segment.cut_at) return [span];
    return [element("span", { class: "cut" }, `… ${count(segment.length - segment.tokens.length, "token")} left out …`), span];
  });
}

function showTokenTip(event) {
  const tooltip = document.getElementById("tooltip");
  const token = event.target.closest?.(".token");
  tooltip.hidden = !token;
  if (!token) return;
  const row = view.selected;
  const { k, turn } = token.closest(".segment").dataset;
  const segment = row.segments[k];
  const i = Number(token.dataset.i);
  const logprob = segment.logprobs?.[i];
  const lines = segment.drawn
    ? [`log-prob ${format(logprob)} · p = ${logprob == null ? "–" : format(Math.exp(logprob), true)}`,
      row.in_loss ? `advantage ${signed(row.advantage)}` : "its sample is not in the loss"]
    : ["came back, not drawn: not in the loss"];
  lines.push(`token ${positionOf(segment, i) + 1} of ${row.length} · ${segment.drawn ? "" : "after "}turn ${turn}`);
  tooltip.replaceChildren(element("div", { class: "mono" }, JSON.stringify(segment.tokens[i])), ...lines.map((line) => element("div", {}, line)));
  tooltip.style.left = `${Math.min(event.clientX + 14, innerWidth - tooltip.offsetWidth - 10)}px`;
  tooltip.style.top = `${Math.min(event.clientY + 18, innerHeight - tooltip.offsetHeight - 10)}px`;
}
