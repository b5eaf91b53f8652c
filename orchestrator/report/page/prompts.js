// Show what groups and prompts teach: solved, mixed, equal; outcomes; answers over time.
"use strict";
(() => {
  const { el, number, payload, visible } = ballast;
  const WORDS = {
    solved: "solved: every sample of the last group is right",
    sometimes: "sometimes right",
    never: "never right so far",
  };
  const BARS = "▁▂▃▄▅▆▇█";
  const SHOWN = 50;

  const spark = (values) => {
    const high = Math.max(...values, 1e-9);
    const low = Math.min(...values, 0);
    return values.map((value) => BARS[Math.round((7 * (value - low)) / (high - low))]).join("");
  };

  const groups = (run) => {
    const { steps, solved, mixed, equal, unscored } = run.groups;
    if (!steps.length) return [el("p", null, "No group was recorded.")];
    const line = (label, place) => ({
      label, stroke: () => ballast.css(`--c${place}`), width: 1.8,
      points: { show: steps.length < 25, size: 5 }, value: (_, value) => number(value),
    });
    const series = [line("rewards differ: to learn from", 0), line("solved: every sample right", 2),
      line("equal, not right: nothing to learn", 1), line("no reward", 3)];
    const panel = { title: "Groups of a step", metrics: [], unit: "groups" };
    return [el("div", { class: "grid" },
      ballast.chart(panel, [steps, mixed, solved, equal, unscored], series))];
  };

  const verdicts = (run) => {
    const { counts, total, rows } = run.prompts;
    if (!total) return [];
    const list = el("div");
    let wanted = "";
    const fill = (all) => {
      const found = rows.filter((row) => !wanted || row.verdict === wanted);
      const shown = all ? found : found.slice(0, SHOWN);
      list.replaceChildren(ballast.table(
        ["prompt", "verdict", "steps", "mean reward, over its steps"],
        shown.map((row) => [visible(row.uid), row.verdict, row.steps.length,
          `${spark(row.means)}  ${number(row.means[0])} → ${number(row.means.at(-1))}`])),
      found.length > shown.length
        ? el("button", { onclick: () => fill(true) }, `show all ${found.length}`) : "");
    };
    fill(false);
    const tiles = Object.entries(WORDS).map(([name, words]) => el("div", { class: "tile" },
      el("b", null, number(counts[name] || 0)), el("span", null, words)));
    const options = [["", "all"], ...Object.keys(WORDS).map((name) => [name, name])];
    const note = total > rows.length
      ? `Counts are of ${number(total)} prompts; the table has the ${rows.length} that were sampled most often.` : "";
    return [
      el("h3", null, "Prompts"),
      el("div", { class: "tiles" }, tiles),
      el("details", null, el("summary", null, "Table of prompts"),
        el("div", { class: "controls" }, ballast.choice("verdict", `verdict-${run.name}`, options,
          (value) => { wanted = value; fill(false); })),
        list, note ? el("p", { class: "soft" }, note) : null),
    ];
  };

  const outcomes = (run) => (run.outcomes.length ? [
    el("h3", null, "Outcomes of samples"),
    ballast.table(["outcome", "samples", "first step", "last step"],
      run.outcomes.map((row) => [visible(row.outcome), row.samples, row.first, row.last])),
  ] : []);

  const answers = (run) => {
    if (!run.answers.length) return [];
    const one = (prompt) => {
      const texts = prompt.answers.map((answer) => answer.text);
      const changed = new Set(texts).size > 1;
      return el("details", { class: "group", "data-heldout": prompt.uid },
        el("summary", null, `${visible(prompt.prompt.slice(-90))}: ` +
          (changed ? `${visible(texts[0].slice(0, 40))} → ${visible(texts.at(-1).slice(0, 40))}`
            : `${visible(texts[0].slice(0, 40))}${texts.length > 1 ? ", unchanged" : ""}`)),
        el("div", { class: "text" }, visible(prompt.prompt)),
        el("p", { class: "soft" }, `truth: ${visible(prompt.truth)}`),
        el("div", { class: "answers" }, prompt.answers.flatMap((answer) => [
          el("span", { class: "soft" },
            `step ${answer.step}, ${answer.reward === null ? visible(answer.outcome) : `reward ${number(answer.reward)}`}`),
          el("div", { class: "text" }, visible(answer.text))])));
    };
    const list = el("div", null, run.answers.slice(0, 8).map(one));
    const rest = run.answers.slice(8);
    return [
      el("h3", null, "The same held-out prompt over the run"),
      list,
      rest.length ? el("button", {
        onclick: (event) => { list.append(...rest.map(one)); event.target.remove(); },
      }, `show ${rest.length} more`) : null,
    ];
  };

  ballast.prompts = () => {
    const section = ballast.section("prompts");
    for (const run of payload.runs) {
      section.append(...[ballast.runHeading(run), ...groups(run), ...outcomes(run),
        ...verdicts(run), ...answers(run)].filter(Boolean));
    }
  };
})();
