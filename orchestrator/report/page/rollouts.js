// Browse samples: search, filter and sort groups, and read siblings side by side.
"use strict";
(() => {
  const { counted, el, number, payload, visible } = ballast;
  const PAGE = 15;
  // Marks that tokens of some run may have: clipped, gated by ERC, dropped by the correction.
  const marks = Object.assign({}, ...payload.runs.map((run) => run.rollouts.cuts));
  const fact = (name) => (group) =>
    Math.max(...group.samples.map((sample) => sample.facts[name] ?? -Infinity));
  const rewards = (group) => group.samples.map((sample) => sample.reward).filter((r) => r !== null);
  const SORTS = {
    chosen: ["as chosen", null],
    gap: ["largest log-prob gap", fact("gap")],
    sampled: ["longest response", fact("sampled")],
    advantage: ["largest advantage", fact("advantage")],
    ...Object.fromEntries(Object.entries(marks).map(([name, { words }]) =>
      [name, [`most tokens ${words}`, fact(name)]])),
    ratio: ["ratio farthest from 1", fact("ratio")],
    best: ["highest reward", (group) => Math.max(...rewards(group), -Infinity)],
    worst: ["lowest reward", (group) => -Math.min(...rewards(group), Infinity)],
    spread: ["rewards farthest apart",
      (group) => Math.max(...rewards(group), 0) - Math.min(...rewards(group), Infinity)],
    step: ["last step first", (group) => group.step],
  };
  const all = payload.runs.flatMap((run) => run.rollouts.groups.map((group) => ({ ...group, run })));
  const state = { search: "", outcome: "", why: "", run: "", cut: "", mark: "", sort: "chosen", shown: PAGE, mode: "" };
  const list = el("div", { id: "groups" });
  const told = el("p", { id: "count", class: "soft" });
  const line = el("div", { id: "token" }, "Point at a token, or touch it, for its numbers.");

  const texts = new Map();
  const searched = (group) => {
    if (!texts.has(group)) {
      const { pieces } = group.run.rollouts;
      texts.set(group, [group.prompt, group.prompt_uid, group.group, group.dataset,
        ...group.samples.map((s) => s.text ?? s.tokens.map((piece) => pieces[piece]).join(""))]
        .join("\n").toLowerCase());
    }
    return texts.get(group);
  };

  const matching = () => {
    const found = all.filter((group) =>
      (!state.run || group.run.name === state.run) &&
      (!state.why || group.why === state.why) &&
      (!state.outcome || group.samples.some((sample) => sample.kind === state.outcome)) &&
      (!state.cut || group.samples.some((sample) => (sample.finish === "length") === (state.cut === "yes"))) &&
      (!state.mark || fact(state.mark)(group) > 0) &&
      (!state.search || searched(group).includes(state.search.toLowerCase())));
    const [, key] = SORTS[state.sort];
    return key ? [...found].sort((a, b) => key(b) - key(a)) : found;
  };

  const outcome = (sample) =>
    (sample.reward === null ? visible(sample.outcome) : `reward ${number(sample.reward)}`);

  const sibling = (group, sample, modes, mode, scale) => {
    const { cuts, pieces } = group.run.rollouts;
    const facts = [
      counted(sample.facts.sampled ?? sample.tokens.length, "token"),
      sample.finish === "length" ? "cut off" : visible(sample.finish),
      sample.turns > 1 ? `${sample.turns} turns` : null,
      sample.branch ? `branch ${sample.branch}` : null,
      sample.facts.gap !== undefined ? `largest gap ${number(sample.facts.gap)}` : null,
      ...Object.entries(cuts).map(([name, { words }]) =>
        (sample.facts[name] ? `${ballast.percent(sample.facts[name])} ${words}` : null)),
      ...Object.entries(sample.parts).map(([name, value]) => `${visible(name)} ${number(value)}`),
    ];
    return el("article", { class: "sibling", "data-sample": sample.id },
      el("h5", null, `${outcome(sample)} · ${visible(sample.id)}`),
      el("p", { class: "soft" }, facts.filter(Boolean).join(", ")),
      el("div", { class: "pictures" }, (sample.images ?? []).map((src, at) =>
        el("img", { src, alt: `image ${at + 1} behind the prompt` }))),
      Object.entries(sample.notes).map(([name, text]) =>
        el("p", { class: "soft" }, `${visible(name)}: ${visible(text)}`)),
      ballast.tokens(sample, pieces, modes, mode, scale, (text) => { line.textContent = text; }));
  };

  const open = (group, place) => {
    const modes = ballast.modes(group);
    const mode = modes.find(({ name }) => name === state.mode) ?? modes[0];
    const scale = mode ? ballast.scale(group, mode) : null;
    const again = all.filter((other) =>
      other.prompt_uid === group.prompt_uid && other.run === group.run && other.step !== group.step);
    const options = modes.map(({ name, words }) => [name, words]);
    const pick = ballast.choice("colour by", `color-${place.dataset.group}`, options, (value) => {
      state.mode = value;
      open(group, place);
    });
    pick.querySelector("select").value = mode?.name ?? "";
    place.replaceChildren(
      el("div", { class: "pictures" }, (group.images ?? []).map((src, at) =>
        el("img", { src, alt: `image ${at + 1} of the prompt` }))),
      el("div", { class: "text prompt", dir: "auto" }, visible(group.prompt)),
      el("div", { class: "controls" }, pick, again.length ? el("button", {
        onclick: () => { search.value = state.search = group.prompt_uid; fill(); },
      }, `this prompt in ${counted(again.length, "more step")}`) : null),
      ballast.ramp(mode, scale),
      el("div", { class: "siblings" }, group.samples.map((sample) => sibling(group, sample, modes, mode, scale))));
  };

  const card = (group) => {
    const place = el("div", { "data-group": `${group.run.name}-${group.step}-${group.group}` });
    const known = rewards(group);
    const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    const failed = group.samples.filter((sample) => sample.reward === null).length;
    const facts = [ballast.several ? group.run.name : null, `step ${group.step}`,
      counted(group.samples.length, "sample"),
      mean === null ? null : `mean reward ${number(mean)}`, failed ? `${failed} without a reward` : null, visible(group.why)];
    return el("details", { class: "group", ontoggle: () => place.childElementCount || open(group, place) },
      el("summary", null, el("b", null, visible(group.prompt.trim().slice(-80)) || "(no prompt)"),
        el("br"), el("span", { class: "soft" }, facts.filter(Boolean).join(" · "))),
      place);
  };

  const fill = () => {
    const found = matching();
    list.replaceChildren(...found.slice(0, state.shown).map(card));
    if (found.length > state.shown) {
      list.append(el("button", { onclick: () => { state.shown += PAGE; fill(); } },
        `show more (${found.length - state.shown} are left)`));
    }
    told.textContent = `${found.length} of ${all.length} groups match.`;
  };

  const search = el("input", { id: "search", type: "search", placeholder: "text, prompt or group" });
  const choose = (name, label, options) => ballast.choice(label, `filter-${name}`, options, (value) => {
    state[name] = value;
    state.shown = PAGE;
    fill();
  });
  const distinct = (values) => [["", "all"], ...[...new Set(values)].map((v) => [v, visible(v)])];

  ballast.rollouts = () => {
    const section = ballast.section("rollouts");
    for (const run of payload.runs) {
      section.append(el("p", { class: "soft note" },
        `${ballast.several ? `${run.name}: ` : ""}${run.rollouts.note}.` + (run.rollouts.numbers_only && run.rollouts.groups.length
          ? " The model's tokenizer was not found, so tokens are shown by number." : "")));
    }
    if (!all.length) return;
    search.addEventListener("input", () => {
      state.search = search.value;
      state.shown = PAGE;
      fill();
    });
    const usable = Object.entries(SORTS).filter(([, [, key]]) =>
      key === null || all.some((group) => Number.isFinite(key(group))));
    section.append(el("div", { class: "controls" },
      el("label", null, "search", search),
      choose("sort", "order", usable.map(([name, [words]]) => [name, words])),
      choose("outcome", "with outcome", distinct(all.flatMap((g) => g.samples.map((s) => s.kind)))),
      choose("cut", "cut off at the limit", [["", "all"], ["yes", "yes"], ["no", "no"]]),
      usable.some(([name]) => name in marks) ? choose("mark", "with tokens", [["", "all"],
        ...Object.entries(marks).map(([name, { words }]) => [name, words])]) : null,
      choose("why", "chosen because", distinct(all.map((group) => group.why))),
      ballast.several ? choose("run", "run", distinct(payload.runs.map((run) => run.name))) : null),
    told, list, line);
    fill();
  };
})();
