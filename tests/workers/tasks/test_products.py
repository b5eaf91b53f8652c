import pyarrow.parquet as pq
import pytest

from workers.tasks.products import build_product_demonstrations, demonstrations, products


def test_products_are_chat_messages_and_none_is_in_both_tables():
    tables = products(num_train=50, num_eval=10)
    rows = tables.train.to_pylist() + tables.heldout.to_pylist()
    assert (tables.train.num_rows, tables.heldout.num_rows) == (50, 10)
    questions = [row["prompt"][0]["content"] for row in rows]
    assert len(set(questions)) == 60
    for question, row in zip(questions, rows, strict=True):
        a, b = map(int, question.split("*"))
        assert row["ground_truth"] == str(a * b)
        assert row["prompt"][0]["role"] == "user"
    with pytest.raises(ValueError, match="there are 8100 products"):
        products(num_train=8000, num_eval=101)


def test_demonstrations_are_both_turns_of_the_same_products():
    call, answer = demonstrations(num_train=1, num_eval=1).train.to_pylist()
    (row,) = products(num_train=1, num_eval=1).train.to_pylist()
    question, product = row["prompt"][0]["content"], row["ground_truth"]
    opening = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert call["prompt"] == opening
    assert call["ground_truth"] == f'[calculate(expression="{question}")]'
    assert answer["prompt"] == (
        f"{opening}{call['ground_truth']}<|im_end|>\n"
        f"<|im_start|>tool\n{product}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer["ground_truth"] == product


def test_demonstrations_are_written_where_a_warm_start_reads_them(tmp_path):
    folder = build_product_demonstrations(tmp_path, num_train=3, num_eval=1)
    assert pq.read_table(folder / "train.parquet").num_rows == 6
