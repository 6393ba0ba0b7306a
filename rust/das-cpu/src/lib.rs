//! CPU kernels for SGLang: attention over its paged key-value pool, seeded sampling, row copies.
//!
//! Every result row is a function of that row's inputs alone: the order of summation never depends on what else is in the
//! batch, on how the work is tiled, or on the number of threads. Results may differ between kinds of CPU.
//!
//! This crate holds all raw pointers and SIMD of the project. Callers hand in addresses of tensors they keep alive.

pub mod attention;
pub mod bf16;
pub mod hash;
pub mod likeliest;
pub mod linear;
pub mod machine;
pub mod pool;
pub mod rows;
pub mod rowwise;
pub mod sampling;

mod error;

pub use error::Error;
