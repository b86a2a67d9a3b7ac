"""Named statistics: kept apart, saved, loaded, and in use for a context."""

import copy
import pickle

import pytest
import torch
from torch import nn

import livella
from livella.model.domains import has_domains

LAYERS = {
    "torch": lambda: nn.BatchNorm1d(4),
    "ours": lambda: livella.nn.BatchNorm1d(4),
    "with an activation": lambda: livella.nn.BatchNorm1d(4, activation="relu"),
    "renorm": lambda: livella.nn.BatchRenorm1d(4),
    "moving average": lambda: livella.nn.MovingAverageBatchNorm1d(4),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def network(kind="torch"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), LAYERS[kind](), nn.Linear(4, 2))
    for _ in range(3):
        model(torch.randn(16, 3))
    return model


def divided(kind="torch"):
    model = network(kind)
    livella.add_domains(model, ["day", "night"])
    return model


def train(model, offset, seed=1):
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(4):
        model(offset + torch.randn(16, 3, generator=generator))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@each_layer
def test_a_domain_begins_as_the_layer_is_and_nothing_else_changes(kind):
    before = network(kind)
    model = divided(kind)
    x = torch.randn(5, 3)
    for each in (None, "day", "night"):
        with livella.domain(model, each):
            assert torch.equal(model.eval()(x), before.eval()(x))
    assert livella.domains(model) == ("day", "night")
    assert len([*model.parameters()]) == len([*before.parameters()])


@each_layer
def test_training_in_a_domain_changes_its_statistics_alone(kind):
    model = divided(kind)
    before = state(model)
    with livella.domain(model, "night"):
        train(model, 5.0)
    changed = differing(before, state(model))
    assert changed
    assert all(".domains.night." in name for name in changed)


@each_layer
def test_a_domain_is_as_a_network_of_its_own_that_saw_the_same(kind):
    model, alone = divided(kind), network(kind)
    with livella.domain(model, "day"):
        train(model, 0.0, seed=2)
    train(alone, 5.0)
    with livella.domain(model, "night"):
        train(model, 5.0)
    x = torch.randn(9, 3)
    with livella.domain(model, "night"):
        assert torch.equal(model.eval()(x), alone.eval()(x))


@each_layer
def test_a_checkpoint_is_the_same_inside_and_outside(kind):
    model = divided(kind)
    with livella.domain(model, "night"):
        train(model, 5.0)
        inside = state(model)
        assert model[1].state_dict().keys() == {k[2:] for k in inside if k.startswith("1.")}
    assert not differing(inside, state(model))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("where", [None, "day", "night"])
def test_a_checkpoint_is_loaded_in_any_domain(where, assign):
    model, other = divided(), divided()
    with livella.domain(model, "night"):
        train(model, 5.0)
    saved = state(model)
    with livella.domain(other, where):
        other.load_state_dict(saved, assign=assign)
        assert not differing(saved, state(other))
    assert not differing(saved, state(other))


@pytest.mark.parametrize("where", [None, "night"])
def test_an_older_checkpoint_names_the_domains_as_missing(where):
    model, old = divided(), network()
    train(old, 1.0)
    with livella.domain(model, where):
        missing, unexpected = model.load_state_dict(old.state_dict(), strict=False)
    assert missing == [name for name in model.state_dict() if ".domains." in name]
    assert not unexpected
    assert torch.equal(model[1].running_mean, old[1].running_mean)


def test_contexts_nest_and_leave_as_they_found_even_after_an_error():
    model = divided()
    before = state(model)

    def fail_inside():
        with livella.domain(model, "day"), livella.domain(model, "night"):
            with livella.domain(model, None):
                assert model[1].running_mean.data_ptr() == own
            train(model, 5.0)
            raise RuntimeError("out")

    own = model[1].running_mean.data_ptr()
    with pytest.raises(RuntimeError, match="out"):
        fail_inside()
    assert model[1].running_mean.data_ptr() == own
    assert all(".domains.night." in name for name in differing(before, state(model)))
    left = vars(model[1])
    hooks = [name for name in left if name.endswith(("_hooks", "_pre_hooks")) and left[name]]
    assert not hooks
    assert not [name for name in left if name.startswith("_livella")]


def test_a_copy_made_inside_stays_in_the_domain():
    model = divided()
    with livella.domain(model, "night"):
        train(model, 5.0)
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    saved = state(model)
    for made in copies:
        assert not differing(saved, state(made))
        with livella.domain(made, None):
            assert torch.equal(made[1].running_mean, saved["1.running_mean"])
        train(made, 9.0, seed=3)
        assert all(".domains.night." in name for name in differing(saved, state(made)))
    assert not differing(saved, state(model))


