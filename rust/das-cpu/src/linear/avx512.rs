//! Dot products in AVX-512: bfloat16 pairs, float32, and bfloat16 widened to float32 where there are no pairs.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::Bf16;
use std::arch::x86_64::*;

/// bfloat16 by pairs: products exact, sums float32.
struct Pairs;
/// float32.
struct Single;
/// bfloat16 as float32.
struct Widened;

/// The totals of four registers of partial sums, each by the same tree.
///
/// # Safety
/// AVX-512F is there.
#[inline(always)]
unsafe fn totals(sums: [__m512; OUTPUTS]) -> __m128 {
    // SAFETY: register arithmetic only.
    unsafe {
        let [a, b, c, d] = sums;
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let quarters = _mm512_add_ps(low, high);
        let halves = _mm256_add_ps(
            _mm512_castps512_ps256(quarters),
            _mm512_extractf32x8_ps::<1>(quarters),
        );
        _mm_add_ps(
            _mm256_castps256_ps128(halves),
            _mm256_extractf128_ps::<1>(halves),
        )
    }
}

/// Totals, in bfloat16 plus bias; rounded as `Bf16::from_f32` does.
///
/// # Safety
/// As [`Dot::store`].
#[inline(always)]
unsafe fn store_bf16(sums: [__m512; OUTPUTS], bias: *const Bf16, to: *mut Bf16, kept: usize) {
    let kept = (1 << kept) - 1;
    // SAFETY: loads and stores are masked to the elements that exist.
    unsafe {
        let mut total = totals(sums);
        if !bias.is_null() {
            let bias = _mm_cvtepu16_epi32(_mm_maskz_loadu_epi16(kept, bias.cast()));
            total = _mm_add_ps(total, _mm_castsi128_ps(_mm_slli_epi32::<16>(bias)));
        }
        let bits = _mm_castps_si128(total);
        let even = _mm_and_si128(_mm_srli_epi32::<16>(bits), _mm_set1_epi32(1));
        let rounded = _mm_add_epi32(bits, _mm_add_epi32(even, _mm_set1_epi32(0x7fff)));
        let quiet = _mm_or_si128(bits, _mm_set1_epi32(0x0040_0000));
        let rounded = _mm_mask_mov_epi32(
            rounded,
            _mm_cmp_ps_mask::<_CMP_UNORD_Q>(total, total),
            quiet,
        );
        let halves = _mm_cvtepi32_epi16(_mm_srli_epi32::<16>(rounded));
        _mm_mask_storeu_epi16(to.cast(), kept, halves);
    }
}

impl Dot for Pairs {
    type Element = Bf16;
    type Vector = __m512i;
    type Sums = __m512;
    const STEP: usize = 32;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const Bf16) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const Bf16, count: usize) -> __m512i {
        // SAFETY: masked-off elements are not touched.
        unsafe { _mm512_maskz_loadu_epi16((1 << count) - 1, from.cast()) }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller's; the types differ in name only.
        unsafe {
            _mm512_dpbf16_ps(
                sums,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(sums: [__m512; OUTPUTS], bias: *const Bf16, to: *mut Bf16, kept: usize) {
        // SAFETY: the caller's.
        unsafe { store_bf16(sums, bias, to, kept) }
    }
}

impl Dot for Single {
    type Element = f32;
    type Vector = __m512;
    type Sums = __m512;
    const STEP: usize = 16;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
        // SAFETY: masked-off elements are not touched.
        unsafe { _mm512_maskz_loadu_ps((1 << count) - 1, from) }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ps(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn store(sums: [__m512; OUTPUTS], bias: *const f32, to: *mut f32, kept: usize) {
        let kept = (1 << kept) - 1;
        // SAFETY: loads and stores are masked to the elements that exist.
        unsafe {
            let mut total = totals(sums);
            if !bias.is_null() {
                total = _mm_add_ps(total, _mm_maskz_loadu_ps(kept, bias));
            }
            _mm_mask_storeu_ps(to, kept, total);
        }
    }
}

/// # Safety
/// AVX-512F is there.
#[inline(always)]
unsafe fn widen(elements: __m256i) -> __m512 {
    // SAFETY: register arithmetic only.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(elements))) }
}

impl Dot for Widened {
    type Element = Bf16;
    type Vector = __m512;
    type Sums = __m512;
    const STEP: usize = 16;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const Bf16) -> __m512 {
        // SAFETY: the caller's.
        unsafe { widen(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const Bf16, count: usize) -> __m512 {
        // SAFETY: masked-off elements are not touched.
        unsafe { widen(_mm256_maskz_loadu_epi16((1 << count) - 1, from.cast())) }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ps(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn store(sums: [__m512; OUTPUTS], bias: *const Bf16, to: *mut Bf16, kept: usize) {
        // SAFETY: the caller's.
        unsafe { store_bf16(sums, bias, to, kept) }
    }
}

macro_rules! entry {
    ($name:ident, $dot:ty, $feature:literal) => {
        /// # Safety
        /// As [`panel`], and the machine has the features named.
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn $name(
            product: &Product,
            from: usize,
            to: usize,
            first: usize,
            last: usize,
        ) {
            // SAFETY: the caller's.
            unsafe { panel::<$dot>(product, from, to, first, last) }
        }
    };
}

entry!(
    panel_bf16,
    Pairs,
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"
);
entry!(panel_f32, Single, "avx512f,avx512bw,avx512vl,avx512dq,fma");
entry!(
    panel_widened,
    Widened,
    "avx512f,avx512bw,avx512vl,avx512dq,fma"
);
