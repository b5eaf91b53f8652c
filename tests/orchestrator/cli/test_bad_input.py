"""Bad input ends with one message that names the value and the remedy, before anything starts."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from conf.compose import ConfigError, compose
from orchestrator.cli.parser import main
from orchestrator.planning.sources import prepare
from workers.data.prompts import PromptEncoder, PromptSet
from workers.models.tiny import build_tiny

STRICT = """{% for message in messages %}{% if message.role != "user" %}
{{ raise_exception("no role " + message.role) }}{% endif %}{{ message.content }}{% endfor %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["12="], "ground_truth": ["12"]}), path)
    return path


def sources(model, prompts, *more):
    _, config = compose(
        [
            "experiment=tiny",
            f"model.path={model}",
            "model.build=null",
            f"data.train_path={prompts}",
            "data.build=null",
            *more,
        ]
    )
    return prepare(config)


def test_good_input_is_accepted(model, prompts):
    assert len(sources(model, prompts).train) == 1


def test_a_missing_column_is_named_with_those_that_exist(model, prompts):
    with pytest.raises(ValueError, match=r"no column 'question' .*it has prompt, ground_truth"):
        sources(model, prompts, "data.prompt_column=question")


def test_an_empty_parquet_is_refused(model, tmp_path):
    empty = tmp_path / "empty.parquet"
    table = pa.table({"prompt": pa.array([], pa.string()), "ground_truth": pa.array([], "string")})
    pq.write_table(table, empty)
    with pytest.raises(ValueError, match=r"empty.parquet holds no prompt"):
        sources(model, empty)


def test_an_unreadable_parquet_is_refused(model, tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="not readable as Parquet"):
        sources(model, broken)


def test_a_missing_parquet_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.parquet does not exist"):
        sources(model, tmp_path / "nowhere.parquet")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "holds no .*safetensors weights"),
        ("tokenizer", "holds no tokenizer"),
    ],
)
def test_an_incomplete_model_folder_is_refused(model, prompts, tmp_path, file, message):
    partial = tmp_path / "partial"
    partial.mkdir()
    for path in model.iterdir():
        if not path.name.startswith(file):
            (partial / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=message):
        sources(partial, prompts)


def test_a_context_beyond_the_models_is_refused(model, prompts):
    limit = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(ValueError, match=f"max_model_len={limit + 1} exceeds the context"):
        sources(model, prompts, f"rollout.max_model_len={limit + 1}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.sampling.stop_token_ids=[2,64]",
            r"rollout.sampling.stop_token_ids=\[2, 64\]: the tokenizer of tiny has no token 64",
        ),
        ("rollout.eval_sampling.stop_token_ids=[999]", "has no token 999, only 64"),
        ("rollout.sampling.stop=['1','§']", "the tokenizer of tiny can't spell '§'"),
    ],
)
def test_a_stop_that_the_tokenizer_lacks_is_refused(model, prompts, override, message):
    with pytest.raises(ValueError, match=message):
        sources(model, prompts, override)


def test_a_stop_that_the_tokenizer_has_is_accepted(model, prompts):
    sources(model, prompts, "rollout.sampling.stop_token_ids=[63]", "rollout.sampling.stop=['12']")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.sampling.max_new_tokens=30",
            r"max_model_len=32: is below data.max_prompt_tokens \+ rollout.sampling."
            r"max_new_tokens = 16 \+ 30 = 46; raise it or lower",
        ),
        ("rollout.eval_sampling.max_new_tokens=17", r"eval_sampling.* = 16 \+ 17 = 33; raise it"),
        ("rollout.sampling.stop=['']", "an empty string ends every response"),
        ("rollout.sampling.stop_token_ids=[-1]", "token ids are not negative"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused_at_composition(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=tiny", override])


def test_ranks_that_cannot_share_the_heads_are_refused(model, prompts):
    shared = ["learner.num_ranks=3", "learner.sequence_parallel_size=3"]
    with pytest.raises(ValueError, match=r"=3 cannot divide 4 attention .* one of 1, 2, 4$"):
        sources(model, prompts, *shared)


def test_a_prompt_beyond_the_limit_is_dropped_with_its_length(model):
    encoder = PromptEncoder(model, max_prompt_tokens=4)
    tokens, fault = encoder.encode("12=")
    assert len(tokens) == 3
    assert fault is None
    assert encoder.encode("12345=")[1] == "prompt of 6 tokens, limit 4"
    assert encoder.encode("")[1] == "empty prompt"


def test_chat_messages_use_the_models_template(model):
    encoder = PromptEncoder(model, max_prompt_tokens=64)
    messages = [{"role": "user", "content": "12="}]
    tokens, fault = encoder.encode(messages)
    assert fault is None
    assert len(tokens) > 3
    assert encoder.text(messages) == "12="


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (None, "null prompt"),
        (5, "prompt of type int, neither text nor chat messages"),
        ([], "empty chat"),
        (["hello"], "message 0 of type str, not a mapping"),
        ([{"role": "user", "content": None}], "message 0 without content"),
        ([{"role": "user", "content": "1="}, {"role": "user"}], "message 1 without content"),
        ([{"role": "nobody", "content": "1="}], "not encoded: TemplateError: no role nobody"),
    ],
)
def test_a_row_that_is_no_prompt_is_dropped_with_its_reason(model, tmp_path, prompt, fault):
    copy = shutil.copytree(model, tmp_path / "strict")
    (copy / "chat_template.jinja").write_text(STRICT)
    assert PromptEncoder(copy, max_prompt_tokens=64).encode(prompt) == ([], fault)


def test_rows_carry_every_other_column_to_the_reward(tmp_path):
    path = tmp_path / "p.parquet"
    table = {"q": ["a", "b"], "a": [1, 2], "level": [3, 4], "dataset": ["x", "y"]}
    pq.write_table(pa.table(table), path)
    prompt = PromptSet(path, prompt_column="q", ground_truth_column="a")[1]
    assert (prompt.uid, prompt.prompt, prompt.ground_truth) == ("p:1", "b", "2")
    assert prompt.dataset == "y"
    assert prompt.columns == {"level": 4, "dataset": "y"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.samples_per_prompt=1"], "samples_per_prompt=1 would train on nothing"),
        (["algorithm.policy_loss.clip_low=-1"], "clip_low=-1"),
        (["learner.zero_stag=3"], "did you mean 'learner.zero_stage'"),
        (["reward=function", "reward.scorer.path=no_such_module.reward"], "no_such_module"),
    ],
)
def test_the_command_line_prints_one_line_and_exits_with_2(overrides, message, capsys, tmp_path):
    arguments = ["train", *overrides, f"output_dir={tmp_path}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_folder_of_another_models_run_is_left_as_it_is(model, tmp_path, capsys):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    raw, _ = compose(["experiment=quickstart"])
    OmegaConf.save(raw, run / "config.yaml")
    (run / "metrics.jsonl").write_text('{"step": 7}\n')
    overrides = ["experiment=tiny", f"output_dir={tmp_path / 'runs'}", "run_name=mine"]
    assert main(["train", *overrides, "resume=auto"]) == 2
    assert "is a run of model.name=smollm2, not of tiny: choose another run_name=" in (
        capsys.readouterr().err
    )
    assert (run / "metrics.jsonl").read_text() == '{"step": 7}\n'
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl"]
