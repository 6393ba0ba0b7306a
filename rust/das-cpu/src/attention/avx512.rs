//! Inner loops in bfloat16 dot products: two multiply-adds per lane and instruction, products exact, sums in float32.

use super::BLOCK;
use super::kernel::{Inner, ROWS, Task, run};
use crate::bf16::Bf16;
use crate::machine::EXP2_TERMS;
use std::arch::x86_64::*;

/// float32 lanes of a register.
const LANES: usize = 16;
/// Registers across a block of keys.
const GROUPS: usize = BLOCK / LANES;
/// Value elements per step of `accumulate`: four accumulators a row.
const CHUNK: usize = 64;

/// AVX-512 with its bfloat16 extension.
pub(super) struct DotBf16;

/// # Safety
/// As [`run`], and the machine has the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
pub(super) unsafe fn run_bf16(task: &Task<'_>) {
    // SAFETY: the caller's.
    unsafe { run::<DotBf16>(task) }
}

/// Bits of the first `count` of 32 elements.
#[inline(always)]
fn first(count: usize) -> u32 {
    if count >= 32 {
        u32::MAX
    } else {
        (1 << count) - 1
    }
}

/// 32 elements from `from` on, of which `count` exist, all of them if `WHOLE`.
///
/// # Safety
/// `from` is valid for `count` elements, for 32 if `WHOLE`.
#[inline(always)]
unsafe fn load<const WHOLE: bool>(from: *const Bf16, count: usize) -> __m512i {
    // SAFETY: masked-off elements are not touched.
    unsafe {
        if WHOLE {
            _mm512_loadu_si512(from.cast())
        } else {
            _mm512_maskz_loadu_epi16(first(count), from.cast())
        }
    }
}

/// The transpose of a 16 x 16 matrix of 32-bit words.
///
/// # Safety
/// AVX-512F is there.
#[inline(always)]
unsafe fn transpose(rows: &mut [__m512i; LANES]) {
    // SAFETY: register arithmetic only.
    unsafe {
        let mut a = [_mm512_setzero_si512(); LANES];
        for i in 0..LANES / 2 {
            a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // b[4q + k]: words k, k+4, k+8, k+12 of rows 4q..4q+4, one per 128-bit lane.
        let mut b = [_mm512_setzero_si512(); LANES];
        for q in 0..4 {
            b[4 * q] = _mm512_unpacklo_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 1] = _mm512_unpackhi_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 2] = _mm512_unpacklo_epi64(a[4 * q + 1], a[4 * q + 3]);
            b[4 * q + 3] = _mm512_unpackhi_epi64(a[4 * q + 1], a[4 * q + 3]);
        }
        for k in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x44>(b[k], b[4 + k]);
            let high = _mm512_shuffle_i32x4::<0xee>(b[k], b[4 + k]);
            let low2 = _mm512_shuffle_i32x4::<0x44>(b[8 + k], b[12 + k]);
            let high2 = _mm512_shuffle_i32x4::<0xee>(b[8 + k], b[12 + k]);
            rows[k] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            rows[4 + k] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            rows[8 + k] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            rows[12 + k] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }
    }
}

