// Curves of metrics.jsonl: faint raw values, a moving average, evaluations as marked points.
const PALETTE = ["var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)"];

// [title, y axis, {metric: name in the legend}, options]
const CHARTS = {
  Learning: ["rl", [
    ["Reward", "mean reward", { "reward/mean": "train", "eval/reward": "evaluation" }, { wide: true }],
    ["Solve rate", "share solved", { "reward/solved": "train", "eval/solved": "evaluation" }, { wide: true, percent: true }],
  ]],
  Policy: ["rl", [
    ["Response length", "tokens", { "response/length_mean": "train", "eval/length_mean": "evaluation" }],
    ["Entropy", "nats per token", { "policy/entropy": "policy" }],
    ["Clip fraction", "share of tokens", { "loss/clip_fraction": "clipped" }, { percent: true }],
    ["Log-prob difference, sampler to trainer", "absolute, nats", { "logprob/abs_diff_mean": "mean", "logprob/abs_diff_max": "max" }, { log: true }],
    ["Gradient norm", "global norm", { "grad/norm": "norm" }, { log: true }],
    ["Policy loss", "loss", { "loss/policy": "policy" }],
    ["Truncated responses", "share of responses", { "response/truncated": "truncated" }, { percent: true }],
    ["Reward spread", "standard deviation", { "reward/std": "reward" }],
    ["Learning rate", "learning rate", { "optimizer/lr": "rate" }, { exact: true }],
  ]],
  Speed: ["rl", [
    ["Step time", "seconds", { "time/step_seconds": "step", "time/rollout_seconds": "rollout", "time/update_seconds": "update" }],
    ["Throughput", "tokens per second", { "throughput/tokens_per_second": "tokens/s" }],
    ["Model FLOPs utilisation", "share of peak", { "throughput/mfu": "MFU" }, { percent: true }],
    ["Tokens so far", "tokens", { "tokens/total": "total" }, { exact: true }],
  ]],
  "Warm start": ["warmstart", [
    ["Supervised loss", "nats per token", { "loss/supervised": "loss" }],
    ["Evaluation", "score", { "eval/reward": "reward", "eval/solved": "solved" }],
    ["Gradient norm", "global norm", { "grad/norm": "norm" }, { log: true }],
    ["Learning rate", "learning rate", { "optimizer/lr": "rate" }, { exact: true }],
    ["Step time", "seconds", { "time/step_seconds": "step" }],
    ["Throughput", "tokens per second", { "throughput/tokens_per_second": "tokens/s" }],
    ["Tokens so far", "tokens", { "tokens/total": "total" }, { exact: true }],
  ]],
};
const drawn = [];
let smoothing = 0.04; // window of the moving average, as a share of the phase

function movingAverage(values, half) {
  return values.map((value, i) => {
    if (value == null) return null;
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((x) => x != null);
    return sum(near) / near.length;
  });
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step + 0);
  return ticks;
}

function scaleOf(values, options) {
  const present = values.filter((value) => value != null);
  const positive = present.filter((value) => value > 0);
  let [low, high] = [Math.min(...present), Math.max(...present)];
  if (options.log && high > 20 * Math.min(...positive)) {
    [low, high] = [Math.floor(Math.log10(Math.min(...positive))), Math.ceil(Math.log10(high))];
    const every = Math.ceil((high - low) / 5);
    const ticks = [];
    for (let power = low; power <= high; power += every) ticks.push(10 ** power);
    return { ticks, at: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) };
  }
  if (low > 0 && low < 0.6 * high) low = 0;
  const space = high - low || Math.abs(high) || 1;
  if (options.percent) [low, high] = [Math.max(0, low - 0.04 * space), Math.min(1, high + 0.06 * space)];
  else [low, high] = [low === 0 ? 0 : low - 0.06 * space, high + 0.06 * space];
  return { ticks: niceTicks(low, high, options.wide ? 5 : 4), at: (value) => (value - low) / (high - low) };
}

// A line through the points, with gaps where y is null; h0 makes a lone point a dot.
function pathOf(xs, ys) {
  return xs.map((x, i) => {
    if (ys[i] == null) return "";
    const point = `${x.toFixed(1)} ${ys[i].toFixed(1)}`;
    return ys[i - 1] == null ? `M${point}h0` : `L${point}`;
  }).join("");
}

