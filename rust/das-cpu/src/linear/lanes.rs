//! Dot products over fixed arrays of float32 lanes, which the compiler turns into the vectors at hand.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::{Bf16, Float};
use std::marker::PhantomData;

const LANES: usize = 8;

/// float32 arithmetic on elements `E`, with fused multiply-add where the machine has it.
struct Lanes<E, const FUSED: bool>(PhantomData<E>);

impl<E: Float, const FUSED: bool> Dot for Lanes<E, FUSED> {
    type Element = E;
    type Vector = [f32; LANES];
    type Sums = [f32; LANES];
    const STEP: usize = LANES;
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> [f32; LANES] {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const E) -> [f32; LANES] {
        // SAFETY: the caller's.
        unsafe { *from.cast::<[E; LANES]>() }.map(E::to_f32)
    }
    #[inline(always)]
    unsafe fn load_part(from: *const E, count: usize) -> [f32; LANES] {
        // SAFETY: only the first `count` are touched.
        std::array::from_fn(|i| {
            if i < count {
                unsafe { *from.add(i) }.to_f32()
            } else {
                0.0
            }
        })
    }
    #[inline(always)]
    unsafe fn add(sums: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| {
            if FUSED {
                a[i].mul_add(b[i], sums[i])
            } else {
                a[i] * b[i] + sums[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn store(sums: [[f32; LANES]; OUTPUTS], bias: *const E, to: *mut E, kept: usize) {
        for (i, &[a, b, c, d, e, f, g, h]) in sums.iter().enumerate().take(kept) {
            let total = ((a + e) + (b + f)) + ((c + g) + (d + h));
            // SAFETY: `i < kept`.
            unsafe {
                let bias = if bias.is_null() {
                    0.0
                } else {
                    (*bias.add(i)).to_f32()
                };
                *to.add(i) = E::from_f32(total + bias);
            }
        }
    }
}

macro_rules! entry {
    ($name:ident, $element:ty, $fused:tt, $($feature:literal)?) => {
        /// # Safety
        /// As [`panel`], and the machine has the features named.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $name(product: &Product, from: usize, to: usize, first: usize, last: usize) {
            // SAFETY: the caller's.
            unsafe { panel::<Lanes<$element, $fused>>(product, from, to, first, last) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
entry!(panel_avx2_f32, f32, true, "avx2,fma");
#[cfg(target_arch = "x86_64")]
entry!(panel_avx2_bf16, Bf16, true, "avx2,fma");
entry!(panel_portable_f32, f32, { cfg!(target_arch = "aarch64") },);
entry!(panel_portable_bf16, Bf16, { cfg!(target_arch = "aarch64") },);
