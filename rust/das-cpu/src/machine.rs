//! What the kernels are made for: element types and instruction sets.

/// Element type of a kernel's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// bfloat16; sums are float32.
    Bf16,
    /// float32.
    F32,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The instruction set in use, best first. All give the same bits for any batch; they need not agree with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// AMX tiles for matrix products of bfloat16; else as [`Isa::Avx512Bf16`].
    Amx,
    /// AVX-512 with bfloat16 dot products; float32 as [`Isa::Avx512`].
    Avx512Bf16,
    /// AVX-512.
    Avx512,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// Whatever the compiler's baseline has.
    Portable,
}

impl Isa {
    /// Everything this machine runs, best first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                if may_use_tiles() {
                    found.push(Self::Amx);
                }
                found.push(Self::Avx512Bf16);
            }
            if avx512 {
                found.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
            }
        }
        found.push(Self::Portable);
        found
    }

    /// The best of this machine, found once.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// A short name for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// Whether the machine has AMX for bfloat16 and the kernel lets this process use it, which has to be asked for once.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    use std::arch::x86_64::__cpuid_count;
    // Leaf 7, register edx: AMX-BF16 and AMX-TILE.
    const TILES: u32 = 1 << 22 | 1 << 24;
    // The request for permission, and the state component of tile data.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    if __cpuid_count(7, 0).edx & TILES != TILES {
        return false;
    }
    // SAFETY: a request that changes nothing but what this process may do.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
}

/// Asks for the cache lines of `count` elements that will be read soon.
#[inline(always)]
pub(crate) fn fetch<E>(from: *const E, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for byte in (0..count * size_of::<E>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; it does not fault whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(byte)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// `a * b + c`, rounded once where the machine can.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Taylor of 2^x on [-1/2, 1/2], from the highest power down: ln(2)^k / k!.
pub(crate) const EXP2_TERMS: [f32; 7] = [
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    2.402_265e-1,
    6.931_472e-1,
    1.0,
];

/// 2^x to about one unit in the last place, for x within the exponents of float32; those beyond are taken to the ends.
#[inline(always)]
pub(crate) fn exp2<const FUSED: bool>(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // In this form NaN stays NaN.
    let low = if x < -127.0 { -127.0 } else { x };
    let clamped = if low > 127.0 { 127.0 } else { low };
    let shifted = clamped + ROUND;
    let whole = shifted - ROUND;
    let rest = clamped - whole;
    let mut y = EXP2_TERMS[0];
    for &c in &EXP2_TERMS[1..] {
        y = multiply_add::<FUSED>(y, rest, c);
    }
    // The integer stands in the low bits of the shifted number.
    let power = f32::from_bits(
        shifted
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(127)
            << 23,
    );
    y * power
}
