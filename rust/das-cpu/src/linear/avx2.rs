//! Dot products in AVX2 with fused multiply-add: float32, and bfloat16 widened to it.
//!
//! Widening costs as much as the multiplication, so bfloat16 weights are widened for the first rows only and kept for the rest, a
//! block of features at a time, so that they stay in the first cache. Partial sums wait in memory between blocks; their order is the
//! same for any number of rows.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::{Bf16, Float};
use crate::machine::fetch;
use std::arch::{asm, x86_64::*};
use std::mem::MaybeUninit;

const LANES: usize = 8;
/// bfloat16 elements of a step: the even ones, then the odd ones, go through the lanes.
const PAIR: usize = 2 * LANES;
/// Features whose widened weights are kept: 12 KiB for four outputs.
const BLOCK: usize = 768;
/// Rows whose partial sums are kept between blocks.
const GROUP: usize = 96;
/// Rows of `x` in registers, beside 12 partial sums and one vector of weights.
const ROWS: usize = 3;

type Widened = [[f32; BLOCK]; OUTPUTS];

/// # Safety
/// AVX2 is there; `from` is valid for `LANES` elements.
#[inline(always)]
unsafe fn load_f32(from: *const f32) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_ps(from) }
}

/// Every second of 16 elements, as float32: the even ones, or the odd ones.
///
/// # Safety
/// AVX2 is there; `from` is valid for `PAIR` elements.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen(from: *const Bf16, odd: bool) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        if !odd {
            let both = _mm256_loadu_si256(from.cast());
            return _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
        }
        // Loaded anew, by an instruction that the compiler does not see through: it would keep the first load in a register
        // for this one, and there are none to spare.
        let both: __m256i;
        asm!("vmovdqu {}, [{}]", out(ymm_reg) both, in(reg) from, options(pure, readonly, nostack, preserves_flags));
        let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        _mm256_castsi256_ps(_mm256_and_si256(both, upper))
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
        let mut biases = [0.0f32; OUTPUTS];
        if !bias.is_null() {
            for (i, to) in biases.iter_mut().enumerate().take(kept) {
                *to = (*bias.add(i)).to_f32();
            }
        }
        let mut totals = [0.0f32; OUTPUTS];
        _mm_storeu_ps(
            totals.as_mut_ptr(),
            _mm_add_ps(whole, _mm_loadu_ps(biases.as_ptr())),
        );
        // All four, so that they are rounded in one vector.
        let rounded = totals.map(E::from_f32);
        if kept == OUTPUTS {
            to.cast::<[E; OUTPUTS]>().write_unaligned(rounded);
        } else {
            std::ptr::copy_nonoverlapping(rounded.as_ptr(), to, kept);
        }
    }
}

/// float32.
struct Single;

impl Dot for Single {
    type Element = f32;
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
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { load_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m256 {
        let mut lanes = [0.0; LANES];
        // SAFETY: `count` elements are there and fewer than the lanes.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            load_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn add(sums: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_fmadd_ps(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn store(sums: [__m256; OUTPUTS], bias: *const f32, to: *mut f32, kept: usize) {
        // SAFETY: the caller's.
        unsafe { store(sums, bias, to, kept) }
    }
}

/// # Safety
/// As [`panel`], and the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel_f32(
    product: &Product,
    from: usize,
    to: usize,
    first: usize,
    last: usize,
) {
    // SAFETY: the caller's.
    unsafe { panel::<Single>(product, from, to, first, last) }
}

/// Where the weights of a tile come from: the model, and nobody needs them again.
const ONCE: u8 = 0;
/// The model, and they are kept as they are widened.
const KEEP: u8 = 1;
/// What was kept.
const KEPT: u8 = 2;

/// Adds to the sums of `N` rows what the next `count` features give, a multiple of `PAIR`. Not inlined: only a loop by itself gets
/// all its sums into registers.
///
/// # Safety
/// `x`, and `weights` unless they were kept, are valid for `count` elements, `widened` for four rows of them, `BLOCK` apart.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
#[expect(
    clippy::needless_range_loop,
    reason = "plain indices keep everything in registers"
)]
unsafe fn block<const N: usize, const SOURCE: u8>(
    sums: &mut [[__m256; OUTPUTS]; N],
    x: [*const Bf16; N],
    weights: [*const Bf16; OUTPUTS],
    widened: *mut f32,
    count: usize,
    ahead: usize,
) {
    let kept = sums;
    let mut sums = *kept;
    for at in (0..count).step_by(PAIR) {
        for odd in [false, true] {
            let mut values = [_mm256_setzero_ps(); N];
            for i in 0..N {
                // SAFETY: `at` is below `count`.
                values[i] = unsafe { widen(x[i].add(at), odd) };
            }
            for j in 0..OUTPUTS {
                // SAFETY: as above, and the widened weights are there; what is fetched may lie anywhere.
                let weight = unsafe {
                    let place = widened.add(j * BLOCK + at + LANES * usize::from(odd));
                    if SOURCE == KEPT {
                        load_f32(place)
                    } else {
                        if !odd {
                            fetch(weights[j].wrapping_add(at + ahead), 1);
                        }
                        let weight = widen(weights[j].add(at), odd);
                        if SOURCE == KEEP {
                            _mm256_storeu_ps(place, weight);
                        }
                        weight
                    }
                };
                for i in 0..N {
                    sums[i][j] = _mm256_fmadd_ps(values[i], weight, sums[i][j]);
                }
            }
        }
    }
    *kept = sums;
}

