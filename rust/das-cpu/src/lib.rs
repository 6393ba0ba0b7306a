//! CPU kernels for SGLang.
