//! Copies of rows into and within buffers given by address.

/// Copies row `source[i]` to row `target[i]` in every buffer, as SGLang's `copy_all_layer_kv_cache` does. All source rows of a buffer are read before any is written, so
/// that targets may also be sources.
///
/// # Safety
/// Buffer `b` starts at address `buffers[b]`, its rows are `row_bytes[b]` long and adjoin; it holds every row named, is valid
/// for reads and writes, and nobody else uses those rows meanwhile.
pub unsafe fn copy_rows(buffers: &[u64], row_bytes: &[u64], target: &[u64], source: &[u64]) {
    let mut held = Vec::new();
    for (&base, &bytes) in buffers.iter().zip(row_bytes) {
        let bytes = bytes as usize;
        held.resize(bytes * source.len(), 0u8);
        for (chunk, &row) in held.chunks_exact_mut(bytes.max(1)).zip(source) {
            let from = (base as usize + row as usize * bytes) as *const u8;
            // SAFETY: the caller vouches for row `row` of this buffer; `chunk` is ours and `bytes` long.
            unsafe { std::ptr::copy_nonoverlapping(from, chunk.as_mut_ptr(), bytes) };
        }
        for (chunk, &row) in held.chunks_exact(bytes.max(1)).zip(target) {
            let to = (base as usize + row as usize * bytes) as *mut u8;
            // SAFETY: as above, for writing.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), to, bytes) };
        }
    }
}

/// Copies row i of one buffer to row `target[i]` of another, `bytes` of each; rows begin `from_stride` and `to_stride` bytes
/// apart.
///
/// # Safety
/// Both buffers are live and hold every row named, do not overlap, and are ours alone meanwhile.
pub unsafe fn scatter_rows(
    from: usize,
    from_stride: usize,
    to: usize,
    to_stride: usize,
    bytes: usize,
    target: &[u32],
) {
    for (i, &row) in target.iter().enumerate() {
        // SAFETY: the caller vouches for both rows.
        unsafe {
            let from = (from + i * from_stride) as *const u8;
            std::ptr::copy_nonoverlapping(from, (to + row as usize * to_stride) as *mut u8, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{copy_rows, scatter_rows};

    #[test]
    fn scattered_rows_arrive_and_others_stay() {
        let from: Vec<u8> = (0..9).collect();
        let mut to = [100u8; 12];
        // SAFETY: three rows of two bytes, three apart, into four rows of three.
        unsafe {
            scatter_rows(
                from.as_ptr() as usize,
                3,
                to.as_mut_ptr() as usize,
                3,
                2,
                &[2, 0, 3],
            )
        };
        assert_eq!(to, [3, 4, 100, 100, 100, 100, 0, 1, 100, 6, 7, 100]);
    }

    #[test]
    fn overlapping_moves_read_before_they_write() {
        let mut a: Vec<u16> = (0..12).collect();
        let mut b: Vec<u8> = (0..6).collect();
        let buffers = [a.as_mut_ptr() as u64, b.as_mut_ptr() as u64];
        // SAFETY: six rows of two u16, and six rows of one byte; rows up to 5 are named.
        unsafe { copy_rows(&buffers, &[4, 1], &[1, 2, 0], &[0, 1, 5]) };
        assert_eq!(a, [10, 11, 0, 1, 2, 3, 6, 7, 8, 9, 10, 11]);
        assert_eq!(b, [5, 0, 1, 3, 4, 5]);
    }
}
