"""The file itself, without a browser: one element of JSON, no address, hostile text as text."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from orchestrator.report.page import HERE, SCRIPTS, STYLES, render, script_json
from orchestrator.report.writing import write_report

UPLOT = "https://github.com/leeoniya/uPlot"  # in the licence's comment
ADDRESS = re.compile(r"""(?:src|href|action)\s*=\s*["'](?!#)|@import|url\(|https?://""")


class Elements(HTMLParser):
    """The elements of a page, with the text of its scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts = [], []
        self._inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def html(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([run_dir], path)
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]  # no draft is left
    return path.read_text(encoding="utf-8")


def test_the_page_holds_its_scripts_and_the_record_and_nothing_of_a_response(html):
    page = Elements(html)
    assert page.tags.count("script") == 1 + len(SCRIPTS)
    assert page.tags.count("style") == len(STYLES)
    assert not {"img", "link", "iframe", "object", "base"} & set(page.tags)
    (run,) = json.loads(page.scripts[0])["runs"]
    assert run["name"] == "steady"
    assert run["verdict"]["steps"] == 4
    assert "</script><script>window.broken = 1</script>" in run["rollouts"]["pieces"]


def test_the_record_can_not_end_its_element():
    text = script_json({"a": "</script><!-- \u2028 & \ud800"})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"a": "</script><!-- \u2028 & \ud800"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_no_part_of_the_page_names_an_address(html):
    page = Elements(html)
    outside = html.replace(page.scripts[0], "").replace(UPLOT, "")
    assert [match[0] for match in ADDRESS.finditer(outside)] == []
    assert "default-src 'none'" in html


def test_text_reaches_the_page_as_text_only():
    for name in SCRIPTS[1:]:
        text = (HERE / name).read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (name, word)
        assert '"use strict";' in text, name


def test_every_file_of_the_page_is_used():
    named = {HERE / name for name in (*SCRIPTS, *STYLES, "page.html.j2")}
    found = {path for path in HERE.rglob("*") if path.is_file() and "LICENSE" not in path.name}
    assert found == named
    assert (HERE / "vendor" / "LICENSE.uPlot.txt").read_text().startswith("The MIT License")


def test_equal_runs_give_equal_bytes(run_dir, tmp_path, html):
    write_report([run_dir], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_a_folder_without_a_step_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("run_name: x\n")
    write_report([tmp_path], tmp_path / "report.html")
    (run,) = json.loads(Elements((tmp_path / "report.html").read_text()).scripts[0])["runs"]
    assert run["verdict"] == {}
    assert run["rollouts"]["note"].startswith("no sample was recorded")


def test_a_configuration_of_another_version_does_not_hide_the_shares(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "old")
    (run / "config.yaml").write_text("algorithm: {name: older}\nunknown: 1\n")
    write_report([run], run / "report.html")
    (read,) = json.loads(Elements((run / "report.html").read_text()).scripts[0])["runs"]
    assert read["shares"]["learner"] == {"idle": 0.75, "learn": 0.25}
    assert read["bubble"] == "no remedy is named: the configuration is of another version"


def test_render_needs_nothing_but_the_record():
    html = render({"runs": [{"name": "</title>"}], "panels": []})
    assert "<title>&lt;/title&gt; – Ballast report</title>" in html
