"""Every claim in planted worlds whose truth is known, and what every claim has to offer."""

import importlib
import json

import pytest

from livella.study import CLAIMS, request, runner
from livella.study.claims import covariate_shift
from livella.study.results import Estimate, Verdict
from livella.study.trial import Outcome
from tests.study import worlds
from tests.study.worlds import PAPER, World

BY_NAME = {claim.name: claim for claim in CLAIMS}
TRUTHS = {
    "the paper is right": (lambda seed: 1, Verdict.CONFIRMED),
    "the opposite holds": (lambda seed: -1, Verdict.CONTRADICTED),
    "there is no difference": (lambda seed: 0, Verdict.NOT_SEEN),
    "seeds disagree": (lambda seed: (-1) ** seed, Verdict.INCONCLUSIVE),
}

each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)


def assess(claim, outcome, seeds=5, **scope):
    return claim.assess(worlds.scope(seeds, **scope), World(outcome)).findings


def test_every_claim_is_listed_once_and_has_a_planted_world():
    assert len(BY_NAME) == len(CLAIMS)
    assert set(PAPER) == set(BY_NAME)


@pytest.mark.parametrize("truth", TRUTHS)
@each_claim
def test_every_finding_says_what_is_true_in_a_planted_world(claim, truth):
    right, verdict = TRUTHS[truth]
    findings = assess(claim, lambda t: PAPER[claim.name](t, right(t.seed)))
    assert {f.question: f.verdict for f in findings} == {f.question: verdict for f in findings}


@each_claim
def test_two_seeds_give_no_verdict_however_clear(claim):
    findings = assess(claim, lambda t: PAPER[claim.name](t, 1), seeds=2)
    assert {f.verdict for f in findings} == {Verdict.INCONCLUSIVE}


def interval(low, high):
    return Estimate((low + high) / 2, low, high, 5)


FASTER, EQUAL, UNSURE = interval(2.0, 3.0), interval(0.9, 1.1), interval(0.9, 3.0)


@pytest.mark.parametrize(
    ("share", "speed_up", "raised", "verdict"),
    [
        (interval(0.7, 1.1), FASTER, True, Verdict.CONFIRMED),
        (interval(-0.1, 0.3), FASTER, True, Verdict.CONTRADICTED),
        (interval(0.45, 0.55), FASTER, True, Verdict.INCONCLUSIVE),
        (interval(0.3, 0.9), FASTER, True, Verdict.INCONCLUSIVE),
        (interval(0.7, 1.1), EQUAL, True, Verdict.NOT_SEEN),
        (interval(0.7, 1.1), interval(0.3, 0.5), True, Verdict.NOT_SEEN),
        (interval(0.7, 1.1), UNSURE, True, Verdict.INCONCLUSIVE),
        (interval(0.7, 1.1), FASTER, False, Verdict.INCONCLUSIVE),
        (None, FASTER, True, Verdict.INCONCLUSIVE),
        (interval(0.7, 1.1), None, True, Verdict.INCONCLUSIVE),
    ],
)
def test_the_shift_explains_speed_only_where_speed_goes_with_it(share, speed_up, raised, verdict):
    assert covariate_shift.explanation(share, speed_up, raised) is verdict


def test_the_share_of_the_speed_up_lost_is_counted_in_logarithms():
    assert covariate_shift.share_lost(none=800, batch=200, noisy=400) == pytest.approx(0.5)
    assert covariate_shift.share_lost(none=800, batch=200, noisy=200) == pytest.approx(0)
    assert covariate_shift.share_lost(none=800, batch=200, noisy=100) == pytest.approx(-0.5)
    assert covariate_shift.share_lost(none=800, batch=800, noisy=400) is None


