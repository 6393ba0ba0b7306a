//! Matrix products `y = x w^T + b` whose rows do not depend on the batch.
//!
//! Each output element is one dot product: partial sums in fixed lanes over the features in order, then a fixed tree over
//! the lanes; with AMX one sum over pairs of features in order. Tiles only decide which elements are worked on together. Weights are read as the model stores them, so an
//! update in place takes effect at once.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;

use crate::machine::{Dtype, Isa, fetch};
use crate::{Error, pool};

/// Outputs a tile computes at once.
const OUTPUTS: usize = 4;
/// Outputs of one work item.
const PANEL: usize = 64;
/// Bytes of `x` that should stay in the cache while weights pass by.
const CACHED: usize = 256 << 10;
/// A chunk of rows begins at a multiple of this, so that AMX tiles are whole.
const ROWS: usize = 2 * 16;
/// Bytes of weights below which waking a helper thread costs more than it saves.
const PARALLEL_BYTES: usize = 256 << 10;

/// Addresses, sizes and strides (in elements) of a product's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// `[rows, features]`.
    pub x: usize,
    /// From one row of `x` to the next.
    pub x_stride: usize,
    /// `[outputs, features]`.
    pub weight: usize,
    /// From one row of the weights to the next.
    pub weight_stride: usize,
    /// `[outputs]`, or 0 for none.
    pub bias: usize,
    /// `[rows, outputs]`.
    pub y: usize,
    /// From one row of `y` to the next.
    pub y_stride: usize,
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Elements summed over.
    pub features: usize,
    /// Elements of a row of `y`.
    pub outputs: usize,
}

impl Product {
    /// Refuses addresses that cannot be right.
    ///
    /// # Errors
    /// A tensor without an address.
    pub fn check(&self) -> Result<(), Error> {
        let empty = self.rows == 0 || self.outputs == 0;
        if !empty && (self.y == 0 || (self.features > 0 && (self.x == 0 || self.weight == 0))) {
            return Err(Error::new("x, weight and y must be addresses of tensors"));
        }
        Ok(())
    }
}

/// The inner loop for one element type and instruction set.
trait Dot {
    /// Element of the tensors.
    type Element: Copy;
    /// As many elements as a step takes.
    type Vector: Copy;
    /// Partial sums of one dot product.
    type Sums: Copy;
    /// Elements per step.
    const STEP: usize;
    /// Rows of `x` a tile can hold in registers.
    const ROWS: usize;

    /// # Safety
    /// The instruction set is there.
    unsafe fn zero() -> Self::Sums;

    /// # Safety
    /// `from` is valid for `STEP` elements.
    unsafe fn load(from: *const Self::Element) -> Self::Vector;

    /// The first `count` elements, then zeros.
    ///
    /// # Safety
    /// `from` is valid for `count < STEP` elements.
    unsafe fn load_part(from: *const Self::Element, count: usize) -> Self::Vector;

    /// # Safety
    /// The instruction set is there.
    unsafe fn add(sums: Self::Sums, a: Self::Vector, b: Self::Vector) -> Self::Sums;

    /// Writes the totals of the first `kept` of four dot products, plus their bias unless that is null.
    ///
    /// # Safety
    /// `to`, and `bias` unless null, are valid for `kept` elements.
    unsafe fn store(
        sums: [Self::Sums; OUTPUTS],
        bias: *const Self::Element,
        to: *mut Self::Element,
        kept: usize,
    );
}

/// `N` rows against four rows of weights. With `FETCH` the weights `ahead` elements further on are asked for on the way.
///
/// # Safety
/// As [`multiply`], for these rows.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "plain indices keep everything in registers"
)]
unsafe fn tile<D: Dot, const N: usize, const FETCH: bool>(
    x: [*const D::Element; N],
    weights: [*const D::Element; OUTPUTS],
    features: usize,
    ahead: usize,
) -> [[D::Sums; OUTPUTS]; N] {
    // Loops, not closures: those would lose the instruction set.
    // SAFETY: offsets stay below `features`.
    unsafe {
        let mut sums = [[D::zero(); OUTPUTS]; N];
        let whole = features / D::STEP * D::STEP;
        let mut at = 0;
        while at < whole {
            let mut w = [D::load(weights[0].add(at)); OUTPUTS];
            for j in 1..OUTPUTS {
                w[j] = D::load(weights[j].add(at));
            }
            if FETCH {
                for j in 0..OUTPUTS {
                    fetch(weights[j].wrapping_add(at + ahead), 1);
                }
            }
            for i in 0..N {
                let x = D::load(x[i].add(at));
                for j in 0..OUTPUTS {
                    sums[i][j] = D::add(sums[i][j], x, w[j]);
                }
            }
            at += D::STEP;
        }
        if at < features {
            let left = features - at;
            let mut w = [D::load_part(weights[0].add(at), left); OUTPUTS];
            for j in 1..OUTPUTS {
                w[j] = D::load_part(weights[j].add(at), left);
            }
            for i in 0..N {
                let x = D::load_part(x[i].add(at), left);
                for j in 0..OUTPUTS {
                    sums[i][j] = D::add(sums[i][j], x, w[j]);
                }
            }
        }
        sums
    }
}

