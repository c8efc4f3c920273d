// Small plots of the last minutes.

import { byId, draw, make } from "./dom.js";
import { bytes, t } from "./words.js";

const SPAN_MS = 5 * 60_000;
const GAP_MS = 5_000; // a hidden page does not ask

class Plot {
  constructor(name, format, least) {
    this.format = format;
    this.least = least;
    this.points = [];
    this.now = make("dd", {}, "–");
    this.most = make("span");
    this.area = draw("path", { class: "area" });
    this.curve = draw("path", { class: "curve" });
    const picture = draw("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(this.area, this.curve);
    const head = make("dl", {}, make("dt", {}, make("span", {}, t(name)), this.most), this.now);
    this.element = make("div", { className: "plot" }, head, picture);
  }

  add(time, value) {
    this.points.push([time, value]);
    while (this.points[0][0] < time - SPAN_MS) this.points.shift();
    const highest = Math.max(...this.points.map(([, other]) => other));
    this.now.textContent = this.format(value);
    this.most.textContent = t("most: {0}", this.format(highest));
    this.trace(time, Math.max(highest, this.least));
  }

  trace(now, top) {
    const spans = [];
    let last = -Infinity;
    for (const [time, value] of this.points) {
      const place = `${(100 - ((now - time) / SPAN_MS) * 100).toFixed(2)} ${(29 - (value / top) * 28).toFixed(2)}`;
      if (time - last > GAP_MS) spans.push([]);
      spans.at(-1).push(place);
      last = time;
    }
    this.curve.setAttribute("d", spans.map((span) => `M${span.join("L")}`).join(""));
    const foot = (place) => `${place.split(" ")[0]} 30`;
    this.area.setAttribute("d", spans.map((s) => `M${foot(s[0])}L${s.join("L")}L${foot(s.at(-1))}Z`).join(""));
  }
}

const rate = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
const whole = (value) => value.toFixed(0);

const PLOTS = {
  rate: new Plot("answers/s", rate, 1),
  waiting: new Plot("waiting", whole, 4),
  hand: new Plot("in hand", whole, 4),
  memory: new Plot("memory", bytes, 1e8),
  vram: new Plot("GPU memory", bytes, 1e8),
};

let before = null;

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** Add what the server says now. */
export function plot(status) {
  const time = performance.now();
  const seconds = before ? (time - before.time) / 1000 : 0;
  // A smaller count is another server's; after a pause the mean of it says nothing of now.
  const answered = before ? status.answered - before.answered : 0;
  if (seconds > 0 && seconds < GAP_MS / 1000 && answered >= 0) show("rate", time, answered / seconds);
  before = { time, answered: status.answered };
  show("waiting", time, status.queue_photos + status.queue_searches + status.uploads_waiting);
  show("hand", time, status.in_hand);
  show("memory", time, status.memory_bytes + sum(status.workers.map((worker) => worker.memory_bytes)));
  const vram = status.workers.map((worker) => worker.vram_bytes).filter((used) => used !== null);
  if (vram.length || PLOTS.vram.points.length) show("vram", time, sum(vram));
}

function show(name, time, value) {
  PLOTS[name].add(time, value);
  const shown = Object.values(PLOTS).filter((plot) => plot.points.length || plot === PLOTS.rate);
  if (byId("plots").childElementCount < shown.length) byId("plots").replaceChildren(...shown.map((plot) => plot.element));
}
