"""Labels are found where people put them, scored as what they are, and a bad one is told."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from livella.diagnosis.scoring import Judge

N, K = 12, 5
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(N) % K
WRONG = (CLASSES + 1) % K
RIGHT = functional.one_hot(CLASSES, K).float() * 8
"""Scores of which the first four will be made wrong."""
SCORES = torch.cat([functional.one_hot(WRONG[:4], K).float() * 8, RIGHT[4:]])
THIRD = torch.tensor([0.0] * 4 + [1.0] * 8, dtype=torch.float64)
Pair = namedtuple("Pair", "image label")


class Net(nn.Module):
    def forward(self, x):
        return x


@dataclass
class Example:
    image: Tensor
    label: Tensor
    id: Tensor


def judged(output, batch, **options):
    judge = Judge.of(output, batch, **{"model": Net(), **options})
    return judge, judge.merit(output, batch, output)


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ((X, CLASSES), "batch[1]"),
        ([X, CLASSES.to(torch.int32)], "batch[1]"),
        ((X, CLASSES.to(torch.uint8)), "batch[1]"),
        ((X, CLASSES[:, None]), "batch[1]"),
        (((X, torch.arange(N) + 100), CLASSES), "batch[1]"),
        ({"image": X, "index": WRONG, "labels": CLASSES}, "batch['labels']"),
        ({"labels": CLASSES, "index": WRONG, "image": X}, "batch['labels']"),
        ({"image": X, "which": CLASSES}, "batch['which']"),
        ({"x": {"image": X}, "y": CLASSES}, "batch['y']"),
        (Example(X, CLASSES, WRONG), "batch.label"),
        (Pair(X, CLASSES), "batch.label"),
    ],
)
def test_class_numbers_are_found_by_name_and_place(batch, where):
    judge, merit = judged(SCORES, batch)
    assert (judge.counted, judge.labels) == ("class numbers", where)
    assert torch.equal(merit, THIRD)
    expected = functional.cross_entropy(SCORES, CLASSES)
    torch.testing.assert_close(judge.loss_of(SCORES, batch), expected)


def test_labels_are_where_the_target_says():
    batch = {"image": X, "a": WRONG, "b": CLASSES}
    for target in ("b", lambda each: each["b"]):
        judge, merit = judged(SCORES, batch, target=target)
        assert torch.equal(merit, THIRD)
        assert judge.labels.startswith("target=")
    assert judged(SCORES, batch, target=None)[0].counted == ""
    assert torch.equal(judged(SCORES, (X, WRONG, CLASSES), target=2)[1], THIRD)
    assert torch.equal(judged(SCORES, (X, WRONG, CLASSES), target=-1)[1], THIRD)


def test_what_is_ignored_counts_for_nothing():
    labels = CLASSES.clone()
    labels[[0, 5]] = -100
    judge, merit = judged(SCORES, (X, labels))
    assert merit.tolist() == [0.0] * 3 + [1.0] * 7
    expected = functional.cross_entropy(SCORES, labels)
    torch.testing.assert_close(judge.loss_of(SCORES, (X, labels)), expected)


def test_rows_of_labels():
    one_hot = functional.one_hot(CLASSES, K)
    for labels in (one_hot, one_hot.float(), one_hot.bool()):
        judge, merit = judged(SCORES, (X, labels))
        assert judge.counted == "one-hot labels"
        assert torch.equal(merit, THIRD)
    soft = 0.9 * one_hot + 0.1 / K
    judge, merit = judged(SCORES, (X, soft))
    torch.testing.assert_close(merit[4:], torch.ones(8, dtype=torch.float64))
    assert (merit[:4] < 0.1).all()
    expected = functional.cross_entropy(SCORES, soft)
    torch.testing.assert_close(judge.loss_of(SCORES, (X, soft)), expected)


def test_several_labels_a_row():
    labels = (torch.arange(N * K).reshape(N, K) % 3 == 0).float()
    output = (labels * 2 - 1) * 4
    output[0] *= -1
    judge, merit = judged(output, (X, labels))
    assert judge.counted == "multi-label"
    assert merit.tolist() == [0.0] + [1.0] * (N - 1)
    expected = functional.binary_cross_entropy_with_logits(output, labels)
    torch.testing.assert_close(judge.loss_of(output, (X, labels)), expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_two_classes_from_one_score(shape, kind):
    labels = (torch.arange(N) % 2).to(kind)
    output = (labels.float() * 2 - 1).reshape(shape)
    output[:3] *= -1
    for scores in (output, output.sigmoid()):
        judge, merit = judged(scores, (X, labels))
        assert judge.counted == "class numbers"
        assert merit.tolist() == [0.0] * 3 + [1.0] * (N - 3)


@pytest.mark.parametrize("channel", [False, True])
def test_pixels(channel):
    labels = torch.randint(0, K, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    output = functional.one_hot(labels, K).movedim(-1, 1).float() * 5
    output[0, :, 0] = output[0, :, 0].roll(1, 0)
    labels[0, 3] = 255
    given = labels[:, None] if channel else labels
    judge, merit = judged(output, (X[:2], given))
    assert merit.tolist() == [pytest.approx(8 / 12), 1.0]
    expected = functional.cross_entropy(output, labels, ignore_index=255)
    torch.testing.assert_close(judge.loss_of(output, (X[:2], given)), expected)


@pytest.mark.parametrize("last", [False, True])
def test_sequences_with_the_classes_in_the_middle_or_last(last):
    labels = torch.randint(0, K, (3, 7), generator=torch.Generator().manual_seed(2))
    output = functional.one_hot(labels, K).float()
    output = output if last else output.movedim(-1, 1)
    assert torch.equal(judged(output, (X[:3], labels))[1], torch.ones(3, dtype=torch.float64))


def test_numbers():
    target = torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
    output = target.clone()
    output[0] += target.var(0, unbiased=False).mean().sqrt()
    judge, merit = judged(output, (X, target))
    assert judge.counted == "numbers"
    assert merit[0] == pytest.approx(0.5)
    assert (merit[1:] == 1).all()
    torch.testing.assert_close(
        judge.loss_of(output, (X, target)), functional.mse_loss(output, target)
    )


@pytest.mark.parametrize("output", [{"logits": SCORES}, {"out": SCORES}, (SCORES, X)])
def test_scores_are_found_in_what_models_give(output):
    assert torch.equal(judged(output, (X, CLASSES))[1], THIRD)


def test_what_is_not_finite_is_not_right():
    output = SCORES.clone()
    output[6] = float("nan")
    assert judged(output, (X, CLASSES))[1].tolist() == [0.0] * 4 + [1.0, 1.0, 0.0] + [1.0] * 5


# Without labels


@pytest.mark.parametrize("form", [torch.softmax, torch.log_softmax, lambda s, _: s])
def test_class_scores_agree_as_far_as_their_probabilities_say(form):
    beside = form(RIGHT, 1)
    judge = Judge.of(beside, X, model=Net())
    merit = judge.merit(form(SCORES, 1), X, beside)
    likely = RIGHT.softmax(1)
    lost = likely.max(1).values - likely.gather(1, SCORES.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(merit, 1 - lost.double())
    assert judge.loss_of(beside, X) is None
    assert (judge.counted, judge.labels) == ("", "")


def test_other_outputs_agree_by_their_distance():
    beside = functional.normalize(torch.randn(N, 6, generator=torch.Generator().manual_seed(4)))
    judge = Judge.of(beside, X, model=Net())
    apart = beside.var(0, unbiased=False).mean().sqrt()
    merit = judge.merit(torch.cat([beside[:6], beside[6:] + apart]), X, beside)
    torch.testing.assert_close(merit, torch.tensor([1.0] * 6 + [0.5] * 6, dtype=torch.float64))


def test_detections_agree_as_far_as_both_go():
    def found(shift=0.0, drop=0):
        generator = torch.Generator().manual_seed(5)
        return [
            {"boxes": (torch.randn(4, 4, generator=generator) + shift)[drop:],
             "labels": torch.ones(4 - drop, dtype=torch.int64)}
            for _ in range(3)
        ]  # fmt: skip

    judge = Judge.of(found(), X, model=Net())
    assert judge.merit(found(), X, found()).tolist() == [1.0] * 3
    assert (judge.merit(found(shift=100.0), X, found()) < 0.01).all()
    assert (judge.merit(found(drop=2), X, found()) <= 0.5).all()
    empty = [{"boxes": torch.zeros(0, 4)}] * 3
    assert judge.merit(empty, X, empty).tolist() == [1.0] * 3


@pytest.mark.parametrize("labels", [True, False])
def test_scores_are_between_nothing_and_one(labels):
    outputs = [torch.randn(N, K), torch.full((N, K), float("inf")), torch.zeros(N, K)]
    batch = (X, CLASSES) if labels else X
    judge = Judge.of(RIGHT, batch, model=Net())
    for output in outputs:
        merit = judge.merit(output, batch, RIGHT)
        assert merit.shape == (N,)
        assert ((merit >= 0) & (merit <= 1)).all()


# What is there and not understood, and what is wrong


def test_what_is_not_understood_is_named():
    batch = {"image": X, "boxes": torch.zeros(N, 2, 4), "label": torch.arange(N * 3).reshape(N, 3)}
    judge = Judge.of(SCORES, batch, model=Net())
    assert judge.counted == ""
    assert set(judge.unread) == {
        "batch['boxes'] of shape (12, 2, 4), float32", "batch['label'] of shape (12, 3), int64",
    }  # fmt: skip


def test_numbers_that_are_mostly_no_classes_are_not_taken_for_labels():
    assert Judge.of(SCORES, (X, torch.arange(N) + 1000), model=Net()).counted == ""


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([9, *CLASSES[1:]]), r"from 0 to 4, got 9 at \[0\]"),
        (torch.tensor([*CLASSES[:-1], -1]), r"got -1 at \[11\]"),
    ],
)
def test_one_bad_label_is_told_with_its_place(labels, message):
    judge = Judge.of(SCORES, (X, labels), model=Net())
    for score in (judge.loss_of, lambda o, b: judge.merit(o, b, o)):
        with pytest.raises(ValueError, match=message) as told:
            score(SCORES, (X, labels))
        assert "\n" not in str(told.value)


def test_a_target_that_is_not_a_number_is_told():
    target = torch.randn(N, K)
    judge = Judge.of(SCORES, (X, target), model=Net())
    target[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity at \[3, 2\]"):
        judge.merit(SCORES, (X, target), SCORES)


def test_a_batch_without_labels_among_others_is_told():
    judge = Judge.of(SCORES, (X, CLASSES), model=Net())
    for batch in (X, (X,), (X, "words")):
        with pytest.raises(ValueError, match=r"expected labels at batch\[1\] in every batch"):
            judge.merit(SCORES, batch, SCORES)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "is not in the batch"),
        (7, "is not in the batch"),
        ("boxes", r"expected labels for an output of shape \(12, 5\), got target='boxes'"),
    ],
)
def test_a_target_that_fits_nothing_is_told(target, message):
    batch = {"image": X, "boxes": torch.zeros(N, 2, 4)}
    with pytest.raises(ValueError, match=message):
        Judge.of(SCORES, batch, target=target, model=Net())


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (nn.CrossEntropyLoss(), TypeError, "wrap it: loss=lambda output, batch"),
        ("mse", TypeError, "expected a function"),
        (functional.cross_entropy, TypeError, "called as loss"),
        (lambda output, batch: output, ValueError, r"got shape \(12, 5\)"),
        (lambda output, batch: 1.0, ValueError, "got float"),
    ],
)
def test_a_loss_that_is_none_is_told(loss, error, message):
    with pytest.raises(error, match=message) as told:
        Judge.of(SCORES, (X, CLASSES), loss=loss, model=Net()).loss_of(SCORES, (X, CLASSES))
    assert "\n" not in str(told.value)