def test_noise_that_does_not_bring_the_shift_back_shows_nothing():
    def weak_noise(t):
        outcome = worlds.PAPER["covariate_shift"](t, 1)
        if not t.network.noise:
            return outcome
        return Outcome(outcome.steps, outcome.train_loss, outcome.validation, outcome.test)

    less_shift, explains = assess(covariate_shift.CLAIM, weak_noise)
    assert less_shift.verdict is Verdict.CONFIRMED
    assert explains.verdict is Verdict.INCONCLUSIVE


def test_the_names_that_can_be_asked_for_are_those_of_the_claims():
    assert tuple(claim.name for claim in CLAIMS) == request.NAMES


@each_claim
def test_a_claim_documents_itself(claim):
    module = importlib.import_module(f"livella.study.claims.{claim.name}")
    assert claim is module.CLAIM
    assert module.__doc__.strip()
    assert claim.title
    assert claim.question.endswith("?")
    assert claim.papers
    assert all(paper.finding and paper.source for paper in claim.papers)
    assert claim.against.endswith(".")
    for scope in (worlds.scope(), worlds.scope(shape=(20,)), worlds.scope(model="my.py:net")):
        assert claim.method(scope).endswith(".")


@pytest.mark.parametrize("model", [None, "my.py:net"])
@pytest.mark.parametrize("seeds", [1, 3])
@each_claim
def test_a_plan_is_finite_and_ends_where_it_wants_nothing_more(claim, seeds, model):
    scope = worlds.scope(seeds, model=model)
    done, rounds = {}, 0
    while missing := set(claim.plan(scope, done)) - set(done):
        done |= {trial: PAPER[claim.name](trial, 1) for trial in missing}
        rounds += 1
        assert rounds <= 2, "a plan has two rounds: the grid, then the seeds at the best rate"
    assert set(claim.plan(scope, done)) == set(done)
    assert len({trial.key() for trial in done}) == len(done)


@each_claim
def test_the_number_of_trials_is_known_before_the_first(claim):
    scope = worlds.scope()
    foretold = runner.wanted([claim], scope, runner._AnyOutcome())
    world = World(lambda t: PAPER[claim.name](t, 1))
    assert len(foretold) == len(runner.wanted([claim], scope, world))


def _test_would_choose_otherwise(best):
    """A world in which one rate is best on validation and worst on test."""

    def outcome(trial):
        if trial.rate == best:
            return worlds.climbing(top=0.5, validation=0.9)
        return worlds.climbing(top=0.95, validation=0.4)

    return World(outcome)


@each_claim
def test_rates_are_chosen_on_validation_and_never_on_test(claim):
    scope = worlds.scope()
    trained = [t for t in claim.plan(scope, {}) if t.steps]
    rates = sorted({t.rate for t in trained})
    if claim.name == "recurrent":
        assert len(rates) == 1, "there is nothing to choose"
        return
    best = rates[1]
    world = _test_would_choose_otherwise(best)
    column = claim.assess(scope, world).table
    chosen = {t.rate for t in claim.plan(scope, world) if t.steps and t.seed >= 2}
    if "best rate" in column.columns:
        place = column.columns.index("best rate") - 1
        assert {cells[place] for _, cells in column.rows} == {f"{best:g}"}
    assert best in chosen
    every = claim.name in ("learning_rate", "inference")
    assert chosen == {best} or every, "these run every rate of theirs on all seeds"


@pytest.mark.parametrize(
    ("name", "rival"), [("alternatives", "group"), ("regularization", "dropout 0.5")]
)
def test_the_best_of_several_rivals_is_chosen_on_validation_and_never_on_test(name, rival):
    def outcome(t):
        if rival in (t.network.norm, f"dropout {t.network.dropout}"):
            return worlds.climbing(top=0.5, validation=0.8)
        return worlds.climbing(top=0.7, validation=0.6)

    _, against_the_best = assess(BY_NAME[name], outcome)
    assert against_the_best.effect_name == f"test error of {rival} − of batch"
    assert against_the_best.effect.median == pytest.approx(20)


