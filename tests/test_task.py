"""Tasks: loaded from an import path, checked, scored, and known by how they judge."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

import house
import pytest
import torch
from tiny_tasks import tiny

from attnpass.errors import PlanError, TaskError
from attnpass.task import BUILT_IN, Task, load_task, score_batch

TASKS = str(house.ROOT / "tests" / "tiny_tasks.py")


def test_a_task_is_loaded_from_a_file_and_from_a_module():
    task = load_task(f"{TASKS}:tiny")
    assert isinstance(task, Task) and task.path == f"{TASKS}:tiny"
    assert load_task("tiny_tasks:tiny").name == task.name == "tiny"
    again = load_task(f"{TASKS}:tiny").contents()
    assert again == task.contents() and not again.opaque


def test_the_built_in_names_are_import_paths():
    assert all(":" in path for path in BUILT_IN.values())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "expected a task 'digits', 'file.py:factory', .*got 'nothing'"),
        ("none.py:task", "expected a file none.py for task none.py:task, found none"),
        ("no_such_module:task", "expected task .* to import, got ModuleNotFoundError"),
        (f"{TASKS}:none", "expected a function none in .*, found none"),
        (f"{TASKS}:not_a_task", "to return an attnpass.Task, got int"),
        (f"{TASKS}:raises", "to make a Task, got ValueError: no data here"),
        (f"{TASKS}:empty", "with at least one validation batch, got none"),
        (f"{TASKS}:wrong_outputs", "to be 'logits' or 'features', got 'labels'"),
    ],
)
def test_a_task_that_is_not_usable_is_one_line(path, message):
    with pytest.raises(TaskError, match=message) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)


def loaded(tmp_path, text, monkeypatch):
    (tmp_path / "mine.py").write_text(text)
    # load_task puts the file's folder on the path
    monkeypatch.setattr("sys.path", list(sys.path))
    return load_task(f"{tmp_path / 'mine.py'}:task")


def test_an_error_of_ours_goes_through(tmp_path, monkeypatch):
    text = "from attnpass.errors import PlanError\ndef task():\n    raise PlanError('as it is')\n"
    with pytest.raises(PlanError, match="^as it is$"):
        loaded(tmp_path, text, monkeypatch)


def test_a_file_may_import_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_mine.py").write_text("from tiny_tasks import tiny\n")
    task = loaded(tmp_path, "from neighbour_of_mine import tiny as task\n", monkeypatch)
    assert task.name == "tiny"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("task.example = task.example[0]", "example"),
        ("task.calibration = [task.calibration[0][0]]", r"calibration\[0\]"),
        ("task.validation = [(x, y) for (x,), y in task.validation]", r"validation\[0\]\[0\]"),
    ],
)
def test_a_batch_that_is_a_bare_tensor_is_refused(change, where, tmp_path, monkeypatch):
    text = f"from tiny_tasks import tiny\ndef task():\n    task = tiny()\n    {change}\n"
    with pytest.raises(
        TaskError, match=f"expected Task.{where} of .*got Tensor; one argument x is"
    ):
        loaded(tmp_path, text + "    return task\n", monkeypatch)


def test_scores_are_float64_on_the_cpu_without_gradients():
    task = tiny(score=lambda output, target: output[:, 0] * target)
    output = torch.ones(3, 2, requires_grad=True)
    scores = score_batch(task, output, torch.arange(3))
    assert scores.dtype == torch.float64 and not scores.requires_grad
    assert scores.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda o, t: o.mean(), r"one number per item \(a 1-D tensor\), got \(\)"),
        (lambda o, t: o, r"got \(3, 2\)"),
        (lambda o, t: 1.0, "got float"),
        (lambda o, t: o[:, 0] / t, "expected finite scores, got 1 that are"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(score, message):
    with pytest.raises(TaskError, match=message):
        score_batch(tiny(score=score), torch.ones(3, 2), torch.arange(3))


def test_contents_say_how_a_task_judges():
    def scored(k):
        task = tiny(score=lambda output, target: (output.argmax(1) == target) * float(k))
        return task.contents().digests

    assert scored(1) == scored(1)
    assert changed(scored(1), scored(2)) == ["score"]


def changed(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_contents_say_what_the_data_and_the_model_are():
    task = tiny()
    (x,), y = task.validation[0]
    data = [
        replace(task, validation=[((x + 1,), y), *task.validation[1:]]),
        replace(task, validation=task.validation[1:]),
        replace(task, example=(x,)),
        replace(task, metric="error"),
        replace(task, outputs="features"),
        replace(task, pooled=True),
    ]
    first = task.contents().digests
    found = [t.contents().digests for t in data]
    assert [changed(first, x) for x in found] == [["data"]] * len(data)
    assert len({x["data"] for x in found}) == len(data)
    same = replace(task, name="other", calibration=[]).contents().digests
    assert same == first
    other = replace(task, model=torch.nn.Identity()).contents().digests
    assert changed(first, other) == ["weights", "model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.model = None", "Task.model of .* to be a torch.nn.Module, got NoneType"),
        ("task.model = lambda x: x", "Task.model of .* got function"),
        ("task.model.to('meta')", "Task.model of .* with weights, got some on the meta device"),
        ("task.score = 3", "Task.score of .* to be a function, got int"),
        ("task.validation = None", "Task.validation of .* a sequence of batches, got NoneType"),
        ("task.validation = 3", "Task.validation of .* got int"),
        ("task.validation = (p for p in task.validation)", "Task.validation of .* got generator"),
        ("task.validation = []", "at least one validation batch"),
        ("task.validation.append(3)", r"Task.validation\[6\] of .* got int"),
        ("task.validation.append((3, 4))", r"Task.validation\[6\]\[0\] of .* got int"),
        ("task.calibration = {'a': 1}", "Task.calibration of .* got dict"),
        ("task.recovery = None", "Task.recovery of .* got NoneType"),
        ("task.example = ()", "Task.example of .* got tuple"),
        ("task.metric = 3", "Task.metric of .* a string, got int"),
        ("task.name = None", "Task.name of .* a string, got NoneType"),
        ("task.outputs = None", "Task.outputs of .* a string, got NoneType"),
        ("task.pooled = 1", "Task.pooled of .* true or false, got int"),
    ],
)
def test_a_field_of_another_type_is_named(change, message, tmp_path, monkeypatch):
    text = f"from tiny_tasks import tiny\ndef task():\n    task = tiny()\n    {change}\n"
    with pytest.raises(TaskError, match=message) as caught:
        loaded(tmp_path, text + "    return task\n", monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["import", "factory"])
@pytest.mark.parametrize(
    "statement",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "raise GeneratorExit",
        "1 / 0",
        "import none_",
    ],
)
def test_a_module_that_ends_or_raises_is_one_line(where, statement, tmp_path, monkeypatch):
    text = f"{statement}\n" if where == "import" else f"def task():\n    {statement}\n"
    with pytest.raises(TaskError, match="expected .*, got (SystemExit|Gen|Zero|Module)"):
        loaded(tmp_path, text, monkeypatch)


def test_batches_that_cannot_be_read_are_one_line(tmp_path, monkeypatch):
    text = (
        "from tiny_tasks import tiny\nclass Broken(list):\n    def __getitem__(self, i):\n"
        "        raise OSError('gone')\ndef task():\n    task = tiny()\n"
        "    task.calibration = Broken(task.calibration)\n    return task\n"
    )
    with pytest.raises(TaskError, match="the batches of .* to be read, got OSError: gone"):
        loaded(tmp_path, text, monkeypatch)


def test_ctrl_c_stays_ctrl_c(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        loaded(tmp_path, "raise KeyboardInterrupt\n", monkeypatch)


def test_a_module_that_hangs_is_left_in_time(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import time\nfor _ in range(99):\n    try:\n        time.sleep(9)\n"
        "    except ValueError:\n        pass\n"
    )
    with pytest.raises(TaskError, match="to load within 0.2 s, got no task; .*--load-timeout"):
        load_task(f"{file}:task", limit=0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
