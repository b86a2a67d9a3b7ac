"""Checks of how layers are set up: no data needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from livella.diagnosis.checks.damage import of_cause, of_layer
from livella.diagnosis.checks.finding import finding
from livella.diagnosis.records import Finding, Level, Seen

LARGE_MOMENTUM = 0.5


def momentum(seen: Seen) -> Iterator[Finding]:
    """A momentum that keeps nothing of the past, or takes nothing in.

    Torch's momentum is the share of the *new* batch; TensorFlow, Keras and papers give that of the
    old average. 0.99 meant so keeps, in torch, the last batch and hardly anything else: evaluation
    is as noisy as one batch (vision issue 8250). With 0 nothing is ever taken in. Known limit: a
    last epoch at a high momentum may be meant. Remedy: one minus it, or 0.1 for 0, and measure
    again; both leave the function in training alone.
    """
    for layer in seen.layers:
        if layer.family != "batch" or layer.momentum is None or not layer.tracks:
            continue
        numbers = {"momentum": layer.momentum}
        if layer.momentum >= LARGE_MOMENTUM:
            yield finding(
                of_cause(seen, layer), layer.name,
                f"momentum = {layer.momentum:g} is the share of each new batch here: training "
                "leaves the running statistics of its last batch or two. In TensorFlow's sense "
                f"it would be {1 - layer.momentum:.3g}.",
                "momentum", share=layer.share, numbers=numbers,
            )  # fmt: skip
        elif layer.momentum == 0 and not layer.frozen:
            yield finding(
                of_cause(seen, layer), layer.name,
                "momentum = 0: no batch of training is ever taken into the running statistics.",
                "no_momentum", share=layer.share, numbers=numbers,
            )  # fmt: skip


def low_precision(seen: Seen) -> Iterator[Finding]:
    """Running statistics in bfloat16 or float16.

    A step of momentum 0.1 towards a mean that is closer than a few hundredths of it rounds to
    nothing, so the averages come to rest on the way (a running mean of 1.67 where the true one is
    2.0), and large variances overflow float16. Remedy: keep them in float32, which changes no
    output by itself, and measure them again where they do harm.
    """
    for layer in seen.layers:
        if layer.statistics_dtype in ("bfloat16", "float16"):
            yield finding(
                of_cause(seen, layer), layer.name,
                f"The running statistics are kept in {layer.statistics_dtype}: small steps round "
                "to nothing, and they come to rest before they reach the mean.",
                "keep_in_float32" if of_layer(seen, layer) is Level.NOTE else "measure_in_float32",
                share=layer.share,
            )  # fmt: skip


def counters(seen: Seen) -> Iterator[Finding]:
    """Layers that counted other numbers of batches than the rest, or none.

    All layers of a network trained as one have counted the same batches. A layer called twice
    counts twice, one that was frozen or skipped for a while fewer; a checkpoint of another
    framework brings zeros, which matters only where momentum is none (averages of all
    batches). Remedy: none by itself; look at why.
    """
    counted = {layer.name: layer.counter for layer in seen.layers if layer.counter is not None}
    if not counted:
        return
    usual, times = Counter(counted.values()).most_common(1)[0]
    if times == len(counted):
        return
    for layer in seen.layers:
        if layer.counter is not None and layer.counter != usual:
            yield finding(
                Level.NOTE, layer.name,
                f"It counted {layer.counter:,} batches where most layers counted {usual:,}: it was "
                "frozen or skipped for a while, called more than once, or added later.",
                "", numbers={"counter": layer.counter, "usual": usual},
            )  # fmt: skip


def frozen_in_name_only(seen: Seen) -> Iterator[Finding]:
    """Layers meant to be frozen, whose statistics move all the same.

    Two ways: γ and β ask for no gradient, but the layer is in training mode, so each batch
    normalizes by itself and changes the running statistics; or the layer alone was put into
    eval(), which the next `model.train()` undoes (pytorch issue 86590). Known limit: γ and β of a
    network that is all frozen, for feature extraction in eval(), are as they should be, and are
    not found. Remedy: `livella.freeze`, which changes nothing but what training does.
    """
    if not seen.training:
        return
    for layer in seen.layers:
        if layer.family != "batch" or layer.frozen or not layer.tracks:
            continue
        affine = layer.weight is not None or layer.bias is not None
        if layer.mode == "eval":
            said = (
                "It is in eval() within a model in training mode: the next model.train() undoes "
                "that, and its statistics move again."
            )
        elif affine and not layer.trains:
            said = (
                "γ and β are frozen (no gradient), but in training mode it still normalizes by "
                "the batch, and its running statistics still move."
            )
        else:
            continue
        yield finding(Level.WARNING, layer.name, said, "freeze")


def weight_decay(seen: Seen) -> Iterator[Finding]:
    """Weight decay on γ and β, where an optimizer was given.

    Decay on weights before a batch norm acts as a learning rate, as the norm takes their scale out;
    decay on γ and β is on the function itself, and pulls each channel towards silence. Most recipes
    leave it out (He et al. 2019, "Bag of Tricks for Image Classification", section 3.1). Some train
    with it by intent. Remedy: advice only; a group of parameters without decay.
    """
    decayed = [layer for layer in seen.layers if layer.decay and layer.trains]
    if decayed:
        most = max(layer.decay or 0.0 for layer in decayed)
        yield finding(
                Level.NOTE, decayed[0].name,
            f"Weight decay of {most:g} on γ and β of {len(decayed)} layers: most recipes leave "
            "them out.",
            "no_decay", numbers={"decay": most, "layers": len(decayed)},
        )  # fmt: skip


def batch_statistics_in_evaluation(seen: Seen) -> Iterator[Finding]:
    """Batch norms without running statistics: evaluation depends on who else is in the batch.

    The result for one example changes with the others and with the order of evaluation, leaks
    between users' requests, and is undefined for one value a channel. Known limit: it may be meant,
    in style transfer or in a GAN's generator. Remedy: running statistics
    (`track_running_stats=True` and `livella.estimate_population`), which changes the function.
    """
    for layer in seen.layers:
        if layer.family == "batch" and layer.running_mean is None:
            yield finding(
                Level.WARNING, layer.name,
                "It keeps no running statistics: in eval() too each example is normalized by "
                "whatever else is in its batch.",
                "track_statistics",
            )  # fmt: skip


def unsynchronized(seen: Seen) -> Iterator[Finding]:
    """Several processes, each normalizing its own small batch.

    With DistributedDataParallel each process normalizes what it has; below some eight samples that
    is noise (Wu & He 2018, figure 1), and running statistics drift apart. Remedy:
    `livella.nn.SyncBatchNorm.convert`, which changes training and not evaluation.
    """
    if seen.processes < 2 or not 0 < seen.batch <= 8:
        return
    for layer in seen.layers:
        if layer.family == "batch" and "Sync" not in layer.kind and not layer.frozen:
            yield finding(
                Level.WARNING, layer.name,
                f"Each of {seen.processes} processes normalizes its own {seen.batch} samples; "
                f"together they would have {seen.processes * seen.batch}.",
                "synchronize", numbers={"processes": seen.processes, "batch": seen.batch},
            )  # fmt: skip


def unequal_processes(seen: Seen) -> Iterator[Finding]:
    """Running statistics that differ from process to process.

    Which of them are saved is then chance (pytorch issue 13711). Remedy: measure them over all
    processes, safe.
    """
    for name in seen.unequal:
        yield finding(
                Level.WARNING, name,
            f"Its running statistics differ among the {seen.processes} processes; a checkpoint "
            "holds those of one.",
            "measure_statistics",
        )  # fmt: skip
