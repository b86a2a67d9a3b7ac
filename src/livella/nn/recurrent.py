"""Recurrent layers with batch normalization inside the recurrence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from livella.nn import cells
from livella.nn.packing import Data, Lengths
from livella.nn.stack import BatchNormRNN, Own


class BatchNormLSTM(BatchNormRNN):
    """A long short-term memory whose recurrence is batch-normalized; takes `torch.nn.LSTM`'s place.

    (i, f, g, o) = BN(W_h·h; γ_h) + BN(W_x·x; γ_x) + b
    c′ = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
    h′ = σ(o) ⊙ tanh(BN(c′; γ_c) + β_c)

    Cooijmans, Ballas, Laurent, Gülçehre & Courville 2017, "Recurrent Batch Normalization", section
    3, equations 6 to 8. BN(a; γ) = γ·(a − μ)/√(σ² + ε), with the mean and the biased variance of
    the *valid* elements of the batch at this step. γ starts at 0.1: at one, tanh saturates and
    gradients vanish (section 4 there).

    In training the sequences that still run at a step are its batch. Where a single one is left it
    has no variance: the moments of the last step with two or more of this same pass normalize it,
    as given numbers in the gradient, and it enters no running statistics. Running statistics are
    averages of the batches' means and *unbiased* variances:

    * "per_step": for each step, as many as the longest batch of training had (that is, as its
      second longest sequence); beyond, the last are used again. A new step starts with those of
      the last one. The number of rows is part of the `state_dict`, and loading adopts it.
    * "shared": one set for all steps. W_x·x is then normalized over batch and time, in training
      too, as in Deep Speech 2; the other two, which cannot know the steps to come, by each step's
      batch, and their running statistics take in the pooled moments of all steps.

    Parameters have torch's names, shapes and order of gates, so `load_state_dict(lstm.state_dict(),
    strict=False)` takes them over from a `torch.nn.LSTM`. The others are `gamma_ih_l0`,
    `gamma_hh_l0`, `gamma_c_l0`, `beta_c_l0`, and as buffers `running_mean_ih_l0`,
    `running_var_ih_l0` and so on, each (steps, channels), and `num_batches_tracked_l0`, (steps,).
    Weights start as torch's; the paper's are orthogonal, W_h the identity: `torch.nn.init` on them.

    Two switches are attributes, as in `BatchNorm2d`: `normalize_by` ("batch", "running" or none for
    torch's rule) and `update_running`. Where running statistics normalize they stay as they are.
    `livella.freeze` puts it into evaluation, between whose calls nothing changes, and
    `livella.step` takes its statistics back. `estimate_population`, `set_update_policy` and
    `SyncBatchNorm.convert` leave it alone and say so, `accumulate` refuses it, and torch's tools
    know nothing of it. Where buffers must keep their size, under `DistributedDataParallel`, in
    averages of the whole model or in an exported training step, give `max_length`; statistics are
    those of each process.

    Args:
        input_size: F, features of the input.
        hidden_size: H, units.
        num_layers: layers, each fed by the one before. Default: 1.
        bias: learn b (two of them, as torch has) and β_c. Default: true.
        batch_first: take and give (N, T, F) instead of (T, N, F). Default: false.
        dropout: share of values dropped between layers, in training. Default: 0.
        bidirectional: also run each sequence from its own end. Default: false.
        device: where parameters and buffers live. Default: torch's.
        dtype: their dtype. Default: torch's.
        statistics: "per_step" or "shared". Default: "per_step".
        max_length: fixes how many steps have running statistics of their own; the last row is then
            that of all further steps together. Default: as many as are met.
        gamma: where γ_h, γ_x and γ_c start. Default: 0.1.
        eps: ε. Default: 1e-5.
        momentum: the share of each batch in the running statistics; none averages all batches
            equally. Default: 0.1.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> lstm = BatchNormLSTM(12, 32, batch_first=True)
        >>> output, (h, c) = lstm(torch.randn(3, 29, 12), lengths=[7, 29, 13])
        >>> output.shape, h.shape
        (torch.Size([3, 29, 32]), torch.Size([1, 3, 32]))

    """

    gates = 4
    normalized = {"ih": 4, "hh": 4, "c": 1}  # noqa: RUF012  a constant of the class
    states = ("h", "c")

    def forward(
        self,
        input: Data,  # noqa: A002  torch's name
        state: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
    ) -> tuple[Data, tuple[Tensor, Tensor]]:
        """Run the layers over sequences.

        Args:
            input: (T, N, F), or (N, T, F) if `batch_first`, or a `PackedSequence`, sorted or not.
                Also (T, F), one sequence, where running statistics normalize.
            state: h and c before the first step, each (layers·directions, N, H). Default: zeros.
            lengths: of each sequence, from 1 to T, in any order. What lies past an end has no
                influence on anything, bit for bit, whatever it holds. Default: all are T.

        Returns:
            Output, in the form of the input, with H·directions features, zero past the ends; and h
            and c of each sequence after its own last step.

        Raises:
            TypeError: the input is of no floating dtype, lengths are no integers.
            ValueError: a wrong shape, dtype or device of input or state, wrong lengths, or a single
                sequence in training. Running statistics are then as they were.

        """
        output, (h, c) = self._run(input, state, lengths)
        return output, (h, c)

    def _input_bias(self, own: Own) -> Tensor | None:
        if own.bias_ih is None or own.bias_hh is None:
            return None
        return own.bias_ih + own.bias_hh

    def _cell(self, own: Own, steps: dict[str, Any]) -> cells.LSTM:
        assert own.gamma_c is not None, "an LSTM has it"
        return cells.LSTM(
            steps["hh"], steps["c"], own.weight_hh, own.gamma_hh, own.gamma_c, own.beta_c
        )


class BatchNormGRU(BatchNormRNN):
    """A gated recurrent unit whose recurrence is batch-normalized; takes `torch.nn.GRU`'s place.

    r = σ(BN(W_xr·x) + b_xr + BN(W_hr·h) + b_hr)
    z = σ(BN(W_xz·x) + b_xz + BN(W_hz·h) + b_hz)
    n = tanh(BN(W_xn·x) + b_xn + r ⊙ (BN(W_hn·h) + b_hn))
    h′ = (1 − z) ⊙ n + z ⊙ h

    Cho et al. 2014, "Learning Phrase Representations using RNN Encoder–Decoder", as torch has it,
    with the two products normalized by the principle of Cooijmans et al. 2017, section 3.
    Arguments, statistics, names and errors are those of `BatchNormLSTM`; there is no c.

    Example:
        >>> gru = BatchNormGRU(12, 32, bidirectional=True)
        >>> output, h = gru(torch.randn(29, 3, 12))
        >>> output.shape, h.shape
        (torch.Size([29, 3, 64]), torch.Size([2, 3, 32]))

    """

    gates = 3
    normalized = {"ih": 3, "hh": 3}  # noqa: RUF012  a constant of the class
    states = ("h",)

    def forward(
        self,
        input: Data,  # noqa: A002  torch's name
        state: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
    ) -> tuple[Data, Tensor]:
        """Run the layers over sequences; see `BatchNormLSTM.forward`, with h alone as the state."""
        output, (h,) = self._run(input, None if state is None else (state,), lengths)
        return output, h

    def _input_bias(self, own: Own) -> Tensor | None:
        return own.bias_ih

    def _cell(self, own: Own, steps: dict[str, Any]) -> cells.GRU:
        return cells.GRU(steps["hh"], own.weight_hh, own.bias_hh, own.gamma_hh)
