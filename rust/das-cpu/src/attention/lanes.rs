//! Inner loops over fixed arrays of 16 float32 lanes, which the compiler turns into the vectors at hand.

use super::BLOCK;
use super::kernel::{Inner, ROWS, Task, run};
use crate::bf16::{Bf16, Float};
use crate::machine::{exp2, multiply_add};
use std::marker::PhantomData;

const LANES: usize = 16;

/// float32 arithmetic on elements `E`, with fused multiply-add where the machine has it.
pub(super) struct Lanes<E, const FUSED: bool>(PhantomData<E>);

impl<E: Float, const FUSED: bool> Inner for Lanes<E, FUSED> {
    type Element = E;
    type Word = f32;
    type Weight = f32;
    const PACKED: usize = 1;
    const VALUE_LANES: usize = LANES;

    #[inline(always)]
    unsafe fn load_query(from: *const E, dim: usize, to: &mut [f32]) {
        for (i, word) in to[..dim].iter_mut().enumerate() {
            // SAFETY: `i < dim`.
            *word = unsafe { *from.add(i) }.to_f32();
        }
    }

    #[inline(always)]
    unsafe fn load_keys(keys: &[*const E], offset: usize, dim: usize, to: &mut [f32]) {
        for (column, &key) in keys.iter().enumerate() {
            for (word, row) in to.chunks_exact_mut(BLOCK).take(dim).enumerate() {
                // SAFETY: `word < dim`.
                row[column] = unsafe { *key.add(offset + word) }.to_f32();
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const N: usize>(
        query: &[f32],
        keys: &[f32],
        count: usize,
        scores: &mut [f32],
    ) {
        let words = query.len() / N;
        for first in (0..count).step_by(LANES) {
            let mut sums = [[0.0f32; LANES]; N];
            for (word, row) in keys.chunks_exact(BLOCK).take(words).enumerate() {
                let key: &[f32; LANES] =
                    row[first..first + LANES].try_into().expect("a whole group");
                for (r, sum) in sums.iter_mut().enumerate() {
                    let q = query[r * words + word];
                    for lane in 0..LANES {
                        sum[lane] = multiply_add::<FUSED>(q, key[lane], sum[lane]);
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                scores[r * BLOCK + first..][..LANES].copy_from_slice(sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh(
        scores: &mut [f32],
        count: usize,
        scale: f32,
        maximum: &mut f32,
        sum: &mut f32,
        weights: &mut [f32],
    ) -> f32 {
        let old = *maximum;
        let mut new = old;
        for score in &mut scores[..count] {
            *score *= scale;
            new = if *score > new { *score } else { new };
        }
        scores[count..].fill(f32::NEG_INFINITY);
        *maximum = new;
        let mut lanes = [0.0f32; LANES];
        for (group, to) in scores
            .chunks_exact(LANES)
            .zip(weights.chunks_exact_mut(LANES))
        {
            for lane in 0..LANES {
                let weight = if group[lane] == f32::NEG_INFINITY {
                    0.0
                } else {
                    exp2::<FUSED>(group[lane] - new)
                };
                to[lane] = weight;
                lanes[lane] += weight;
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        let factor = if old == f32::NEG_INFINITY {
            0.0
        } else {
            exp2::<FUSED>(old - new)
        };
        *sum = multiply_add::<FUSED>(*sum, factor, lanes[0]);
        factor
    }

    #[inline(always)]
    unsafe fn accumulate<const N: usize>(
        values: &[*const E],
        offset: usize,
        dim: usize,
        weights: &[f32],
        factors: &[f32; ROWS],
        sums: &mut [f32],
    ) {
        let stride = sums.len() / N;
        for first in (0..dim).step_by(LANES) {
            let width = LANES.min(dim - first);
            let mut held = [[0.0f32; LANES]; N];
            for (r, held) in held.iter_mut().enumerate() {
                for lane in 0..LANES {
                    held[lane] = sums[r * stride + first + lane] * factors[r];
                }
            }
            for (i, &value) in values.iter().enumerate() {
                let mut lanes = [0.0f32; LANES];
                if width == LANES {
                    // SAFETY: `first + LANES <= dim`.
                    let whole = unsafe { *value.add(offset + first).cast::<[E; LANES]>() };
                    for lane in 0..LANES {
                        lanes[lane] = whole[lane].to_f32();
                    }
                } else {
                    for (lane, to) in lanes[..width].iter_mut().enumerate() {
                        // SAFETY: `first + width == dim`.
                        *to = unsafe { *value.add(offset + first + lane) }.to_f32();
                    }
                }
                for (r, held) in held.iter_mut().enumerate() {
                    let weight = weights[r * BLOCK + i];
                    for lane in 0..LANES {
                        held[lane] = multiply_add::<FUSED>(weight, lanes[lane], held[lane]);
                    }
                }
            }
            for (r, held) in held.iter().enumerate() {
                sums[r * stride + first..][..LANES].copy_from_slice(held);
            }
        }
    }

    #[inline(always)]
    unsafe fn store(sums: &[f32], sum: f32, dim: usize, to: *mut E) {
        for (i, value) in sums[..dim].iter().enumerate() {
            // SAFETY: `i < dim`.
            unsafe { *to.add(i) = E::from_f32(value / sum) };
        }
    }
}

macro_rules! entry {
    ($name:ident, $element:ty, $fused:tt, $($feature:literal)?) => {
        /// # Safety
        /// As [`run`], and the machine has the features named.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $name(task: &Task<'_>) {
            // SAFETY: the caller's.
            unsafe { run::<Lanes<$element, $fused>>(task) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
entry!(
    run_avx512_f32,
    f32,
    true,
    "avx512f,avx512bw,avx512vl,avx512dq,fma"
);
#[cfg(target_arch = "x86_64")]
entry!(
    run_avx512_bf16,
    Bf16,
    true,
    "avx512f,avx512bw,avx512vl,avx512dq,fma"
);
#[cfg(target_arch = "x86_64")]
entry!(run_avx2_f32, f32, true, "avx2,fma");
#[cfg(target_arch = "x86_64")]
entry!(run_avx2_bf16, Bf16, true, "avx2,fma");
entry!(run_portable_f32, f32, { cfg!(target_arch = "aarch64") },);
entry!(run_portable_bf16, Bf16, { cfg!(target_arch = "aarch64") },);
