"""The cooperative game of body parts: v(A) is the network's output for a clip in which only the parts in A move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from shapmix.kernels import coalition_inputs
from shapmix.networks.arguments import check_clips, check_labels, check_logits, check_mean_motion
from shapmix.networks.modes import isolated_eval_mode
from shapmix.process.choices import check_choice
from shapmix.skeleton.layout import Layout

Output = Literal["probability", "logit", "log_prob"]

OUTPUTS: dict[Output, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: logits.softmax(-1),
    "logit": lambda logits: logits,
    "log_prob": lambda logits: logits.log_softmax(-1),
}

DEFAULT_ROWS = 64  # the size of a training batch

Progress = Callable[[int, int], None]


class PartGame:
    """Exact values of all coalitions of body parts; each coalition is forwarded once.

    Args:
        model: any module that maps [N, C, T, V, M] to logits [N, K].
        layout: skeleton and parts of the clips, 2 to 8 parts.
        mean_motion: [C, T, V, M], replaces the joints outside a coalition.
        output: v is the softmax probability of a class, its logit, or its log-probability.
        max_rows: clips per forward pass; None means 64. Halved on out-of-memory errors, down to 1.
        autocast: dtype of `torch.autocast` for the forward passes, or None.
        restored_frames: as in `coalition_inputs`.
        backend: of the kernels; None selects the fastest.

    `rows_forwarded` is the number of clips forwarded by the last call.

    Raises:
        ValueError: `max_rows` is not positive, or the output is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        mean_motion: Tensor,
        output: Output = "probability",
        *,
        max_rows: int | None = None,
        autocast: torch.dtype | None = None,
        restored_frames: int | None = None,
        backend: str | None = None,
    ) -> None:
        check_choice("output", output, tuple(OUTPUTS))
        check_mean_motion(mean_motion, layout.num_joints, layout.name)
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; give a positive number")
        self.model, self.layout, self.mean_motion, self.output = model, layout, mean_motion, output
        self.max_rows, self.autocast = max_rows, autocast
        self.restored_frames, self.backend = restored_frames, backend
        self.rows_forwarded = 0

    def table(self, clips: Tensor, labels: Tensor | None = None, *, progress: Progress | None = None) -> Tensor:
        """v of every coalition, in bit-set order: column A shows part p if bit p of A is set.

        With P parts, (2^P - 1) N + 1 rows are forwarded, since the empty coalition is the same for all samples. The model runs in
        eval mode without gradients; the modes of its modules, its buffers and torch's random state are restored when the call
        returns or raises.

        Args:
            clips: [N, C, T, V, M].
            labels: [N] int64, the class to explain; None means all classes.
            progress: called with (rows done, total rows) after every forward pass.

        Returns:
            [N, 2^P], or [N, 2^P, K] for all classes; in the dtype of the logits.

        Raises:
            ValueError: clips do not match the mean motion, or labels do not match the clips.
            torch.OutOfMemoryError: a single clip does not fit in memory.
        """
        n = len(clips)
        check_clips(clips, self.mean_motion)
        if labels is not None:
            check_labels(labels, clips, None)  # their range is checked below, once the number of classes is known
        sets = torch.arange(1, self.layout.all_parts + 1, device=clips.device)
        total, self.rows_forwarded = len(sets) * n + 1, 0

        def inputs(begin: int, end: int) -> Tensor:
            return self.mean_motion[None].to(clips) if begin < 0 else self._inputs(clips, sets, begin, end)

        def forward(begin: int, end: int) -> Tensor:
            with torch.autocast(clips.device.type, self.autocast, enabled=self.autocast is not None):
                found: Tensor = self.model(inputs(begin, end))
            check_logits("the network's result", found, end - begin, None)
            self.rows_forwarded += end - begin
            if progress is not None:
                progress(self.rows_forwarded, total)
            return found

        with isolated_eval_mode(self.model), torch.no_grad():
            none = forward(-1, 0)
            if labels is not None:
                check_labels(labels, clips, none.shape[1])
            rows = self.max_rows or DEFAULT_ROWS
            found: list[Tensor] = []
            begin = 0
            while begin < len(sets) * n:
                end = _end_of_chunk(begin, len(sets), len(sets) * n, rows)
                try:
                    found.append(forward(begin, end))
                except torch.OutOfMemoryError:
                    if rows == 1:
                        raise
                    rows = max(1, min(rows, end - begin) // 2)
                    continue
                begin = end
        each = torch.cat(found).unflatten(0, (n, len(sets)))
        every = torch.cat([none.expand(n, 1, -1), each], 1)
        value = OUTPUTS[self.output](every.float() if every.dtype.itemsize < 4 else every)
        return value if labels is None else value.gather(2, labels.view(n, 1, 1).expand(-1, value.shape[1], 1)).squeeze(2)

    def _inputs(self, clips: Tensor, sets: Tensor, begin: int, end: int) -> Tensor:
        """Rows begin..end of the samples' coalitions [end - begin, C, T, V, M], sample by sample; `sets` [S] are a sample's."""
        first, last = begin // len(sets), (end - 1) // len(sets)
        some, wanted = clips[first : last + 1], sets
        if begin % len(sets) or end % len(sets):  # part of one sample
            wanted = sets[begin - first * len(sets) : end - first * len(sets)]
        rows = coalition_inputs(
            some,
            self.mean_motion.to(clips.dtype),
            wanted,
            self.layout.part_of_joint.to(clips.device),
            restored_frames=self.restored_frames,
            backend=self.backend,
        )
        return rows.unflatten(0, (len(wanted), len(some))).transpose(0, 1).flatten(0, 1)


def _end_of_chunk(begin: int, sets: int, total: int, rows: int) -> int:
    """End of a forward pass of at most `rows` rows: whole samples if they fit, else a part of one sample."""
    if begin % sets == 0 and rows >= sets:
        return min(begin + rows // sets * sets, total)
    return min(begin + rows, (begin // sets + 1) * sets)
