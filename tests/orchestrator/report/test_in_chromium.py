"""The report in a real browser: it draws, filters, answers, and never leaves the file."""

import shutil

import pytest
from recorded_run import HOSTILE, sample, write_rollouts, write_run

from orchestrator.report.writing import write_report
from workers.data.turns import TurnSpan

GROUPS = "document.querySelectorAll('#groups > details').length"
# Elements with text whose boxes cross, of those that stand on their own; [] is right.
CROSSING = """(() => {
  const wanted = 'h1, h2, h3, h4, h5, p, label, summary, td, th, .tile, .pill, nav a, button';
  const boxes = [...document.querySelectorAll(wanted)]
    .filter((e) => e.getClientRects().length && e.textContent.trim())
    .map((e) => [e, e.getBoundingClientRect()]);
  const found = [];
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    if (a.contains(b) || b.contains(a) || [a, b].some((e) => e.closest('nav, #token'))) return;
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1) found.push([a, b].map((e) => e.textContent.slice(0, 40)).join(' | '));
  }));
  return found;
})()"""
WIDER = """[...document.querySelectorAll('body *')].filter((e) =>
  e.getClientRects().length && !e.closest('.scroll, .siblings, nav, .u-over, .text') &&
  e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className || e.tagName)"""


@pytest.fixture(scope="module")
def page(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "report.html"
    write_report([run_dir], path)
    return path


def open_first_group(browser, search=""):
    choose(browser, "search", search, "input")
    browser.read("document.querySelector('#groups > details').open = true")
    browser.read("new Promise((done) => setTimeout(done, 100))")
    return browser.read("document.querySelector('#groups .siblings').textContent")


def choose(browser, name, value, event="change"):
    browser.read(
        f"(() => {{ const box = document.getElementById('{name}'); box.value = '{value}';"
        f" box.dispatchEvent(new Event('{event}')); }})()"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_or_leaves_the_screen(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    browser.read("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.read("new Promise((done) => setTimeout(done, 300))")
    assert browser.read("document.documentElement.scrollWidth") <= width
    assert browser.read(CROSSING) == []
    assert browser.read(WIDER) == []
    background = browser.read("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_paper_is_light_also_in_dark_mode_and_has_no_controls(browser, page):
    browser.open(page, dark=True)
    browser.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert browser.read("getComputedStyle(document.body).color") == "rgb(22, 25, 29)"
    shown = "[...document.querySelectorAll('nav, .controls, #token')].map((e) => e.offsetHeight)"
    assert set(browser.read(shown)) == {0}
    browser.call("Emulation.setEmulatedMedia", media="")


def test_no_request_leaves_the_file_and_no_error_is_logged(browser, page):
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page)
    browser.read("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.read("new Promise((done) => setTimeout(done, 300))")
    assert browser.requests == [page.absolute().as_uri()]
    assert browser.errors == []


def test_the_page_tells_the_verdict_the_curves_and_the_events(browser, page):
    browser.open(page)
    tiles = browser.read("[...document.querySelectorAll('#top .tile b')].map((b) => b.textContent)")
    assert tiles == ["0.1 → 0.25", "0 → 1", "4 of 4", "8 s", "400"]
    legend = browser.read("document.querySelector('[data-panel=Reward] .u-legend').innerText")
    assert "0.4" in legend  # the last value, without a pointer
    assert browser.read("document.querySelectorAll('#result .chart canvas').length") >= 5
    events = browser.read("document.querySelector('#events').textContent")
    assert "resumed after step 2" in events
    assert "1 engine lost" in events
    learner = browser.read("document.querySelector('[data-role=learner] small').textContent")
    assert learner == "idle 75 %, learn 25 %"
    assert "one_step_off" in browser.read("document.querySelector('.bubble').textContent")


def test_a_goal_is_a_line_that_the_axis_of_a_score_reaches(browser, run_dir, tmp_path):
    """The pixels of two pages differ where the line is, in the charts of scores and in no other."""
    pages = {goal: tmp_path / f"{goal}.html" for goal in (None, 2.5)}
    drawn = {}
    for goal, path in pages.items():
        write_report([run_dir], path, goal=goal)
        browser.open(path, width=1280)
        browser.read("new Promise((done) => setTimeout(done, 300))")
        drawn[goal] = browser.read(
            "[...document.querySelectorAll('[data-panel]')].map((e) =>"
            " [e.dataset.panel, e.querySelector('canvas').toDataURL()])"
        )
    changed = [
        name for (name, one), (_, other) in zip(*drawn.values(), strict=True) if one != other
    ]
    assert changed == ["Reward", "Held-out score"]


def test_filters_search_and_order_choose_groups(browser, page):
    browser.open(page)
    assert browser.read("document.getElementById('count').textContent") == "16 of 16 groups match."
    choose(browser, "filter-outcome", "failed:timeout")
    assert browser.read(GROUPS) == 4
    choose(browser, "filter-cut", "yes")
    assert browser.read(GROUPS) == 0
    choose(browser, "filter-outcome", "")
    assert browser.read(GROUPS) == 4  # the hostile ones, cut off in every step
    choose(browser, "filter-cut", "")
    choose(browser, "search", "2-solved", "input")
    assert browser.read(GROUPS) == 1
    choose(browser, "search", "", "input")
    choose(browser, "filter-sort", "step")
    assert "step 4" in browser.read("document.querySelector('#groups summary').textContent")


def test_tokens_are_coloured_by_the_chosen_number(browser, page):
    browser.open(page)
    text = open_first_group(browser, "train:same")
    assert "zero one end" in text
    assert "reward 1" in text
    colours = (
        "[...document.querySelectorAll('#groups .sibling span')].map((s) => s.style.background)"
    )
    by_advantage = browser.read(colours)
    assert {"--warm" in one for one in by_advantage} == {True, False}  # rewarded or not
    modes = browser.read(
        "[...document.querySelectorAll('#groups .controls option')].map((o) => o.value)"
    )
    assert modes == ["advantage", "gap", "ratio", "surprise", "version", "clipped"]
    ident = browser.read("document.querySelector('#groups .controls select').id")
    choose(browser, ident, "gap")
    assert browser.read(colours) != by_advantage
    browser.read("document.querySelector('#groups .sibling span').click()")
    told = browser.read("document.getElementById('token').textContent")
    assert '"zero "' in told
    assert "surprise: −log-prob when sampled, nats 0.5" in told


def test_clipped_and_gated_tokens_are_coloured_counted_filtered_and_sorted(browser, tmp_path):
    run = write_run(
        tmp_path / "run", "algorithm=grpo", "algorithm/gate=erc", steps=1, resumed_after=()
    )
    rows = [
        sample("free", 0, (1,), 1.0),
        sample("free", 1, (2,), 0.0),
        sample("cut", 0, (1, 2, 3, 4), 1.0),  # "one ", "two ", "three ", "four "
        sample("cut", 1, (1,), 0.0),
    ]
    of_cut = [0, 0, 1, 3, 0, 0, 0, 0, 2]  # behind the two tokens of the prompt; 1 clipped, 2 gated
    write_rollouts(run, 1, rows, flags=[0] * 6 + of_cut)
    write_report([run], tmp_path / "report.html")
    browser.errors.clear()
    browser.open(tmp_path / "report.html", width=1280)
    orders = "[...document.querySelectorAll('#filter-sort option')].map((o) => o.textContent)"
    assert {"most tokens clipped", "most tokens gated by ERC"} < set(browser.read(orders))
    for order in ("clipped", "gated"):
        choose(browser, "filter-sort", order)
        assert browser.read("document.querySelector('#groups [data-group]').dataset.group") == (
            "run-1-cut"
        )
    for mark in ("clipped", "gated"):
        choose(browser, "filter-mark", mark)
        assert browser.read(GROUPS) == 1
    text = open_first_group(browser, "train:cut")
    assert "50 % clipped, 25 % gated by ERC" in text
    ident = browser.read("document.querySelector('#groups .controls select').id")
    coloured = (
        "[...document.querySelectorAll('#groups .sibling .text span')]"
        ".filter((s) => s.style.background.includes('0.75')).map((s) => s.textContent)"
    )
    legend = "document.querySelector('#groups .ramp-line').textContent"
    choose(browser, ident, "clipped")
    assert browser.read(coloured) == ["one ", "two "]
    assert "clipped in the last update that trained the sample" in browser.read(legend)
    choose(browser, ident, "gated")
    assert browser.read(coloured) == ["two ", "one "]
    assert "gated by ERC in the last update that trained the sample" in browser.read(legend)
    browser.read("document.querySelectorAll('#groups .sibling .text span')[1].click()")
    told = browser.read("document.getElementById('token').textContent")
    assert told.endswith("clipped · gated by ERC")
    assert browser.errors == []


def test_the_turns_of_a_sample_are_set_apart(browser, tmp_path):
    turns = (
        TurnSpan(number=1, start=2, end=3, finish_reason="length", state=7, reward=0.25),
        TurnSpan(number=2, start=4, end=5, finish_reason="stop", state=8),
    )
    values = {"weight_versions": [-1, -1, 3, -1, 4], "num_turns": 2, "turns": turns}
    rows = [sample("talk", 0, (1, 4, 2), 1.0, **values), sample("talk", 1, (1,), 0.0)]
    run = write_run(tmp_path / "run", steps=1, resumed_after=())
    write_rollouts(run, 1, rows, ratio=1.0, gap=0.0)
    write_report([run], tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    open_first_group(browser, "train:talk")
    marks = browser.read("[...document.querySelectorAll('.turn')].map((one) => one.textContent)")
    assert marks == ["turn 1 · earned 0.25 · length", "turn 2"]


def test_the_same_prompt_is_found_in_its_other_steps(browser, page):
    browser.open(page)
    open_first_group(browser, "train:same")
    browser.read("document.querySelector('#groups .controls button').click()")
    assert browser.read(GROUPS) == 4
    answers = browser.read("document.querySelector('[data-heldout]').textContent")
    assert "step 0, reward 0" in answers
    assert "step 4, reward 1" in answers


def test_a_hostile_response_is_text(browser, page):
    browser.open(page)
    text = open_first_group(browser, "hostile")
    assert "</script><script>window.broken = 1</script>" in text
    assert "<img src=x onerror='window.broken = 2'>" in text
    assert "⟨U+202E⟩right to left" in text
    assert HOSTILE[3] in text.replace("⟨U+200D⟩", "\u200d")
    assert "␀␛[31m␇" in text
    assert browser.read("window.broken") is None
    assert browser.read("document.querySelectorAll('img').length") == 0
    assert browser.read("document.documentElement.scrollWidth") <= 1280


def test_runs_side_by_side_show_their_differences_first(browser, run_dir, tmp_path):
    other = write_run(tmp_path / "other", "algorithm=grpo")
    twice = write_run(tmp_path / "twice", resumed_after=(1, 3))
    write_report([run_dir, other, twice], tmp_path / "three.html")
    browser.errors.clear()
    browser.open(tmp_path / "three.html")
    assert browser.read("[...document.querySelectorAll('#top h1')].length") == 3
    table = browser.read("document.querySelector('#side-by-side tbody').innerText")
    assert table.splitlines() == [
        "steady\tcpgd\t4\t0.25\t1\t32\t400\t8 s",
        "other\tgrpo\t4\t0.25\t1\t32\t400\t8 s",
        "twice\tcpgd\t4\t0.25\t1\t32\t400\t8 s",
    ]
    events = browser.read("document.querySelector('#events').textContent")
    assert "resumed after step 1" in events  # killed twice
    assert "resumed after step 3" in events
    rows = browser.read("document.querySelector('#settings table').innerText")
    assert "algorithm.name\tcpgd\tgrpo" in rows
    legend = browser.read("document.querySelector('[data-panel=Reward] .u-legend').innerText")
    assert "steady: mean" in legend
    assert "other: mean" in legend
    choose(browser, "filter-run", "other")
    assert browser.read("document.getElementById('count').textContent") == "16 of 48 groups match."
    assert browser.errors == []


def test_empty_and_running_runs_give_a_page_that_says_so(browser, run_dir, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("run_name: begun\n")
    write_report([begun], begun / "report.html")
    browser.errors.clear()
    browser.open(begun / "report.html")
    assert "No step has finished yet" in browser.read("document.body.innerText")
    running = shutil.copytree(run_dir, tmp_path / "running")
    (running / "owner.json").write_text("{}")
    write_report([running], running / "report.html")
    browser.open(running / "report.html")
    assert "still running" in browser.read("document.querySelector('.pill').textContent")
    assert browser.errors == []
