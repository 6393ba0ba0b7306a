//! Against the formulas in float64.

use super::*;

fn random<E: Float>(count: usize, seed: u64) -> Vec<E> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        E::from_f32(((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn matrix<E>(values: &[E], stride: usize) -> Matrix {
    Matrix {
        address: values.as_ptr() as usize,
        stride,
    }
}

fn wide<E: Float>(values: &[E]) -> Vec<f64> {
    values.iter().map(|v| f64::from(v.to_f32())).collect()
}

fn assert_close<E: Float>(got: &[E], want: &[f64], dtype: Dtype) {
    assert_eq!(got.len(), want.len());
    let relative = if dtype == Dtype::F32 {
        3e-6
    } else {
        1.0 / 128.0
    };
    for (got, want) in wide(got).into_iter().zip(want) {
        assert!(
            (got - want).abs() <= relative * (want.abs() + 0.01),
            "{got} should be {want}"
        );
    }
}

fn normalisation<E: Float>(dtype: Dtype) {
    for (rows, width) in [(1, 1), (3, 40), (5, 576), (300, 1000)] {
        let (x, residual, weight) = (
            random::<E>(rows * width, 1),
            random::<E>(rows * width, 2),
            random::<E>(width, 3),
        );
        for with_residual in [false, true] {
            let mut y = vec![E::from_f32(0.0); rows * width];
            let mut sum = y.clone();
            let norm = Norm {
                x: matrix(&x, width),
                residual: with_residual.then(|| matrix(&residual, width)),
                weight: weight.as_ptr() as usize,
                y: Matrix {
                    address: y.as_mut_ptr() as usize,
                    stride: width,
                },
                sum: Matrix {
                    address: sum.as_mut_ptr() as usize,
                    stride: width,
                },
                epsilon: 1e-5,
            };
            // SAFETY: all tensors live here and have the sizes stated.
            unsafe { rms_norm(&norm, rows, width, dtype, 2) };
            let added: Vec<f64> = wide(&x)
                .iter()
                .zip(wide(&residual))
                .map(|(x, r)| if with_residual { x + r } else { *x })
                .collect();
            let mut want = Vec::new();
            for row in added.chunks(width) {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
                want.extend(
                    row.iter()
                        .zip(wide(&weight))
                        .map(|(v, w)| v / (mean + 1e-5).sqrt() * w),
                );
            }
            assert_close(&y, &want, dtype);
            if with_residual {
                assert_close(&sum, &added, dtype);
            }
        }
    }
}

fn gating<E: Float>(dtype: Dtype) {
    for (rows, width) in [(1, 1), (3, 40), (200, 1536)] {
        let mut x = random::<E>(rows * 2 * width, 4);
        x[0] = E::from_f32(-1000.0);
        let mut y = vec![E::from_f32(0.0); rows * width];
        let to = Matrix {
            address: y.as_mut_ptr() as usize,
            stride: width,
        };
        // SAFETY: both tensors live here and have the sizes stated.
        unsafe { silu_and_mul(matrix(&x, 2 * width), to, rows, width, dtype, 2) };
        let mut want = Vec::new();
        for row in wide(&x).chunks(2 * width) {
            want.extend((0..width).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[width + i]));
        }
        assert_close(&y, &want, dtype);
    }
}

fn rotation<E: Float>(dtype: Dtype) {
    let (rows, heads, head_dim, rotated, table_rows) = (7, 3, 20, 12, 50);
    let table = random::<E>(table_rows * rotated, 5);
    let positions: Vec<i64> = vec![0, 49, 3, 3, 17, 50, -1];
    let stride = heads * head_dim + 5;
    for halves in [false, true] {
        let x = random::<E>(rows * stride, 6);
        let mut turned = x.clone();
        let rotary = Rotary {
            positions: positions.as_ptr() as usize,
            table: table.as_ptr() as usize,
            table_rows,
            rotated,
            head_dim,
            halves,
        };
        let to = Matrix {
            address: turned.as_mut_ptr() as usize,
            stride,
        };
        // SAFETY: all tensors live here and have the sizes stated.
        unsafe { rotate(&rotary, to, heads, rows, dtype, 2) };
        let (table, x) = (wide(&table), wide(&x));
        let mut want = x.clone();
        for (row, &position) in positions
            .iter()
            .enumerate()
            .filter(|(_, p)| (0..50).contains(*p))
        {
            for head in 0..heads {
                for pair in 0..rotated / 2 {
                    let base = row * stride + head * head_dim;
                    let (a, b) = if halves {
                        (pair, pair + rotated / 2)
                    } else {
                        (2 * pair, 2 * pair + 1)
                    };
                    let cos = table[position as usize * rotated + pair];
                    let sin = table[position as usize * rotated + rotated / 2 + pair];
                    want[base + a] = x[base + a] * cos - x[base + b] * sin;
                    want[base + b] = x[base + b] * cos + x[base + a] * sin;
                }
            }
        }
        let unturned = (0..x.len()).filter(|&i| want[i] == x[i]);
        for i in unturned {
            assert_eq!(
                f64::from(turned[i].to_f32()),
                x[i],
                "element {i} is not rotated"
            );
        }
        let tolerance = if dtype == Dtype::F32 { 1e-5 } else { 0.1 };
        for (got, want) in wide(&turned).iter().zip(&want) {
            assert!((got - want).abs() < tolerance, "{got} should be {want}");
        }
    }
}

#[test]
fn normalisation_matches_the_formula() {
    normalisation::<f32>(Dtype::F32);
    normalisation::<Bf16>(Dtype::Bf16);
}

#[test]
fn gating_matches_the_formula() {
    gating::<f32>(Dtype::F32);
    gating::<Bf16>(Dtype::Bf16);
}

#[test]
fn rotation_matches_the_formula_and_leaves_the_rest() {
    rotation::<f32>(Dtype::F32);
    rotation::<Bf16>(Dtype::Bf16);
}
