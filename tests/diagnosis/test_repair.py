"""Repair works on a copy, proves what it brought, and writes whole files or none."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import livella
from livella.diagnosis import remedies, repair
from livella.diagnosis.remedies import REMEDIES, Safety
from tests.diagnosis.test_inspection import assert_untouched, pairs, whole


def mend(model, batches, **options):
    return livella.repair(model, batches, **{"progress": False, **options})


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Identity(), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


def fitting():
    """A network whose statistics are those of its data, and whose labels are what it says."""
    model, batches = small().eval(), pairs(20)
    for norm in (model[1], model[5]):
        norm.num_batches_tracked.fill_(20)
    livella.estimate_population(model, batches, progress=False).apply()
    with torch.no_grad():
        return model, [(x, model(x).argmax(1)) for x, _ in batches]


def broken():
    model, batches = fitting()
    model[5].running_mean += 3
    return model, batches


def test_the_copy_is_mended_and_the_model_as_it_was():
    model, batches = broken()
    good, _ = fitting()
    before = whole(model)
    done = mend(model, batches)
    assert_untouched(before, model)
    assert done.applied == {"measure_statistics": ("5",)}
    assert not done.worse
    torch.testing.assert_close(done.model[5].running_mean, good[5].running_mean)
    assert done.after.seen.gap.loss.running < done.before.seen.gap.loss.running
    assert done.after.seen.gap.score.running > done.before.seen.gap.score.running
    assert "measure_statistics: 5" in str(done)
    assert "loss:" in str(done)


def test_a_healthy_model_is_left_alone():
    model, batches = fitting()
    done = mend(model, batches)
    assert done.applied == {}
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), done.model.state_dict().values(), strict=True)
    )
    assert str(done) == "nothing to do: no gap was found"
    assert done.left == ""


def test_nan_is_measured_away_from_batches_without_labels():
    model, batches = fitting()
    model[1].running_var[3] = float("nan")
    done = mend(model, [x for x, _ in batches])
    assert done.applied == {"measure_statistics": ("1",)}
    assert all(value.isfinite().all() for value in done.model.state_dict().values())


def test_a_momentum_meant_otherwise_is_turned_and_training_alone_changes():
    model, batches = fitting()
    model[1].momentum = 0.99
    done = mend(model, batches)
    assert done.model[1].momentum == pytest.approx(0.01)
    assert model[1].momentum == 0.99
    assert "momentum" not in {f.check for f in done.after.findings}


@pytest.mark.parametrize("how", ["parameters", "mode"])
def test_what_was_frozen_in_name_is_frozen(how):
    model, batches = fitting()
    model.train()
    if how == "mode":
        model[1].eval()
    for parameter in model[1].parameters() if how == "parameters" else ():
        parameter.requires_grad_(False)
    done = mend(model, batches)
    assert done.applied["freeze"] == ("1",)
    kept = done.model[1].running_mean.clone()
    done.model.train()(batches[0][0])
    assert torch.equal(done.model[1].running_mean, kept)
    wanted = how == "mode"
    assert all(p.requires_grad is wanted for p in done.model[1].parameters())


def test_low_precision_is_raised_and_gives_the_same_outputs():
    norm = nn.BatchNorm2d(4, momentum=None)  # of all batches: statistics that are right
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = model.to(torch.bfloat16)
    batches = [torch.randn(16, 3, 8, 8).bfloat16() for _ in range(6)]
    for x in batches:
        model(x)
    done = mend(model.eval(), batches)
    assert "keep_in_float32" in done.applied
    assert done.model[1].running_mean.dtype == torch.float32
    assert done.model[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(done.model(batches[0]), model(batches[0]), atol=0.05, rtol=0.05)


def test_statistics_that_rounding_spoilt_are_measured_again():
    model, batches = fitting()
    model.to(torch.bfloat16)[5].running_mean += 3
    batches = [(x.bfloat16(), y) for x, y in batches]
    done = mend(model, batches)
    assert {"measure_in_float32", "measure_statistics"} <= set(done.applied)
    assert done.model[5].running_mean.dtype == torch.float32
    assert done.after.seen.gap.score.running > done.before.seen.gap.score.running


def test_statistics_are_measured_once_however_many_ask(monkeypatch):
    asked = []
    measure = remedies.estimate_population
    monkeypatch.setattr(
        remedies, "estimate_population", lambda *a, **k: (asked.append(1), measure(*a, **k))[1]
    )
    model, batches = broken()
    model[1].momentum = 0.99
    done = mend(model, batches)
    assert set(done.applied) == {"momentum", "measure_statistics"}
    assert set(done.applied["measure_statistics"]) == {"1", "5"}
    assert asked == [1]


def test_what_changes_the_function_is_done_only_when_asked():
    model, batches = fitting()
    deploy = [(x + 5, y) for x, y in batches]
    assert mend(model, batches, deploy=deploy).applied == {}
    done = mend(model, batches, deploy=deploy, changing=True)
    assert "adapt" in done.applied
    assert not torch.equal(done.model[1].running_mean, model[1].running_mean)


def test_exact_remedies_keep_the_function():
    """What claims to be exact gives the same outputs, in float64 to the last bits."""
    model, batches = fitting()
    model.train().double()
    batches = [(x.double(), y) for x, y in batches]
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    done = mend(model, batches)
    exact = {name for name, remedy in REMEDIES.items() if remedy.safety is Safety.EXACT}
    assert done.applied
    assert set(done.applied) <= exact
    x = batches[0][0]
    torch.testing.assert_close(done.model.eval()(x), model.eval()(x), atol=1e-12, rtol=1e-12)


def test_what_got_worse_is_not_written(monkeypatch, tmp_path):
    def spoil(model, _layers, _means):
        model[5].running_mean -= 100

    spoiling = remedies.Remedy(Safety.STATISTICS, "Spoil it.", spoil)
    monkeypatch.setitem(repair.REMEDIES, "momentum", spoiling)
    model, batches = fitting()
    model[1].momentum = 0.99
    done = mend(model, batches)
    assert done.worse.startswith("score")
    with pytest.raises(ValueError, match="refused to write what got worse: score"):
        done.write(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_written_whole_and_load(tmp_path):
    model, batches = broken()
    done = mend(model, batches)
    path = done.write(tmp_path / "w.safetensors")
    fresh = small()
    fresh.load_state_dict(load_file(path))
    assert all(
        torch.equal(a, b)
        for a, b in zip(fresh.state_dict().values(), done.model.state_dict().values(), strict=True)
    )
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_failed_write_leaves_the_former_file(monkeypatch, tmp_path):
    model, batches = broken()
    done = mend(model, batches)
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"mine")

    def fail(_tensors, place):
        place.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        done.write(path)
    assert path.read_bytes() == b"mine"
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_failure_on_the_way_leaves_the_model_as_it_was():
    model, batches = broken()
    before = whole(model)
    calls = []

    def forward(m, batch):
        calls.append(1)
        if len(calls) > 75:
            raise RuntimeError("out")
        return m(batch[0])

    with pytest.raises(RuntimeError, match="out"):
        mend(model, batches, forward=forward)
    assert_untouched(before, model)


def test_shared_tensors_are_written_under_every_name(tmp_path):
    norm = nn.BatchNorm1d(6)
    model, x = nn.Sequential(norm, norm).eval(), [torch.randn(32, 6) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = mend(model, x)
    saved = load_file(done.write(tmp_path / "w.safetensors"))
    assert saved.keys() == model.state_dict().keys()


def test_every_remedy_says_what_it_may_change():
    for name, remedy in REMEDIES.items():
        assert remedy.advice.endswith("."), name
        assert (remedy.act is None) == (remedy.safety is Safety.ADVICE), name
    assert copy.deepcopy(REMEDIES).keys() == REMEDIES.keys()


@pytest.mark.parametrize("labels", [True, False])
def test_an_adaptation_is_judged_on_what_it_is_for(labels):
    """Right on the deployment data it may be wrong on those of training, and is written."""
    model, batches = fitting()
    deploy = [(3 * x + 2, y) for x, y in batches]
    given = deploy if labels else [x for x, _ in deploy]
    done = mend(model, batches, deploy=given, changing=True)
    assert "adapt" in done.applied
    if labels:
        with torch.no_grad():
            right = [
                sum(float((m.eval()(x).argmax(1) == y).double().mean()) for x, y in deploy)
                for m in (model, done.model)
            ]
        assert done.deployed == pytest.approx([each / len(deploy) for each in right])
        assert (done.worse == "") == (done.deployed[1] >= done.deployed[0] - repair.WORSE)
    else:
        assert (done.deployed, done.worse) == (None, "")


def test_a_layer_in_eval_within_a_model_in_training_is_measured_too():
    model, batches = broken()
    model.train()
    for norm in (model[1], model[5]):
        norm.eval()
    done = mend(model, batches)
    assert {"measure_statistics", "freeze"} <= set(done.applied)
    assert done.after.seen.gap.score.running > done.before.seen.gap.score.running
    assert [m.training for m in done.model.modules()][:2] == [True, True]


def test_frozen_layers_are_not_said_to_be_measured_and_the_reason_is_given():
    model, batches = broken()
    livella.freeze(model, ["5"])
    model[1].running_mean += 3
    kept = model[5].running_mean.clone()
    done = mend(model, batches)
    assert done.applied["measure_statistics"] == ("1",)
    assert torch.equal(done.model[5].running_mean, kept)
    assert "5 is frozen: livella.unfreeze it first" in done.left
    remedies_of = {f.layer: f.remedy for f in done.before.findings if f.check == "stale_statistics"}
    assert remedies_of["5"] == "unfreeze"
    assert mend(livella.unfreeze(model), batches).left == ""


@pytest.mark.parametrize("ignore", [("stale_statistics@5", "statistics_gap"), ("*",)])
def test_what_is_ignored_is_not_mended(ignore):
    model, batches = broken()
    if ignore == ("*",):
        ignore = ("stale_statistics", "statistics_gap")
    done = mend(model, batches, ignore=ignore)
    assert "measure_statistics" not in done.applied
    assert torch.equal(done.model[5].running_mean, model[5].running_mean)


def test_mended_weights_can_be_read_as_other_files_are(tmp_path):
    model, batches = broken()
    path = mend(model, batches).write(tmp_path / "w.safetensors")
    (tmp_path / "other").write_text("")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_gamma_that_is_no_number_is_named_with_data_too():
    model, batches = fitting()
    with torch.no_grad():
        model[1].weight[2] = float("nan")
    with pytest.raises(ValueError, match=r"γ or β of '1' hold NaN") as told:
        livella.inspect(model, batches, progress=False)
    assert "\n" not in str(told.value)
