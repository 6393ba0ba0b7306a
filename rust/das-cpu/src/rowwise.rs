//! What a transformer does to each row between its matrix products: normalise, rotate, gate. One pass each, in float32.
//!
//! torch does these in up to ten operations a call, and with small batches their overhead, not their arithmetic, takes a third
//! of a step.

use crate::bf16::{Bf16, Float};
use crate::machine::{Dtype, Isa, exp2, multiply_add};
use crate::pool;

const LANES: usize = 16;
/// Elements below which waking a helper thread costs more than it saves.
const PARALLEL_ELEMENTS: usize = 1 << 17;

/// Rows by address: `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Address of the first element.
    pub address: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Matrix {
    /// # Safety
    /// Row `i` is `width` live elements `E` that nobody writes to during `'a`.
    #[inline(always)]
    unsafe fn row<'a, E>(&self, i: usize, width: usize) -> &'a [E] {
        // SAFETY: the caller's.
        unsafe {
            std::slice::from_raw_parts((self.address as *const E).add(i * self.stride), width)
        }
    }

    /// # Safety
    /// Row `i` is `width` live elements `E` that nobody else uses during `'a`.
    #[inline(always)]
    unsafe fn row_mut<'a, E>(&self, i: usize, width: usize) -> &'a mut [E] {
        // SAFETY: the caller's.
        unsafe {
            std::slice::from_raw_parts_mut((self.address as *mut E).add(i * self.stride), width)
        }
    }
}

/// Calls `$body::<element, fused multiply-add>($args)` compiled for the best instruction set of the machine.
macro_rules! compiled_for {
    ($dtype:expr, $body:ident($($arg:ident: $type:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
        unsafe fn avx512<E: Float>($($arg: $type),*) {
            // SAFETY: the caller's.
            unsafe { $body::<E, true>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<E: Float>($($arg: $type),*) {
            // SAFETY: the caller's.
            unsafe { $body::<E, true>($($arg),*) }
        }
        match (Isa::best(), $dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::Bf16) => avx512::<Bf16>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => avx512::<f32>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16) => avx2::<Bf16>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32) => avx2::<f32>($($arg),*),
            (_, Dtype::Bf16) => $body::<Bf16, { cfg!(target_arch = "aarch64") }>($($arg),*),
            (_, Dtype::F32) => $body::<f32, { cfg!(target_arch = "aarch64") }>($($arg),*),
        }
    }};
}

fn for_rows(threads: usize, rows: usize, width: usize, work: impl Fn(usize, usize) + Sync) {
    let share = (PARALLEL_ELEMENTS / width.max(1)).max(1);
    pool::run(threads, rows.div_ceil(share), |item| {
        work(item * share, rows.min((item + 1) * share))
    });
}

/// The tensors of a normalisation.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// `[rows, width]`.
    pub x: Matrix,
    /// Added to `x` first, if there is one: `[rows, width]`.
    pub residual: Option<Matrix>,
    /// `[width]`.
    pub weight: usize,
    /// `[rows, width]`.
    pub y: Matrix,
    /// Where the sum of `x` and `residual` goes, if that exists.
    pub sum: Matrix,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

/// `y = x / sqrt(mean(x^2) + epsilon) * weight`, of `x + residual` if that exists; the sum is written too.
///
/// # Safety
/// The tensors are live, `rows` x `width` elements of `dtype`, and ours alone meanwhile. `y` and `sum` overlap nothing.
pub unsafe fn rms_norm(norm: &Norm, rows: usize, width: usize, dtype: Dtype, threads: usize) {
    for_rows(threads, rows, width, |from, to| {
        // SAFETY: the caller's; the instruction set was detected.
        unsafe {
            compiled_for!(dtype, norm_rows(norm: &Norm, from: usize, to: usize, width: usize))
        }
    });
}

/// # Safety
/// As [`rms_norm`].
#[inline(always)]
unsafe fn norm_rows<E: Float, const FUSED: bool>(
    norm: &Norm,
    from: usize,
    to: usize,
    width: usize,
) {
    // SAFETY: the weight is `width` elements.
    let weight: &[E] = unsafe { std::slice::from_raw_parts(norm.weight as *const E, width) };
    let mut held = vec![0.0f32; width];
    for i in from..to {
        // SAFETY: row `i` exists.
        let (x, y): (&[E], &mut [E]) = unsafe { (norm.x.row(i, width), norm.y.row_mut(i, width)) };
        match norm.residual {
            None => {
                for (held, x) in held.iter_mut().zip(x) {
                    *held = x.to_f32();
                }
            }
            Some(residual) => {
                // SAFETY: row `i` exists.
                let (residual, sum): (&[E], &mut [E]) =
                    unsafe { (residual.row(i, width), norm.sum.row_mut(i, width)) };
                for (((held, x), residual), sum) in held.iter_mut().zip(x).zip(residual).zip(sum) {
                    *held = x.to_f32() + residual.to_f32();
                    *sum = E::from_f32(*held);
                }
            }
        }
        let mut lanes = [0.0f32; LANES];
        let chunks = held.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] = multiply_add::<FUSED>(chunk[lane], chunk[lane], lanes[lane]);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane = multiply_add::<FUSED>(value, value, *lane);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        let scale = 1.0 / (lanes[0] / width as f32 + norm.epsilon).sqrt();
        for ((y, held), weight) in y.iter_mut().zip(&held).zip(weight) {
            *y = E::from_f32(held * scale * weight.to_f32());
        }
    }
}

