// A sample of rollouts: choose a step, filter, read a response coloured by log-probability.
const MAX_SURPRISE = 5; // nats at which the colour is full
const view = { step: 0, sort: "group", status: "", low: "", high: "", text: "", selected: null };
const parts = {};

const orders = {
  group: (a, b) => a.group - b.group,
  "highest reward": (a, b) => b.reward - a.reward,
  "lowest reward": (a, b) => a.reward - b.reward,
  longest: (a, b) => b.length - a.length,
  "least likely": (a, b) => mean(a.logprobs) - mean(b.logprobs),
};

function mean(values) {
  const present = values.filter((value) => value != null);
  return present.length ? sum(present) / present.length : null;
}
const promptOf = (row) => DATA.rollouts.prompts[row.prompt];
const signed = (value) => (value == null ? "–" : (value > 0 ? "+" : "") + format(value));
const oneLine = (text) => text.replace(/\s+/g, " ").trim();

function visibleRows() {
  const text = view.text.toLowerCase();
  return DATA.rollouts.steps[view.step].rows
    .filter((row) => !view.status || row.status === view.status)
    .filter((row) => view.low === "" || row.reward >= Number(view.low))
    .filter((row) => view.high === "" || row.reward <= Number(view.high))
    .filter((row) => !text || (promptOf(row) + row.response_tokens.join("")).toLowerCase().includes(text))
    .sort(orders[view.sort]);
}

function listItem(row) {
  const sign = row.advantage > 0 ? "plus" : row.advantage < 0 ? "minus" : "soft";
  return element("button", { class: "item", role: "option", "aria-selected": String(row === view.selected), onclick: () => select(row) },
    element("span", { class: "reward" }, format(row.reward)),
    element("span", { class: sign }, `A ${signed(row.advantage)}`),
    element("span", { class: "row" }, element("span", { class: "caption" }, `${row.length} tok`), pill(row.status)),
    element("span", { class: "snippet mono" }, oneLine(row.response_tokens.slice(0, 60).join("")) || "(empty)"));
}

function pill(status) {
  const known = ["completed", "truncated", "aborted", "failed"].includes(status) ? status : "";
  return element("span", { class: `pill ${known}` }, status);
}

function select(row) {
  view.selected = row;
  showList();
}

function showList() {
  const rows = visibleRows();
  if (!rows.includes(view.selected)) view.selected = rows[0] ?? null;
  const items = [];
  rows.forEach((row, i) => {
    if (view.sort === "group" && row.group !== rows[i - 1]?.group) {
      items.push(element("div", { class: "group", title: promptOf(row) }, `Group ${row.group} · ${oneLine(promptOf(row)).slice(-200)}`));
    }
    items.push(listItem(row));
  });
  const { step, total, rows: sampled } = DATA.rollouts.steps[view.step];
  parts.list.replaceChildren(...(items.length ? items : [element("div", { class: "empty" }, "No rollout matches the filter.")]));
  parts.where.textContent = `step ${step.toLocaleString("en")}`;
  parts.count.textContent = `${rows.length} shown · page holds ${sampled.length} of ${total}`;
  showDetail();
}

function showDetail() {
  const row = view.selected;
  if (!row) { parts.detail.replaceChildren(); return; }
  const label = row.label == null || typeof row.label === "string" ? row.label : JSON.stringify(row.label);
  const facts = {
    reward: format(row.reward), advantage: signed(row.advantage), status: row.status,
    tokens: row.length.toLocaleString("en"), "mean log-prob": format(mean(row.logprobs)),
    ...(label == null || label.length > 60 ? {} : { label }),
  };
  parts.detail.replaceChildren(
    element("div", { class: "facts" }, ...Object.entries(facts).map(([name, value]) =>
      element("div", {}, element("div", { class: "caption" }, name), element("div", { class: "value" }, value)))),
    element("h3", {}, "Prompt"), element("pre", {}, promptOf(row)),
    element("div", { class: "row" }, element("h3", {}, "Response"), element("span", { class: "spacer" }),
      element("span", { class: "scale" }, "log-probability 0", element("i"), `−${MAX_SURPRISE} and below`)),
    element("pre", { class: "response" }, ...tokenSpans(row)),
    ...(label && label.length > 60 ? [element("h3", {}, "Label"), element("pre", {}, label)] : []));
  parts.detail.scrollTop = 0;
}

