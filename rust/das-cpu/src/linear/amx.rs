//! Matrix products by AMX tiles: bfloat16 pairs, sums float32.
//!
//! A tile product takes 16 rows of weights as they lie in memory, 32 features of each, and 16 rows of `x`. Those are packed
//! first, so that the same pair of features of all 16 stands side by side. An output's sum runs over its features in
//! order, whatever stands beside it: missing rows of `x` are zeros, and tiles only decide what is worked on together.

use super::Product;
use crate::bf16::Bf16;
use crate::machine::fetch;
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;

/// Rows of a tile: weights, rows of `x`, pairs of features.
const SIDE: usize = 16;
/// Features of a tile.
const DEPTH: usize = 2 * SIDE;
/// Bytes of a tile's row.
const ROW: usize = 64;
/// Cells of a tile.
const CELLS: usize = SIDE * SIDE;
/// Tiles of sums at once.
const SUMS: usize = 4;

/// Whether a product has no features left over after whole tiles.
pub(super) fn fits(product: &Product) -> bool {
    product.features > 0 && product.features.is_multiple_of(DEPTH)
}

/// Rows of `x` in tiles.
pub(super) struct Packed<'a> {
    cells: &'a [u32],
    steps: usize,
}

impl Packed<'_> {
    /// The tiles of the 16 rows from `row` on, one after another by feature.
    fn tiles(&self, row: usize) -> *const u32 {
        self.cells[row / SIDE * self.steps * CELLS..].as_ptr()
    }
}

