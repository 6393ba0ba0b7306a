//! Dot products over fixed arrays of float32 lanes, which the compiler turns into the vectors at hand. Loops, not closures:
//! those would lose the instruction set.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::{Bf16, Float};
use crate::machine::multiply_add;
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
        let whole = unsafe { *from.cast::<[E; LANES]>() };
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = whole[i].to_f32();
        }
        lanes
    }
    #[inline(always)]
    unsafe fn load_part(from: *const E, count: usize) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: `i < count`.
            *lane = unsafe { *from.add(i) }.to_f32();
        }
        lanes
    }
    #[inline(always)]
    unsafe fn add(mut sums: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for i in 0..LANES {
            sums[i] = multiply_add::<FUSED>(a[i], b[i], sums[i]);
        }
        sums
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
    ($name:ident, $element:ty) => {
        /// # Safety
        /// As [`panel`].
        pub(super) unsafe fn $name(
            product: &Product,
            from: usize,
            to: usize,
            first: usize,
            last: usize,
        ) {
            // SAFETY: the caller's.
            unsafe {
                panel::<Lanes<$element, { cfg!(target_arch = "aarch64") }>>(
                    product, from, to, first, last,
                )
            }
        }
    };
}

entry!(panel_portable_f32, f32);
entry!(panel_portable_bf16, Bf16);
