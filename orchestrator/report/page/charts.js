// Draw the curves with uPlot: one chart a panel, one cursor for all, marked steps.
"use strict";
(() => {
  const { el, number, css, payload } = ballast;
  const charts = [];
  const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3]];

  const last = (text) => text.split("/").slice(1).join("/").replaceAll("_", " ").replace(/ frac$/, " share");
  const partOf = (run, name) => (name.startsWith("eval/") ? run.heldout : run.curves);

  // Series of all runs on one axis of steps.
  const aligned = (panel) => {
    const tables = [];
    const series = [];
    payload.runs.forEach((run, place) => {
      panel.metrics.forEach((name, order) => {
        const part = partOf(run, name);
        if (!(name in part.values)) return;
        tables.push([part.steps, part.values[name]]);
        const color = ballast.several ? place : order;
        series.push({
          label: ballast.several ? `${run.name}: ${last(name)}` : last(name),
          stroke: () => css(`--c${color % 7}`),
          width: 1.8,
          // Gaps let a curve be seen that lies under another one.
          dash: DASHES[order % DASHES.length],
          spanGaps: true,
          points: { show: part.steps.length < 25, size: 5 },
          value: (_, value) => number(value),
        });
      });
    });
    return [uPlot.join(tables), series];
  };

  // Dotted lines at the steps where something happened.
  const marks = (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = css("--mark");
    ctx.setLineDash([3, 4]);
    ctx.lineWidth = 1;
    for (const run of payload.runs) {
      for (const event of run.events) {
        if (event.kind === "failed") continue;
        const x = Math.round(u.valToPos(event.step, "x", true));
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
    }
    ctx.restore();
  };

  // A line at the score that the run is to reach.
  const goalLine = (u) => {
    const { ctx, bbox } = u;
    const y = Math.round(u.valToPos(payload.goal, "y", true));
    if (y < bbox.top || y > bbox.top + bbox.height) return;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = css("--soft");
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left"; // the axes leave their own
    ctx.textBaseline = "alphabetic";
    ctx.fillText(`goal ${number(payload.goal)}`, bbox.left + 6 * devicePixelRatio, y + 14 * devicePixelRatio);
    ctx.restore();
  };

  const axis = (label, size) => ({
    stroke: () => css("--soft"),
    grid: { stroke: () => css("--line"), width: 1 },
    ticks: { stroke: () => css("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    label,
    labelSize: 18,
    size,
    values: (_, values) => values.map((value) => (value === null ? "" : number(value))),
  });

  // Without a pointer the legend tells the last value of every curve.
  const tellLast = (u) => {
    const idxs = u.data.map((values) => values.findLastIndex((value) => value !== null && value !== undefined));
    u.setLegend({ idxs }, false);
  };

  ballast.chart = (panel, data, series) => {
    const holder = el("div");
    const unit = panel.unit && !["1", "reward"].includes(panel.unit) ? ` in ${panel.unit}` : "";
    const meanings = panel.metrics.filter((name) => payload.metrics[name]?.meaning)
      .map((name) => `${name}: ${payload.metrics[name].meaning}`).join("\n");
    const card = el("div", { class: "chart", title: meanings, "data-panel": panel.title },
      el("h4", null, panel.title, el("small", null, unit)), holder);
    const goal = panel.scores ? payload.goal : null;
    const options = {
      width: 370,
      height: 210,
      cursor: { sync: { key: panel.alone ? null : "steps" }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: (_, low, high) => range(...around(low, high, goal)) } },
      axes: [{ ...axis("step", 34), space: 60 }, axis(null, 62)],
      series: [{ label: "step", value: (_, value) => number(value) }, ...series],
      hooks: { draw: goal === null ? [marks] : [marks, goalLine], ready: [tellLast], setSize: [tellLast] },
    };
    const plot = new uPlot(options, data, holder);
    plot.over.addEventListener("mouseleave", () => setTimeout(() => tellLast(plot)));
    charts.push(plot);
    new ResizeObserver(() => {
      const width = Math.floor(holder.clientWidth);
      if (width > 0 && width !== plot.width) plot.setSize({ width, height: 210 });
    }).observe(holder);
    return card;
  };

  const around = (low, high, goal) =>
    (goal === null || low === null ? [low, high] : [Math.min(low, goal), Math.max(high, goal)]);

  // A constant curve stands in the middle of its axis; others get a little air.
  const range = (low, high) => {
    if (low === null) return [0, 1];
    if (low === high) return low === 0 ? [-1, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
    const air = (high - low) * 0.06;
    return [low >= 0 && low - air < 0 ? 0 : low - air, high + air];
  };

  const eventList = () => {
    const rows = payload.runs.flatMap((run) => run.events.map((event) =>
      [...(ballast.several ? [run.name] : []), event.step, event.text]));
    if (!rows.length) return null;
    const heads = [...(ballast.several ? ["run"] : []), "step", "what happened"];
    return el("details", { id: "events" },
      el("summary", null, ballast.counted(rows.length, "marked event")),
      ballast.table(heads, rows));
  };

  const anyMetric = () => {
    const names = Object.keys(payload.metrics).sort();
    const place = el("div", { class: "grid" });
    const show = (name) => {
      const panel = { title: name, metrics: [name], unit: payload.metrics[name].unit };
      place.replaceChildren(ballast.chart(panel, ...aligned(panel)),
        el("p", { class: "soft" }, payload.metrics[name].meaning));
    };
    const box = el("details", { id: "any", ontoggle: () => place.childElementCount || show(names[0]) },
      el("summary", null, `Any of the ${names.length} metrics`),
      el("div", { class: "controls" },
        ballast.choice("metric", "any-metric", names.map((name) => [name, name]), show)),
      place);
    return box;
  };

  ballast.result = () => {
    const section = ballast.section("result");
    if (!payload.panels.length) {
      section.append(el("p", null, "No step has finished yet, so there is nothing to draw."));
      return;
    }
    section.append(el("p", { class: "soft" },
      "Point at a curve for values; drag to zoom, double-click to go back. Dotted lines mark steps " +
      "where something happened."));
    const events = eventList();
    if (events) section.append(events);
    let grid = null;
    let title = null;
    for (const panel of payload.panels) {
      if (panel.section !== title) {
        title = panel.section;
        grid = el("div", { class: "grid" });
        section.append(el("h3", null, title), grid);
      }
      grid.append(ballast.chart(panel, ...aligned(panel)));
    }
    const left = payload.runs.reduce((sum, run) => sum + run.curves.left_out, 0);
    if (left) section.append(el("p", { class: "soft" }, `${left} steps between others are not drawn.`));
    section.append(anyMetric());
  };

  // Canvases do not follow the colours of the page by themselves; paper is light.
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () =>
      charts.forEach((plot) => plot.redraw(false, true)));
  }
})();