/// The first `count` elements, then zeros.
///
/// # Safety
/// `from` is valid for `count < PAIR` elements.
#[inline(always)]
unsafe fn padded(from: *const Bf16, count: usize) -> [Bf16; PAIR] {
    let mut all = [Bf16::from_f32(0.0); PAIR];
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), count) };
    all
}

/// Adds to the sums of `N` rows what `count <= BLOCK` features give.
///
/// # Safety
/// As [`block`].
#[target_feature(enable = "avx2,fma")]
unsafe fn features<const N: usize, const SOURCE: u8>(
    sums: &mut [[__m256; OUTPUTS]; N],
    x: [*const Bf16; N],
    weights: [*const Bf16; OUTPUTS],
    widened: *mut f32,
    count: usize,
    ahead: usize,
) {
    let whole = count / PAIR * PAIR;
    let left = count - whole;
    // SAFETY: the caller's; of the last step, only what exists is read.
    unsafe {
        block::<N, SOURCE>(sums, x, weights, widened, whole, ahead);
        if left > 0 {
            let x = x.map(|x| padded(x.add(whole), left));
            let weights = weights.map(|weight| padded(weight.add(whole), left));
            block::<N, SOURCE>(
                sums,
                std::array::from_fn(|i| x[i].as_ptr()),
                std::array::from_fn(|j| weights[j].as_ptr()),
                widened.add(whole),
                PAIR,
                ahead,
            );
        }
    }
}

/// [`features`] for the rows from `row` on and a block that begins at `start`.
///
/// # Safety
/// As [`block`]; `sums` is valid for `N` rows.
#[inline(always)]
unsafe fn rows<const N: usize>(
    product: &Product,
    row: usize,
    weights: [*const Bf16; OUTPUTS],
    start: usize,
    sums: *mut [__m256; OUTPUTS],
    widened: *mut f32,
    source: u8,
) {
    let count = BLOCK.min(product.features - start);
    let ahead = OUTPUTS * product.weight_stride;
    // SAFETY: the caller's.
    unsafe {
        let sums = &mut *sums.cast::<[[__m256; OUTPUTS]; N]>();
        let x = (product.x as *const Bf16).add(row * product.x_stride + start);
        let x = std::array::from_fn(|i| x.add(i * product.x_stride));
        match source {
            ONCE => features::<N, ONCE>(sums, x, weights, widened, count, ahead),
            KEEP => features::<N, KEEP>(sums, x, weights, widened, count, ahead),
            _ => features::<N, KEPT>(sums, x, weights, widened, count, ahead),
        }
    }
}

/// # Safety
/// As [`panel`], and the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel_bf16(
    product: &Product,
    from: usize,
    to: usize,
    first: usize,
    last: usize,
) {
    let mut widened = MaybeUninit::<Widened>::uninit();
    let widened = widened.as_mut_ptr().cast::<f32>();
    let mut sums = [MaybeUninit::<[__m256; OUTPUTS]>::uninit(); GROUP];
    let sums = sums.as_mut_ptr().cast::<[__m256; OUTPUTS]>();
    for from in (from..to).step_by(GROUP) {
        let to = to.min(from + GROUP);
        for output in (first..last).step_by(OUTPUTS) {
            // SAFETY: the caller's; at most `GROUP` rows.
            unsafe { outputs(product, from, to, output, last, sums, widened) };
        }
    }
}

/// Rows `from..to` against the four outputs from `output` on, as far as they come before `last`.
///
/// # Safety
/// As [`panel_bf16`]; `sums` has room for these rows, `widened` for a block of four outputs.
#[inline(always)]
unsafe fn outputs(
    product: &Product,
    from: usize,
    to: usize,
    output: usize,
    last: usize,
    sums: *mut [__m256; OUTPUTS],
    widened: *mut f32,
) {
    let kept = OUTPUTS.min(last - output);
    // Evenly filled tiles: four rows are two of two, not three and one.
    let height = (to - from).div_ceil((to - from).div_ceil(ROWS).max(1));
    // SAFETY: rows, features and outputs exist; outputs beyond the last repeat it. What was not kept is not read.
    unsafe {
        for row in from..to {
            sums.add(row - from).write([_mm256_setzero_ps(); OUTPUTS]);
        }
        for start in (0..product.features).step_by(BLOCK) {
            let weight = (product.weight as *const Bf16).add(start);
            let weights = std::array::from_fn(|j| {
                weight.add((output + j.min(kept - 1)) * product.weight_stride)
            });
            for row in (from..to).step_by(height) {
                let source = match (row == from, height < to - from) {
                    (true, false) => ONCE,
                    (true, true) => KEEP,
                    (false, _) => KEPT,
                };
                let sums = sums.add(row - from);
                match height.min(to - row) {
                    1 => rows::<1>(product, row, weights, start, sums, widened, source),
                    2 => rows::<2>(product, row, weights, start, sums, widened, source),
                    _ => rows::<3>(product, row, weights, start, sums, widened, source),
                }
            }
        }
        let bias = product.bias as *const Bf16;
        let bias = if bias.is_null() {
            bias
        } else {
            bias.add(output)
        };
        for row in from..to {
            let y = (product.y as *mut Bf16).add(row * product.y_stride + output);
            store(*sums.add(row - from), bias, y, kept);
        }
    }
}
