"""The benchmarks' own machinery: clocks, records, comparisons, pages. What it measures is no matter here."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import pytest
import torch

from benchmarks import record as records
from benchmarks.__main__ import main
from benchmarks.compare import compare
from benchmarks.kernels import Case
from benchmarks.machine import commit, environment, machine
from benchmarks.models.networks import LARGE, NETWORKS, build, mlp
from benchmarks.models.quantities import LIBRARIES, Truth, ask, missing
from benchmarks.record import Record, load, reason
from benchmarks.report import page, pictures, tables
from benchmarks.suites import (
    kernels,
    kronecker,
    laplace,
    memory,
    models,
    overhead,
    proofs,
    scaling,
    training,
)
from benchmarks.timing import interleaved, summary


def row(quantity: str, gradients: float, spread: float = 0.01, **more: object) -> dict:
    return {
        "network": "mlp",
        "quantity": quantity,
        "library": "curvext",
        "mode": "eager",
        "milliseconds": 10 * gradients,
        "gradients": gradients,
        "lower": gradients * (1 - spread),
        "upper": gradients * (1 + spread),
        "error": 1e-7,
        **more,
    }


def of(*rows: dict) -> Record:
    return Record("models", environment("cpu"), list(rows))


# ---------------------------------------------------------------------- clocks


def test_rounds_are_interleaved_after_a_warm_up():
    met: list[str] = []
    interleaved({"a": lambda: met.append("a"), "b": lambda: met.append("b")}, rounds=3)
    assert met == ["a", "b"] * 5


def test_the_second_of_two_calls_in_a_row_counts_where_that_is_asked_for():
    met: list[str] = []

    def call() -> None:
        met.append("")
        time.sleep(0.02 if len(met) % 2 else 0.0)  # every first one is slow

    assert interleaved({"a": call}, rounds=3, again=True)["a"].median < 0.01
    assert len(met) == 2 + 2 * 3


def test_a_budget_shortens_the_rounds_to_three_at_least():
    times = interleaved({"a": lambda: None}, rounds=50, budget=1.0, known=0.1)
    assert times["a"].rounds == 10
    assert interleaved({"a": lambda: None}, rounds=50, budget=0.0)["a"].rounds == 3


def test_a_summary_holds_median_quartiles_and_the_shortest():
    t = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (t.lower, t.median, t.upper, t.shortest, t.rounds) == (2.0, 3.0, 4.0, 1.0, 5)


# ---------------------------------------------------------------------- records


def test_the_machine_is_named_after_its_hardware():
    name = machine("cpu")
    assert re.fullmatch(r"cpu-\d+core-[a-z0-9-]+", name)
    assert environment("cpu")["machine"] == name


def test_a_commit_may_be_named_where_the_history_did_not_travel(monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr("benchmarks.machine.subprocess.run", no_git)
    monkeypatch.delenv("CURVEXT_COMMIT", raising=False)
    assert commit() == "unknown"
    monkeypatch.setenv("CURVEXT_COMMIT", "abc123")
    assert commit() == "abc123"


def test_figures_of_another_dtype_reach_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    of(row("G v", 1.5)).save(tmp_path / "gpu-x")
    of(row("G v", 0.5)).save(tmp_path / "gpu-x" / "tf32")
    of(row("G v", 9.0)).save(tmp_path / "quick" / "gpu-x")
    assert page.machines() == ["gpu-x", "gpu-x/tf32"]
    assert page.records("gpu-x/tf32")["models"].rows[0]["gradients"] == 0.5


def test_the_command_sets_how_float32_is_multiplied(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "benchmarks.__main__.run_suite",
        lambda *_: seen.append(torch.get_float32_matmul_precision()),
    )
    before = torch.get_float32_matmul_precision()
    try:
        main(["kernels", "--float32", "high"])
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["high"]


def test_a_record_comes_back_from_its_file(tmp_path):
    kept = of(row("G v", 1.5, spread=0.5))
    kept.failed(ValueError("no rule"), network="mlp", quantity="H v", library="x", mode="eager")
    found = load(kept.save(tmp_path))
    assert found.rows == kept.rows and found.suite == "models"
    assert found.failures[0]["reason"] == "ValueError: no rule"


def test_a_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="it has no rows"):
        load(path)


def test_a_reason_is_one_line_without_paths():
    error = OSError("cannot open /somewhere/on/this/machine.so because\nof reasons")
    assert reason(error) == "OSError: cannot open … because"
    assert len(reason(ValueError("x" * 500))) == 200


# ---------------------------------------------------------------------- compare


def test_what_got_slower_by_more_than_noise_is_named():
    before = of(row("G v", 1.0), row("H v", 2.0), row("F v", 1.0, spread=0.2), row("old", 1.0))
    after = of(row("G v", 1.2), row("H v", 1.5), row("F v", 1.2), row("new", 1.0))
    found = compare(before, after)
    assert [c.name for c in found.slower] == ["mlp G v curvext eager"]
    assert [c.name for c in found.faster] == ["mlp H v curvext eager"]
    assert found.unchanged == 1
    assert found.only_before == ["mlp old curvext eager"]
    assert "SLOWER  mlp G v curvext eager: gradients 1 -> 1.2 (1.20x, noise 5%)" in str(found)


def test_another_machine_is_told(tmp_path):
    before, after = of(row("G v", 1.0)), of(row("G v", 1.0))
    after.environment = {**after.environment, "machine": "cpu-9core-other"}
    assert any("machine differs" in note for note in compare(before, after).notes)


def test_records_of_different_suites_are_not_compared():
    with pytest.raises(ValueError, match="'models' and 'kernels'"):
        compare(of(), Record("kernels", {}))


def test_the_command_fails_where_something_got_slower(tmp_path, capsys):
    a, b = of(row("G v", 1.0)).save(tmp_path / "a"), of(row("G v", 2.0)).save(tmp_path / "b")
    assert main(["compare", str(a), str(b)]) == 1
    assert main(["compare", str(b), str(a)]) == 0
    assert "1 slower, 0 faster" in capsys.readouterr().out


# ---------------------------------------------------------------------- suites


def test_every_kernel_has_cases_or_a_measure():
    for name, specification in kernels.specifications().items():
        assert hasattr(specification, "cases") or hasattr(specification, "measure"), name


@pytest.mark.parametrize("name", sorted(kernels.specifications()))
def test_every_form_of_a_kernel_gives_its_answer(name):
    specification = kernels.specifications()[name]
    if not hasattr(specification, "cases"):
        pytest.skip("this file has measure(), whose forms are its own")
    cases = specification.cases("cpu", torch.float32)
    case: Case = min(cases, key=lambda c: sum(t.numel() for t in c.inputs))
    exact = case.exact(*(t.double() if t.is_floating_point() else t for t in case.inputs))
    forms = {"kernel": case.kernel, "plain": case.plain, **case.rivals}
    for words, form in forms.items():
        if form is not None:
            assert kernels.relative_error(form(*case.inputs), exact) < 1e-4, words
    assert case.flops > 0 and case.traffic > 0


def test_the_floor_is_the_longer_of_two_times():
    case = Case("", (), print, None, print, flops=4e9, traffic=1e9)
    assert kernels.floor(case, {"GEMM GFLOP/s": 2.0, "copy GB/s": 1.0}) == (2.0, "GEMM")
    assert kernels.floor(case, {"GEMM GFLOP/s": 8.0, "copy GB/s": 1.0}) == (1.0, "copy")


def small() -> models.Effort:
    return dataclasses.replace(models.QUICK, networks=(), rounds=2, budget=0.0, slow=1e9)


@pytest.mark.filterwarnings("ignore")  # other libraries warn, of what they know
def test_every_library_that_is_installed_agrees_with_float64():
    torch.manual_seed(0)
    network = NETWORKS["mlp"](4)
    record = Record("models", {})
    models.measure(record, network, small(), lambda _: None)
    assert {row["library"] for row in record.rows} >= {"torch", "curvext", "torch.func"}
    for found in record.rows:
        assert found["error"] is None or found["error"] < 1e-4, found
    installed = {library.LIBRARY for library in LIBRARIES if not missing(library)}
    assert not [f for f in record.failures if f["library"] in installed], record.failures


def test_a_wrong_answer_has_a_large_error():
    truth = Truth(ask(build("gpt-small", "cpu").part(1)))
    right = truth.of("gradient").float()
    assert truth.error("gradient", right) < 1e-6
    assert truth.error("gradient", 1.1 * right) == pytest.approx(0.1, rel=1e-3)


def test_a_network_for_other_libraries_has_the_same_loss():
    network = build("gpt-small", "cpu").part(2)
    other = network.classifier()
    ours = network.loss(network.model(network.batch[0]), network.batch[1])
    theirs = other.loss(other.model(other.batch[0]), other.batch[1])
    torch.testing.assert_close(ours, theirs)
    assert [p.shape for p in network.model.parameters()] == [
        p.shape for p in other.model.parameters()
    ]


def test_a_missing_library_is_said_and_not_left_out(monkeypatch):
    monkeypatch.setattr("benchmarks.models.quantities.installed", lambda package: None)
    record = Record("models", {})
    problem = ask(NETWORKS["mlp"](2))
    models.prepare(record, problem, Truth(problem), compiled=(), blocks=False)
    told = {f["library"]: f["reason"] for f in record.failures}
    assert told["curvlinops"] == "not installed: pip install curvlinops-for-pytorch"


def test_proofs_are_measured_in_gradients_of_the_plain_network():
    record = Record("proofs", {})
    proofs.run(
        record, "cpu", proofs.Effort(width=8, samples=(6,), rounds=2, budget=0.0), lambda _: None
    )
    assert {(row["quantity"], row["form"]) for row in record.rows} == {
        (quantity, form) for quantity in ("gradient", *proofs.QUANTITIES) for form in proofs.FORMS
    }
    assert all(row["gradients"] > 0 for row in record.rows)


def test_growth_is_measured_point_by_point():
    record = Record("scaling", {})
    effort = scaling.Effort(sweeps=("N",), rounds=2, budget=0.0, points=2)
    scaling.run(record, "cpu", effort, lambda _: None)
    assert not record.failures
    assert {row["value"] for row in record.rows} == set(scaling.SWEEPS["N"][:2])


def megabytes(count: int) -> list[dict]:
    peak = memory.Peak("cpu")
    peak.start()
    torch.ones(count * 250_000)
    return [{"megabytes": peak.megabytes()}]


def fails() -> list[dict]:
    raise ValueError("as it must")


def test_the_peak_of_a_fresh_process_is_what_it_allocates(monkeypatch):
    for name, value in memory.ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    told = memory.in_fresh_process(megabytes, 64, limit=60)
    assert told[0]["megabytes"] == pytest.approx(64, rel=0.1)
    assert memory.in_fresh_process(fails, limit=60) == "ValueError: as it must"


def test_the_peak_of_a_language_model_is_beside_that_of_a_training_step():
    record = Record("memory", {})
    effort = dataclasses.replace(memory.QUICK, language_model=(0, 2))
    memory.run_language_model(record, "cpu", effort, lambda _: None)
    assert not record.failures
    assert [row["quantity"] for row in record.rows] == ["training step", *memory.LANGUAGE_MODEL]
    step, *products = record.rows
    assert step["logits above"] == 0
    for found in products:
        assert found["problem"] == "GPT-2, 0 layers, P = 38600448, M = 4, C = 50257"
        above = found["logits above"] * 4 * 4 * 50257 / 1e6
        assert found["megabytes"] == pytest.approx(step["megabytes"] + above)


# ---------------------------------------------------------------------- pages


def test_the_memory_of_factors_is_counted_beyond_the_factors_themselves():
    told = memory.in_fresh_process(memory.of_factors, "mlp", "KFAC", "cpu", limit=60)
    sides = (785, 1025, 1025, 1024, 1024, 10)
    assert told[0]["held_megabytes"] == pytest.approx(4e-6 * sum(n * n for n in sides))
    assert 0 < told[0]["megabytes"] < 100


def test_the_memory_of_a_language_model_has_a_table_where_it_was_measured():
    product = {"problem": "M = 4", "quantity": "G v", "megabytes": 7.0, "logits above": 0.5}
    older = [row("H v", 2.0, megabytes=9.0)]
    with_one, without = Record("memory", {}, [product, *older]), Record("memory", {}, older)
    assert tables.language_model_table(with_one)[-1] == "| M = 4 | G v | 7.00 | 0.50 |"
    assert tables.language_model_table(without) == []
    assert tables.memory_table(with_one) == tables.memory_table(without)


def test_tables_hold_the_figures_of_the_rows():
    record = of(row("G v", 1.234), row("G v", 2.5, library="curvlinops"), row("G v kept", 0.5))
    lines = tables.models_table(record, None, "mlp")
    assert any("| G v kept | curvext | 5.00 | 0.50 |" in line for line in lines)
    assert any("| G v | curvlinops | 25.0 | 2.50 |" in line for line in lines)
    assert "| G v, kept | **0.50** · 2.50 | – | – |" in tables.summary_table(record)


def test_a_fast_wrong_answer_is_no_rival():
    wrong = row("H v", 0.1, library="fast", error=0.003)
    right = row("H v", 3.0, library="slow")
    other = row("H v", 0.2, library="another matrix", of="H v per token")
    assert tables.fastest_other(of(wrong, right, other), "mlp", "H v kept")["library"] == "slow"


def test_what_failed_stands_in_the_page():
    record = of()
    record.failed("no rule", network="cnn", quantity="H v", library="X", mode="eager")
    record.failed("no rule", network="gpt", quantity="H v", library="X", mode="eager")
    assert tables.failures_table([record])[-1] == "| X | H v | cnn, gpt | no rule |"


def test_the_exponent_of_linear_growth_is_one():
    points = [{"sweep": "N", "value": n, "milliseconds": 0.5 * n} for n in (4, 16, 64)]
    assert tables.exponent(points) == pytest.approx(1)


def test_the_performance_page_is_that_of_the_committed_json():
    assert page.PAGE.read_text() == page.performance(), "run: python -m benchmarks report"


def test_the_performance_page_is_one_that_is_read():
    text = page.PAGE.read_text()
    assert len(text.splitlines()) <= 150
    named = re.findall(r"`benchmarks/results/([\w/-]+)/README\.md`", text)
    assert named[0] == page.quoted() and sorted(named) == page.machines()


def test_every_machine_has_a_page_of_its_committed_json():
    for name in page.machines():
        text = (records.RESULTS / name / "README.md").read_text()
        assert text == page.details(name), "run: python -m benchmarks report"


def test_committed_records_have_a_line_for_each_row():
    for path in records.RESULTS.rglob("*.json"):
        if "quick" not in path.parts:
            text = path.read_text()
            kept = json.loads(text)
            assert text == records.lines_of(kept)
            assert len(text.splitlines()) < len(kept["rows"]) + len(kept.get("failures", [])) + 20


def test_a_summary_of_kernels_holds_medians_over_their_cases():
    rows = [
        {
            "kernel": "k",
            "problem": p,
            "form": form,
            "milliseconds": ms,
            "of floor": share,
            "error": e,
        }
        for p, form, ms, share, e in (
            ("a", "kernel", 1.0, 0.5, 1e-7),
            ("a", "eager", 2.0, 0.25, 1e-6),
            ("b", "kernel", 1.0, 0.7, 3e-7),
            ("b", "eager", 4.0, 0.2, 1e-6),
        )
    ]
    line = tables.kernels_summary(Record("kernels", {}, rows))[-1]
    assert line == "| k | 2 | 60 (50–70) | 3.0 (2.0–4.0) | 3e-07 |"


def test_a_compact_picture_keeps_what_is_seen():
    svg = '<g id="a1.2345">\n <!-- words -->\n <path d="M 1.23456 2&#10;L -0.00012 3.5"\n style="x"/>\n</g>'
    small = pictures.compact(svg)
    assert "words" not in small and "1.23 2" in small and 'style="x"' in small
    assert len(small.splitlines()) == 3


def test_the_readme_quotes_the_committed_json_in_eight_rows_at_most():
    text = page.README.read_text()
    assert len(tables.README_ROWS) <= 8
    assert (page.PICTURES / "readme.svg").stat().st_size < 30_000
    assert page.SECTION.search(text).group(0) == page.readme_section(page.quoted())


def test_every_picture_of_the_pages_is_there():
    for source in (page.PAGE, page.README):
        for target in re.findall(r"!\[[^]]*\]\((?!https?:)([^)]+)\)", source.read_text()):
            assert (source.parent / target).is_file(), f"{source.name} shows {target}"


def test_committed_results_name_no_path_and_no_host():
    for path in records.RESULTS.rglob("*.json"):
        if "quick" not in path.parts:
            text = path.read_text()
            assert "/tmp" not in text and "/home" not in text and "/root" not in text, path.name
            assert "host" not in json.loads(text)["environment"]


@pytest.mark.parametrize(
    "name, parameters, output",
    [("resnet50", 25_557_032, (64, 1000)), ("gpt2", 124_439_808, (4, 1024, 50257))],
)
def test_the_networks_for_a_gpu_have_their_published_sizes(name, parameters, output):
    with torch.device("meta"):
        network = LARGE[name]()
        assert network.size == parameters
        assert network.model(network.batch[0]).shape == output


def test_a_training_step_is_measured_in_gradients(monkeypatch):
    monkeypatch.setattr(training, "build", lambda name, device: mlp(8))
    record = Record("training", {})
    effort = training.Effort(("mlp",), rounds=2, budget=0.0, limit=None)
    training.run(record, "cpu", effort, lambda _: None)
    found = {row["quantity"]: row["gradients"] for row in record.rows}
    assert {training.GRADIENT, *training.QUANTITIES} <= set(found)
    assert found[training.GRADIENT] == 1 and all(value > 0 for value in found.values())


def test_the_own_cost_of_small_networks_is_measured_and_counted():
    record = Record("overhead", {})
    overhead.run(
        record, "cpu", overhead.Effort(("mlp-tiny",), rounds=2, budget=0.0), lambda _: None
    )
    found = {row["quantity"]: row for row in record.rows}
    assert (
        found[overhead.GRADIENT]["gradients"] == 1 and found[overhead.GRADIENT]["Python calls"] == 0
    )
    for letter in ("G", "H", "F_emp"):
        first, following, kept = (
            found[f"{letter} v, {when}"] for when in ("first", "next batch", "kept")
        )
        assert first["Python calls"] > following["Python calls"] > kept["Python calls"] > 0
        assert first["operations"] >= following["operations"] > kept["operations"] > 0
    line = next(x for x in tables.overhead_table(record) if "| G v, kept |" in x)
    assert f"| {found['G v, kept']['Python calls']} |" in line


def test_kronecker_factors_are_measured_in_gradients(monkeypatch):
    monkeypatch.setattr(kronecker, "build", lambda name, device: mlp(8))
    record = Record("kronecker", {})
    effort = kronecker.Effort(("mlp",), rounds=2, budget=0.0)
    kronecker.run(record, "cpu", effort, lambda _: None)
    found = {row["quantity"]: row for row in record.rows if row["library"] != "curvlinops"}
    assert [f for f in record.failures if f["library"] == "curvext"] == []
    assert found[kronecker.GRADIENT]["gradients"] == 1
    assert len(found) == 9 and all(row["gradients"] > 0 for row in found.values())


def test_the_table_of_kronecker_factors_has_curvlinops_beside():
    rows = [row("factors", 1.234), row("factors", 2.5, library="curvlinops")]
    alone = row("Shampoo's L and R", 1.5)
    record = Record("kronecker", {}, [*rows, alone])
    lines = tables.kronecker_summary(record)
    assert "| factors | **1.23** · 2.50 |" in lines
    assert "| Shampoo's L and R | **1.50** |" in lines
    assert any(
        "| mlp | factors | curvlinops | 25.0 | 2.50 |" in x for x in tables.kronecker_table(record)
    )


def test_the_backends_of_laplace_torch_are_measured_in_gradients_of_their_own_process(monkeypatch):
    monkeypatch.setattr(laplace, "installed", lambda package: "0.3")
    asked = []

    def direct(task, quantity, library, samples, effort, limit):
        assert task is laplace.measure
        asked.append((quantity, library, samples))
        if library == "asdl":
            return "took longer than 1 s"
        return [
            {"milliseconds": 3.0, "gradients": 1.5, "lower": 1.4, "upper": 1.6, "megabytes": 40.0}
        ]

    monkeypatch.setattr(laplace, "in_fresh_process", direct)
    record = Record("laplace", {})
    laplace.run(record, "cpu", laplace.Effort((2,)), lambda _: None)
    assert asked == [("gradient", "torch", 2), *((*key, 2) for key in laplace.BACKENDS)]
    summary = tables.laplace_summary(record)
    assert "| diag G | curvext | 1.50 · 40.0 MB |" in summary
    assert "| diag G | asdl | failed |" in summary
    assert "| cnn, N = 2 | diag G | curvext | 3.00 | 1.50 | 1.40–1.60 | 40.0 |" in (
        tables.laplace_table(record)
    )
    assert {f["reason"] for f in record.failures} == {"took longer than 1 s"}


def test_a_backend_is_called_for_the_classes_of_the_network(monkeypatch):
    pytest.importorskip("laplace", exc_type=(ImportError, RuntimeError))
    made = laplace.network(2)
    diag = laplace.backend_of("diag G", "curvext", made.model)
    _, found = diag(*made.batch, N=2)
    assert found.shape == (made.size,)


def test_the_table_of_a_training_step_has_time_and_memory():
    rows = [row("gradient", 1.0), row("gradient and norms", 1.1, **{"memory in gradients": 1.25})]
    record = Record("training", {}, [*rows, row("clipped gradient, opacus", 1.75)])
    lines = tables.training_summary(record)
    assert "| gradient and norms | 1.10 · 1.25 |" in lines
    assert "| clipped gradient, opacus | 1.75 · – |" in lines
    assert any(
        "| mlp | gradient and norms | 11.0 | 1.10 |" in x for x in tables.training_table(record)
    )
