"""Some steps of a trace: chosen, cut to their windows, and read from a half-written file."""

from orchestrator.report.timeline import SHOWN_STEPS, read_timeline
from orchestrator.telemetry.trace_file import TraceFile
from workers.spans import Span, Timeline


def traced(folder, steps, *, slow=None):
    trace = TraceFile(folder)
    for step in range(1, steps + 1):
        begin = 100.0 * step
        length = 50.0 if step == slow else 2.0
        spans = (
            Span(activity="generate", begin_s=begin - 1.0, end_s=begin + 0.5),
            Span(activity="publish", begin_s=begin + 1.5, end_s=begin + 1.75),
        )
        timeline = Timeline(role="rollout", index=1, spans=spans)
        trace.write_step(step, (begin, begin + length), [timeline], {"staleness": 0.0})
    return trace


def test_spans_are_relative_to_their_step_and_cut_to_it(tmp_path):
    traced(tmp_path, 1).finish([])
    assert read_timeline(tmp_path) == {
        "steps": [
            {
                "step": 1,
                "seconds": 2.0,
                "tracks": [
                    {
                        "name": "rollout engine 1",
                        "spans": [["generate", 0.0, 0.5], ["publish", 1.5, 0.25]],
                    }
                ],
            }
        ],
        "note": "",
    }


def test_of_a_long_run_the_ends_and_the_slowest_step_are_read(tmp_path):
    traced(tmp_path, 101, slow=40).finish([])
    found = read_timeline(tmp_path)
    numbers = [step["step"] for step in found["steps"]]
    assert (numbers[0], numbers[-1], len(numbers)) == (1, 101, SHOWN_STEPS)
    assert 40 in numbers
    assert found["note"].startswith("85 more steps are in trace.json")


def test_a_half_written_line_ends_the_trace(tmp_path):
    traced(tmp_path, 2).finish([])
    path = tmp_path / "trace.json"
    path.write_bytes(path.read_bytes()[:-30])
    assert [step["step"] for step in read_timeline(tmp_path)["steps"]] == [1, 2]


def test_a_run_without_a_trace_says_so(tmp_path):
    assert read_timeline(tmp_path)["note"] == "this run wrote no trace (tracking.trace=false)"
