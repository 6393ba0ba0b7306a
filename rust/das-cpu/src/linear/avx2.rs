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
/// bfloat16 elements of a cache line.
const LINE: usize = 32;
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

/// Features of four outputs.
#[derive(Clone, Copy)]
struct Block {
    weights: [*const Bf16; OUTPUTS],
    /// The same as float32, `BLOCK` from one output to the next.
    widened: *mut f32,
    count: usize,
    /// Weights to ask for on the way; they may lie anywhere, nothing is read.
    ahead: *const Bf16,
    /// How many of them for each feature.
    rate: usize,
}

/// Adds to the sums of `N` rows what a block of features gives, a multiple of `PAIR`. Not inlined: only a loop by itself gets all
/// its sums into registers.
///
/// # Safety
/// `x`, and the weights unless they were kept, are valid for as many elements as the block has.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
unsafe fn add_whole<const N: usize, const SOURCE: u8>(
    block: &Block,
    x: [*const Bf16; N],
    kept: &mut [[__m256; OUTPUTS]; N],
) {
    let Block {
        weights,
        widened,
        count,
        ahead,
        rate,
    } = *block;
    let mut sums = *kept;
    for at in (0..count).step_by(PAIR) {
        fetch(ahead.wrapping_add(at * rate), 1);
        if SOURCE == ONCE {
            fetch(ahead.wrapping_add(at * rate + LINE), 1);
        }
        for odd in [false, true] {
            let mut values = [_mm256_setzero_ps(); N];
            for i in 0..N {
                // SAFETY: `at` is below `count`.
                values[i] = unsafe { widen(x[i].add(at), odd) };
            }
            for j in 0..OUTPUTS {
                // SAFETY: as above, and there is room for a block of widened weights.
                let weight = unsafe {
                    let place = widened.add(j * BLOCK + at + LANES * usize::from(odd));
                    if SOURCE == KEPT {
                        load_f32(place)
                    } else {
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

/// Adds to the sums of `N` rows what a block of features gives.
///
/// # Safety
/// As [`add_whole`].
#[target_feature(enable = "avx2,fma")]
unsafe fn add_block<const N: usize, const SOURCE: u8>(
    block: &Block,
    x: [*const Bf16; N],
    sums: &mut [[__m256; OUTPUTS]; N],
) {
    let whole = block.count / PAIR * PAIR;
    let left = block.count - whole;
    // SAFETY: the caller's; of the last step, only what exists is read.
    unsafe {
        let even = Block {
            count: whole,
            ..*block
        };
        add_whole::<N, SOURCE>(&even, x, sums);
        if left > 0 {
            let x = x.map(|x| padded(x.add(whole), left));
            let weights = block.weights.map(|weight| padded(weight.add(whole), left));
            let last = Block {
                weights: std::array::from_fn(|j| weights[j].as_ptr()),
                widened: block.widened.add(whole),
                count: PAIR,
                ..*block
            };
            add_whole::<N, SOURCE>(&last, std::array::from_fn(|i| x[i].as_ptr()), sums);
        }
    }
}

/// [`add_block`] for `N` rows of `x`, `stride` apart.
///
/// # Safety
/// As [`add_whole`]; `sums` is valid for `N` rows.
#[inline(always)]
unsafe fn add<const N: usize>(
    block: &Block,
    source: u8,
    x: *const Bf16,
    stride: usize,
    sums: *mut [__m256; OUTPUTS],
) {
    // SAFETY: the caller's.
    unsafe {
        let x = std::array::from_fn(|i| x.add(i * stride));
        let sums = &mut *sums.cast::<[[__m256; OUTPUTS]; N]>();
        match source {
            ONCE => add_block::<N, ONCE>(block, x, sums),
            KEEP => add_block::<N, KEEP>(block, x, sums),
            _ => add_block::<N, KEPT>(block, x, sums),
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
    let height = (to - from).div_ceil((to - from).div_ceil(ROWS));
    let tiles = (to - from).div_ceil(height);
    let rate = (OUTPUTS >> tiles.ilog2()).max(1);
    // SAFETY: rows, features and outputs exist; outputs beyond the last repeat it. What was not kept is not read.
    unsafe {
        for row in from..to {
            sums.add(row - from).write([_mm256_setzero_ps(); OUTPUTS]);
        }
        for start in (0..product.features).step_by(BLOCK) {
            let weight = (product.weight as *const Bf16).add(start);
            let mut block = Block {
                weights: std::array::from_fn(|j| {
                    weight.add((output + j.min(kept - 1)) * product.weight_stride)
                }),
                widened,
                count: BLOCK.min(product.features - start),
                ahead: std::ptr::null(),
                rate: 0,
            };
            let next = OUTPUTS * product.weight_stride + (OUTPUTS - 1) * start;
            for (tile, row) in (from..to).step_by(height).enumerate() {
                // What the next four outputs need is asked for a part with each of the first tiles, else one would wait for it all.
                block.rate = if tile * rate < OUTPUTS { rate } else { 0 };
                block.ahead = block.weights[0].wrapping_add(next + tile * rate * block.count);
                let source = match (tile, tiles) {
                    (0, 1) => ONCE,
                    (0, _) => KEEP,
                    _ => KEPT,
                };
                let stride = product.x_stride;
                let x = (product.x as *const Bf16).add(row * stride + start);
                let sums = sums.add(row - from);
                match height.min(to - row) {
                    1 => add::<1>(&block, source, x, stride, sums),
                    2 => add::<2>(&block, source, x, stride, sums),
                    _ => add::<3>(&block, source, x, stride, sums),
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