/// `y = silu(x[:width]) * x[width:]`.
///
/// # Safety
/// `x` is `rows` x `2 width`, `y` `rows` x `width` live elements of `dtype`, ours alone meanwhile, not overlapping.
pub unsafe fn silu_and_mul(
    x: Matrix,
    y: Matrix,
    rows: usize,
    width: usize,
    dtype: Dtype,
    threads: usize,
) {
    for_rows(threads, rows, width, |from, to| {
        // SAFETY: the caller's; the instruction set was detected.
        unsafe {
            compiled_for!(dtype, gate_rows(x: Matrix, y: Matrix, from: usize, to: usize, width: usize))
        }
    });
}

/// # Safety
/// As [`silu_and_mul`].
#[inline(always)]
unsafe fn gate_rows<E: Float, const FUSED: bool>(
    x: Matrix,
    y: Matrix,
    from: usize,
    to: usize,
    width: usize,
) {
    for i in from..to {
        // SAFETY: row `i` exists.
        let (x, y): (&[E], &mut [E]) = unsafe { (x.row(i, 2 * width), y.row_mut(i, width)) };
        let (gate, up) = x.split_at(width);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let gate = gate.to_f32();
            let silu = gate / (1.0 + exp2::<FUSED>(-gate * std::f32::consts::LOG2_E));
            *y = E::from_f32(silu * up.to_f32());
        }
    }
}

/// A rotary embedding, applied in place.
#[derive(Debug, Clone, Copy)]
pub struct Rotary {
    /// `[rows]` int64.
    pub positions: usize,
    /// Cosines, then sines: `[positions, rotated]`, of the type of the heads.
    pub table: usize,
    /// Rows of the table.
    pub table_rows: usize,
    /// Elements of a head that are rotated, in pairs.
    pub rotated: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// A pair is two halves of the rotated elements (NeoX), or two neighbours.
    pub halves: bool,
}

/// Rotates `heads` adjoining heads in every row of `x` by its position. Positions beyond the table leave a row as it is.
///
/// # Safety
/// `x` is `rows` x `heads * head_dim` live elements of `dtype`, ours alone meanwhile; positions and table are live and as
/// [`Rotary`] states; `rotated <= head_dim` is even.
pub unsafe fn rotate(
    rotary: &Rotary,
    x: Matrix,
    heads: usize,
    rows: usize,
    dtype: Dtype,
    threads: usize,
) {
    for_rows(threads, rows, heads * rotary.head_dim, |from, to| {
        // SAFETY: the caller's; the instruction set was detected.
        unsafe {
            compiled_for!(dtype, rotate_rows(rotary: &Rotary, x: Matrix, heads: usize, from: usize, to: usize))
        }
    });
}

/// # Safety
/// As [`rotate`].
#[inline(always)]
unsafe fn rotate_rows<E: Float, const FUSED: bool>(
    rotary: &Rotary,
    x: Matrix,
    heads: usize,
    from: usize,
    to: usize,
) {
    let half = rotary.rotated / 2;
    for i in from..to {
        // SAFETY: there is a position for every row.
        let position = unsafe { *(rotary.positions as *const i64).add(i) };
        let Some(position) = usize::try_from(position)
            .ok()
            .filter(|&position| position < rotary.table_rows)
        else {
            continue;
        };
        let table = Matrix {
            address: rotary.table,
            stride: rotary.rotated,
        };
        // SAFETY: the position is in the table, row `i` exists.
        let (angles, row): (&[E], &mut [E]) = unsafe {
            (
                table.row(position, rotary.rotated),
                x.row_mut(i, heads * rotary.head_dim),
            )
        };
        let (cosines, sines) = angles.split_at(half);
        for head in row.chunks_exact_mut(rotary.head_dim) {
            let head = &mut head[..rotary.rotated];
            if rotary.halves {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = turn(*a, *b, *cos, *sin);
                }
            } else {
                for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
                    (pair[0], pair[1]) = turn(pair[0], pair[1], *cos, *sin);
                }
            }
        }
    }
}

#[inline(always)]
fn turn<E: Float>(a: E, b: E, cos: E, sin: E) -> (E, E) {
    let (a, b, cos, sin) = (a.to_f32(), b.to_f32(), cos.to_f32(), sin.to_f32());
    (
        E::from_f32(a * cos - b * sin),
        E::from_f32(b * cos + a * sin),
    )
}

#[cfg(test)]
mod tests;
