// Show where the time went: shares of each role, and the timeline of a step.
"use strict";
(() => {
  const { el, payload, percent, seconds } = ballast;
  const COLORS = {
    generate: "var(--c0)", learn: "var(--c1)", publish: "var(--c2)", attest: "var(--c3)",
    score: "var(--c5)", wait_for_reward: "var(--c4)", environment: "var(--c6)",
    credit: "var(--c4)", drive: "var(--c6)", switch: "var(--c3)", follow: "var(--c5)",
    checkpoint: "var(--c6)", idle: "var(--idle)",
  };
  const color = (activity) => COLORS[activity] || "var(--c6)";
  const words = (activity) => activity.replaceAll("_", " ");

  const shares = (run) => {
    const rows = Object.entries(run.shares).map(([role, activities]) => {
      const ranked = Object.entries(activities)
        .sort((a, b) => (a[0] === "idle") - (b[0] === "idle") || b[1] - a[1]);
      const shown = [...ranked].sort((a, b) => b[1] - a[1]).filter(([, share]) => share >= 0.005);
      return el("div", { class: "role", "data-role": role },
        el("span", null, role),
        el("div", { class: "bar" }, ranked.map(([name, share]) => el("i", {
          style: `width:${100 * share}%;background:${color(name)}`,
          title: `${words(name)} ${percent(share)}`,
        }))),
        el("small", null, shown.map(([name, share]) => `${words(name)} ${percent(share)}`).join(", ")));
    });
    const names = [...new Set(Object.values(run.shares).flatMap((one) => Object.keys(one)))];
    return [
      el("h3", null, "Share of the steps' time, by role"),
      el("p", { class: "bubble" }, `Largest bubble: ${run.bubble}.`),
      ...rows,
      ballast.legend([...names.filter((name) => name !== "idle"), "idle"]
        .map((name) => [color(name), words(name)])),
    ];
  };

  const timeline = (run, number) => {
    const { steps, note } = run.timeline;
    if (!steps.length) return [el("p", { class: "soft" }, `No timeline: ${note}.`)];
    const place = el("div");
    const show = (value) => {
      const step = steps[Number(value)];
      const told = el("p", { class: "soft" },
        `Step ${step.step} took ${seconds(step.seconds)}. Point at a span for its length.`);
      const rows = step.tracks.map((track) => el("div", { class: "role" },
        el("span", { class: "soft" }, track.name),
        el("div", { class: "track" }, track.spans.map(([name, begin, length]) => el("i", {
          style: `left:${(100 * begin) / step.seconds}%;width:${(100 * length) / step.seconds}%;` +
            `background:${color(name)}`,
          title: `${words(name)}: ${seconds(length)}, from ${seconds(begin)}`,
        })))));
      const names = new Set(step.tracks.flatMap((track) => track.spans.map((span) => span[0])));
      place.replaceChildren(told, ...rows,
        ballast.legend([...[...names].map((name) => [color(name), words(name)]), ["var(--idle)", "idle"]]));
    };
    show(0);
    const options = steps.map((step, index) => [index, `${step.step} (${seconds(step.seconds)})`]);
    return [
      el("h3", null, "Timeline of a step"),
      el("div", { class: "controls" }, ballast.choice("step", `timeline-${number}`, options, show)),
      place,
      note ? el("p", { class: "soft" }, `${note}.`) : null,
    ];
  };

  ballast.time = () => {
    const section = ballast.section("time");
    payload.runs.forEach((run, number) => {
      const heading = ballast.runHeading(run);
      if (heading) section.append(heading);
      if (Object.keys(run.shares).length) section.append(...shares(run));
      else section.append(el("p", null, "No step was measured."));
      section.append(...timeline(run, number).filter(Boolean));
    });
  };
})();
