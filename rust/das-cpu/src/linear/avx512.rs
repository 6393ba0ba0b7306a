//! Dot products in AVX-512: bfloat16 pairs, float32, and bfloat16 widened to float32 where there are no pairs.

use super::{Dot, OUTPUTS, Product, panel};
use crate::bf16::Bf16;
use std::arch::x86_64::*;

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

/// # Safety
/// As [`Dot::store`].
#[inline(always)]
unsafe fn store_f32(sums: [__m512; OUTPUTS], bias: *const f32, to: *mut f32, kept: usize) {
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

/// # Safety
/// AVX-512F is there.
#[inline(always)]
unsafe fn widen(elements: __m256i) -> __m512 {
    // SAFETY: register arithmetic only.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(elements))) }
}

/// A [`Dot`] from its loads, whole and masked, its addition and its store; and the function that runs it.
macro_rules! dot {
    (
        $(#[$doc:meta])* $name:ident: $element:ty, $vector:ty, $step:literal, $store:ident,
        load $from:ident => $load:expr, part $part_from:ident $mask:ident => $part:expr,
        add $sums:ident $a:ident $b:ident => $add:expr,
        $features:literal $entry:ident
    ) => {
        $(#[$doc])*
        struct $name;

        impl Dot for $name {
            type Element = $element;
            type Vector = $vector;
            type Sums = __m512;
            const STEP: usize = $step;
            const ROWS: usize = 6;

            #[inline(always)]
            unsafe fn zero() -> __m512 {
                // SAFETY: the caller's.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn load($from: *const $element) -> $vector {
                // SAFETY: the caller's.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_part($part_from: *const $element, count: usize) -> $vector {
                let $mask = (1 << count) - 1;
                // SAFETY: masked-off elements are not touched.
                unsafe { $part }
            }
            #[inline(always)]
            unsafe fn add($sums: __m512, $a: $vector, $b: $vector) -> __m512 {
                // SAFETY: the caller's.
                unsafe { $add }
            }
            #[inline(always)]
            unsafe fn store(sums: [__m512; OUTPUTS], bias: *const $element, to: *mut $element, kept: usize) {
                // SAFETY: the caller's.
                unsafe { $store(sums, bias, to, kept) }
            }
        }

        /// # Safety
        /// As [`panel`], and the machine has the features named.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $entry(product: &Product, from: usize, to: usize, first: usize, last: usize) {
            // SAFETY: the caller's.
            unsafe { panel::<$name>(product, from, to, first, last) }
        }
    };
}

dot! {
    /// bfloat16 by pairs: products exact, sums float32.
    Pairs: Bf16, __m512i, 32, store_bf16,
    load from => _mm512_loadu_si512(from.cast()),
    part from mask => _mm512_maskz_loadu_epi16(mask, from.cast()),
    add sums a b => {
        // The types differ in name only.
        let (a, b) = (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b));
        _mm512_dpbf16_ps(sums, a, b)
    },
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma" panel_bf16
}

dot! {
    /// float32.
    Single: f32, __m512, 16, store_f32,
    load from => _mm512_loadu_ps(from),
    part from mask => _mm512_maskz_loadu_ps(mask, from),
    add sums a b => _mm512_fmadd_ps(a, b, sums),
    "avx512f,avx512bw,avx512vl,avx512dq,fma" panel_f32
}

dot! {
    /// bfloat16 as float32.
    Widened: Bf16, __m512, 16, store_bf16,
    load from => widen(_mm256_loadu_si256(from.cast())),
    part from mask => widen(_mm256_maskz_loadu_epi16(mask, from.cast())),
    add sums a b => _mm512_fmadd_ps(a, b, sums),
    "avx512f,avx512bw,avx512vl,avx512dq,fma" panel_widened
}
