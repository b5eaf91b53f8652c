// Put the page together: the verdict first, then one section after the other.
"use strict";
(() => {
  const { el, number, payload, seconds } = ballast;
  const STATES = {
    finished: "finished", running: "still running", failed: "failed", stopped: "stopped, can be resumed",
    "ended early": "ended before its last step",
  };

  const tile = (value, words) => el("div", { class: "tile" }, el("b", null, value), el("span", null, words));

  const verdict = (run) => {
    const v = run.verdict;
    const steps = run.total_steps ? `${v.steps ?? 0} of ${run.total_steps}` : String(v.steps ?? 0);
    return el("div", { class: "run", "data-run": run.name },
      el("h1", null, `${run.name} `,
        el("span", { class: `pill ${run.state}` }, STATES[run.state] ?? run.state)),
      el("p", { class: "soft" }, [run.algorithm, run.model && `model ${run.model}`, run.folder].filter(Boolean).join(" · ")),
      ...run.problems.map((problem) => el("p", { class: "problem" }, problem)),
      el("div", { class: "tiles" },
        v.reward_first === undefined ? null
          : tile(`${number(v.reward_first)} → ${number(v.reward_last)}`, "reward, first step → last five"),
        v.heldout_first === undefined ? null
          : tile(`${number(v.heldout_first)} → ${number(v.heldout_last)}`, "held-out score, first → last"),
        tile(steps, "steps"),
        v.seconds === undefined ? null : tile(seconds(v.seconds), "in these steps"),
        v.tokens ? tile(number(v.tokens), "tokens sampled") : null),
      run.bubble ? el("p", null, `Largest bubble: ${run.bubble}.`) : null);
  };

  // One row per run, so that the numbers of several stand below each other.
  const sideBySide = () => el("div", { id: "side-by-side" }, ballast.table(
    ["run", "algorithm", "steps", "reward, last five steps", "held-out, last", "samples", "tokens", "time in steps"],
    payload.runs.map(({ name, algorithm, verdict: v }) => [name, algorithm ?? "–", v.steps ?? 0,
      v.reward_last ?? "–", v.heldout_last ?? "–", v.samples ?? "–", v.tokens ?? "–", seconds(v.seconds)])));

  document.getElementById("top").append(
    ...payload.runs.map(verdict), ballast.several ? sideBySide() : "");
  for (const part of ["result", "time", "prompts", "rollouts", "settings"]) ballast[part]();
  document.body.dataset.ready = "yes";
})();
