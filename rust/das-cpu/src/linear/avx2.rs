//! Dot products in AVX2 with fused multiply-add: float32, and bfloat16 widened to it.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::{Bf16, Float};
use std::arch::x86_64::*;

const LANES: usize = 8;

/// # Safety
/// AVX2 is there; `from` is valid for `LANES` elements.
#[inline(always)]
unsafe fn load_f32(from: *const f32) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_ps(from) }
}

/// # Safety
/// AVX2 is there; `from` is valid for `LANES` elements.
#[inline(always)]
unsafe fn load_bf16(from: *const Bf16) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

/// Writes the totals of four registers of partial sums, each by the same tree.
///
/// # Safety
/// As [`Dot::store`].
#[inline(always)]
unsafe fn store<E: Float>(sums: [__m256; OUTPUTS], bias: *const E, to: *mut E, kept: usize) {
    // SAFETY: reads and writes the `kept` elements that exist.
    unsafe {
        let [a, b, c, d] = sums;
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let whole = _mm_add_ps(
            _mm256_castps256_ps128(pairs),
            _mm256_extractf128_ps::<1>(pairs),
        );
        let mut totals = [0.0f32; OUTPUTS];
        _mm_storeu_ps(totals.as_mut_ptr(), whole);
        for (i, total) in totals.iter().enumerate().take(kept) {
            let bias = if bias.is_null() {
                0.0
            } else {
                (*bias.add(i)).to_f32()
            };
            *to.add(i) = E::from_f32(total + bias);
        }
    }
}

macro_rules! dot {
    ($(#[$doc:meta])* $name:ident, $element:ty, $load:ident, $entry:ident) => {
        $(#[$doc])*
        struct $name;

        impl Dot for $name {
            type Element = $element;
            type Vector = __m256;
            type Sums = __m256;
            const STEP: usize = LANES;
            const ROWS: usize = 2;

            #[inline(always)]
            unsafe fn zero() -> __m256 {
                // SAFETY: the caller's.
                unsafe { _mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn load(from: *const $element) -> __m256 {
                // SAFETY: the caller's.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn load_part(from: *const $element, count: usize) -> __m256 {
                let mut lanes = [<$element>::from_f32(0.0); LANES];
                // SAFETY: `count` elements are there and fewer than the lanes.
                unsafe {
                    std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
                    $load(lanes.as_ptr())
                }
            }
            #[inline(always)]
            unsafe fn add(sums: __m256, a: __m256, b: __m256) -> __m256 {
                // SAFETY: the caller's.
                unsafe { _mm256_fmadd_ps(a, b, sums) }
            }
            #[inline(always)]
            unsafe fn store(sums: [__m256; OUTPUTS], bias: *const $element, to: *mut $element, kept: usize) {
                // SAFETY: the caller's.
                unsafe { store(sums, bias, to, kept) }
            }
        }

        /// # Safety
        /// As [`panel`], and the machine has AVX2 and FMA.
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $entry(product: &Product, from: usize, to: usize, first: usize, last: usize) {
            // SAFETY: the caller's.
            unsafe { panel::<$name>(product, from, to, first, last) }
        }
    };
}

dot! {
    /// float32.
    Single, f32, load_f32, panel_f32
}
dot! {
    /// bfloat16 as float32.
    Widened, Bf16, load_bf16, panel_bf16
}