def test_what_measures_and_writes_statistics_does_so_for_the_domain_in_use():
    model = divided()
    before = state(model)
    batches = [7 + torch.randn(64, 3)]
    with livella.domain(model, "day"):
        livella.estimate_population(model, batches).apply()
    with livella.domain(model, "night"):
        adaptation = livella.adapt(model, batches, prior=0, guard=False)
    changed = differing(before, state(model))
    averages = {f"1.domains.{d}.running_{m}" for d in ("day", "night") for m in ("mean", "var")}
    assert changed == averages
    torch.testing.assert_close(
        state(model)["1.domains.day.running_mean"], state(model)["1.domains.night.running_mean"]
    )
    with livella.domain(model, "night"):
        adaptation.revert()
    assert all(".domains.day." in name for name in differing(before, state(model)))


@pytest.mark.parametrize("kind", ["torch", "guarded", "moving average"])
def test_a_domain_has_the_precision_of_its_layer_and_keeps_it_in_use(kind):
    model = divided("moving average" if kind == "moving average" else "ours")
    if kind == "guarded":
        livella.remove_domains(model)
        livella.set_update_policy(model, "guarded")
        livella.add_domains(model, ["day", "night"])
    with livella.domain(model, "night"):
        train(model, 5.0)
    exact = state(model)
    model.to(torch.bfloat16).eval()
    saved = state(model)
    for name, value in saved.items():
        if ".domains." in name:
            own = saved[name.replace(".domains.night", "").replace(".domains.day", "")]
            assert value.dtype == own.dtype
            if kind != "torch":
                assert torch.equal(value, exact[name])
    tensors = {id(buffer) for buffer in model.buffers()}
    with livella.domain(model, "night"):
        assert model(torch.randn(2, 3, dtype=torch.bfloat16)).isfinite().all()
    assert not differing(saved, state(model))
    assert {id(buffer) for buffer in model.buffers()} == tensors


def test_domains_come_from_meta_and_may_have_any_name():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm1d(4))
        livella.add_domains(model, ["train", "type", "running_mean", "1"])
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
    assert livella.domains(model) == ("train", "type", "running_mean", "1")
    with livella.domain(model, "train"):
        model.train()(torch.randn(8, 4))
    assert "0.domains.train.running_mean" in model.state_dict()


def into_night(model, x):
    with livella.domain(model, "night"):
        return model(x)


@pytest.mark.parametrize(
    "measure",
    [
        lambda m, b: livella.adapt(m, b, guard=False, forward=into_night),
        lambda m, b: livella.adapt(m, b, decay=0.9, guard=False, forward=into_night),
        lambda m, b: livella.estimate_population(m, b, forward=into_night),
    ],
)
def test_a_domain_is_not_entered_inside_a_pass_that_measures(measure):
    model = divided()
    before = state(model)
    with pytest.raises(ValueError, match="cannot be entered while statistics are measured"):
        measure(model, [5 + torch.randn(64, 3)])
    assert not differing(before, state(model))
    with livella.domain(model, "night"):
        pass


def test_a_step_is_taken_back_in_a_domain_entered_inside():
    model = divided().train()
    before = state(model)
    with livella.step(model) as step:
        into_night(model, 5 + torch.randn(16, 3))
        assert differing(before, state(model))
        step.take_back()
    assert not differing(before, state(model))


def test_updates_are_gathered_for_one_domain_at_a_time():
    model, x = divided().train(), [50 + torch.randn(16, 3) for _ in range(2)]
    before = state(model)

    def loss(output, _batch):
        return output.square().mean()

    def pooled():
        with livella.pooled_updates(model):
            into_night(model, x[0])

    for gather in (pooled, lambda: livella.accumulate(model, x, loss, forward=into_night)):
        with pytest.raises(ValueError, match="cannot be entered inside"):
            gather()
        assert not differing(before, state(model))
    with livella.domain(model, "night"), livella.pooled_updates(model):
        for batch in x:
            model(batch)
    changed = differing(before, state(model))
    assert changed
    assert all(".domains.night." in name for name in changed)
    assert state(model)["1.domains.night.num_batches_tracked"] == 4


def test_handles_know_the_domain_that_they_belong_to():
    model = divided()
    before, x = state(model), 5 + torch.randn(64, 3)
    with livella.domain(model, "night"):
        adaptation = livella.adapt(model, [x], decay=0.9, guard=False)
        estimate = livella.estimate_population(model, [x])
    for elsewhere in (lambda: adaptation.update(x), estimate.apply):
        with pytest.raises(ValueError, match="'night'"):
            elsewhere()
    adaptation.revert()
    assert not differing(before, state(model))
    with livella.domain(model, "night"):
        estimate.apply()
    with livella.domain(model, "day"):
        estimate.revert()
    assert not differing(before, state(model))


