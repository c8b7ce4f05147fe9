"""What an operation of a training step counts as in the tables, by its name."""

from __future__ import annotations

from hpcai500.micro_record import Phase

OPTIMIZER, OTHER = "optimizer", "other"
# The first that an operation's name begins with decides; names are those of torch's operators without "aten.".
KINDS = {
    "convolution": ("convolution", "cudnn_convolution", "mkldnn_convolution"),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm", "linear", "dot"),
    "batch norm": ("native_batch_norm", "_native_batch_norm", "cudnn_batch_norm", "_batch_norm", "batch_norm"),
    "pooling": ("max_pool", "avg_pool", "adaptive", "_adaptive", "mean"),
    "ReLU": ("relu", "threshold"),
    "softmax": ("_log_softmax", "_softmax", "nll_loss", "binary_cross_entropy"),
    "RoIAlign": ("align_regions", "_embedding_bag", "_roi_align", "roi_align"),
    "NMS": ("suppress_boxes", "nms"),
    "copy": ("copy", "_to_copy", "clone", "cat", "stack", "contiguous", "fill", "zero", "new_zeros", "zeros"),
    "elementwise": (
        "add",
        "sub",
        "mul",
        "div",
        "where",
        "clamp",
        "exp",
        "log",
        "sum",
        "smooth_l1",
        "maximum",
        "minimum",
    ),
    "upsampling": ("upsample", "_upsample"),
    "selection": ("index", "gather", "scatter", "topk", "sort", "nonzero", "slice_backward", "select_backward"),
}


def kind_of(name: str, phase: Phase) -> str:
    """The kind of an operation.

    Args:
        name: as "aten.convolution_backward".
        phase: everything that the optimizer does is of one kind.
    """
    if phase == "optimizer":
        return OPTIMIZER
    bare = name.rpartition(".")[2]
    return next((kind for kind, beginnings in KINDS.items() if bare.startswith(beginnings)), OTHER)
