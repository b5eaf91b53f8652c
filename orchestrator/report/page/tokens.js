// Colour the tokens of a sample by a number: advantage, log-prob gap, ratio, clipped, and others.
"use strict";
(() => {
  const { el, number, visible } = ballast;

  const at = (column, place) => (Array.isArray(column) ? column[place] : column);
  const both = (a, b, join) => (a === undefined || b === undefined || a === null || b === null
    ? null : join(a, b));

  // Name -> words, the number of a token, and its scale: from -max to max, or from 0 to max.
  const MODES = {
    advantage: { words: "advantage", signed: true, of: (s, i) => at(s.adv, i) },
    gap: {
      words: "log-prob gap: learner − sampler, nats", signed: true,
      of: (s, i) => both(at(s.old ?? s.now, i), at(s.sampler, i), (a, b) => a - b),
    },
    ratio: {
      words: "log of the ratio: new policy over old", signed: true,
      of: (s, i) => both(at(s.now, i), at(s.old, i), (a, b) => a - b),
    },
    ref: {
      words: "log-prob over the reference, nats", signed: true,
      of: (s, i) => both(at(s.old ?? s.now, i), at(s.ref, i), (a, b) => a - b),
    },
    surprise: {
      words: "surprise: −log-prob when sampled, nats", signed: false,
      of: (s, i) => (at(s.sampler, i) === undefined ? null : -at(s.sampler, i)),
    },
    entropy: { words: "entropy of the old policy, nats", signed: false, of: (s, i) => at(s.entropy, i) },
    value: { words: "value of the critic", signed: true, of: (s, i) => at(s.value, i) },
    version: { words: "weight version", signed: false, fromLow: true, of: (s, i) => at(s.version, i) },
  };

  // The modes of a run: those of every run, and one for each mark that its tokens may have. A mark
  // is of the last update that trained the sample: 1 where the token's gradient was cut, else 0.
  const modesOf = (cuts) => ({
    ...MODES,
    ...Object.fromEntries(Object.entries(cuts).map(([name, { flag, words }]) => [name, {
      words, signed: true, cut: true,
      of: (s, i) => both(at(s.flags, i), flag, (flags, bit) => (flags & bit ? 1 : 0)),
    }])),
  });

  const drawn = (sample, place) => at(sample.version, place) >= 0;
  const numbers = (sample, mode) => sample.tokens.map((_, place) =>
    (drawn(sample, place) ? mode.of(sample, place) ?? null : null));

  // The modes for which some sample of a group has numbers.
  ballast.modes = (group) => Object.entries(modesOf(group.run.rollouts.cuts))
    .filter(([, mode]) => group.samples.some((sample) =>
      numbers(sample, mode).some((value) => value !== null)))
    .map(([name, mode]) => Object.assign({ name }, mode));

  // Low and high end of the colours, for all siblings together.
  ballast.scale = (group, mode) => {
    const all = group.samples.flatMap((sample) => numbers(sample, mode))
      .filter((value) => value !== null);
    if (!all.length) return null;
    const high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const low = all.reduce((a, b) => Math.min(a, b), Infinity);
    if (mode.signed) {
      const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
      return [-size, size];
    }
    return mode.fromLow ? [low, high] : [0, high || 1];
  };

  const shade = (value, [low, high], signed) => {
    if (signed) {
      const share = value / high;
      return `rgba(var(--${share < 0 ? "cold" : "warm"}),${(0.75 * Math.abs(share)).toFixed(3)})`;
    }
    const share = high > low ? (value - low) / (high - low) : 1;
    return `rgba(var(--cold),${(0.08 + 0.62 * share).toFixed(3)})`;
  };

  ballast.ramp = (mode, scale) => {
    if (scale === null) return el("span");
    const { cut, signed, words } = mode;
    const rest = "Grey italics: not sampled by the policy. Underlined: does not train.";
    if (cut) {
      return el("p", { class: "soft ramp-line" },
        el("span", { class: "ramp swatch", style: "background:rgba(var(--warm),.75)" }),
        ` ${words} in the last update that trained the sample; other tokens were not. ${rest}`);
    }
    const ends = signed
      ? "rgba(var(--cold),.75), transparent, rgba(var(--warm),.75)"
      : "rgba(var(--cold),.08), rgba(var(--cold),.7)";
    return el("p", { class: "soft ramp-line" }, `${words}: ${number(scale[0])} `,
      el("span", { class: "ramp", style: `background:linear-gradient(to right, ${ends})` }),
      ` ${number(scale[1])}. ${rest}`);
  };

  const facts = (sample, place, text, modes) => {
    const told = modes.map((mode) => [mode, mode.of(sample, place)])
      .filter(([mode, value]) => value !== null && value !== undefined && !(mode.cut && !value))
      .map(([{ cut, words }, value]) => (cut ? words : `${words} ${number(value)}`));
    return `${JSON.stringify(visible(text))} · ${told.join(" · ")}`;
  };

  // The boundary before a turn: its number, what it earned, and the reason of an early end.
  const mark = (turn) => {
    const told = [`turn ${turn.number}`, turn.reward ? `earned ${number(turn.reward)}` : null,
      turn.finish === "stop" ? null : visible(turn.finish)];
    return el("div", { class: "turn" }, told.filter(Boolean).join(" · "));
  };

  // The tokens of a sample as coloured pieces; the middle of a long response is left out.
  ballast.tokens = (sample, pieces, modes, mode, scale, tell) => {
    const box = el("div", { class: "text", dir: "auto" });
    if (sample.text !== undefined) box.append(el("div", null, visible(sample.text)));
    const values = numbers(sample, mode);
    const marks = new Map(sample.turns > 1 ? sample.marks.map((turn) => [turn.at, turn]) : []);
    const half = sample.left_out ? sample.tokens.length / 2 : -1;
    sample.tokens.forEach((piece, place) => {
      if (place === half) {
        box.append(el("div", { class: "soft" }, `… ${number(sample.left_out)} tokens left out …`));
      }
      if (marks.has(place)) box.append(mark(marks.get(place)));
      const text = pieces[piece];
      const value = values[place];
      const kind = !drawn(sample, place) ? "outside" : at(sample.trains, place) ? null : "outline";
      const show = () => tell(facts(sample, place, text, modes));
      box.append(el("span", {
        class: kind,
        style: value === null || scale === null ? null
          : `background:${shade(value, scale, mode.signed)}`,
        onmouseenter: show, onclick: show,
      }, visible(text).replaceAll("\n", "⏎\n")));
    });
    return box;
  };
})();