thread_local! {
    static PACKED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with the rows of `x` packed.
///
/// # Safety
/// As [`super::multiply`], with [`fits`], on a machine with AVX-512.
pub(super) unsafe fn with_packed(product: &Product, work: impl FnOnce(&Packed)) {
    PACKED.with(|packed| {
        let cells = &mut *packed.borrow_mut();
        let steps = product.features / DEPTH;
        let size = product.rows.div_ceil(SIDE) * steps * CELLS;
        if cells.len() < size {
            cells.resize(size, 0);
        }
        // SAFETY: the caller's.
        unsafe { pack(product, steps, &mut cells[..size]) };
        work(&Packed {
            cells: &cells[..size],
            steps,
        });
    });
}

/// # Safety
/// As [`with_packed`]; `cells` has room for all tiles.
#[target_feature(enable = "avx512f")]
unsafe fn pack(product: &Product, steps: usize, cells: &mut [u32]) {
    let x = product.x as *const Bf16;
    for (tile, to) in cells.chunks_exact_mut(CELLS).enumerate() {
        let (row, step) = (tile / steps * SIDE, tile % steps);
        let rows = SIDE.min(product.rows - row);
        let mut lines = [_mm512_setzero_si512(); SIDE];
        for (i, line) in lines.iter_mut().enumerate().take(rows) {
            // SAFETY: the row exists, and with it its features.
            *line = unsafe {
                let at = x.add((row + i) * product.x_stride + step * DEPTH);
                _mm512_loadu_si512(at.cast())
            };
        }
        let lines = transposed(lines.map(|line| _mm512_castsi512_ps(line)));
        for (to, line) in to.chunks_exact_mut(SIDE).zip(lines) {
            // SAFETY: sixteen cells.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), line) };
        }
    }
}

/// Rows as columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(mut lines: [__m512; SIDE]) -> [__m512; SIDE] {
    // Ever larger blocks change places: of one cell, of two, of four, of eight.
    let mut next = lines;
    for i in 0..SIDE / 2 {
        next[2 * i] = _mm512_unpacklo_ps(lines[2 * i], lines[2 * i + 1]);
        next[2 * i + 1] = _mm512_unpackhi_ps(lines[2 * i], lines[2 * i + 1]);
    }
    for i in 0..SIDE / 4 {
        for j in 0..2 {
            let (a, b) = (next[4 * i + j], next[4 * i + j + 2]);
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            lines[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            lines[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // Line 4 i + j now has column j of each quarter, for the rows of group i.
    for i in 0..2 {
        for j in 0..4 {
            let (a, b) = (lines[8 * i + j], lines[8 * i + 4 + j]);
            next[8 * i + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            next[8 * i + 4 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        }
    }
    for j in 0..4 {
        for half in 0..2 {
            let (a, b) = (next[4 * half + j], next[8 + 4 * half + j]);
            lines[4 * half + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            lines[8 + 4 * half + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        }
    }
    lines
}

/// What the tiles of a thread look like: all are 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    first_row: u8,
    unused: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPE: Shape = Shape {
    palette: 1,
    first_row: 0,
    unused: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The thread's tiles, from their configuration on until they are given back.
struct Tiles;

impl Tiles {
    /// # Safety
    /// The process may use AMX.
    unsafe fn take() -> Self {
        // SAFETY: reads 64 bytes that are there.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, preserves_flags))
        };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // Else the kernel saves and restores 8 KB with every switch of threads.
        // SAFETY: the tiles were configured.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// The compiler itself never touches tiles, so they keep their contents from one of these to the next.
macro_rules! tile {
    (zero $tile:literal) => {
        asm!(concat!("tilezero tmm", $tile), options(nomem, nostack, preserves_flags))
    };
    (load $tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{} + {}*1]"), in(reg) $from, in(reg) $stride,
            options(readonly, nostack, preserves_flags))
    };
    (add $sums:literal, $weights:literal, $x:literal) => {
        asm!(concat!("tdpbf16ps tmm", $sums, ", tmm", $weights, ", tmm", $x), options(nomem, nostack, preserves_flags))
    };
    (store $tile:literal, $to:expr) => {
        asm!(concat!("tilestored [{} + {}*1], tmm", $tile), in(reg) $to, in(reg) ROW, options(nostack, preserves_flags))
    };
}

#[repr(align(64))]
struct Cells([f32; SUMS * CELLS]);

/// Weights of `A` times 16 outputs and `B` times 16 packed rows.
struct Strip<const A: usize, const B: usize> {
    weights: *const u8,
    /// Bytes from one row of weights to the next.
    stride: usize,
    rows: [*const u32; B],
    steps: usize,
    /// Whether to ask for the weights of the next strip on the way.
    ahead: bool,
}

impl<const A: usize, const B: usize> Strip<A, B> {
    /// The sums of outputs `a` and rows `b` become the `2 a + b`th tile of `sums`.
    ///
    /// # Safety
    /// [`Tiles`] are taken; weights and rows have `steps` tiles.
    #[inline(always)]
    unsafe fn add_up(&self, sums: &mut Cells) {
        // SAFETY: the caller's.
        unsafe {
            tile!(zero 0);
            tile!(zero 1);
            tile!(zero 2);
            tile!(zero 3);
            for step in 0..self.steps {
                let weights = self.weights.add(step * ROW);
                tile!(load 4, weights, self.stride);
                tile!(load 6, self.rows[0].add(step * CELLS), ROW);
                tile!(add 0, 4, 6);
                if B == 2 {
                    tile!(load 7, self.rows[1].add(step * CELLS), ROW);
                    tile!(add 1, 4, 7);
                }
                if A == 2 {
                    tile!(load 5, weights.add(SIDE * self.stride), self.stride);
                    tile!(add 2, 5, 6);
                    if B == 2 {
                        tile!(add 3, 5, 7);
                    }
                }
                if self.ahead {
                    // In the order of the memory, which its own prefetching understands.
                    let (strip, part) = (A * SIDE * self.stride, A * SIDE * ROW);
                    fetch(self.weights.wrapping_add(strip + step * part), part);
                }
            }
            let to = sums.0.as_mut_ptr();
            tile!(store 0, to);
            tile!(store 1, to.add(CELLS));
            tile!(store 2, to.add(2 * CELLS));
            tile!(store 3, to.add(3 * CELLS));
        }
    }
}

/// Writes a tile of sums to up to 16 rows of `y`, plus bias.
///
/// # Safety
/// As [`panel`]: the rows exist, and the outputs from `output` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn store(product: &Product, sums: &[f32], row: usize, rows: usize, output: usize) {
    let (bias, y) = (product.bias as *const Bf16, product.y as *mut Bf16);
    // SAFETY: sixteen outputs and `rows` rows exist.
    unsafe {
        let bias = if bias.is_null() {
            None
        } else {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bias.add(output).cast()));
            Some(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        };
        let mut lines = [_mm512_setzero_ps(); SIDE];
        for (line, sums) in lines.iter_mut().zip(sums.chunks_exact(SIDE)) {
            *line = _mm512_loadu_ps(sums.as_ptr());
        }
        for (i, line) in transposed(lines).into_iter().enumerate().take(rows) {
            let total = bias.map_or(line, |bias| _mm512_add_ps(line, bias));
            let to = y.add((row + i) * product.y_stride + output);
            _mm256_storeu_si256(to.cast(), rounded(total));
        }
    }
}

/// To bfloat16 as `Bf16::from_f32` does.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(total: __m512) -> __m256i {
    let bits = _mm512_castps_si512(total);
    let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(total, total);
    let chosen = _mm512_mask_mov_epi32(nearest, unordered, quiet);
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen))
}

/// Rows `from..to` against outputs `first..last`, but for those behind the last whole tile; returns where those begin.
///
/// # Safety
/// As [`super::multiply`], with [`fits`], where the process may use AMX; `from` is a multiple of [`SIDE`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn panel(
    product: &Product,
    packed: &Packed,
    from: usize,
    to: usize,
    first: usize,
    last: usize,
) -> usize {
    let mut sums = Cells([0.0; SUMS * CELLS]);
    let stride = product.weight_stride * size_of::<Bf16>();
    // SAFETY: the caller's; tiles are of rows and outputs that exist.
    unsafe {
        let _tiles = Tiles::take();
        let weights = product.weight as *const u8;
        let mut output = first;
        while last - output >= SIDE {
            let tiles = (last - output) / SIDE;
            let outputs = tiles.min(2);
            for row in (from..to).step_by(2 * SIDE) {
                let ahead = row == from && tiles > 2;
                let (weights, steps) = (weights.add(output * stride), packed.steps);
                let one = [packed.tiles(row)];
                macro_rules! add_up {
                    ($a:literal, $b:literal, $rows:expr) => {
                        Strip::<$a, $b> {
                            weights,
                            stride,
                            rows: $rows,
                            steps,
                            ahead,
                        }
                        .add_up(&mut sums)
                    };
                }
                match (outputs, to - row > SIDE) {
                    (2, true) => add_up!(2, 2, [one[0], packed.tiles(row + SIDE)]),
                    (2, false) => add_up!(2, 1, one),
                    (_, true) => add_up!(1, 2, [one[0], packed.tiles(row + SIDE)]),
                    (_, false) => add_up!(1, 1, one),
                }
                for (tile, sums) in sums.0.chunks_exact(CELLS).enumerate().take(2 * outputs) {
                    let row = row + tile % 2 * SIDE;
                    if row < to {
                        store(
                            product,
                            sums,
                            row,
                            SIDE.min(to - row),
                            output + tile / 2 * SIDE,
                        );
                    }
                }
            }
            output += outputs * SIDE;
        }
        output
    }
}
