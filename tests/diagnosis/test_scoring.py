"""What a score is of, where labels are found, and that it is right: by scikit-learn and by hand."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from livella.diagnosis.scoring import AUTO, Judge


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def scores(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape)


def numbers(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape)


def judge(output, labels, **options) -> Judge:
    return Judge.of(output, (torch.zeros(len(output), 2), labels), **options)


def merit(output, labels, **options) -> Tensor:
    batch = (torch.zeros(len(output), 2), labels)
    found = Judge.of(output, batch, **options).merit(output, batch, None)
    assert found.dtype == torch.float64
    assert found.shape == (len(output),)
    assert bool(((found >= 0) & (found <= 1)).all())
    return found


ONE_HOT = F.one_hot(torch.arange(12) % 5, 5)
SOFT = torch.softmax(torch.arange(60.0).view(12, 5).sin(), 1)
MANY = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]] * 4)

KINDS = {
    "class numbers": ((12, 5), torch.arange(12) % 5, "class numbers"),
    "a column of them": ((12, 5), torch.arange(12)[:, None] % 5, "class numbers"),
    "int8": ((12, 5), (torch.arange(12) % 5).to(torch.int8), "class numbers"),
    "uint8": ((12, 5), (torch.arange(12) % 5).to(torch.uint8), "class numbers"),
    "bool": ((12, 2), torch.arange(12) % 2 == 0, "class numbers"),
    "one-hot": ((12, 5), ONE_HOT, "one-hot labels"),
    "one-hot floats": ((12, 5), ONE_HOT.float(), "one-hot labels"),
    "soft": ((12, 5), SOFT, "soft labels"),
    "segmentation": ((12, 5, 3, 4), torch.arange(144).view(12, 3, 4) % 5, "pixels"),
    "with a channel": ((12, 5, 3, 4), torch.arange(144).view(12, 1, 3, 4) % 5, "pixels"),
    "masks of one": ((12, 1, 3, 4), torch.arange(144).view(12, 3, 4) % 2, "pixels"),
    "sequences": ((12, 5, 7), torch.arange(84).view(12, 7) % 5, "positions"),
    "classes last": ((12, 7, 5), torch.arange(84).view(12, 7) % 5, "positions"),
    "binary": ((12, 1), torch.arange(12) % 2, "binary labels"),
    "binary floats": ((12,), (torch.arange(12) % 2).float()[:, None], "binary labels"),
    "multi-label": ((12, 5), MANY, "multi-label"),
    "multi-label floats": ((12, 5), MANY.float(), "multi-label"),
    "regression": ((12, 3), torch.arange(36.0).view(12, 3).sin(), "numbers"),
    "one number": ((12, 1), torch.arange(12.0), "numbers"),
    "counts": ((12, 1), 3 * torch.arange(12), "numbers"),
    "images": ((12, 3, 4, 4), torch.arange(576.0).view(12, 3, 4, 4).sin(), "numbers"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_labels_is_told_and_counted(kind):
    shape, labels, counted = KINDS[kind]
    output = scores(*shape).requires_grad_()
    found = judge(output, labels)
    assert (found.counted, found.labels, found.unread) == (counted, "batch[1]", ())
    assert 0 <= float(merit(output, labels).mean()) < 1
    loss = found.loss_of(output, (None, labels))
    (gradient,) = torch.autograd.grad(loss, output)
    assert float(gradient.abs().max()) > 0


# What is counted, by scikit-learn


def test_the_share_right_is_scikit_learns():
    output, labels = scores(40, 5), numbers(40, below=5)
    predicted = output.argmax(1)
    expected = metrics.accuracy_score(labels, predicted)
    assert float(merit(output, labels).mean()) == pytest.approx(expected)
    assert float(merit(output, F.one_hot(labels, 5)).mean()) == pytest.approx(expected)
    assert float(merit(output.softmax(1), labels).mean()) == pytest.approx(expected)

    maps, masks = scores(8, 3, 4, 5), numbers(8, 4, 5, below=3)
    expected = metrics.accuracy_score(masks.flatten(), maps.argmax(1).flatten())
    assert float(merit(maps, masks).mean()) == pytest.approx(expected)

    many = numbers(40, 5, below=2)
    wrong = metrics.hamming_loss(many.numpy(), (scores_of_many := scores(40, 5)).numpy() > 0)
    assert float(merit(scores_of_many, many).mean()) == pytest.approx(1 - wrong)
    assert float(merit(scores_of_many.sigmoid(), many).mean()) == pytest.approx(1 - wrong)

    one, yes = scores(40, 1), numbers(40, below=2)
    expected = metrics.accuracy_score(yes, one[:, 0] > 0)
    assert float(merit(one, yes).mean()) == pytest.approx(expected)


def test_losses_are_those_of_scikit_learn():
    output, labels = scores(40, 5).double(), numbers(40, below=5)
    probabilities = output.softmax(1)
    expected = metrics.log_loss(labels, probabilities, labels=range(5))
    for given in (output, probabilities, output.log_softmax(1)):
        found = judge(given, labels).loss_of(given, (None, labels))
        assert float(found) == pytest.approx(expected, rel=1e-6)
    hot = F.one_hot(labels, 5)
    assert float(judge(output, hot).loss_of(output, (None, hot))) == pytest.approx(expected)

    one, yes = scores(40, 1).double(), numbers(40, below=2)
    expected = metrics.log_loss(yes, one[:, 0].sigmoid())
    for given in (one, one.sigmoid()):
        assert float(judge(given, yes).loss_of(given, (None, yes))) == pytest.approx(expected)

    value, wanted = scores(40, 3), torch.randn(40, 3)
    found = judge(value, wanted).loss_of(value, (None, wanted))
    assert float(found) == pytest.approx(metrics.mean_squared_error(wanted, value), rel=1e-5)


def test_regression_is_half_right_one_deviation_off():
    wanted = torch.randn(500, 1)
    off = wanted + wanted.std(correction=0)
    assert merit(off, wanted) == pytest.approx(np.full(500, 0.5))
    assert bool((merit(wanted, wanted) == 1).all())


def test_what_is_ignored_does_not_count():
    output, labels = scores(6, 4, 3, 3).double(), numbers(6, 3, 3, below=4)
    labels[:, 0, 0], labels[:, 0, 1], labels[2] = 255, -100, -100
    expected = []
    for sample, known in zip(output.argmax(1).numpy(), labels.numpy(), strict=True):
        kept = (known != 255) & (known != -100)
        expected.append((sample == known)[kept].mean() if kept.any() else math.nan)
    found = merit(output, labels).numpy()
    rest = np.delete(found, 2)
    assert rest == pytest.approx(np.delete(expected, 2))
    assert found[2] == pytest.approx(rest.mean())
    probabilities = output.softmax(1).movedim(1, -1)[(labels != 255) & (labels != -100)]
    known = labels[(labels != 255) & (labels != -100)]
    loss = judge(output, labels).loss_of(output, (None, labels))
    assert float(loss) == pytest.approx(metrics.log_loss(known, probabilities, labels=range(4)))


def test_nan_and_infinity_are_wrong_and_nothing_else_is():
    for output, labels in [
        (F.one_hot(torch.arange(6).flip(0), 6) * 9.0, torch.arange(6).flip(0)),
        (torch.arange(6.0)[:, None], torch.arange(6.0)),
    ]:
        broken = output.clone()
        broken[5, 0], broken[3] = math.nan, math.inf
        batch = (torch.zeros(6, 2), labels)
        assert Judge.of(output, batch).merit(broken, batch, None).tolist() == [1, 1, 1, 0, 1, 0]
        for other in (output, output + 0.5):  # without labels too
            free = Judge.of(other, batch, target=None)
            assert free.merit(broken, batch, output)[[5, 3]].tolist() == [0, 0]
            assert free.merit(output, batch, output).tolist() == [1] * 6
            nothing = free.merit(output, batch, torch.full_like(output, math.nan))
            assert bool(nothing.isfinite().all())


# Where labels are


@dataclasses.dataclass
class Sample:
    image: Tensor
    y: Tensor


class Named(NamedTuple):
    image: Tensor
    label: Tensor


class Net(nn.Module):
    def forward(self, x):
        return x


X, Y, ID = torch.randn(12, 5), torch.arange(12) % 5, torch.arange(12) % 3

PLACES = {
    "batch[1]": (X, Y),
    "batch['labels']": {"id": ID, "image": X, "labels": Y, "other": ID},
    "batch['label']": {"label": Y, "image": X},
    "batch.y": Sample(X, Y),
    "batch.label": Named(X, Y),
    "batch[1]['target']": (X, {"id": ID, "target": Y}),
    "batch[0]['y']": ({"image": X, "y": Y}, ID),
    "batch['annotation']": {"image": X, "annotation": Y},
}


@pytest.mark.parametrize("where", PLACES)
def test_labels_are_found_and_named(where):
    batch = PLACES[where]
    found = Judge.of(F.one_hot(Y, 5) * 5.0, batch, model=Net())
    assert (found.labels, found.counted) == (where, "class numbers")
    assert float(found.merit(F.one_hot(Y, 5) * 5.0, batch, None).mean()) == 1


def test_the_last_items_of_a_tuple_come_first_and_those_that_the_outputs_mean():
    output = F.one_hot(Y, 5) * 5.0
    assert Judge.of(output, ((X, ID), Y), model=Net()).labels == "batch[1]"
    assert Judge.of(output, (X, Y, ID), model=Net()).labels == "batch[1]"
    assert Judge.of(output, (X, ID, Y), model=Net()).labels == "batch[2]"
    none = F.one_hot(torch.full((12,), 7), 8) * 5.0
    assert Judge.of(none, (X, ID, Y), model=Net()).labels == "batch[2]"


def test_an_index_is_no_label_unless_it_is_all_there_is():
    index = torch.arange(12)
    assert Judge.of(scores(12, 20), {"image": X, "number": index}, model=Net()).labels == ""
    assert Judge.of(scores(12, 20), (X, Y, index), model=Net()).labels == "batch[1]"
    assert Judge.of(scores(12, 20), (X, index, Y), model=Net()).labels == "batch[2]"
    assert Judge.of(scores(12, 20), {"image": X, "label": index}).labels == "batch['label']"
    stored = (X[:8], torch.arange(8))  # as the digits are
    assert Judge.of(scores(8, 10), stored, model=Net()).labels == "batch[1]"


def test_what_the_model_was_given_is_no_label():
    tokens, labels = torch.arange(12) % 5, Y.flip(0)
    output = F.one_hot(tokens, 5) * 5.0
    assert Judge.of(output, (tokens, labels), model=Net()).labels == "batch[1]"
    assert Judge.of(output, tokens, model=Net()).labels == ""
    two = nn.Bilinear(5, 5, 5)
    found = Judge.of(X, (X, X.sin(), X.cos()), model=two)
    assert found.labels == "batch[2]"


class Whole(nn.Module):
    def forward(self, batch):
        return batch["image"]


def test_labels_in_a_dict_that_the_model_opens_itself_are_labels():
    batch = {"image": X, "other": ID, "labels": Y}
    assert Judge.of(scores(12, 5), batch, model=Whole()).labels == "batch['labels']"
    assert Judge.of(scores(12, 5), {"image": X, "other": ID}, model=Whole()).labels == ""


def test_masks_are_labels_of_pixels_and_of_nothing_else():
    maps, masks = scores(4, 3, 6, 6), numbers(4, 6, 6, below=3)
    batch = {"image": torch.zeros(4, 1, 6, 6), "depth": masks.flip(0), "mask": masks}
    assert Judge.of(maps, batch, model=Net()).labels == "batch['mask']"
    flat = {"image": X, "mask": ID, "kind": Y}
    assert Judge.of(F.one_hot(Y, 5) * 5.0, flat, model=Net()).labels == "batch['kind']"


def test_what_nobody_understands_is_named():
    batch = {
        "image": torch.zeros(2, 1, 8, 8),
        "boxes": torch.rand(2, 12, 4),
        "labels": torch.zeros(2, 12, dtype=torch.long),
        "image_id": torch.arange(2),
        "name": "a",
    }
    found = Judge.of(scores(2, 5), batch, model=Net())
    assert (found.counted, found.labels) == ("", "")  # not the image_id beside labels
    assert found.unread == (
        "batch['boxes'] of shape (2, 12, 4), float32",
        "batch['labels'] of shape (2, 12), int64",
        "batch['image_id'] of shape (2,), int64",
    )
    targets = [{"boxes": torch.rand(n, 4), "labels": torch.ones(n).long()} for n in (3, 1)]
    listed = Judge.of([{"boxes": torch.rand(2, 4)}] * 2, ([torch.zeros(3, 8, 8)] * 2, targets))
    assert listed.unread == (
        "batch[1][0]['boxes'] of shape (3, 4), float32",
        "batch[1][0]['labels'] of shape (3,), int64",
    )


def test_embeddings_of_length_one_are_no_class_scores():
    assert judge(F.normalize(scores(12, 64)), Y).labels == ""
    assert judge(scores(12, 64), 1000 + Y).unread == ("batch[1] of shape (12,), int64",)


def test_of_several_outputs_the_labels_are_beside_the_one_that_knows_them():
    features, logits = scores(12, 64), F.one_hot(Y, 5) * 2.0
    for output in ((features, logits), {"f": features, "logits": logits}, {"a": logits}):
        found = Judge.of(output, (X, Y), model=Net())
        assert float(found.merit(output, (X, Y), None).mean()) == 1


# Where the user says they are


@pytest.mark.parametrize(
    ("target", "batch", "where"),
    [
        ("annotation", {"image": X, "annotation": Y, "labels": ID}, "batch['annotation']"),
        ("annotation", ({"image": X}, {"annotation": Y}), "batch[1]['annotation']"),
        (2, (X, ID, Y), "batch[2]"),
        (-1, (X, ID, Y), "batch[-1]"),
        ("y", Sample(X, Y), "batch.y"),
        (lambda batch: batch["far"]["off"], {"x": X, "far": {"off": Y.tolist()}}, "target="),
    ],
)  # fmt: skip
def test_target_says_where(target, batch, where):
    found = Judge.of(F.one_hot(Y, 5) * 5.0, batch, target=target, model=Net())
    assert (found.labels, found.unread) == (where, ())
    assert float(found.merit(F.one_hot(Y, 5) * 5.0, batch, None).mean()) == 1


def test_target_none_says_there_are_none():
    found = judge(scores(12, 5), Y, target=None)
    assert (found.labels, found.counted, found.unread) == ("", "", ())
    assert found.loss_of(scores(12, 5), (X, Y)) is None


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("lable", r"target='lable': the batch has no such entry, it is the entries image, labels"),
        (3, r"target=3: the batch has no such entry"),
        ("boxes", r"target='boxes': got \(12, 7\) of float32, which fits no output of shape"),
        (lambda batch: {"a": 1}, r"labels target=: expected a tensor, got a dict"),
    ],
)
def test_a_target_that_is_not_there_or_fits_nothing(target, said):
    batch = {"image": X, "labels": Y}
    if target == "boxes":
        batch["boxes"] = torch.zeros(12, 7)
    with pytest.raises(ValueError, match=said) as error:
        Judge.of(scores(12, 5), batch, target=target)
    assert "\n" not in str(error.value)


# Bad labels


BAD = {
    "class": (Y, 5, r"class numbers from 0 to 4.* got 5 at \[7\] of batch 0"),
    "negative": (Y, -1, r"got -1 at \[7\] of batch 0"),
    "pixel": (numbers(12, 2, 2, below=5), 9, r"got 9 at \[7, 0, 0\] \(and 3 more\) of batch 0"),
    "number": (torch.randn(12, 5), math.nan, r"finite numbers, got nan at \[7, 0\]"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("first", [True, False])
def test_one_bad_label_is_an_error_that_names_it(kind, first):
    labels, value, said = BAD[kind]
    output = scores(12, 5, 2, 2) if kind == "pixel" else scores(12, 5)
    bad = labels.clone()
    bad[7] = value
    found = judge(output, bad if first else labels)
    if not first:
        found.merit(output, (X, labels), None)
        said = said.replace("batch 0", "batch 1")
    batch = (X, bad)
    for call in (lambda: found.merit(output, batch, None), lambda: found.loss_of(output, batch)):
        with pytest.raises(ValueError, match=said) as error:
            call()
        assert "target=" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_later_batch_of_another_kind_is_an_error():
    many = judge(scores(12, 5), MANY)
    with pytest.raises(ValueError, match=r"expected 0 or 1, got 0.5 at \[0, 0\]"):
        many.merit(scores(12, 5), (X, torch.full((12, 5), 0.5)), None)
    hot = judge(scores(12, 5), ONE_HOT)
    with pytest.raises(ValueError, match=r"shares of 5 classes, 0 or above and 1 in all"):
        hot.merit(scores(12, 5), (X, MANY), None)
    for batch, said in [
        ((X,), r"labels batch\[1\]: batch 1 has none, where the first has some"),
        ((X, Y[:7]), r"for outputs of shape \(12, 5\), got shape \(7,\) in batch 1"),
        ((X, torch.tensor(3)), r"got shape \(\) in batch 1"),
        ((X, None), "batch 1 has none"),
    ]:
        found = judge(scores(12, 5), Y)
        found.merit(scores(12, 5), (X, Y), None)
        with pytest.raises(ValueError, match=said):
            found.merit(scores(12, 5), batch, None)


def test_a_ragged_batch_is_no_other_kind():
    for shape, labels, _ in KINDS.values():
        output = scores(*shape)
        found = judge(output, labels)
        assert len(found.merit(output[:1], (X, labels[:1]), None)) == 1
        assert math.isfinite(float(found.loss_of(output[:1], (X, labels[:1]))))


# A loss of the user's


def test_a_loss_tells_and_labels_count():
    output = scores(12, 5).requires_grad_()
    found = judge(output, Y, loss=lambda output, batch: output.square().mean() + len(batch))
    expected = float(output.detach().square().mean())
    assert float(found.loss_of(output, (X, Y)).detach()) == pytest.approx(expected + 2)
    assert found.loss_of(output, (X, Y)).requires_grad
    assert found.counted == "class numbers"
    both = Judge.of(output, (X, torch.zeros(12, 2)), loss=lambda output, _: output.sum())
    assert both.unread == ()
    alone = judge(output, Y, loss=lambda output, _: output.sum() * math.nan, target=None)
    assert bool(alone.loss_of(output, (X, Y)).isnan())
    assert alone.counted == ""


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.CrossEntropyLoss(), r"loss=lambda output, batch: CrossEntropyLoss\(\)\(output, batch"),
        (F.cross_entropy, r"loss=lambda output, batch: cross_entropy\(output, batch\[1\]\)"),
        (F.binary_cross_entropy_with_logits, r"which is called on labels"),
        ("cross_entropy", "got a str"),
    ],
)
def test_a_loss_on_labels_is_told_how_to_be_wrapped(loss, said):
    with pytest.raises(TypeError, match=said) as error:
        judge(scores(12, 5), Y, loss=loss)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output, _: output.square().mean(1), r"one number, got a tensor of shape \(12,\)"),
        (lambda output, _: float(output.mean()), "got a float"),
        (lambda output, _: None, "got None"),
        (lambda output, _: output.argmax(), "int64"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(loss, said):
    with pytest.raises(ValueError, match=said):
        judge(scores(12, 5), Y, loss=loss).loss_of(scores(12, 5), (X, Y))


# Without labels


def free(output, batch=X, **options):
    return Judge.of(output, batch, model=Net(), **options)


@pytest.mark.parametrize("form", ["logits", "probabilities", "logarithms", "maps", "last"])
def test_class_scores_lose_the_right_that_trusted_ones_expect(form):
    trusted = 2 * scores(200, 5)
    worse = trusted + scores(200, 5)
    probabilities = trusted.softmax(1).numpy()
    rows = np.arange(200)
    known = probabilities[rows, trusted.argmax(1)] - probabilities[rows, worse.argmax(1)]
    if form == "maps":
        trusted, worse = (each.view(50, 2, 2, 5).movedim(3, 1) for each in (trusted, worse))
    elif form == "last":
        trusted, worse = (each.view(50, 4, 5).log_softmax(2) for each in (trusted, worse))
    elif form != "logits":
        trusted, worse = trusted.log_softmax(1), worse.log_softmax(1)
        if form == "probabilities":
            trusted, worse = trusted.exp(), worse.exp()
    batch = X[:1].expand(len(trusted), 5)
    found = free(trusted, batch).merit(worse, batch, trusted)
    assert found.shape == (len(trusted),)
    assert float(found.mean()) == pytest.approx(1 - known.mean(), rel=1e-5)
    assert bool((free(trusted, batch).merit(trusted, batch, trusted) == 1).all())


@pytest.mark.parametrize(
    "output",
    [scores(200, 5).abs() + 20, F.normalize(scores(200, 64)), 0.3 * scores(200, 5), scores(200, 1)],
    ids=["positive", "embeddings", "undecided", "one"],
)
def test_everything_else_is_compared_by_its_variance(output):
    batch = torch.zeros(200, 2)
    off = output + output.var(0, correction=0).mean().sqrt()
    assert free(output, batch).merit(off, batch, output) == pytest.approx(np.full(200, 0.5))


def test_the_way_of_comparing_is_that_of_the_first_batch():
    sure, unsure = F.one_hot(Y, 5) * 9.0 - 2, F.one_hot(Y, 5) * 0.01
    found = free(sure)
    found.merit(sure, X, sure)
    doubled = found.merit(2 * unsure, X, unsure)  # the same classes, another distance
    assert bool((doubled == 1).all())
    assert float(free(unsure).merit(2 * unsure, X, unsure).mean()) < 1


def test_batches_in_an_order_are_measured_by_the_spread_of_all():
    output = torch.cat([k + 0.01 * torch.randn(20, 3) for k in range(5)])
    off = output + output.std(0, correction=0).mean()
    parts = list(zip(output.split(20), off.split(20), torch.zeros(100, 2).split(20), strict=True))
    found = free(output[:20], parts[0][2])
    for one, _, batch in parts:
        found.see(one, batch)
    merits = torch.cat([found.merit(other, batch, one) for one, other, batch in parts])
    assert float(merits.mean()) == pytest.approx(0.5, abs=0.01)

    labelled = Judge.of(output[:20], (parts[0][2], output[:20]))
    for one, _, batch in parts:
        labelled.see(one, (batch, one))
    merits = [labelled.merit(other, (batch, one), None) for one, other, batch in parts]
    assert float(torch.cat(merits).mean()) == pytest.approx(0.5, abs=0.01)


def test_several_tensors_count_alike():
    trusted = {"a": torch.randn(12, 3), "b": [torch.randn(12, 2, 2), torch.arange(12)]}
    same = {"a": trusted["a"].clone(), "b": list(trusted["b"])}
    assert free(trusted).merit(same, X, trusted).tolist() == [1] * 12
    same["b"][1] = torch.arange(12) + (torch.arange(12) == 4)
    expected = [2 / 3 if k == 4 else 1 for k in range(12)]
    assert free(trusted).merit(same, X, trusted) == pytest.approx(np.array(expected))
    del same["a"]
    assert float(free(trusted).merit(same, X, trusted)[0]) == pytest.approx(2 / 3)


def test_there_is_a_merit_for_each_row_of_the_output():
    trusted = torch.randn(12, 3)
    batch = torch.zeros(7, 12, 2)  # time first
    assert free(trusted, batch).merit(trusted + 1, batch, trusted).shape == (12,)
    assert free(trusted.sum(), batch).merit(trusted.sum(), batch, trusted.sum()).shape == (7,)


def detections(*counts: int) -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": 100 * torch.rand(n, 4),
            "labels": torch.arange(n),
            "scores": torch.rand(n).sort(descending=True).values,
            "masks": torch.rand(n, 1, 4, 4),
        }
        for n in counts
    ]


def test_detections_are_compared_as_sets():
    batch = ([torch.zeros(3, 8, 8)] * 3, [{"boxes": torch.zeros(1, 4)}] * 3)
    trusted = detections(4, 0, 6)
    order = [2, 0, 3, 1]
    shuffled = [{n: t[order] for n, t in trusted[0].items()}, trusted[1], trusted[2]]
    assert free(trusted, batch).merit(shuffled, batch, trusted).tolist() == [1, 1, 1]
    fewer = [trusted[0], trusted[1], {n: t[:3] for n, t in trusted[2].items()}]
    some = free(trusted, batch).merit(fewer, batch, trusted)
    assert some[:2].tolist() == [1, 1]
    assert 0.5 < float(some[2]) < 1
    none = [trusted[2], detections(2)[0], detections(0)[0]]
    others = free(trusted, batch).merit(none, batch, trusted)
    assert others[1:].tolist() == [0, 0]
    assert float(others[0]) < 0.7
    moved = [{n: t.clone() for n, t in each.items()} for each in trusted]
    moved[0]["boxes"][0] += 500
    moved[2]["boxes"][-1] += 500  # of which the detector is less sure
    found = free(trusted, batch).merit(moved, batch, trusted)
    sure = [float(each["scores"].div(each["scores"].sum())[at]) for each, at in
            ((trusted[0], 0), (trusted[2], -1))]  # fmt: skip
    assert found[[0, 2]] == pytest.approx(1 - np.array(sure), abs=0.02)
    renamed = [{**each, "labels": each["labels"] + 20} for each in trusted]
    assert free(trusted, batch).merit(renamed, batch, trusted).tolist() == [0, 1, 0]


def test_dense_detections_are_compared_tensor_by_tensor():
    trusted = (torch.randn(12, 30, 4), [torch.randn(12, 30, 9), torch.randn(30, 2)])
    broken = (trusted[0].clone(), [trusted[1][0].clone(), trusted[1][1].clone()])
    broken[0][5] = math.nan
    found = free(trusted).merit(broken, X, trusted)
    assert found == pytest.approx(np.array([2 / 3 if k == 5 else 1 for k in range(12)]))


def test_the_default_finds_them():
    assert Judge.of(scores(12, 5), (X, Y), target=AUTO).labels == "batch[1]"