class Chart {
  constructor(phase, [title, yLabel, metrics, options = {}]) {
    const data = DATA.phases[phase];
    this.phase = phase;
    this.steps = data.step;
    this.yLabel = yLabel;
    this.options = options;
    this.series = Object.entries(metrics)
      .filter(([metric]) => data[metric]?.some((value) => value != null))
      .map(([metric, label], i) =>
        ({ label, values: data[metric], colour: PALETTE[i], sparse: metric.startsWith("eval/") }));
    this.legend = element("div", { class: "legend" });
    this.figure = svg("svg", { role: "img", "aria-label": `${title} by step` });
    this.card = element("div", { class: `card chart ${options.wide ? "wide" : ""}` },
      element("h3", {}, title), this.legend, this.figure);
    this.figure.addEventListener("pointermove", (event) => hover(phase, this.stepAt(event)));
    this.figure.addEventListener("pointerleave", () => hover(phase, null));
    if (phase === "rl") this.figure.addEventListener("click", (event) => showStep(this.stepAt(event), true));
  }

  draw() {
    const width = this.figure.clientWidth || 400;
    const height = this.options.wide ? 270 : 190;
    const box = { left: 58, right: width - 10, top: 8, bottom: height - 38 };
    this.box = box;
    const [first, final] = [this.steps[0], last(this.steps)];
    this.x = (step) => box.left + (box.right - box.left) * ((step - first) / (final - first || 1));
    this.scale = scaleOf(this.series.flatMap((one) => one.values), this.options);
    this.y = (value) => box.bottom - (box.bottom - box.top) * this.scale.at(value);
    this.crosshair = svg("line", { class: "crosshair", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.dots = this.series.map((one) => svg("circle", { r: 3.5, fill: one.colour, visibility: "hidden" }));
    this.figure.setAttribute("height", height);
    this.figure.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.figure.replaceChildren(
      svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: "transparent" }),
      ...this.axes(first, final, height), ...this.series.flatMap((one) => this.curve(one)),
      this.crosshair, ...this.dots);
    this.read(null);
  }

