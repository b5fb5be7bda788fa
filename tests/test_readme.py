"""README and docs/usage.md are true today: their code runs, README's numbers are committed."""

from __future__ import annotations

import io
import re

import torch
from pages import flat, page, result
from rich.console import Console

import attnpass
from attnpass import Plan
from attnpass.task import load_task
from attnpass.tuner import show
from attnpass.tuner.measure import HELD_OUT, needed, scores
from attnpass.tuner.search import RunResult

README = page("README.md")


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (first,), (own, second) = (
        re.findall(r"```python\n(.*?)```", page(name), re.S)
        for name in ("README.md", "docs/usage.md")
    )
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    images = names["t"].example[0][:3]
    with torch.no_grad():
        assert names["plain"](images).shape == (3, 10)
    assert not Plan.load("plan.json").deltas
    assert "budget=600" in second
    exec(compile(second.replace("budget=600", "steps=2"), "usage.md", "exec"), names)
    assert Plan.load("plan.json").hash == names["plan"].hash and names["plan"].deltas
    (tmp_path / "my.py").write_text(f"from fitted import load\n{own}")
    (tmp_path / "fitted.py").write_text(LOAD)
    task = load_task("my.py:task")
    plan = Plan.create(task.model, *task.example, form="hydra")
    assert set(attnpass.calibrate(task.model, plan, task.calibration)) == set(plan.sites)
    assert scores(task, task.model, [0]).main.shape == (4,)


LOAD = """
import torch
from attnpass.tuner.digits import DigitsViT


def load():
    batches = [(torch.rand(4, 1, 32, 32), torch.arange(4)) for _ in range(5)]
    return DigitsViT(dim=16, depth=2, heads=2), batches, batches
"""
"""``load`` of the example in docs/usage.md, which leaves it to its reader."""


def test_the_items_that_a_proof_takes_are_those_it_takes():
    usage = flat("docs/usage.md")
    assert f"at most 1 %, no item lost, takes {needed(0.01)} items" in usage
    assert f"The rest must hold at least {HELD_OUT} items" in usage


def test_the_tuning_output_is_the_committed_result():
    row = result("digits_cpu.json")
    row |= {"sites": [{"name": n} for n in row["front"][0]["forms"]], "status": "done"}
    out = io.StringIO()
    console = Console(file=out, width=190)
    console.print(show.front_table(RunResult.from_dict(row)))
    console.print(show.verdict(RunResult.from_dict(row)), markup=False, soft_wrap=True)
    for line in out.getvalue().splitlines()[1:]:
        assert line.rstrip() in README
    facts = row["facts"]
    said = f"attention is {facts['attention_share']:.0%} of the baseline's time, no plan can gain"
    assert f"{said} more over it than {facts['ceiling']:.2f}x" in README


def interval(ratio: dict) -> str:
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def proven(row: dict) -> str:
    """The best plan of a tuner's run: speed-up, drop, bound; where it was taken."""
    best = next(r for r in row["front"] if r["plan"] == row["best"])
    judged = best["held_out"]
    bound = f"at most {judged['upper']:.2%} at {100 * judged['confidence']:.4g}%"
    drop = f"{judged['drop']:.2%}, {bound} | {row['device']['isa']} |"
    return f"| {interval(best['latency']['ratio'])}; {drop}"


def test_the_one_table_is_the_committed_results():
    tuned, recovered = result("digits_cpu.json"), result("images_cpu.json")
    tables = result("tabular_cpu.json")
    rows = [f"tuned, {tuned['settings']['max_drop']:.0%} allowed".replace("%", " %")]
    rows += [proven(tuned), proven(recovered), proven(tables)]
    rows.append(f"tuned in {tables['seconds'] / 60:.0f} minutes with distillation")
    rows.append(f"tuned in {recovered['settings']['budget'] / 60:.0f} minutes with distillation")
    found = result("recovery_minilm_512_skipat_cpu.json")
    (row,) = [r for r in found["rows"] if r["form"] == "skipat r=0.5+softmax"]
    (ratio,) = [v for k, v in found["speed"]["forms"].items() if k.startswith("skipat r=0.5+")]
    rows.append(
        f"after {row['seconds'] / 60:.0f} minutes of distillation: speed-up; drop of MRR"
        f" | {interval(ratio)}; {row['drop']:.2%} (at most {row['upper']:.2%})"
        f" | {found['device']['isa']} |"
    )
    kernels = result("cpu_attention_cpu.json")
    one, both = (
        kernels["summary"][name]["geomean"] for name in ("sigmoid", "sigmoid forward+backward")
    )
    cells = f"forward {one:.2f}x, forward and backward {both:.2f}x"
    rows.append(f"| {cells} | {kernels['device']['isa']} |")
    grown = result("pass_growth_cpu.json")
    share = f"{grown['pass_share_of_cold_compile_12']:.1%}"
    rows.append(f"its share of a cold compile | {share} | {grown['device']['isa']} |")
    every = next(r for r in result("census_cpu.json")["table"] if r["package"] == "all")
    counts = f"{every['sites']} of {every['true']}"
    rows.append(f"in {every['models']} models of real code | {counts} |")
    assert [x for x in rows if x not in README] == []


def test_readme_is_one_page():
    assert len(README.splitlines()) <= 100
    assert README.count("\n| --- ") == 1