def test_layers_without_the_domain_use_their_own_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    livella.add_domains(model, ["day"], layers="1")
    livella.add_domains(model, "dusk", layers=["0"])
    assert livella.domains(model) == ("dusk", "day")
    before = state(model)
    with livella.domain(model, "day"):
        train(model, 5.0)
    changed = {name.rsplit(".", 1)[0] for name in differing(before, state(model))}
    assert changed == {"0", "1.domains.day"}


def test_layers_without_running_statistics_are_passed_over():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    livella.add_domains(model, ["day"])
    assert [has_domains(layer) for layer in model] == [False, True]


def test_domains_are_added_within_a_domain_and_removed():
    model = divided()
    own = model[1].running_mean.clone()
    with livella.domain(model, "night"):
        train(model, 5.0)
        livella.add_domains(model, ["dusk"])
        with pytest.raises(ValueError, match="'night' is in use"):
            livella.remove_domains(model)
    with livella.domain(model, "dusk"):
        assert torch.equal(model[1].running_mean, own)
    with (
        livella.domain(model, "day"),
        livella.domain(model, "night"),
        pytest.raises(ValueError, match="'day' is in use"),
    ):
        livella.remove_domains(model, "day")
    livella.remove_domains(model, "day")
    assert livella.domains(model) == ("night", "dusk")
    livella.remove_domains(model)
    assert state(model).keys() == state(network()).keys()
    assert torch.equal(model[1].running_mean, own)


def test_torchs_and_our_own_tools_keep_the_domains():
    for change in (nn.SyncBatchNorm.convert_sync_batchnorm, livella.accelerate, livella.freeze):
        model = divided()
        with livella.domain(model, "night"):
            train(model, 5.0)
        saved = state(model)
        changed = change(model)
        assert not differing(saved, state(changed)), change
        with livella.domain(changed, "night"):
            assert not differing(saved, state(changed)), change
            assert torch.equal(changed[1].running_mean, saved["1.domains.night.running_mean"])


def test_a_compiled_network_follows_the_domain():
    model = divided()
    with livella.domain(model, "night"):
        train(model, 5.0)
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(4, 3)
    for each in ("day", "night", None, "night"):
        with torch.no_grad(), livella.domain(model, each):
            assert torch.equal(compiled(x), model(x))


def test_convert_leaves_layers_with_domains_and_says_why():
    model = divided()
    with pytest.raises(ValueError, match="1: it has statistics of several domains"):
        livella.convert(model, "group")
    assert has_domains(model[1])
    livella.remove_domains(model)
    livella.convert(model, "group")
    assert type(model[1]) is nn.GroupNorm


def test_two_worlds_in_one_network_want_two_sets():
    """What one set cannot give: both worlds normalized."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    livella.add_domains(model, ["near", "far"])
    worlds = {"near": torch.randn(512, 3), "far": 20 + 5 * torch.randn(512, 3)}
    for name, x in worlds.items():
        with livella.domain(model, name):
            livella.estimate_population(model, x.split(128)).apply()
    livella.estimate_population(model, [torch.cat([*worlds.values()])]).apply()
    with torch.no_grad():
        for name, x in worlds.items():
            with livella.domain(model, name):
                y = model.eval()(x)
            torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
            torch.testing.assert_close(y.var(0), torch.ones(3), atol=0.01, rtol=0)
            assert (model(x).mean(0).abs() > 0.5).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([""], "without dots"),
        (["a.b"], "without dots"),
        ([1], "without dots"),
        (["dusk", "night"], "already"),
    ],
)
def test_bad_names_are_refused_and_nothing_is_added(names, message):
    model = divided()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        livella.add_domains(model, names)
    assert state(model).keys() == before.keys()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.GroupNorm(1, 2),
        livella.nn.BatchNormLSTM(2, 3),
    ],
)
def test_a_network_without_running_statistics_is_refused(layer):
    with pytest.raises(ValueError, match="that keep running statistics"):
        livella.add_domains(nn.Sequential(layer), ["day"])


def test_a_domain_that_was_never_seen_is_refused_with_a_guess():
    model = divided()
    with pytest.raises(ValueError, match=r"\['day', 'night'\], got 'nigth'; did you mean 'night'"):
        livella.domain(model, "nigth").__enter__()
    with pytest.raises(ValueError, match=r"add it with livella\.add_domains"):
        livella.domain(network(), "day").__enter__()
    with pytest.raises(ValueError, match="got 'dusk'"):
        livella.remove_domains(model, ["dusk"])