function tokenSpans(row) {
  return row.response_tokens.flatMap((token, i) => {
    const masked = row.mask?.[i] === 0;
    const surprise = Math.sqrt(Math.min(1, Math.max(0, -(row.logprobs[i] ?? 0) / MAX_SURPRISE)));
    const pieces = token.split("\n").flatMap((piece, k) =>
      k ? [element("span", { class: "mark" }, "↵"), "\n", piece] : [piece]);
    const span = element("span", { class: masked ? "token masked" : "token", style: `--surprise:${surprise.toFixed(3)}`, "data-i": i }, ...pieces);
    if (i !== row.cut_at) return [span];
    const left = row.length - row.response_tokens.length;
    return [element("span", { class: "cut" }, `… ${left.toLocaleString("en")} tokens left out …`), span];
  });
}

function showTokenTip(event) {
  const tooltip = document.getElementById("tooltip");
  const token = event.target.closest?.(".token");
  tooltip.hidden = !token;
  if (!token) return;
  const row = view.selected;
  const i = Number(token.dataset.i);
  const logprob = row.logprobs[i];
  const numbers = row.mask?.[i] === 0 ? "not sampled: masked in the loss"
    : `log-prob ${format(logprob)} · p = ${logprob == null ? "–" : format(Math.exp(logprob), true)}`;
  const position = row.cut_at != null && i >= row.cut_at ? i + row.length - row.response_tokens.length : i;
  tooltip.replaceChildren(element("div", { class: "mono" }, JSON.stringify(row.response_tokens[i])),
    element("div", {}, numbers), element("div", {}, `token ${position + 1} of ${row.length}`));
  tooltip.style.left = `${Math.min(event.clientX + 14, innerWidth - tooltip.offsetWidth - 10)}px`;
  tooltip.style.top = `${Math.min(event.clientY + 18, innerHeight - tooltip.offsetHeight - 10)}px`;
}

// Goes to the sampled step nearest to `step`.
function showStep(step, scroll) {
  const { steps } = DATA.rollouts;
  if (!steps.length) return;
  const distance = (index) => Math.abs(steps[index].step - step);
  view.step = steps.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
  parts.slider.value = view.step;
  showList();
  if (scroll) document.getElementById("rollouts").scrollIntoView({ behavior: "smooth" });
}

function moveSelection(event) {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move) return;
  event.preventDefault();
  const rows = visibleRows();
  const next = rows[rows.indexOf(view.selected) + move];
  if (!next) return;
  select(next);
  const item = parts.list.querySelector("[aria-selected=true]");
  item.focus();
  item.scrollIntoView({ block: "nearest" });
}

function toolbar() {
  const { steps } = DATA.rollouts;
  const bind = (name) => (event) => { view[name] = event.target.value; showList(); };
  const go = (index) => showStep(steps[Math.max(0, Math.min(steps.length - 1, index))].step);
  const statuses = [...new Set(steps.flatMap(({ rows }) => rows.map((row) => row.status)))].sort();
  parts.slider = element("input", { type: "range", min: 0, max: steps.length - 1, value: 0, "aria-label": "step", oninput: (event) => go(Number(event.target.value)) });
  parts.where = element("b", { style: "min-width: 6em" });
  const options = (values) => values.map(([value, text]) => element("option", { value }, text));
  return element("div", { class: "toolbar row" },
    element("button", { "aria-label": "previous step", onclick: () => go(view.step - 1) }, "‹"), parts.slider,
    element("button", { "aria-label": "next step", onclick: () => go(view.step + 1) }, "›"), parts.where,
    element("select", { "aria-label": "status", oninput: bind("status") }, ...options([["", "any status"], ...statuses.map((s) => [s, s])])),
    element("label", {}, "reward", element("input", { type: "number", step: "any", placeholder: "min", "aria-label": "lowest reward", oninput: bind("low") }),
      element("input", { type: "number", step: "any", placeholder: "max", "aria-label": "highest reward", oninput: bind("high") })),
    element("label", {}, "sort by", element("select", { oninput: bind("sort") }, ...options(Object.keys(orders).map((o) => [o, o])))),
    element("input", { type: "search", placeholder: "search text", "aria-label": "search text", oninput: bind("text") }));
}

function showRollouts() {
  const { steps } = DATA.rollouts;
  if (!steps.length) return;
  parts.count = element("span", { class: "caption" });
  parts.list = element("div", { class: "list", role: "listbox", "aria-label": "rollouts", onkeydown: moveSelection });
  parts.detail = element("div", { class: "detail", onpointermove: showTokenTip, onpointerleave: showTokenTip });
  place("rollouts",
    element("div", { class: "row heading" }, element("h2", {}, "Rollouts"), element("span", { class: "spacer" }), parts.count),
    element("div", { class: "card browser" }, toolbar(), parts.list, parts.detail));
  showStep(last(steps).step, false);
}

showHeader();
showMilestones();
showCharts();
showRollouts();
showConfig();