  axes(first, final, height) {
    const { left, right, top, bottom } = this.box;
    const marks = this.scale.ticks.flatMap((tick) => [
      svg("line", { class: "gridline", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }),
      svg("text", { x: left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, this.tickText(tick)),
    ]);
    const xTicks = final > first ? niceTicks(first, final, this.options.wide ? 8 : 5) : [first];
    for (const tick of xTicks.filter(Number.isInteger)) {
      marks.push(svg("line", { class: "axis", x1: this.x(tick), x2: this.x(tick), y1: bottom, y2: bottom + 4 }));
      marks.push(svg("text", { x: this.x(tick), y: bottom + 16, "text-anchor": "middle" }, tick.toLocaleString("en")));
    }
    marks.push(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    marks.push(svg("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, "step"));
    const middle = (top + bottom) / 2;
    marks.push(svg("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, this.yLabel));
    if (this.options.wide) {
      for (const { step } of DATA.rollouts.steps) {
        const x = this.x(step);
        marks.push(svg("path", { class: "sampled", d: `M${x} ${bottom - 6}l3 6h-6z` }, svg("title", {}, `rollouts of step ${step}`)));
      }
    }
    return marks;
  }

  tickText(tick) {
    if (this.options.percent) return `${Number((100 * tick).toPrecision(3))}%`;
    const plain = tick === 0 || (Math.abs(tick) >= 1e-3 && Math.abs(tick) < 1e4);
    return plain ? String(Number(tick.toPrecision(6))).replace("-", "−") : format(tick);
  }

  curve({ values, colour, sparse }) {
    const present = this.steps.map((step, i) => [step, values[i]]).filter(([, value]) => value != null);
    if (sparse) {
      const points = present.map(([step, value]) => [this.x(step), this.y(value)]);
      return [
        svg("path", { class: "average", stroke: colour, d: pathOf(points.map((p) => p[0]), points.map((p) => p[1])) }),
        ...points.map(([x, y]) => svg("circle", { cx: x, cy: y, r: 3.5, fill: colour, stroke: "var(--card)", "stroke-width": 1.5 })),
      ];
    }
    const xs = this.steps.map(this.x);
    const height = (value) => (value == null ? null : this.y(value));
    const raw = this.options.wide
      ? present.map(([step, value]) => svg("circle", { cx: this.x(step), cy: this.y(value), r: 1.6, fill: colour, opacity: 0.3 }))
      : [svg("path", { class: "raw", stroke: colour, d: pathOf(xs, values.map(height)) })];
    const half = this.options.exact ? 0 : Math.round((smoothing * values.length) / 2);
    const smooth = movingAverage(values, half).map(height);
    return [...(half ? raw : []), svg("path", { class: "average", stroke: colour, d: pathOf(xs, smooth) })];
  }

  stepAt(event) {
    const bounds = this.figure.getBoundingClientRect();
    const share = (event.clientX - bounds.left - this.box.left) / (this.box.right - this.box.left);
    const step = this.steps[0] + share * (last(this.steps) - this.steps[0]);
    return this.steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
  }

  // Shows the values at `step` in the legend, or the last ones.
  read(step) {
    const index = step == null ? -1 : this.steps.indexOf(step);
    this.crosshair.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index >= 0) {
      this.crosshair.setAttribute("x1", this.x(step));
      this.crosshair.setAttribute("x2", this.x(step));
    }
    const entries = this.series.map(({ label, values, colour, sparse }, i) => {
      const value = index < 0 ? last(values.filter((x) => x != null)) : values[index];
      const shown = index >= 0 && value != null;
      this.dots[i].setAttribute("visibility", shown ? "visible" : "hidden");
      if (shown) {
        this.dots[i].setAttribute("cx", this.x(step));
        this.dots[i].setAttribute("cy", this.y(value));
      }
      return element("span", {}, element("i", { style: `background:${colour}` }), label,
        value == null && sparse ? null : element("b", {}, format(value, this.options.percent)));
    });
    const where = index < 0 ? null : element("span", {}, `step ${step.toLocaleString("en")}`);
    this.legend.replaceChildren(...entries, ...(where ? [where] : []));
  }
}

function hover(phase, step) {
  for (const chart of drawn) if (chart.phase === phase) chart.read(step);
}

// Metrics that no chart above shows have one each, so that nothing a run logs is hidden.
function otherCharts(phase) {
  const known = new Set(["step", ...Object.values(CHARTS)
    .filter(([of]) => of === phase)
    .flatMap(([, charts]) => charts.flatMap(([, , metrics]) => Object.keys(metrics)))]);
  return Object.keys(DATA.phases[phase]).filter((name) => !known.has(name)).sort()
    .map((name) => [name, name.split("/").pop().replaceAll("_", " "), { [name]: "value" }]);
}

function showCharts() {
  const shown = element("span", { style: "min-width: 6.5em" });
  const slide = (event) => {
    if (event) smoothing = Number(event.target.value) / 100;
    shown.textContent = smoothing ? `${Math.round(100 * smoothing)}% of the steps` : "off";
    drawn.forEach((chart) => chart.draw());
  };
  const slider = element("input", { type: "range", min: 0, max: 25, value: 100 * smoothing, oninput: slide });
  const blocks = [];
  const sections = [...Object.entries(CHARTS),
    ["Other RL metrics", ["rl", otherCharts("rl")]],
    ["Pretraining", ["pretraining", otherCharts("pretraining")]],
    ["Other warm-start metrics", ["warmstart", otherCharts("warmstart")]]];
  for (const [title, [phase, charts]] of sections) {
    const made = charts.map((definition) => new Chart(phase, definition)).filter((chart) => chart.series.length);
    if (!made.length) continue;
    drawn.push(...made);
    blocks.push(
      element("div", { class: "row heading" }, element("h2", {}, title), element("span", { class: "spacer" }),
        blocks.length ? null : element("label", {}, "Moving average", slider, shown)),
      element("div", { class: "grid" }, ...made.map((chart) => chart.card)));
  }
  place("charts", ...blocks);
  slide(null);
  addEventListener("resize", () => drawn.forEach((chart) => chart.draw()));
}
