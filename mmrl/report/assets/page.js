// The page's data and frame: element helpers, number formats, header, milestones, settings.
const DATA = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}
const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const place = (id, ...children) =>
  document.getElementById(id).replaceChildren(...children.filter((child) => child != null));

function format(value, percent = false) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  if (percent) return `${Number((100 * value).toFixed(Math.abs(value) < 0.0095 ? 2 : 1))}%`;
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e15) {
    const power = Math.min(4, Math.floor(Math.log10(size) / 3));
    const scaled = value / 1000 ** power;
    return scaled.toFixed(Math.abs(scaled) < 100 ? 1 : 0) + ["", "k", "M", "B", "T"][power];
  }
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return value.toExponential(1).replace(".0e", "e").replace(/e\+?/, "e").replaceAll("-", "−");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3))).replace("-", "−");
}

function duration(seconds) {
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${seconds.toFixed(0)} s`;
}

function flatten(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    const nested = Array.isArray(value) && value.some((item) => item && typeof item === "object");
    if (nested) return value.flatMap((item, i) => flatten(item, `${prefix}.${i}`));
    return [[prefix, Array.isArray(value) ? value.join(", ") : String(value)]];
  }
  return Object.entries(value).flatMap(([key, item]) =>
    flatten(item, prefix ? `${prefix}.${key}` : key));
}

const column = (phase, name) => (DATA.phases[phase][name] ?? []).filter((value) => value != null);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const largest = (values) => (values.length ? Math.max(...values) : null);
const last = (values) => values[values.length - 1];
function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : null;
}

function toggleTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
}

function showHeader() {
  if (matchMedia("(prefers-color-scheme: dark)").matches) toggleTheme();
  const phases = { pretraining: "pretraining", warmstart: "warm-start", rl: "RL" };
  const lengths = Object.entries(phases)
    .map(([phase, title]) => [last(column(phase, "step")) ?? 0, title])
    .filter(([steps]) => steps > 0)
    .map(([steps, title]) => `${steps.toLocaleString("en")} ${title} ${steps === 1 ? "step" : "steps"}`);
  place("header",
    element("div", {}, element("h1", {}, DATA.name),
      element("p", { class: "subtitle" }, [...lengths, `report of ${DATA.made}`].join(" · "))),
    element("div", { class: "spacer" }),
    element("button", { onclick: toggleTheme, "aria-label": "Switch light and dark" }, "◐ Theme"));
}

function showMilestones() {
  const entries = Object.entries(DATA.milestones);
  const story = entries.map(([name, row], index) => {
    const solved = row["eval/solved"];
    return element("div", { class: index === entries.length - 1 ? "last" : "" },
      element("div", { class: "caption" }, name[0].toUpperCase() + name.slice(1)),
      element("div", { class: "value" }, solved == null ? format(row["eval/reward"]) : format(solved, true)),
      element("div", { class: "caption" },
        solved == null ? "evaluation reward" : `solved · reward ${format(row["eval/reward"])}`));
  });
  const tiles = [
    ["final train reward", format(last(column("rl", "reward/mean")))],
    ["final response length", format(last(column("rl", "response/length_mean")))],
    ["training time", DATA.seconds ? duration(DATA.seconds) : "–"],
    ["tokens seen", format(last(column("rl", "tokens/total")))],
    ["tokens/s, median", format(median(column("rl", "throughput/tokens_per_second")))],
    ["largest log-prob gap", format(largest(column("rl", "logprob/abs_diff_max")))],
  ].map(([title, value]) =>
    element("div", {}, element("div", { class: "value" }, value), element("div", { class: "caption" }, title)));
  const columns = story.length ? "" : "grid-template-columns: 1fr";
  place("milestones",
    element("div", { class: "milestones", style: columns },
      story.length ? element("div", { class: "card story" }, ...story) : null,
      element("div", { class: "card tiles" }, ...tiles)),
    showHighlights());
}

// Settings that say what kind of run this was; those that a config lacks are left out.
const HIGHLIGHTS = {
  objective: "objective.name", advantage: "advantage", tasks: "data.datasets", reward: "reward",
  "learning rate": "optimizer.learning_rate", "prompts a step": "prompts_per_step",
  "group size": "sampling.group_size", "updates a rollout": "updates_per_rollout",
  "longest response": "sampling.max_new_tokens", temperature: "sampling.temperature",
  layers: "model.num_layers", width: "model.hidden_size", experts: "model.num_experts", seed: "seed",
};

function showHighlights() {
  const chips = [];
  for (const [title, key] of Object.entries(HIGHLIGHTS)) {
    const value = key.split(".").reduce((part, name) => part?.[name], DATA.config);
    if (value == null) continue;
    const text = typeof value === "object" ? Object.keys(value).join(", ") : String(value);
    chips.push(element("span", { class: "chip", title: key },
      element("span", { class: "soft" }, `${title} `), element("b", {}, text)));
  }
  return chips.length ? element("div", { class: "chips" }, ...chips) : null;
}

function showConfig() {
  const settings = flatten(DATA.config);
  if (!settings.length) return;
  const rows = settings.map(([key, value]) =>
    element("div", {}, element("span", { class: "soft mono" }, key), element("span", { class: "mono" }, value)));
  place("config",
    element("details", { class: "card" },
      element("summary", {}, `Configuration (${settings.length} settings)`),
      element("div", { class: "settings" }, ...rows)));
}
