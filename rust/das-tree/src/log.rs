//! The natural logarithm, to the last bit the same on every machine: what mathematical libraries give may differ in it, and
//! drafts with it.
//!
//! A number is 2^k times c times 1 + r, where c is one of a few and r small: the logarithms of the first two are known, that of
//! the last is a short series. One of the c is 1, so that what is near 1 is exact.

/// A power of two of them.
const CENTRES: usize = 32;
/// Bits of a double: those of its fraction, and of what is not told by which centre is next.
const FRACTION: u32 = 52;
const REST: u32 = FRACTION - CENTRES.ilog2();
/// The bits of the smallest number that is near the first centre: 1 is the one in the middle.
const FIRST: u64 = 1f64.to_bits() - ((CENTRES as u64) << (REST - 1)) - (1 << (REST - 1));

/// One over each centre, and its logarithm.
const TABLE: [(f64, f64); CENTRES] = {
    let mut table = [(1.0, 0.0); CENTRES];
    let mut i = 0;
    while i < CENTRES {
        let centre = f64::from_bits(FIRST + ((i as u64) << REST) + (1 << (REST - 1)));
        table[i] = (1.0 / centre, exact(centre));
        i += 1;
    }
    table
};

/// The logarithm of a number near 1, by a long series: twice the area tangent of t.
const fn exact(x: f64) -> f64 {
    let t = (x - 1.0) / (x + 1.0);
    let (mut sum, mut odd) = (0.0, 41.0);
    while odd > 0.0 {
        sum = sum * t * t + 1.0 / odd;
        odd -= 2.0;
    }
    2.0 * t * sum
}

/// The logarithm of a number that is not negative.
#[inline]
pub(crate) fn ln(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    let bits = f64::from(x).to_bits();
    let above = bits.wrapping_sub(FIRST);
    let exponent = above as i64 >> FRACTION;
    let (inverse, known) = TABLE[(above >> REST) as usize % CENTRES];
    let part = f64::from_bits(bits.wrapping_sub((exponent << FRACTION) as u64));
    let r = part * inverse - 1.0;
    let series = r * (1.0 + r * (-0.5 + r * (1.0 / 3.0 + r * (-0.25 + r * 0.2))));
    (exponent as f64 * std::f64::consts::LN_2 + known + series) as f32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_logarithm() {
        let numbers = (0..0x7f80_0000).step_by(997).map(f32::from_bits);
        let near_one = (0x3f7f_0000..0x3f81_0000).map(f32::from_bits);
        for x in numbers.chain(near_one).chain([0.5, 2.0, f32::MAX]) {
            let exact = f64::from(x).ln() as f32;
            let off = exact.to_bits().abs_diff(ln(x).to_bits());
            assert!(off <= 1, "{x}: {exact} and {}", ln(x));
        }
    }

    /// On any machine.
    #[test]
    fn its_bits_are_these() {
        let sum = (1..0x7f80_0000)
            .step_by(100_003)
            .map(|bits| ln(f32::from_bits(bits)).to_bits())
            .fold(0u32, |sum, bits| sum.rotate_left(5) ^ bits);
        assert_eq!(sum, 2_950_613_229);
    }
}
