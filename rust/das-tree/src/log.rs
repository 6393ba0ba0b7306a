//! The natural logarithm, to the last bit the same on every machine: what mathematical libraries give may differ in it, and
//! drafts with it.

/// The bits of the root of one half.
const HALF_ROOT: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
/// Odd reciprocals, from one thirteenth down to one third.
const SERIES: [f64; 6] = [
    1.0 / 13.0,
    1.0 / 11.0,
    1.0 / 9.0,
    1.0 / 7.0,
    1.0 / 5.0,
    1.0 / 3.0,
];

/// The logarithm of a number that is not negative.
pub(crate) fn ln(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    // x is 2^exponent times something between the roots of 1/2 and 2, whose logarithm is twice the area tangent of t.
    let bits = f64::from(x).to_bits();
    let exponent = (bits as i64 - HALF_ROOT as i64) >> 52;
    let part = f64::from_bits(bits.wrapping_sub((exponent << 52) as u64));
    let t = (part - 1.0) / (part + 1.0);
    let square = t * t;
    let series = SERIES.iter().fold(0.0, |sum, term| (sum + term) * square);
    (exponent as f64 * std::f64::consts::LN_2 + 2.0 * (t + t * series)) as f32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_logarithm() {
        let numbers = (0..0x7f80_0000).step_by(997).map(f32::from_bits);
        for x in numbers.chain([1.0, 0.5, 2.0, f32::MIN_POSITIVE, f32::MAX]) {
            let exact = f64::from(x).ln() as f32;
            let off = exact.to_bits().abs_diff(ln(x).to_bits());
            assert!(off <= 1, "{x}: {exact} and {}", ln(x));
        }
    }
}