/// 2^x for x <= 0, to about one unit in the last place; zero far below.
///
/// # Safety
/// AVX-512F is there.
#[inline(always)]
unsafe fn exp2(x: __m512) -> __m512 {
    // SAFETY: register arithmetic only.
    unsafe {
        // In this operand order NaN stays NaN.
        let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
        let whole = _mm512_roundscale_ps::<0x08>(x);
        let rest = _mm512_sub_ps(x, whole);
        let mut y = _mm512_set1_ps(EXP2_TERMS[0]);
        for &c in &EXP2_TERMS[1..] {
            y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(y, whole)
    }
}

impl Inner for DotBf16 {
    type Element = Bf16;
    /// Two adjoining elements.
    type Word = i32;
    type Weight = u16;
    const PACKED: usize = 2;
    const VALUE_LANES: usize = CHUNK;

    #[inline(always)]
    unsafe fn load_query(from: *const Bf16, dim: usize, to: &mut [i32]) {
        for (i, word) in to.iter_mut().enumerate() {
            // SAFETY: indices stay below `dim`.
            let (low, high) = unsafe {
                let high = if 2 * i + 1 < dim {
                    (*from.add(2 * i + 1)).0
                } else {
                    0
                };
                ((*from.add(2 * i)).0, high)
            };
            *word = (u32::from(low) | u32::from(high) << 16) as i32;
        }
    }

    #[inline(always)]
    unsafe fn load_keys(keys: &[*const Bf16], offset: usize, dim: usize, to: &mut [i32]) {
        debug_assert!(to.len() >= dim.div_ceil(2) * BLOCK);
        for group in 0..keys.len().div_ceil(LANES) {
            // The last key fills an incomplete group.
            let key = |i: usize| keys[(group * LANES + i).min(keys.len() - 1)].wrapping_add(offset);
            let keys: [*const Bf16; LANES] = std::array::from_fn(key);
            for start in (0..dim).step_by(2 * LANES) {
                // SAFETY: loads stay within `dim`; there are as many rows of words as stored.
                unsafe {
                    let to = to.as_mut_ptr().add(start / 2 * BLOCK + group * LANES);
                    if dim - start >= 2 * LANES {
                        load_words::<true>(&keys, start, 2 * LANES, to);
                    } else {
                        load_words::<false>(&keys, start, dim - start, to);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const N: usize>(
        query: &[i32],
        keys: &[i32],
        count: usize,
        scores: &mut [f32],
    ) {
        let words = query.len() / N;
        debug_assert!(keys.len() >= words * BLOCK && scores.len() >= N * BLOCK);
        // SAFETY: `keys` holds `words` rows of BLOCK, `query` N rows of `words`, `scores` N rows of BLOCK.
        unsafe {
            match count.div_ceil(LANES) {
                1 => {
                    score_groups::<N, 1>(query.as_ptr(), keys.as_ptr(), words, scores.as_mut_ptr())
                }
                2 => {
                    score_groups::<N, 2>(query.as_ptr(), keys.as_ptr(), words, scores.as_mut_ptr())
                }
                3 => {
                    score_groups::<N, 3>(query.as_ptr(), keys.as_ptr(), words, scores.as_mut_ptr())
                }
                _ => score_groups::<N, GROUPS>(
                    query.as_ptr(),
                    keys.as_ptr(),
                    words,
                    scores.as_mut_ptr(),
                ),
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
        weights: &mut [u16],
    ) -> f32 {
        debug_assert!(scores.len() == BLOCK && weights.len() == BLOCK && count <= BLOCK);
        let old = *maximum;
        // SAFETY: both slices hold BLOCK elements.
        unsafe {
            let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
            let scale = _mm512_set1_ps(scale);
            let mut scaled = [nothing; GROUPS];
            for (g, scaled) in scaled.iter_mut().enumerate() {
                let seen = first(count.saturating_sub(g * LANES).min(LANES)) as u16;
                let score = _mm512_loadu_ps(scores[g * LANES..].as_ptr());
                *scaled = _mm512_mask_mul_ps(nothing, seen, score, scale);
            }
            let highest = _mm512_max_ps(
                _mm512_max_ps(scaled[0], scaled[1]),
                _mm512_max_ps(scaled[2], scaled[3]),
            );
            let new = old.max(_mm512_reduce_max_ps(highest));
            *maximum = new;
            let shift = _mm512_set1_ps(new);
            let mut total = [_mm512_setzero_ps(); GROUPS];
            for (g, total) in total.iter_mut().enumerate() {
                let weight = _mm512_cvtneps_pbh(exp2(_mm512_sub_ps(scaled[g], shift)));
                let weight: __m256i = std::mem::transmute(weight);
                _mm256_storeu_si256(weights[g * LANES..].as_mut_ptr().cast(), weight);
                // Sum what will be used: the rounded weights.
                *total =
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(weight)));
            }
            let total = _mm512_add_ps(
                _mm512_add_ps(total[0], total[1]),
                _mm512_add_ps(total[2], total[3]),
            );
            let factor = _mm512_cvtss_f32(exp2(_mm512_set1_ps(old - new)));
            let factor = if old == f32::NEG_INFINITY {
                0.0
            } else {
                factor
            };
            *sum = sum.mul_add(factor, _mm512_reduce_add_ps(total));
            factor
        }
    }

    #[inline(always)]
    unsafe fn accumulate<const N: usize>(
        values: &[*const Bf16],
        offset: usize,
        dim: usize,
        weights: &[u16],
        factors: &[f32; ROWS],
        sums: &mut [f32],
    ) {
        debug_assert!(weights.len() >= N * BLOCK && sums.len() >= N * dim.next_multiple_of(CHUNK));
        for start in (0..dim).step_by(CHUNK) {
            // SAFETY: the caller's; sums and weights are as long as asserted.
            unsafe {
                if dim - start >= CHUNK {
                    accumulate_chunk::<N, true>(
                        values, offset, start, CHUNK, weights, factors, sums,
                    );
                } else {
                    accumulate_chunk::<N, false>(
                        values,
                        offset,
                        start,
                        dim - start,
                        weights,
                        factors,
                        sums,
                    );
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store(sums: &[f32], sum: f32, dim: usize, to: *mut Bf16) {
        // SAFETY: `sums` holds whole chunks; stores are masked to `dim`.
        unsafe {
            let sum = _mm512_set1_ps(sum);
            // Undoes the order in which `accumulate` interleaved 32 elements.
            let low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            let high =
                _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
            for start in (0..dim).step_by(32) {
                let a = _mm512_div_ps(_mm512_loadu_ps(sums[start..].as_ptr()), sum);
                let b = _mm512_div_ps(_mm512_loadu_ps(sums[start + LANES..].as_ptr()), sum);
                let ordered = _mm512_cvtne2ps_pbh(
                    _mm512_permutex2var_ps(a, high, b),
                    _mm512_permutex2var_ps(a, low, b),
                );
                let ordered: __m512i = std::mem::transmute(ordered);
                _mm512_mask_storeu_epi16(to.add(start).cast(), first(dim - start), ordered);
            }
        }
    }
}

/// Scores of `N` rows against the first `G` groups of 16 keys.
///
/// # Safety
/// `query` is valid for `N * words`, `keys` for `words * BLOCK`, `scores` for `N * BLOCK`.
#[inline(always)]
unsafe fn score_groups<const N: usize, const G: usize>(
    query: *const i32,
    keys: *const i32,
    words: usize,
    scores: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); G]; N];
        for word in 0..words {
            let mut key = [_mm512_setzero_si512(); G];
            for (g, key) in key.iter_mut().enumerate() {
                *key = _mm512_loadu_si512(keys.add(word * BLOCK + g * LANES).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q: __m512bh =
                    std::mem::transmute(_mm512_set1_epi32(*query.add(r * words + word)));
                for (sum, key) in sums.iter_mut().zip(key) {
                    *sum = _mm512_dpbf16_ps(*sum, q, std::mem::transmute::<__m512i, __m512bh>(key));
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (g, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(scores.add(r * BLOCK + g * LANES), *sum);
            }
        }
    }
}

/// `count` value elements from `start` on, all of a chunk if `WHOLE`, for `N` rows.
///
/// # Safety
/// As `accumulate`.
#[inline(always)]
unsafe fn accumulate_chunk<const N: usize, const WHOLE: bool>(
    values: &[*const Bf16],
    offset: usize,
    start: usize,
    count: usize,
    weights: &[u16],
    factors: &[f32; ROWS],
    sums: &mut [f32],
) {
    let stride = sums.len() / N;
    let right = count.saturating_sub(32);
    // SAFETY: loads of values stay within `count`; sums and weights are long enough.
    unsafe {
        let mut held = [[_mm512_setzero_ps(); 4]; N];
        for (r, held) in held.iter_mut().enumerate() {
            let factor = _mm512_set1_ps(factors[r]);
            for (i, held) in held.iter_mut().enumerate() {
                let at = sums.as_ptr().add(r * stride + start + i * LANES);
                *held = _mm512_mul_ps(_mm512_loadu_ps(at), factor);
            }
        }
        for pair in 0..values.len().div_ceil(2) {
            let even = values[2 * pair].wrapping_add(offset + start);
            let (e0, e1) = (
                load::<WHOLE>(even, count),
                load::<WHOLE>(even.wrapping_add(32), right),
            );
            let (mut o0, mut o1) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            if 2 * pair + 1 < values.len() {
                let odd = values[2 * pair + 1].wrapping_add(offset + start);
                o0 = load::<WHOLE>(odd, count);
                o1 = load::<WHOLE>(odd.wrapping_add(32), right);
            }
            let mixed = [
                _mm512_unpacklo_epi16(e0, o0),
                _mm512_unpackhi_epi16(e0, o0),
                _mm512_unpacklo_epi16(e1, o1),
                _mm512_unpackhi_epi16(e1, o1),
            ];
            for (r, held) in held.iter_mut().enumerate() {
                let both = weights
                    .as_ptr()
                    .add(r * BLOCK + 2 * pair)
                    .cast::<i32>()
                    .read_unaligned();
                let both: __m512bh = std::mem::transmute(_mm512_set1_epi32(both));
                for (held, mixed) in held.iter_mut().zip(mixed) {
                    *held = _mm512_dpbf16_ps(
                        *held,
                        both,
                        std::mem::transmute::<__m512i, __m512bh>(mixed),
                    );
                }
            }
        }
        for (r, held) in held.iter().enumerate() {
            for (i, held) in held.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(r * stride + start + i * LANES), *held);
            }
        }
    }
}

/// Up to 32 elements of 16 keys from `start` on, transposed to up to 16 rows of words, `BLOCK` apart.
///
/// # Safety
/// Every pointer is valid for `start + count` elements, `to` for `count / 2` rows, rounded up; all 16 if `WHOLE`.
#[inline(always)]
unsafe fn load_words<const WHOLE: bool>(
    keys: &[*const Bf16; LANES],
    start: usize,
    count: usize,
    to: *mut i32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for i in 0..LANES {
            rows[i] = load::<WHOLE>(keys[i].add(start), count);
        }
        transpose(&mut rows);
        let words = if WHOLE { LANES } else { count.div_ceil(2) };
        for (word, row) in rows.iter().enumerate().take(words) {
            _mm512_storeu_si512(to.add(word * BLOCK).cast(), *row);
        }
    }
}
