// List configuration, versions and data hashes; of several runs the differences first.
"use strict";
(() => {
  const { el, payload, visible } = ballast;

  const whole = (run) => {
    const rows = Object.entries(run.facts);
    const place = el("div");
    const fill = (wanted) => place.replaceChildren(ballast.table(["key", "value"],
      rows.filter((row) => row.join(" ").toLowerCase().includes(wanted.toLowerCase()))
        .map((row) => row.map(visible))));
    const search = el("input", { type: "search", oninput: () => fill(search.value) });
    fill("");
    return el("details", { class: "facts" },
      el("summary", null, `${ballast.several ? `${run.name}: ` : ""}all ${rows.length} settings, versions and hashes`),
      el("div", { class: "controls" }, el("label", null, "search", search)), place);
  };

  ballast.settings = () => {
    const section = ballast.section("settings");
    if (ballast.several) {
      section.append(el("h3", null, "Differences"), payload.differences.length
        ? ballast.table(["key", ...payload.runs.map((run) => run.name)],
          payload.differences.map(({ key, values }) =>
            [key, ...values.map((value) => (value === null ? "–" : visible(value)))]))
        : el("p", null, "The runs have the same configuration, versions and data."));
    }
    section.append(...payload.runs.map(whole));
  };
})();
