// A sample of rollouts: choose a step, filter and sort its rollouts, and read one (trajectory.js).
const view = { step: 0, sort: "group", status: "", low: "", high: "", fewest: "", most: "", text: "", selected: null };
const parts = { shown: null };

const orders = {
  group: (a, b) => a.group - b.group,
  "highest reward": (a, b) => b.reward - a.reward,
  "lowest reward": (a, b) => a.reward - b.reward,
  longest: (a, b) => b.length - a.length,
  "most turns": (a, b) => turnsOf(b) - turnsOf(a),
  "least likely": (a, b) => mean(drawnLogprobs(a)) - mean(drawnLogprobs(b)),
};

const turnsOf = (row) => drawnSegments(row).length;
const promptOf = (row) => DATA.rollouts.prompts[row.prompt];
const promptText = (row) => {
  const prompt = promptOf(row);
  return typeof prompt === "string" ? prompt : prompt.messages.map((message) => message.text).join("\n");
};
// What tells a group: of messages, the last.
const promptTitle = (row) => {
  const prompt = promptOf(row);
  return oneLine(typeof prompt === "string" ? prompt.slice(-200) : last(prompt.messages)?.text.slice(0, 200) ?? "");
};
const textOf = (row) => row.segments.flatMap((segment) => segment.tokens).join("");
const within = (value, low, high) => (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));

function visibleRows() {
  const text = view.text.toLowerCase();
  return DATA.rollouts.steps[view.step].rows
    .filter((row) => !view.status || row.status === view.status)
    .filter((row) => within(row.reward, view.low, view.high))
    .filter((row) => within(turnsOf(row), view.fewest, view.most))
    .filter((row) => !text || (promptText(row) + textOf(row)).toLowerCase().includes(text))
    .sort(orders[view.sort]);
}

function listItem(row) {
  const sign = row.advantage > 0 ? "plus" : row.advantage < 0 ? "minus" : "soft";
  const turns = turnsOf(row);
  return element("button", { class: "item", role: "option", "aria-selected": String(row === view.selected), onclick: () => select(row) },
    element("span", { class: "reward" }, format(row.reward)),
    element("span", { class: sign }, `A ${signed(row.advantage)}`),
    element("span", { class: "row" }, element("span", { class: "caption" }, `${turns > 1 ? `${turns} turns · ` : ""}${row.length} tok`), pill(row.status)),
    element("span", { class: "snippet mono" }, oneLine((row.segments[0]?.tokens ?? []).slice(0, 60).join("")) || "(empty)"));
}

function statusClass(status) {
  if (status === "failed" || status === "aborted") return "bad";
  return status === "truncated" || status.endsWith("_limit") ? "limit" : "";
}
const pill = (status) => element("span", { class: `pill ${statusClass(status)}` }, status);

// The step's rollouts by status; a click shows only those, another click all.
function statusSummary() {
  const counts = {};
  for (const row of DATA.rollouts.steps[view.step].rows) counts[row.status] = (counts[row.status] ?? 0) + 1;
  const toggle = (status) => { view.status = view.status === status ? "" : status; showList(); };
  parts.summary.replaceChildren(...Object.keys(counts).sort((a, b) => counts[b] - counts[a]).map((status) =>
    element("button", { class: `pill ${statusClass(status)}`, "aria-pressed": String(status === view.status), "data-status": status, onclick: () => toggle(status) },
      `${status} `, element("b", {}, String(counts[status])))));
  parts.status.value = view.status;
}

function select(row) {
  view.selected = row;
  showList();
  const item = parts.list.querySelector("[aria-selected=true]");
  item.focus({ preventScroll: true });
  item.scrollIntoView({ block: "nearest" });
}

function showList() {
  const rows = visibleRows();
  if (!rows.includes(view.selected)) view.selected = rows[0] ?? null;
  const items = [];
  rows.forEach((row, i) => {
    if (view.sort === "group" && row.group !== rows[i - 1]?.group) {
      items.push(element("div", { class: "group", title: promptText(row) }, `Group ${row.group} · ${promptTitle(row)}`));
    }
    items.push(listItem(row));
  });
  const { step, total, rows: sampled } = DATA.rollouts.steps[view.step];
  parts.list.replaceChildren(...(items.length ? items : [element("div", { class: "empty" }, "No rollout matches the filter.")]));
  parts.where.textContent = `step ${step.toLocaleString("en")}`;
  parts.count.textContent = `${rows.length} shown · page holds ${sampled.length} of ${total}`;
  statusSummary();
  showDetail();
}

function showDetail() {
  const row = view.selected;
  if (row === parts.shown) return;
  parts.shown = row;
  document.getElementById("tooltip").hidden = true;
  parts.detail.replaceChildren(...(row ? trajectory(row, promptOf(row)).filter(Boolean) : []));
  parts.detail.dataset.colour = colour;
  parts.detail.scrollTop = 0;
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
  if (next) select(next);
}

function toolbar() {
  const { steps } = DATA.rollouts;
  const rows = steps.flatMap((step) => step.rows);
  const bind = (name) => (event) => { view[name] = event.target.value; showList(); };
  const go = (index) => showStep(steps[Math.max(0, Math.min(steps.length - 1, index))].step);
  const statuses = [...new Set([...DATA.statuses, ...rows.map((row) => row.status)])];
  parts.slider = element("input", { type: "range", min: 0, max: steps.length - 1, value: 0, "aria-label": "step", oninput: (event) => go(Number(event.target.value)) });
  parts.where = element("b", { style: "min-width: 5em" });
  const options = (values) => values.map(([value, text]) => element("option", { value }, text));
  parts.status = element("select", { "aria-label": "status", oninput: bind("status") }, ...options([["", "any status"], ...statuses.map((s) => [s, s])]));
  const bound = (name, placeholder, label) => element("input", { type: "number", step: "any", placeholder, "aria-label": label, oninput: bind(name) });
  return element("div", { class: "toolbar row" },
    element("button", { "aria-label": "previous step", onclick: () => go(view.step - 1) }, "‹"), parts.slider,
    element("button", { "aria-label": "next step", onclick: () => go(view.step + 1) }, "›"), parts.where,
    parts.status,
    element("label", {}, "reward", bound("low", "min", "lowest reward"), bound("high", "max", "highest reward")),
    rows.some((row) => turnsOf(row) > 1)
      ? element("label", {}, "turns", bound("fewest", "min", "fewest turns"), bound("most", "max", "most turns")) : null,
    element("label", {}, "sort by", element("select", { "aria-label": "sort by", oninput: bind("sort") }, ...options(Object.keys(orders).map((o) => [o, o])))),
    element("input", { type: "search", placeholder: "search text", "aria-label": "search text", oninput: bind("text") }));
}

function showRollouts() {
  const { steps } = DATA.rollouts;
  if (!steps.length) return;
  parts.count = element("span", { class: "caption" });
  parts.summary = element("div", { class: "summary row", role: "group", "aria-label": "rollouts by status" });
  parts.list = element("div", { class: "list", role: "listbox", "aria-label": "rollouts", onkeydown: moveSelection });
  parts.detail = element("div", { class: "detail", onpointermove: showTokenTip, onpointerleave: showTokenTip });
  place("rollouts",
    element("div", { class: "row heading" }, element("h2", {}, "Rollouts"), element("span", { class: "spacer" }), parts.count),
    element("div", { class: "card browser" }, toolbar(),
      element("div", { class: "side" }, parts.summary, parts.list), parts.detail));
  showStep(last(steps).step, false);
}

showHeader();
showMilestones();
showCharts();
showRollouts();
showConfig();
