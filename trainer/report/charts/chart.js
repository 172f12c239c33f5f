"use strict";
/* Makes a uPlot chart of each `figure.chart`, when it comes near the window: values under the pointer or the arrow keys,
   zoom by dragging or by + and - (a double click or 0 shows all again), curves that can be put out, a large view.
   `charts.update(name, numbers)` shows new numbers of the figure with that `data-chart`. Nothing is written as markup. */
const charts = (() => {
  const DASHES = [[], [6, 3], [1.5, 2.5], [8, 3, 1.5, 3], [12, 4], [4, 2]];
  const SHAPE = 250 / 440, MARKED = 60;
  const made = new Map(); // figure -> { numbers, plot, columns, hidden, at, spoken }
  const waiting = new Map(); // figure -> newer numbers than the page has, until it is started

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  /** A tick's label: `axis.py` has the same rule. */
  function tick(value) {
    const size = Math.abs(value), sign = value < 0 ? "−" : "";
    if (size === 0 || (size >= 1e-3 && size < 1e5)) return sign + Number(size.toPrecision(6));
    if (size >= 1e-4 && size < 1e-3) return sign + Number(size.toPrecision(3));
    const [figures, power] = size.toExponential(2).split("e");
    return `${sign}${Number(figures)}e${power.replace("+", "").replace("-", "−")}`;
  }

  /** A number by the rule of all pages: `trainer/records/numbers.py`. */
  function plain(value, whole) {
    if (value == null) return "–";
    const size = Math.abs(value), sign = value < 0 ? "−" : "";
    if (size >= 1e15) return sign + size.toExponential(2).replace("e+", "e");
    if (size >= 1000 || (Number.isInteger(size) && (whole || size >= 10))) return sign + Math.round(size).toString().replace(/\B(?=(\d{3})+$)/g, "\u00a0");
    if (size >= 0.001 || size === 0) return sign + size.toFixed(size < 10 ? 3 : size < 100 ? 2 : 1);
    const [figures, power] = size.toExponential(2).split("e-");
    if (power <= 4) return sign + Number(`${figures}e-${power}`).toFixed(6).replace(/0+$/, "");
    return `${sign}${Number(figures)}e−${power}`;
  }

  /** uPlot's columns: one x of all curves, then per curve its values and the ends of its band; where each curve's lie. */
  function columnsOf(numbers) {
    const tables = numbers.series.map((each) => (each.low.length ? [each.x, each.y, each.low, each.high] : [each.x, each.y]));
    let next = 1;
    const places = tables.map((table) => { const at = next; next += table.length - 1; return at; });
    return { data: tables.length ? uPlot.join(tables) : [[], []], places };
  }

  function options(state, figure, width) {
    const { numbers, columns } = state;
    const soft = color("--soft"), grid = { stroke: color("--grid"), width: 1 };
    const axis = { stroke: soft, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const series = [{}], bands = [];
    numbers.series.forEach((each, n) => {
      const stroke = color(`--s${each.color}`);
      const marked = each.x.length === 1 || (each.thick && each.x.length <= MARKED);
      series.push({
        label: each.label, stroke, width: each.thick ? 2.5 : 1.5, dash: DASHES[each.dash], show: !state.hidden.has(n),
        points: { show: true, size: 6, fill: stroke, filter: (plot, at) => (marked ? null : lone(plot.data[at])) },
      });
      if (each.low.length) {
        for (const _ of [0, 1]) series.push({ stroke: "transparent", width: 0, points: { show: false }, show: !state.hidden.has(n) });
        bands.push({ series: [columns.places[n] + 2, columns.places[n] + 1], fill: fade(stroke) });
      }
    });
    return {
      width, height: Math.round(figure.classList.contains("large") ? window.innerHeight * 0.62 : width * SHAPE),
      series, bands, legend: { show: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => rangeOf(numbers, low, high) } },
      axes: [
        { ...axis, size: 26, values: words, label: numbers.x_label, labelSize: 16, labelGap: 0, labelFont: axis.font },
        { ...axis, size: (_, labels) => 16 + 6.4 * Math.max(0, ...(labels ?? []).map((label) => label.length)), values: words },
      ],
      cursor: { sync: { key: numbers.x_label, scales: ["x", null] }, points: { size: 7 }, drag: { x: true, y: false } },
      hooks: { setCursor: [(plot) => read(figure, state, plot)], draw: [(plot) => marks(plot, numbers)] },
    };
  }

  /** Numbers between two gaps have no line to be seen by. What is undefined is a place of another curve alone, and no gap. */
  function lone(column) {
    const own = [];
    column.forEach((value, at) => { if (value !== undefined) own.push(at); });
    return own.filter((at, n) => column[at] != null && column[own[n - 1]] == null && column[own[n + 1]] == null);
  }

  const words = (_, values) => values.map((value) => (value == null ? "" : tick(value)));

  function fade(stroke) {
    const probe = document.createElement("canvas").getContext("2d");
    probe.fillStyle = stroke;
    return `${probe.fillStyle}2e`;
  }

  function rangeOf(numbers, low, high) {
    if (low == null) return [0, 1];
    if (numbers.unit && low >= 0 && high <= 1) [low, high] = [0, 1];
    if (numbers.zero && low > 0) low = 0;
    if (low === high) {
      const pad = Math.abs(low) / 10 || 1;
      if (low && !numbers.zero) low -= pad;
      high += pad;
    }
    const pad = 0.04 * (high - low);
    return [numbers.zero && low === 0 ? 0 : low - pad, high + pad];
  }

  function marks(plot, numbers) {
    const pen = plot.ctx, { top, height } = plot.bbox;
    pen.save();
    pen.strokeStyle = color("--ink");
    pen.setLineDash([1.5, 3]);
    for (const at of numbers.marks) {
      const x = plot.valToPos(at, "x", true);
      pen.beginPath(); pen.moveTo(x, top); pen.lineTo(x, top + height); pen.stroke();
    }
    pen.restore();
  }

  /** The nearest number of a column to a place in it: other curves have points where this one has none. */
  function nearest(column, at) {
    for (let away = 0; away < column.length; away++) {
      if (column[at - away] != null) return column[at - away];
      if (column[at + away] != null) return column[at + away];
    }
    return null;
  }

  const last = (column) => { for (let n = column.length - 1; n >= 0; n--) if (column[n] != null) return column[n]; return null; };

  function read(figure, state, plot) {
    const at = plot.cursor.idx, { data, places } = state.columns;
    const shown = at != null && plot.cursor.left >= 0;
    figure.querySelectorAll(".legend output").forEach((output, n) => {
      if (!(n in places)) return;
      const column = data[places[n]];
      output.textContent = plain(shown ? nearest(column, at) : last(column), state.numbers.whole);
    });
    state.at.textContent = shown ? `${state.numbers.x_label} ${tick(data[0][at])}` : "";
  }

  function zoom(plot, by) {
    const xs = plot.data[0], { min, max } = plot.scales.x, at = xs[plot.cursor.idx] ?? (min + max) / 2;
    const half = ((max - min) / 2) * by;
    const [low, high] = by ? [Math.max(xs[0], at - half), Math.min(xs[xs.length - 1], at + half)] : [xs[0], xs[xs.length - 1]];
    if (high > low) plot.setScale("x", { min: low, max: high });
  }

  /** Whether all of a chart is in view, and nothing was zoomed into. */
  function whole({ plot, columns }) {
    const xs = columns.data[0], { min, max } = plot.scales.x;
    return min == null || (min <= xs[0] && max >= xs[xs.length - 1]); // a new one has no scales yet
  }

  function draw(figure) {
    const state = made.get(figure), place = figure.querySelector(".drawn");
    const view = state.plot && !whole(state) ? { min: state.plot.scales.x.min, max: state.plot.scales.x.max } : null;
    state.plot?.destroy();
    state.columns = columnsOf(state.numbers);
    place.classList.add("live");
    state.plot = new uPlot(options(state, figure, place.clientWidth), state.columns.data, place);
    if (view) state.plot.setScale("x", view);
    const over = state.plot.over;
    over.tabIndex = 0;
    over.setAttribute("role", "application"); // else a screen reader would keep the arrow keys for itself
    over.setAttribute("aria-roledescription", "chart");
    describe(figure, state);
    over.addEventListener("keydown", (event) => {
      const by = { "+": 0.5, "-": 2, 0: 0 }[event.key];
      if (by !== undefined && !event.ctrlKey && !event.metaKey) zoom(state.plot, by);
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const xs = state.columns.data[0], from = state.plot.cursor.idx ?? (step > 0 ? -1 : xs.length);
      const to = Math.max(0, Math.min(xs.length - 1, from + step)), { min, max } = state.plot.scales.x;
      const beyond = Math.min(0, xs[to] - min) || Math.max(0, xs[to] - max);
      if (beyond) state.plot.setScale("x", { min: min + beyond, max: max + beyond }); // a view that was zoomed into goes along
      queueMicrotask(() => { // uPlot takes up a new view in one of its own, before this one
        state.plot.setCursor({ left: state.plot.valToPos(xs[to], "x"), top: 10 });
        speak(figure, state);
      });
    });
  }

  /** What the drawing's label says, of the numbers that are shown now. */
  function describe(figure, { plot, numbers }) {
    const told = numbers.series.map(({ label, x, y }) => {
      const known = y.flatMap((value, n) => (value == null ? [] : [n])), ends = [known[0], known[known.length - 1]];
      return known.length ? `${label}: ${ends.map((n) => `${plain(y[n], numbers.whole)} at ${tick(x[n])}`).join(", ")}.` : `${label}: no number.`;
    });
    const title = figure.firstElementChild.textContent;
    plot.over.setAttribute("aria-label", `${title} over ${numbers.x_label}. ${told.join(" ")} Arrow keys read values, + and - zoom, 0 shows all.`);
  }

  /** The values at a place, for those who hear the page: only when a key asks, or curves that grow would never be silent. */
  function speak(figure, state) {
    const values = [...figure.querySelectorAll(".legend output")].map((output, n) => `${state.numbers.series[n].label} ${output.textContent}`);
    state.spoken.textContent = `${state.at.textContent}: ${values.join(", ")}`;
  }

  /** The figure itself goes into a dialog that fills the window, and back to its place; what it showed, it shows. */
  function enlarge(figure, button) {
    const stage = document.createElement("dialog"), gap = document.createElement("div"), title = figure.querySelector("h2, h3, h4").textContent;
    stage.className = "stage";
    stage.setAttribute("aria-label", title);
    gap.style.height = `${figure.offsetHeight}px`;
    figure.replaceWith(gap);
    stage.append(figure);
    document.body.append(stage);
    figure.classList.add("large");
    named(button, true, title);
    stage.addEventListener("close", () => {
      figure.classList.remove("large");
      gap.replaceWith(figure);
      stage.remove();
      named(button, false, title);
      draw(figure);
      button.focus();
    });
    stage.showModal();
    draw(figure);
  }

  function named(button, isLarge, title) {
    button.textContent = isLarge ? "×" : "⤢";
    button.setAttribute("aria-label", `${isLarge ? "close" : "enlarge"} the chart ${title}`);
  }

  function start(figure) {
    const data = figure.querySelector('script[type="application/json"]');
    const at = document.createElement("p");
    at.className = "at";
    at.ariaHidden = "true";
    const spoken = document.createElement("p");
    spoken.className = "spoken";
    spoken.setAttribute("role", "status");
    const large = document.createElement("button");
    large.type = "button";
    large.className = "enlarge";
    named(large, false, figure.querySelector("h2, h3, h4").textContent);
    large.addEventListener("click", () => {
      const stage = figure.closest("dialog.stage");
      if (stage) stage.close(); else enlarge(figure, large);
    });
    figure.append(at, spoken, large);
    const newer = waiting.get(figure), numbers = newer ?? JSON.parse(data.textContent);
    waiting.delete(figure);
    figure.classList.toggle("newer", newer !== undefined); // than the drawing that came with the page
    made.set(figure, { numbers, plot: null, columns: null, hidden: new Set(), at, spoken });
    keys(figure);
    draw(figure);
  }

  /** The keys of the legend put curves out and on again. */
  function keys(figure) {
    const state = made.get(figure), entries = figure.querySelectorAll(".legend li");
    if (entries.length < 2) return;
    entries.forEach((entry, n) => {
      const key = document.createElement("button");
      key.type = "button";
      key.className = "key";
      key.setAttribute("aria-pressed", "true");
      key.setAttribute("aria-label", `show ${state.numbers.series[n].label}`);
      key.addEventListener("click", () => {
        const off = !state.hidden.delete(n);
        if (off) state.hidden.add(n);
        key.setAttribute("aria-pressed", String(!off));
        draw(figure);
      });
      entry.querySelector(".key").replaceWith(key);
    });
  }

  const shapeOf = (numbers) => numbers.series.map((each) => (each.low.length ? "b" : "l")).join("");

  function update(name, numbers) {
    for (const figure of document.querySelectorAll("figure.chart")) {
      if (figure.dataset.chart !== name) continue;
      const state = made.get(figure);
      if (!state) { waiting.set(figure, numbers); continue; }
      if (numbers.series.length !== state.numbers.series.length) continue; // its legend is of other curves
      const alike = shapeOf(numbers) === shapeOf(state.numbers), all = whole(state);
      state.numbers = numbers;
      figure.classList.add("newer");
      if (!alike) { draw(figure); continue; }
      state.columns = columnsOf(numbers);
      state.plot.setData(state.columns.data, all);
      if (!all) state.plot.redraw(); // a view that was zoomed into stays
      read(figure, state, state.plot);
      describe(figure, state);
    }
  }

  const coming = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) make(target);
    }
  }, { rootMargin: "300px" });
  const resizing = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = made.get(target)?.plot, width = target.querySelector(".drawn").clientWidth;
      if (plot && width && plot.width !== width) draw(target);
    }
  });
  function make(figure) {
    if (made.has(figure)) return;
    coming.unobserve(figure);
    start(figure);
    resizing.observe(figure);
    if (document.activeElement === figure) figure.querySelector(".u-over, button")?.focus();
    figure.removeAttribute("tabindex");
  }

  /** Charts are made when they come near. The Tab key would pass one that is not made yet: it stops at the figure, which makes it. */
  function begin() {
    for (const figure of document.querySelectorAll("figure.chart")) {
      coming.observe(figure);
      figure.tabIndex = 0;
      figure.addEventListener("focus", () => make(figure));
    }
  }
  const drawAll = () => [...made.keys()].forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  /** A canvas keeps the colours that it was drawn in, and paper has others than a dark screen. */
  function forPaper(is) {
    const shown = document.documentElement.classList;
    if (shown.contains("paper") === is || (is && !matchMedia("(prefers-color-scheme: dark)").matches)) return;
    shown.toggle("paper", is);
    drawAll();
  }
  addEventListener("beforeprint", () => { [...waiting.keys()].forEach(make); forPaper(true); }); // no chart is older than others
  addEventListener("afterprint", () => forPaper(false));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin); else begin();
  return { update, plain, tick };
})();
