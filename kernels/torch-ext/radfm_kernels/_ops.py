"""The operator namespace of this copy of the package.

kernel-builder and `kernels/build.py` replace this file in a build, with a namespace of the build's own, so that two versions
can be loaded in one process.
"""

NAMESPACE = "radfm_kernels"


def add_op_namespace_prefix(op_name: str) -> str:
    """Name under which an operator is registered with `torch.library`.

    >>> add_op_namespace_prefix("packed_attention_forward")
    'radfm_kernels::packed_attention_forward'
    """
    return f"{NAMESPACE}::{op_name}"