FELL = Outcome((0, 100), (None, None), (0.1, 0.1), (0.1, 0.1), diverged=True)
PROBED = {"covariate_shift": {"shift": ((),)}, "gradient_flow": {"gradients": ((1.0,) * 20,)}}
PROBED |= {"dropout": {"variance": (), "population": ()}}


def mishaps(name):
    fell = Outcome(
        FELL.steps, FELL.train_loss, FELL.validation, FELL.test, True, **PROBED.get(name, {})
    )
    well = lambda t: PAPER[name](t, 1)  # noqa: E731
    return {
        "empty": lambda t: Outcome(),
        "failed": lambda t: Outcome(error="RuntimeError: no memory"),
        "diverged": lambda t: fell,
        "diverged at once": lambda t: Outcome((0,), (None,), (0.1,), (0.1,), diverged=True),
        "one kind diverged": lambda t: fell if t.network.norm == "none" else well(t),
        "one kind failed": lambda t: Outcome() if t.network.norm == "batch" else well(t),
        "seeds differ": lambda t: (well(t), fell, Outcome(error="x"))[t.seed % 3],
        "rates differ": lambda t: well(t) if t.rate < 0.1 else fell,
    }


@pytest.mark.parametrize("mishap", mishaps("convergence"))
@each_claim
def test_a_claim_bears_trials_that_went_wrong(claim, mishap):
    world = World(mishaps(claim.name)[mishap])
    for seeds in range(1, 6):
        result = claim.result(worlds.scope(seeds), world, {})
        assert result.findings
        assert result.trials > 0
        for figure in result.figures:
            for series in figure.series:
                assert {len(series.y), len(series.low), len(series.high)} == {len(series.x)}
                assert "nan" not in json.dumps([series.x, series.y]).lower()


@pytest.mark.parametrize("mishap", ["empty", "failed"])
@each_claim
def test_no_verdict_comes_of_trials_that_all_failed(claim, mishap):
    findings = assess(claim, mishaps(claim.name)[mishap])
    assert {f.verdict for f in findings} == {Verdict.INCONCLUSIVE}


@each_claim
def test_a_users_network_is_left_alone_but_for_its_normalization(claim):
    scope = worlds.scope(model="my.py:net", steps=7)
    if claim.left_out(scope):
        assert claim.name in ("gradient_flow", "regularization", "dropout", "recurrent")
        return
    for trial in claim.plan(scope, {}):
        assert (trial.network.kind, trial.momentum, trial.steps) == ("my.py:net", 0.9, 7)


def test_instance_norm_is_tried_only_where_there_is_space_to_normalize_over():
    def kinds(**changed):
        plan = BY_NAME["alternatives"].plan(worlds.scope(**changed), {})
        return {trial.network.norm for trial in plan}

    of_space = {"instance", "filter_response"}
    everything = of_space | {"none", "batch", "layer", "group", "rms", "dynamic_tanh"}
    assert kinds() == kinds(model="my.py:net") == everything
    assert kinds(shape=(20,)) == everything - of_space
    assert kinds(model="my.py:net", instance_possible=False) == everything - {
        "instance",
        "filter_response",
    }


def test_sequences_are_for_the_claims_that_take_them():
    scope = worlds.scope(shape=(12, 29), sequences=True)
    taken = {claim.name for claim in CLAIMS if not claim.reason_against(scope)}
    assert taken == {"recurrent"}
    assert "unequal lengths" in BY_NAME["convergence"].reason_against(scope)
    assert "each sequence up to its own end" in BY_NAME["recurrent"].method(scope)


def test_the_population_is_that_of_the_same_trainings():
    findings = assess(BY_NAME["batch_size"], lambda t: PAPER["batch_size"](t, 1))
    (found,) = (f for f in findings if "population" in f.question)
    assert found.effect_name == "test error of batch of 2 − of batch of 2, population"
    assert found.effect.median == pytest.approx(5)
