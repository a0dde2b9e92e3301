"""The name under which this copy's operators are registered; a build has its own, so that two copies can be loaded."""

NAMESPACE = "radfm_kernels"
