"""The table of transports is whole, and no other file decides by the name of a transport."""

import ast
from pathlib import Path

import pytest

from conf.compose import ConfigError, compose
from conf.tables.transports import AUTO, TRANSPORTS, Reach, any_of, transport_named

ROOT = Path(__file__).resolve().parents[3]
NAMES = {row.name for row in TRANSPORTS}
# torch.distributed has backends of the same names, which are no transports.
TORCH_BACKENDS = {"settings.backend", "dist.get_backend()"}


def test_the_rows_say_what_each_can_do():
    rows = {
        row.name: (row.reach, row.collective, row.repeatable, row.needs_cuda, row.carries_adapter)
        for row in TRANSPORTS
    }
    assert rows == {
        "ipc": (Reach.DEVICE, False, True, True, False),
        "nccl": (Reach.ANY, True, False, True, False),
        "shm": (Reach.NODE, False, True, False, True),
        "gloo": (Reach.ANY, True, True, False, True),
    }
    assert [row.name for row in TRANSPORTS if row.may_grow] == ["nccl", "shm", "gloo"]
    assert [row.name for row in TRANSPORTS if row.uses_nccl] == ["nccl"]


def test_every_choice_of_the_schema_has_a_row_and_every_row_is_a_choice():
    with pytest.raises(ConfigError) as caught:
        compose(["rollout.transport=pigeon"])
    choices = str(caught.value).split("one of ")[1].split(", ")
    assert choices == [AUTO, *(row.name for row in TRANSPORTS)]
    for row in TRANSPORTS:
        _, config = compose([f"rollout.transport={row.name}"])
        assert config.rollout.named_transport is row
    assert compose(["rollout.transport=auto"])[1].rollout.named_transport is None


def test_a_name_without_a_row_is_refused_with_those_that_have_one():
    with pytest.raises(ValueError, match="'pigeon': choose one of ipc, nccl, shm, gloo"):
        transport_named("pigeon")


def test_names_are_joined_for_a_message():
    assert any_of(TRANSPORTS[:1]) == "ipc"
    assert any_of(TRANSPORTS[:3]) == "ipc, nccl or shm"


def test_the_guide_has_a_line_for_every_row():
    guide = (ROOT / "workers" / "README.md").read_text()
    assert [row.name for row in TRANSPORTS if f"\n| `{row.name}` |" not in guide] == []


def decisions(source):
    """Lines of a source that compare with a transport's name, or collect names to compare with."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=right):
                operands = [left, *right]
                if any(ast.unparse(operand) in TORCH_BACKENDS for operand in operands):
                    continue
            case ast.Tuple(elts=operands) | ast.List(elts=operands) | ast.Set(elts=operands):
                pass
            case ast.Dict(keys=operands):
                pass
            case ast.MatchValue(value=value):
                operands = [value]
            case _:
                continue
        names = [item.value for item in operands if isinstance(item, ast.Constant)]
        if any(isinstance(name, str) and name in NAMES for name in names):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "transport == 'ipc'",
        "'gloo' != transport",
        "if a.transport in ('gloo', 'nccl'): pass",
        "RECEIVERS = {'shm': 'ShmReceiver'}",
        "match transport:\n  case 'nccl': pass",
    ],
)
def test_a_decision_by_name_is_found(source):
    assert len(decisions(source)) > 0


def test_no_code_decides_by_the_name_of_a_transport():
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for room in ("algorithms", "conf", "orchestrator", "workers")
        for path in (ROOT / room).rglob("*.py")
        for line in decisions(path.read_text())
    }
    assert found == set()