/// `N` rows from `row` on against the outputs from `output` on, of which `kept` exist; `fresh` if these weights have not been
/// read yet.
///
/// # Safety
/// As [`multiply`], for these rows.
#[inline(always)]
unsafe fn store_tile<D: Dot, const N: usize>(
    product: &Product,
    row: usize,
    output: usize,
    kept: usize,
    fresh: bool,
) {
    let (x, weight) = (
        product.x as *const D::Element,
        product.weight as *const D::Element,
    );
    let (bias, y) = (
        product.bias as *const D::Element,
        product.y as *mut D::Element,
    );
    // SAFETY: rows and outputs exist; those beyond the last output repeat it.
    unsafe {
        let rows = std::array::from_fn(|i| x.add((row + i) * product.x_stride));
        let weights =
            std::array::from_fn(|j| weight.add((output + j.min(kept - 1)) * product.weight_stride));
        let bias = if bias.is_null() {
            bias
        } else {
            bias.add(output)
        };
        let ahead = OUTPUTS * product.weight_stride;
        let sums = if fresh {
            tile::<D, N, true>(rows, weights, product.features, ahead)
        } else {
            tile::<D, N, false>(rows, weights, product.features, ahead)
        };
        for (i, &sums) in sums.iter().enumerate() {
            D::store(
                sums,
                bias,
                y.add((row + i) * product.y_stride + output),
                kept,
            );
        }
    }
}

/// Rows `from..to` against outputs `first..last`.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn panel<D: Dot>(product: &Product, from: usize, to: usize, first: usize, last: usize) {
    // Evenly filled tiles: eight rows are two of four, not six and two.
    let tiles = (to - from).div_ceil(D::ROWS).max(1);
    let height = (to - from).div_ceil(tiles);
    for output in (first..last).step_by(OUTPUTS) {
        let kept = OUTPUTS.min(last - output);
        for row in (from..to).step_by(height) {
            // SAFETY: the caller's.
            unsafe {
                match height.min(to - row) {
                    1 => store_tile::<D, 1>(product, row, output, kept, row == from),
                    2 => store_tile::<D, 2>(product, row, output, kept, row == from),
                    3 => store_tile::<D, 3>(product, row, output, kept, row == from),
                    4 => store_tile::<D, 4>(product, row, output, kept, row == from),
                    5 => store_tile::<D, 5>(product, row, output, kept, row == from),
                    _ => store_tile::<D, 6>(product, row, output, kept, row == from),
                }
            }
        }
    }
}

/// Computes `y = x w^T + bias`, with float32 sums.
///
/// # Safety
/// `isa` is one of [`Isa::available`]. The tensors are live, of type `dtype` and of the sizes stated; nobody writes to them,
/// or reads `y`, meanwhile.
pub unsafe fn multiply(product: &Product, dtype: Dtype, threads: usize, isa: Isa) {
    let size = dtype.size();
    let bytes = product.outputs * product.features * size;
    let threads = if bytes * product.rows.div_ceil(8) < PARALLEL_BYTES {
        1
    } else {
        threads
    };
    #[cfg(target_arch = "x86_64")]
    if (isa, dtype) == (Isa::Amx, Dtype::Bf16) && amx::fits(product) {
        let work = |packed: &amx::Packed| {
            spread(product, dtype, threads, |from, to, first, last| {
                // SAFETY: the caller's, as below.
                unsafe {
                    let rest = amx::panel(product, packed, from, to, first, last);
                    avx512::panel_bf16(product, from, to, rest, last);
                }
            });
        };
        // SAFETY: the caller's.
        return unsafe { amx::with_packed(product, work) };
    }
    spread(product, dtype, threads, |from, to, first, last| {
        // SAFETY: the caller vouches for the tensors and the instruction set; items write to disjoint parts of `y`.
        unsafe {
            match (isa, dtype) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Amx | Isa::Avx512Bf16, Dtype::Bf16) => {
                    avx512::panel_bf16(product, from, to, first, last)
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => {
                    avx512::panel_f32(product, from, to, first, last)
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512, Dtype::Bf16) => avx512::panel_widened(product, from, to, first, last),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, Dtype::F32) => avx2::panel_f32(product, from, to, first, last),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, Dtype::Bf16) => avx2::panel_bf16(product, from, to, first, last),
                (_, Dtype::F32) => lanes::panel_portable_f32(product, from, to, first, last),
                (_, Dtype::Bf16) => lanes::panel_portable_bf16(product, from, to, first, last),
            }
        }
    });
}

/// Calls `panel(from, to, first, last)` for all rows `from..to` and outputs `first..last` of the product, on up to `threads`
/// threads.
fn spread(
    product: &Product,
    dtype: Dtype,
    threads: usize,
    panel: impl Fn(usize, usize, usize, usize) + Sync,
) {
    let chunk = (CACHED / (product.features * dtype.size()).max(1)).clamp(ROWS, 1024) / ROWS * ROWS;
    let chunks = product.rows.div_ceil(chunk);
    let panels = product.outputs.div_ceil(PANEL);
    pool::run(threads, chunks * panels, |item| {
        let (from, first) = (item / panels * chunk, item % panels * PANEL);
        let (to, last) = (
            product.rows.min(from + chunk),
            product.outputs.min(first + PANEL),
        );
        panel(from, to, first, last);
    });
}

#[cfg(test)]
mod tests;
