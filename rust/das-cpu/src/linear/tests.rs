//! Against float64, and every row bit for bit alone and in batches.

use super::*;
use crate::bf16::{Bf16, Float};

fn random<E: Float>(count: usize, seed: &mut u64) -> Vec<E> {
    let next = || {
        *seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        E::from_f32((*seed >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

struct Case<E> {
    features: usize,
    outputs: usize,
    x: Vec<E>,
    weight: Vec<E>,
    bias: Option<Vec<E>>,
}

impl<E: Float> Case<E> {
    /// Rows `from..to` of the product, from rows that lie `gap` elements apart.
    fn rows(&self, from: usize, to: usize, dtype: Dtype, threads: usize, isa: Isa) -> Vec<E> {
        let mut y = vec![E::from_f32(0.0); (to - from) * self.outputs];
        let product = Product {
            x: self.x[from * (self.features + 3)..].as_ptr() as usize,
            x_stride: self.features + 3,
            weight: self.weight.as_ptr() as usize,
            weight_stride: self.features,
            bias: self.bias.as_ref().map_or(0, |bias| bias.as_ptr() as usize),
            y: y.as_mut_ptr() as usize,
            y_stride: self.outputs,
            rows: to - from,
            features: self.features,
            outputs: self.outputs,
        };
        product.check().unwrap();
        // SAFETY: all tensors live here and have the sizes stated.
        unsafe { multiply(&product, dtype, threads, isa) };
        y
    }
}

fn check<E: Float + std::fmt::Debug + PartialEq>(dtype: Dtype, isa: Isa) {
    let seed = &mut 5;
    for (features, outputs) in [
        (1, 1),
        (7, 5),
        (31, 64),
        (64, 66),
        (65, 3),
        (96, 50),
        (576, 130),
        (1000, 9),
        (8192, 20), // rows in chunks
    ] {
        let rows = 61;
        let case = Case::<E> {
            features,
            outputs,
            x: random(rows * (features + 3), seed),
            weight: random(outputs * features, seed),
            bias: (outputs % 2 == 0).then(|| random(outputs, seed)),
        };
        let all = case.rows(0, rows, dtype, 1, isa);
        for (i, got) in all.iter().enumerate() {
            let (row, output) = (i / outputs, i % outputs);
            let x = &case.x[row * (features + 3)..][..features];
            let products = x.iter().zip(&case.weight[output * features..]);
            let dot: f64 = products
                .map(|(a, b)| f64::from(a.to_f32()) * f64::from(b.to_f32()))
                .sum();
            let want = dot
                + case
                    .bias
                    .as_ref()
                    .map_or(0.0, |bias| f64::from(bias[output].to_f32()));
            let tolerance = if dtype == Dtype::F32 {
                1e-4
            } else {
                1e-4 + want.abs() / 128.0
            };
            assert!(
                (f64::from(got.to_f32()) - want).abs() < tolerance,
                "{got:?} should be {want}"
            );
        }
        for (from, to) in [
            (0, 1),
            (60, 61),
            (3, 5),
            (3, 6),
            (0, 4),
            (7, 12),
            (1, 7),
            (2, 10),
            (10, 23),
            (0, 60),
        ] {
            for threads in [1, 3] {
                let some = case.rows(from, to, dtype, threads, isa);
                assert_eq!(
                    some,
                    all[from * outputs..to * outputs],
                    "rows {from}..{to} of {features} x {outputs}, {isa:?}"
                );
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_any_batch_and_match_the_formula() {
    for isa in Isa::available() {
        check::<f32>(Dtype::F32, isa);
        check::<Bf16>(Dtype::Bf16, isa);
    }
}

#[test]
fn nothing_to_do_is_done_and_missing_tensors_are_refused() {
    let nothing = Product {
        x: 0,
        x_stride: 0,
        weight: 0,
        weight_stride: 0,
        bias: 0,
        y: 0,
        y_stride: 0,
        rows: 0,
        features: 4,
        outputs: 4,
    };
    assert!(nothing.check().is_ok());
    // SAFETY: there are no rows.
    unsafe { multiply(&nothing, Dtype::F32, 1, Isa::Portable) };
    assert!(Product { rows: 1, ..nothing }.check().is_err());
}
